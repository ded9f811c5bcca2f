"""Floating-point operations of matrix products, as PyTorch counts them: 2 m n k a product, attention in full even where
half is masked. Norms, softmax and the optimizer are not counted.

Of a pair with p, c and r tokens of prompt, chosen and rejected, packed so that both responses share the prompt:

    places     P = p + (c - 1) + (r - 1)                    each passes the body
    seen       S = p^2 + (c-1)(p+c-1) + (r-1)(p+r-1)        pairs of places that attention multiplies
    scored     N = c + r, in the reference pass + (p - 1)   each passes the output head

    forward    2 P body + 4 S layers attention_width + 2 N head
    backward   twice that (attention: 2.5 times, for its kernel computes the scores again);
               with adapters once, for weights that are frozen need no gradient (attention as before)
    again      where layers are computed again: the first two terms, but for every layer's last matrix

`body` and `head` are parameters (`Shape`). The head's forward is float32 always, all else is in `model.precision`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mallowspo.plan.shapes import Shape

Lengths = NDArray[np.float64]


@dataclass(frozen=True)
class Work:
    """Operations, by the precision that they run in."""

    products: float = 0.0  # in model.precision
    float32: float = 0.0  # the forward of the output head

    def __add__(self, other: "Work") -> "Work":
        return Work(self.products + other.products, self.float32 + other.float32)

    def __mul__(self, times: float) -> "Work":
        return Work(self.products * times, self.float32 * times)

    @property
    def total(self) -> float:
        return self.products + self.float32


@dataclass(frozen=True)
class Parts:
    """The parts of a forward, in operations."""

    body: float
    attention: float
    head: float
    last: float  # of the body: the last matrix of every layer, which no backward needs again


def pair_parts(shape: Shape, lengths: Lengths, score_prompt: bool = False) -> Parts:
    """Of pairs whose lengths are (n, 3): prompt, chosen, rejected."""
    prompt, chosen, rejected = lengths.T
    chosen_places, rejected_places = chosen - 1, rejected - 1
    places = prompt + chosen_places + rejected_places
    seen = prompt**2 + chosen_places * (prompt + chosen_places) + rejected_places * (prompt + rejected_places)
    scored = chosen + rejected + (prompt - 1 if score_prompt else 0)
    return _parts(shape, float(places.sum()), float(seen.sum()), float(scored.sum()))


def _parts(shape: Shape, places: float, seen: float, scored: float) -> Parts:
    attention = 4 * seen * shape.layers * shape.attention_width
    last = 2 * places * shape.layers * shape.hidden * shape.intermediate
    return Parts(2 * places * shape.body, attention, 2 * scored * shape.head, last)


def scoring(parts: Parts) -> Work:
    """One forward."""
    return Work(parts.body + parts.attention, parts.head)


def training(parts: Parts, adapters: bool, recomputed: bool) -> Work:
    """Forward and backward.

    Args:
        adapters: the weights themselves are frozen.
        recomputed: the layers are computed again in the backward.
    """
    again = 1 if adapters else 2
    backward = Work(again * (parts.body + parts.head) + 2.5 * parts.attention)
    repeated = Work(parts.body + parts.attention - parts.last) if recomputed else Work()
    return scoring(parts) + backward + repeated


def answers_read(shape: Shape, prompts: Lengths, new_tokens: int) -> Work:
    """One forward over answers that were sampled, each behind its prompt; of prompts (n,)."""
    added = new_tokens - 1
    places = float((prompts + added).sum())
    seen = float((prompts**2 + added * (prompts + added)).sum())
    return scoring(_parts(shape, places, seen, float(new_tokens * len(prompts))))


def prompts_read(shape: Shape, prompts: Lengths) -> Work:
    """The forward over prompts (n,) before answers are sampled: the head reads the last place of each."""
    parts = _parts(shape, float(prompts.sum()), float((prompts**2).sum()), float(len(prompts)))
    return Work(parts.body + parts.attention + parts.head)
