"""Parts of a policy's scores: some answers or some held-out pairs, the same whoever scores them, and how many do.

A part's file lies in a folder named by a digest of all that its numbers depend on: what is found there is not computed
again.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mallowspo.files import content_digest, digest
from mallowspo.provenance import code_digest
from mallowspo.shard import Shard

logger = logging.getLogger(__name__)

#: Answers, or pairs, of one part.
SIZE = 256


@dataclass(frozen=True)
class Part:
    """Places within the answers or the pairs, and where their scores stand or will stand."""

    start: int
    stop: int
    file: Path

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


def missing_of(parts: Sequence[Part], shard: Shard | None) -> set[Part]:
    """Those that are not there, of all or of a shard."""
    share = shard.of(parts) if shard else parts
    missing = {part for part in share if not part.file.exists()}
    logger.info("%d of %d parts of the scores are there already", len(share) - len(missing), len(share))
    return missing


def key_of(depends: Sequence[object], folders: Sequence[Path], arithmetic: tuple[str, str]) -> str:
    """Digest that names the folder of parts.

    Args:
        depends: what is scored, and how.
        folders: of the models that score it.
        arithmetic: precision and device.
    """
    models = [
        {file.name: content_digest(file) for file in sorted(folder.glob("*")) if file.is_file()} for folder in folders
    ]
    return digest([list(depends), models, *arithmetic, code_digest("score"), SIZE], 24)
