"""Spearman's law by sums over subsets: exact in 2^n n steps where listing all rankings takes n!.

Items are named by their place in the centre. Under P proportional to exp(-rate * sum of (place - item)^2 / 2) every
item pays for its own place alone, so a ranking is a path through sets of items: the first p places hold a set S, the
next place takes one item more. Sums over all paths are sums over sets.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Sets of more items take too much memory: 2^16 sets of 16 items are 8 MB.
MAX_ITEMS = 16


class Paths(NamedTuple):
    """The law of the paths.

    Attributes:
        step: (2^n, n) probability that the first places hold exactly the set (as a bit mask) and item i comes next.
        normaliser: the sum over all rankings of exp(-rate * distance), at least 1.
    """

    step: Array
    normaliser: float


def paths(n: int, rate: float) -> Paths:
    """All steps of all paths.

    Raises:
        ValueError: for more than `MAX_ITEMS` items.
    """
    if n > MAX_ITEMS:
        raise ValueError(f"Spearman's law is summed exactly for at most {MAX_ITEMS} items, got {n}")
    items = np.arange(n)
    cost = np.exp(-rate * (items[:, None] - items[None, :]) ** 2 / 2)  # [item, place]
    sets = np.arange(2**n)
    inside = (sets[:, None] >> items & 1).astype(bool)
    size = inside.sum(axis=1)
    before = np.zeros(2**n)  # sum over the orders in which a set fills the first places
    after = np.zeros(2**n)  # sum over the orders in which the others fill the rest
    before[0] = after[-1] = 1.0
    for place in range(n):
        these = sets[size == place + 1]
        before[these] = (before[these[:, None] & ~(1 << items)] * cost[:, place] * inside[these]).sum(axis=1)
    for place in reversed(range(n)):
        these = sets[size == place]
        after[these] = (after[these[:, None] | (1 << items)] * cost[:, place] * ~inside[these]).sum(axis=1)
    place_cost = cost[:, np.minimum(size, n - 1)].T  # the full set has no next place, and no item outside either
    step = before[:, None] * place_cost * after[sets[:, None] | (1 << items)] * ~inside
    return Paths(step / after[0], float(after[0]))


def ahead(n: int, rate: float) -> Array:
    """(n, n) probability that item i is ranked ahead of item j; 0 on the diagonal."""
    items = np.arange(n)
    outside = 1.0 - (np.arange(2**n)[:, None] >> items & 1)
    found: Array = paths(n, rate).step.T @ outside
    np.fill_diagonal(found, 0.0)
    return found


def draw(generator: np.random.Generator, count: int, n: int, rate: float) -> NDArray[np.int64]:
    """(count, n) independent rankings, place by place: place of each item."""
    step = paths(n, rate).step
    held = np.zeros(count, dtype=np.int64)
    ranking = np.empty((count, n), dtype=np.int64)
    for place in range(n):
        law = np.cumsum(step[held], axis=1)
        threshold = generator.random(count) * law[:, -1]
        item = (law <= threshold[:, None]).sum(axis=1)
        ranking[np.arange(count), item] = place
        held |= 1 << item
    return ranking
