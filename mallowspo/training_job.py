"""One training as it was asked for: what is trained on what, by which settings, and where it lies."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import set_seed

from mallowspo.files import digest, sha256_file
from mallowspo.layout import Layout
from mallowspo.methods import METHODS
from mallowspo.models import load_model
from mallowspo.pairs.prepared import open_tokens
from mallowspo.processes import Processes
from mallowspo.provenance import code_digest


@dataclass(frozen=True)
class Job:
    """Of one label and seed, in one of the training's processes.

    Attributes:
        view: settings of the stage "train".
        method: `MethodSettings` of the label.
        device, precision: resolved.
        sharded: the processes share the policy out (`mallowspo.sharding`).
    """

    view: Any
    method: Any
    label: str
    seed: int
    layout: Layout
    model_folder: Path
    device: str
    precision: str
    processes: Processes
    sharded: bool

    @property
    def settings(self) -> Any:
        return self.view.training

    @property
    def folder(self) -> Path:
        return self.layout.run(self.label, self.seed)

    @property
    def work(self) -> Path:
        """All of the training under way: checkpoints, metrics so far."""
        return self.folder / "work"

    @property
    def kept(self) -> Path:
        return self.layout.kept(self.label, self.seed)

    def steps(self, pairs: int) -> int:
        """Optimizer steps of the whole training."""
        per_epoch = -(-pairs // self.settings.pairs_per_step)
        return int(self.settings.max_steps or per_epoch * self.settings.epochs)

    def initial_policy(self, device: str = "cpu", four_bits: str | None = None) -> Any:
        """The policy before its first step."""
        return initial_policy(self.model_folder, self.settings.lora, self.seed, device, four_bits)

    def identity(self) -> dict[str, str]:
        """What a run is: settings, seed, code and the content of what it reads. Its digest is the MLflow run's key."""
        inputs = [self.layout.reference("train"), self.model_folder / "source.json"]
        if "dispersion" in METHODS[self.method.method].needs:
            inputs.append(self.layout.dispersion)
        parts = {
            "settings": digest(
                [self.view.model.precision, self.precision, self.view.tokens.model_dump(), self.settings.model_dump()]
            ),
            "method": digest([self.method.model_dump(), self.seed]),
            "code": code_digest("train"),
            "inputs": digest(
                [open_tokens(self.layout.tokens("train")).digest, *(sha256_file(file) for file in inputs)]
            ),
        }
        return {**parts, "digest": digest(parts)}

    def described(self) -> dict[str, Any]:
        """The run's settings.yaml."""
        return {
            "label": self.label,
            "seed": self.seed,
            "method": self.method.model_dump(),
            "precision": self.view.model.precision,
            "tokens": self.view.tokens.model_dump(),
            "training": self.settings.model_dump(),
        }


def initial_policy(model_folder: Path, lora: Any, seed: int, device: str = "cpu", four_bits: str | None = None) -> Any:
    """A policy before its first step.

    Args:
        lora: settings of new adapters, which are drawn by `seed`; None: the whole model is trained.
        four_bits: precision of the products of weights in four bits; None: weights in float32.
    """
    model = load_model(model_folder, device, four_bits=four_bits)
    _leave_out_dropout(model)
    return _with_adapters(model, lora, seed) if lora else model


def _leave_out_dropout(model: Any) -> None:
    """The reference was scored without. A share of it stands in a layer, or as a number in a module or the settings."""
    for place in (model.config, *model.modules()):
        if isinstance(place, nn.Dropout):
            place.p = 0.0
        for name, value in list(vars(place).items()):
            if name.endswith("dropout") and isinstance(value, float):
                setattr(place, name, 0.0)


def _with_adapters(model: Any, settings: Any, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    set_seed(seed)
    modules = settings.target_modules
    adapter = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=modules if isinstance(modules, str) else list(modules),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, adapter)
