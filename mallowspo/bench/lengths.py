"""Lengths of prompts and responses, stated as quantiles, and seeded draws from them.

`multi_turn` imitates HH harmless-base (its test file: 2,303 usable pairs, template plain, tokens of SmolLM2, the 96.9 %
that fit into 512 tokens): long prompts that both short answers share. `short_prompt` is its opposite, short prompts
with long answers: eight pairs have about 3,800 tokens, and 6,900 once padded in batches of four pairs.

Prompt, chosen and rejected are drawn apart from each other. In HH their logarithms correlate by about 0.2.
"""

from dataclasses import dataclass

#: The shares at which the quantiles below are given.
SHARES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)


@dataclass(frozen=True)
class Lengths:
    """Quantiles of three lengths in tokens, at `SHARES`; straight lines between them."""

    prompt: tuple[float, ...]
    chosen: tuple[float, ...]
    rejected: tuple[float, ...]

    def scaled(self, factor: float) -> "Lengths":
        """The same shape for a model with a smaller window."""
        return Lengths(*(tuple(factor * length for length in side) for side in self.sides))

    @property
    def sides(self) -> tuple[tuple[float, ...], ...]:
        return (self.prompt, self.chosen, self.rejected)


SETS = {
    "multi_turn": Lengths(
        prompt=(12, 17, 19, 31, 94, 163, 251, 300, 464),
        chosen=(2, 7, 9, 15, 27, 50, 84, 112, 259),
        rejected=(2, 7, 10, 18, 35, 63, 100, 126, 423),
    ),
    "short_prompt": Lengths(
        prompt=(8, 10, 12, 16, 25, 38, 55, 65, 80),
        chosen=(20, 35, 50, 100, 185, 300, 400, 430, 450),
        rejected=(20, 35, 50, 100, 185, 300, 400, 430, 450),
    ),
}


def draw(lengths: Lengths, pairs: int, maximum: int, seed: int) -> list[tuple[int, int, int]]:
    """Lengths of `pairs` pairs: (prompt, chosen, rejected), each at least 2 tokens.

    Each side takes one draw from each of `pairs` equal shares, in an order of its own, so that a small set already has
    the stated distribution.

    Args:
        maximum: tokens of prompt and response together; a prompt that leaves its longer response no room is cut.
    """
    import numpy as np  # here: `mallowspo --help` reads the names of the sets and needs no more

    generator = np.random.default_rng(seed)
    columns = []
    for quantiles in lengths.sides:
        shares = (generator.permutation(pairs) + generator.random(pairs)) / pairs
        columns.append(np.maximum(2, np.interp(shares, SHARES, quantiles).round().astype(int)).tolist())
    prompts, chosen, rejected = columns
    return [_within(*sizes, maximum) for sizes in zip(prompts, chosen, rejected, strict=True)]


def _within(prompt: int, chosen: int, rejected: int, maximum: int) -> tuple[int, int, int]:
    chosen, rejected = (min(length, maximum - 2) for length in (chosen, rejected))
    return min(prompt, maximum - max(chosen, rejected)), chosen, rejected
