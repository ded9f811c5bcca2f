"""Maximum likelihood of a Mallows model's centre and dispersion, from rankings, partial rankings or pairs.

For a given centre the dispersion is one number, found by a bounded search over log(rate), rate = -exponent * log(phi);
its interval holds every phi whose log-likelihood lies within 1.92 of the maximum (95 %, likelihood ratio), with the
centre held at its estimate. Data that agree with the centre throughout have their maximum at phi = 0, data at least as
far from it as uniform rankings at phi = 1; the interval is then one-sided.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, minimize_scalar

from mallowspo.mallows.centres import climb, kemeny, order_by_score
from mallowspo.mallows.rankings import (
    Array,
    Distance,
    Exponent,
    Ranking,
    all_rankings,
    as_rankings,
    exchanges,
    log_normaliser_at,
    pairwise_by_place,
)

#: Log-likelihood of a rate.
Curve = Callable[[float], float]

#: Beyond, q = exp(-rate) < 2e-22: no data tell it from 0.
_RATE_MAX = 50.0
_RATE_MIN = 1e-7
#: Half of the 95 % quantile of chi-square with one degree of freedom.
_DROP = 1.920729
#: Where centres are compared before the best ones are fitted.
_GRID = (0.0, *np.geomspace(0.02, 8.0, 16).tolist())
#: With partial rankings and pairs: items up to which every centre is tried (6! = 720), and how many of them are fitted.
_SEARCHED_ITEMS = 6
_FITTED_CENTRES = 12


@dataclass(frozen=True)
class Fit:
    """A fitted model.

    Attributes:
        centre: (n,) place of each item.
        phi: dispersion in [0, 1]; 0 is the limit in which every ranking equals the centre.
        log_likelihood: at the maximum.
        phi_low, phi_high: 95 % likelihood-ratio interval of phi, the centre held fixed.
        exact: whether the centre was given, or searched among all n!.
    """

    centre: Ranking
    phi: float
    log_likelihood: float
    phi_low: float
    phi_high: float
    exact: bool


def fit_rankings(
    rankings: ArrayLike,
    *,
    distance: Distance = "kendall",
    exponent: Exponent = 2,
    centre: ArrayLike | None = None,
) -> Fit:
    """Fit to independent full rankings (m, n).

    The centre that maximises the likelihood is the same at every phi. Kendall: the Kemeny ranking, found exactly for
    n <= 16 and by local search beyond. Spearman: the order of the mean places, for any n.

    Raises:
        ValueError: without rankings, or under Spearman for n > 16.
    """
    data = as_rankings(rankings)
    if data.ndim != 2 or len(data) == 0:
        raise ValueError("rankings must have shape (m, n) with m >= 1")
    m, n = data.shape
    exact = True
    if centre is not None:
        best = as_rankings(centre)
    elif distance == "spearman":
        best = order_by_score(-data.mean(axis=0))
    else:
        best, exact = kemeny((data[:, :, None] < data[:, None, :]).sum(axis=0))
    total = int(exchanges(data, best, distance).sum())
    return _fit_rate(lambda rate: -rate * total - m * _log_normaliser(n, rate, distance), best, exponent, exact)


def fit_partial(
    partial_rankings: Sequence[Sequence[int]],
    n: int,
    *,
    distance: Distance = "kendall",
    exponent: Exponent = 2,
    centre: ArrayLike | None = None,
    unlisted: Literal["unknown", "behind"] = "unknown",
) -> Fit:
    """Fit to independent partial rankings, each a sequence of items, best first. At most 8 items.

    The likelihood of a partial ranking is the sum over the full rankings that agree with it.

    Args:
        n: number of items of the model; items are 0..n-1.
        unlisted: "unknown": a partial ranking says nothing of the items it leaves out. "behind": they come after
            the listed ones, in an order not told (top-k lists).

    Raises:
        ValueError: without partial rankings, for items that repeat or are not among 0..n-1, or n > 8.
    """
    counts = Counter(_checked(partial, n) for partial in partial_rankings)
    if not counts:
        raise ValueError("no partial rankings")
    listed = all_rankings(n)
    agrees = np.stack([_agreeing(listed, partial, unlisted) for partial in counts])
    which, row = np.nonzero(agrees)
    times = np.array(list(counts.values()), dtype=np.float64)

    def curve(at: Ranking) -> Curve:
        apart = exchanges(listed, at, distance)
        bins = int(apart.max()) + 1
        rankings_at = np.bincount(which * bins + apart[row], minlength=len(times) * bins).reshape(-1, bins)
        nearest = (rankings_at > 0).argmax(axis=1)
        farther = np.maximum(np.arange(bins) - nearest[:, None], 0)  # from the nearest ranking: nothing underflows to 0

        def value(rate: float) -> float:
            mass = np.log(np.sum(rankings_at * np.exp(-rate * farther), axis=1)) - rate * nearest
            return float(times @ mass - times.sum() * _log_normaliser(n, rate, distance))

        return value

    ahead = (listed[:, :, None] < listed[:, None, :]).astype(np.float64)
    shares = np.stack([ahead[agreeing].mean(axis=0) for agreeing in agrees])
    return _fit(curve, np.tensordot(times, shares, axes=1), centre, exponent)


def fit_pairs(
    winner: ArrayLike,
    loser: ArrayLike,
    n: int,
    *,
    distance: Distance = "kendall",
    exponent: Exponent = 2,
    centre: ArrayLike | None = None,
) -> Fit:
    """Fit to independent comparisons of two of n items: winner[k] was ranked ahead of loser[k].

    Each comparison is taken to come from a ranking of its own, with the exact pairwise probability of
    `pairwise_matrix`. Pairs read off the same ranking are not independent: fit them with `fit_partial`.

    Raises:
        ValueError: without pairs, for items outside 0..n-1 or compared with themselves, or under Spearman for n > 16.
    """
    first, second = np.asarray(winner, dtype=np.int64), np.asarray(loser, dtype=np.int64)
    if first.shape != second.shape or first.ndim != 1 or len(first) == 0:
        raise ValueError("winner and loser must have the same shape (pairs,), with at least one pair")
    if min(first.min(), second.min()) < 0 or max(first.max(), second.max()) >= n or bool(np.any(first == second)):
        raise ValueError(f"winner and loser must be two different items of 0..{n - 1}")
    wins = np.zeros((n, n))
    np.add.at(wins, (first, second), 1.0)

    def curve(at: Ranking) -> Curve:
        items = np.argsort(at)  # the item at each place
        wins_by_place = wins[np.ix_(items, items)]
        return lambda rate: float(np.sum(wins_by_place * _log_pairwise(n, rate, distance)))

    return _fit(curve, wins, centre, exponent)


#: The search asks for the same rates again and again.
_log_normaliser = lru_cache(maxsize=4096)(log_normaliser_at)


@lru_cache(maxsize=4096)
def _log_pairwise(n: int, rate: float, distance: Distance) -> Array:
    law = pairwise_by_place(n, rate, distance)
    np.fill_diagonal(law, 1.0)
    return np.log(np.maximum(law, np.finfo(np.float64).tiny))


def _checked(partial: Sequence[int], n: int) -> tuple[int, ...]:
    items = tuple(int(item) for item in partial)
    if not items or len(set(items)) != len(items) or min(items) < 0 or max(items) >= n:
        raise ValueError(f"a partial ranking must name different items of 0..{n - 1}, got {items}")
    return items


def _agreeing(rankings: Ranking, partial: tuple[int, ...], unlisted: str) -> NDArray[np.bool_]:
    places = rankings[:, list(partial)]
    agrees = np.all(np.diff(places, axis=1) > 0, axis=1)
    if unlisted == "behind":
        agrees = np.logical_and(agrees, places[:, -1] == len(partial) - 1)
    return np.asarray(agrees)


def _fit(curve: Callable[[Ranking], Curve], wins: Array, centre: ArrayLike | None, exponent: Exponent) -> Fit:
    """Search the centre unless it is given; wins[i, j] tells how often item i was ahead of j, for a start."""
    n = len(wins)
    if centre is not None:
        return _fit_rate(curve(as_rankings(centre)), as_rankings(centre), exponent, True)

    def score(at: Ranking) -> float:
        value = curve(at)
        return max(value(rate) for rate in _GRID)

    exact = n <= _SEARCHED_ITEMS
    if exact:
        every = all_rankings(n)
        best_first = np.argsort([-score(at) for at in every], kind="stable")
        candidates = every[best_first[:_FITTED_CENTRES]]
    else:
        candidates = climb(order_by_score(wins.sum(axis=1) - wins.sum(axis=0)), score)[None]
    return max((_fit_rate(curve(at), at, exponent, exact) for at in candidates), key=lambda fit: fit.log_likelihood)


def _fit_rate(value: Curve, centre: Ranking, exponent: Exponent, exact: bool) -> Fit:
    start = int(np.argmax([value(rate) for rate in _GRID[1:]])) + 1
    low = math.log(_GRID[start - 1] or _RATE_MIN)
    high = math.log(_GRID[start + 1] if start + 1 < len(_GRID) else _RATE_MAX)
    found = minimize_scalar(
        lambda x: -value(math.exp(x)), bounds=(low, high), method="bounded", options={"xatol": 1e-9}
    )
    rate = max((0.0, math.exp(found.x), _RATE_MAX), key=value)
    top = value(rate)

    def above(x: float) -> float:
        return value(x) - (top - _DROP)

    slowest = 0.0 if above(0.0) >= 0 else float(brentq(above, 0.0, rate))
    fastest = math.inf if above(_RATE_MAX) >= 0 else float(brentq(above, rate, _RATE_MAX))
    phi = 0.0 if rate == _RATE_MAX else math.exp(-rate / exponent)
    return Fit(centre, phi, top, math.exp(-fastest / exponent), math.exp(-slowest / exponent), exact)
