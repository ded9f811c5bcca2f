"""Parts of a policy's scores: some answers or some held-out pairs, the same whoever scores them, and how many do.

A part's file lies in a folder named by a digest of all that its numbers depend on: what is found there is not computed
again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mallowspo.files import digest
from mallowspo.kept import policy_content
from mallowspo.provenance import code_digest

#: Answers, or pairs, of one part.
SIZE = 256


@dataclass(frozen=True)
class Part:
    """Places within the answers or the pairs, and where their scores stand or will stand."""

    start: int
    stop: int
    file: Path

    @property
    def is_there(self) -> bool:
        return self.file.exists()

    @property
    def places(self) -> slice:
        return slice(self.start, self.stop)


def parts_of(count: int, folder: Path, what: str, together: int = 1) -> list[Part]:
    """Parts of `count` answers or pairs.

    Args:
        together: so many that follow one another are never in two parts.
    """
    size = max(1, SIZE // together) * together
    starts = range(0, count, size)
    return [Part(at, min(at + size, count), folder / f"{what}-{n:05d}.parquet") for n, at in enumerate(starts)]


def key_of(depends: Sequence[object], folders: Sequence[Path], arithmetic: tuple[str, str]) -> str:
    """Digest that names the folder of parts.

    Args:
        depends: what is scored, and how.
        folders: of the models that score it.
        arithmetic: precision and device.
    """
    return digest([list(depends), list(map(policy_content, folders)), *arithmetic, code_digest("score"), SIZE], 24)
