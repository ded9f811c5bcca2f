"""Mallows' law of whole rankings: distances, normaliser, exact sampling, exact pairwise probabilities.

A ranking of n items is an integer array: ranking[i] is the place of item i, 0 the first. With centre mu0 and
dispersion phi in (0, 1],

    P(mu) = phi^(exponent * d(mu, mu0)) / Z = exp(-rate * d) / Z,      rate = -exponent * log(phi) >= 0

where d is Kendall's tau (the number of pairs in the other order) or *half* of Spearman's rho (the sum of squared
differences of places, which is always even). Halved, both distances of two exchanged neighbours are 1, and exponent 2
is P proportional to phi^(sum of squares) for Spearman, and to phi^(2 tau) for Kendall: the two laws of Mallows (1957)
whose pairwise forms are MallowsPO-theta and MallowsPO-phi.

Kendall's law has closed forms for any n. Spearman's is summed over the 2^n sets of items, for at most 16 items;
longer rankings can be sampled (Metropolis), not normalised.
"""

import itertools
import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from mallowspo.mallows import subsets
from mallowspo.mallows.pairwise import kendall_log_probability

Array = NDArray[np.float64]
Ranking = NDArray[np.int64]
Distance = Literal["kendall", "spearman"]
Exponent = Literal[1, 2]
SamplingMethod = Literal["auto", "insertion", "enumeration", "metropolis"]

#: Listing every ranking: 8! = 40320.
MAX_LISTED = 8
#: Metropolis: proposals an item before a chain's one ranking is taken.
_SWEEPS = 200


def kendall_distance(a: ArrayLike, b: ArrayLike) -> NDArray[np.int64]:
    """Number of pairs of items that a and b put in a different order. Rankings (..., n) broadcast; result (...)."""
    a, b = as_rankings(a), as_rankings(b)
    first, second = np.triu_indices(a.shape[-1], 1)
    found: NDArray[np.int64] = ((a[..., first] < a[..., second]) != (b[..., first] < b[..., second])).sum(axis=-1)
    return found


def spearman_distance(a: ArrayLike, b: ArrayLike) -> NDArray[np.int64]:
    """Sum of squared differences of places (always even). Rankings (..., n) broadcast; result (...)."""
    found: NDArray[np.int64] = ((as_rankings(a) - as_rankings(b)) ** 2).sum(axis=-1)
    return found


def exchanges(a: ArrayLike, b: ArrayLike, distance: Distance) -> NDArray[np.int64]:
    """The distance in units of one exchange of neighbours: Kendall's tau, or half of Spearman's rho."""
    return kendall_distance(a, b) if distance == "kendall" else spearman_distance(a, b) // 2


def all_rankings(n: int) -> Ranking:
    """(n!, n): every ranking of n <= 8 items.

    Raises:
        ValueError: for more items.
    """
    if n > MAX_LISTED:
        raise ValueError(f"rankings are listed for at most {MAX_LISTED} items, got {n}")
    return np.array(list(itertools.permutations(range(n))), dtype=np.int64)


def ranking_law(
    centre: ArrayLike, phi: float, distance: Distance = "kendall", exponent: Exponent = 2
) -> tuple[Ranking, Array]:
    """Every ranking (n!, n) of n <= 8 items, and its probability (n!,)."""
    centre = as_rankings(centre)
    rankings = all_rankings(len(centre))
    mass = np.exp(-rate_of(phi, exponent) * exchanges(rankings, centre, distance))
    return rankings, mass / mass.sum()


def log_normaliser(n: int, phi: float, distance: Distance = "kendall", exponent: Exponent = 2) -> float:
    """log Z, the logarithm of the sum over all n! rankings. Kendall: any n. Spearman: n <= 16."""
    return log_normaliser_at(n, rate_of(phi, exponent), distance)


def log_normaliser_at(n: int, rate: float, distance: Distance) -> float:
    """log Z at a rate >= 0. Kendall's Z is the product over k = 1..n of (1 - q^k) / (1 - q), q = exp(-rate)."""
    if distance == "spearman":
        return math.log(subsets.paths(n, rate).normaliser)
    if rate == 0:
        return math.lgamma(n + 1)
    k = np.arange(1, n + 1)
    return float(np.sum(np.log(np.expm1(-rate * k) / math.expm1(-rate))))


def pairwise_matrix(centre: ArrayLike, phi: float, distance: Distance = "kendall", exponent: Exponent = 2) -> Array:
    """(n, n) exact probability that item i is ranked ahead of item j; 0 on the diagonal.

    Kendall: `pairwise_probability` of the gap, any n. Spearman: summed over sets, n <= 16; it depends on n and on both
    places, not on the gap alone.
    """
    centre = as_rankings(centre)
    return pairwise_by_place(len(centre), rate_of(phi, exponent), distance)[np.ix_(centre, centre)]


def pairwise_by_place(n: int, rate: float, distance: Distance) -> Array:
    """`pairwise_matrix` of items that are named by their place in the centre."""
    if distance == "spearman":
        return subsets.ahead(n, rate)
    places = torch.arange(n, dtype=torch.float64)
    law = kendall_log_probability(places[None, :] - places[:, None], torch.tensor(rate, dtype=torch.float64)).exp()
    found: Array = law.fill_diagonal_(0.0).numpy()
    return found


def sampling_method(n: int, distance: Distance) -> Literal["insertion", "enumeration", "metropolis"]:
    """What "auto" means in `sample_rankings`. The first two are exact, Metropolis in the limit of its steps."""
    if distance == "kendall":
        return "insertion"
    return "enumeration" if n <= subsets.MAX_ITEMS else "metropolis"


def sample_rankings(
    generator: np.random.Generator,
    count: int,
    centre: ArrayLike,
    phi: float,
    *,
    distance: Distance = "kendall",
    exponent: Exponent = 2,
    method: SamplingMethod = "auto",
) -> Ranking:
    """(count, n) independent rankings.

    Args:
        method: "auto" takes what `sampling_method` names.
            "insertion" (Kendall): repeated insertion (Doignon et al. 2004), exact for any n.
            "enumeration" (Spearman, n <= 16): place by place, from sums over all sets of items; exact.
            "metropolis" (Spearman): `count` separate chains from the centre, 200 n proposals each, of which only the
            last state is taken: the rankings are independent, nothing has to be thinned. A proposal exchanges the
            items of two places that lie at most about 2 / sqrt(rate) apart, the reach of the law itself.

    Raises:
        ValueError: for a method that does not fit the distance, or phi outside (0, 1].
    """
    centre = as_rankings(centre)
    n, rate = len(centre), rate_of(phi, exponent)
    chosen = sampling_method(n, distance) if method == "auto" else method
    if (distance == "kendall") != (chosen == "insertion"):
        raise ValueError(f"rankings under {distance} are not sampled by {chosen}")
    draw = {"insertion": _insert, "enumeration": subsets.draw, "metropolis": _metropolis}[chosen]
    return draw(generator, count, n, rate)[:, centre]


def _insert(generator: np.random.Generator, count: int, n: int, rate: float) -> Ranking:
    """Put in item 0, 1, ...: each jumps ahead of v of those before it, with probability proportional to q^v."""
    ranking = np.zeros((count, n), dtype=np.int64)
    for item in range(1, n):
        uniform = generator.random(count)
        inverse = uniform * (item + 1) if rate == 0 else -np.log1p(uniform * math.expm1(-rate * (item + 1))) / rate
        place = item - np.minimum(inverse.astype(np.int64), item)
        ranking[:, :item] += ranking[:, :item] >= place[:, None]
        ranking[:, item] = place
    return ranking


def _metropolis(generator: np.random.Generator, count: int, n: int, rate: float) -> Ranking:
    if n == 1:
        return np.zeros((count, 1), dtype=np.int64)
    chains = np.arange(count)
    order = np.tile(np.arange(n), (count, 1))  # item at each place
    reach = n - 1 if rate == 0 else min(n - 1, math.ceil(2 / math.sqrt(rate)))
    for _ in range(_SWEEPS * n):
        apart = generator.integers(0, reach + 1, size=count)  # 0: stay; else phi = 1 would keep every chain in step
        place = generator.integers(0, n - apart)
        first, second = order[chains, place], order[chains, place + apart]
        # sum of squares / 2 grows by (place of one - place of other) * (item of one - item of other)
        growth = apart * (second - first)
        accepted = generator.random(count) < np.exp(-rate * np.maximum(growth, 0))
        order[chains, place] = np.where(accepted, second, first)
        order[chains, place + apart] = np.where(accepted, first, second)
    return np.argsort(order, axis=1)


def rate_of(phi: float, exponent: Exponent) -> float:
    """rate = -exponent * log(phi).

    Raises:
        ValueError: when phi lies outside (0, 1] or is NaN.
    """
    if not 0 < phi <= 1:
        raise ValueError(f"phi must lie in (0, 1], got {phi}")
    return -exponent * math.log(phi)


def as_rankings(rankings: ArrayLike) -> Ranking:
    """Integer array (..., n).

    Raises:
        ValueError: when a row is not an order of the places 0..n-1.
    """
    array = np.asarray(rankings)
    if (
        array.ndim == 0
        or array.shape[-1] == 0
        or not np.array_equal(np.sort(array, axis=-1), np.broadcast_to(np.arange(array.shape[-1]), array.shape))
    ):
        raise ValueError("a ranking must hold each of the places 0..n-1 once: ranking[i] is the place of item i")
    return array.astype(np.int64)
