"""One of several processes that share a stage's work."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from mallowspo.errors import InputError

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
