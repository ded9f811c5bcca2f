"""The search for a centre: the ranking that agrees best with what was observed."""

from collections.abc import Callable
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

Ranking = NDArray[np.int64]

#: Up to here the Kemeny ranking is found among all n!, by sums over 2^n sets.
_EXACT_ITEMS = 16


def order_by_score(score: NDArray[np.float64]) -> Ranking:
    """(n,) places by falling score; ties go to the item of the lower number."""
    return np.argsort(np.argsort(-score, kind="stable"))


def kemeny(ahead: NDArray[np.int64]) -> tuple[Ranking, bool]:
    """The ranking that the fewest observed pairs contradict, and whether it is surely that one.

    Args:
        ahead: (n, n) how often item i was ranked ahead of item j.

    Returns:
        The exact ranking for n <= 16 (dynamic programme over sets of items, as Held and Karp's); beyond, a ranking that
        moving any one item cannot better.
    """
    if len(ahead) <= _EXACT_ITEMS:
        return _kemeny_by_sets(ahead), True
    start = order_by_score((ahead - ahead.T).sum(axis=1).astype(np.float64))
    return climb(start, lambda places: float(ahead[places[:, None] < places[None, :]].sum())), False


def _kemeny_by_sets(ahead: NDArray[np.int64]) -> Ranking:
    n = len(ahead)
    against = np.zeros((2**n, n), dtype=np.int64)  # contradictions when the set stands in front of item i
    for item in range(n):
        half = 1 << item
        against[half : 2 * half] = against[:half] + ahead[:, item]
    sets = np.arange(2**n)
    inside = (sets[:, None] >> np.arange(n) & 1).astype(bool)
    size = inside.sum(axis=1)
    cost = np.zeros(2**n, dtype=np.int64)
    last = np.zeros(2**n, dtype=np.int64)
    for count in range(1, n + 1):
        these = sets[size == count]
        front = these[:, None] & ~(1 << np.arange(n))
        options = np.where(inside[these], cost[front] + against[front, np.arange(n)], np.iinfo(np.int64).max)
        last[these] = options.argmin(axis=1)
        cost[these] = options.min(axis=1)
    ranking = np.empty(n, dtype=np.int64)
    held = 2**n - 1
    for place in reversed(range(n)):
        ranking[last[held]] = place
        held &= ~(1 << int(last[held]))
    return ranking


def climb(start: Ranking, score: Callable[[Ranking], float]) -> Ranking:
    """Move one item to another place, whichever move raises the score most, until none does."""
    best, best_score = start, score(start)
    while True:
        moves = [_moved(best, source, target) for source, target in permutations(range(len(best)), 2)]
        scores = [score(move) for move in moves]
        top = int(np.argmax(scores)) if scores else -1
        if top < 0 or scores[top] <= best_score:
            return best
        best, best_score = moves[top], scores[top]


def _moved(ranking: Ranking, source: int, target: int) -> Ranking:
    order = np.argsort(ranking).tolist()
    order.insert(target, order.pop(source))
    return np.argsort(order)
