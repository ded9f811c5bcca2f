"""One of several processes that share a stage's work."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mallowspo.errors import InputError

logger = logging.getLogger(__name__)

Part = TypeVar("Part")


@dataclass(frozen=True)
class Shard:
    """The share of one of several processes: every `count`-th part, from the `number`-th on."""

    number: int  # from 1
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """From "2/4", the second of four.

        Raises:
            InputError: not of that form, or not within it.
        """
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise InputError(f"--shard {text}: give NUMBER/COUNT with NUMBER from 1 to COUNT, as in 2/4")
        return cls(int(number), int(count))

    def of(self, parts: Sequence[Part]) -> Sequence[Part]:
        """The parts that are this process's."""
        return parts[self.number - 1 :: self.count]


def missing_of(
    parts: Sequence[Part], shard: Shard | None, is_there: Callable[[Part], bool], what: str
) -> tuple[Sequence[Part], list[Part]]:
    """A shard's parts, or all without one, and those of them that are not there; the log tells how many are.

    Args:
        what: the parts are, for the log.
    """
    share = shard.of(parts) if shard else parts
    missing = [part for part in share if not is_there(part)]
    logger.info("%d of %d %s are there already", len(share) - len(missing), len(share), what)
    return share, missing
