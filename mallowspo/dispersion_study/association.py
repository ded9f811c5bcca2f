"""Rank correlation of several estimates with one truth: intervals, tests, power.

Shape legend: N pairs (or prompts), K estimates, R resamples. The unit that is resampled or permuted is the pair.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mallowspo.inference import POWER, holm

Array = NDArray[np.float64]
#: Numbers held at once while resampling.
AT_ONCE = 2_000_000


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho of one estimate with the truth; `partial_*`: with the ranks of `given` taken out of both."""

    rho: float
    low: float
    high: float
    p: float
    p_holm: float
    partial: float
    partial_low: float
    partial_high: float
    n: int


def rank_correlations(
    estimates: dict[str, Array],
    truth: Array,
    given: Array | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    permutations: int = 9999,
    seed: int = 0,
) -> dict[str, RankCorrelation]:
    """Spearman's rho of each estimate (N,) with `truth` (N,).

    Intervals: percentile bootstrap over pairs, ranks taken anew in each resample. p: two-sided, from permuting which
    truth belongs to which pair; Holm's correction over the estimates. Partial: Spearman's partial correlation given
    the ranks of `given` (N,); NaN without it. An estimate that is the same everywhere has rho NaN and p 1.
    """
    names = list(estimates)
    columns = np.stack([np.asarray(estimates[name], dtype=float) for name in names])
    if columns.shape[1] < 3 or not (np.isfinite(columns).all() and np.isfinite(truth).all()):
        raise ValueError(f"expected at least 3 finite values of each estimate, got shape {columns.shape}")
    rng = np.random.default_rng(seed)
    observed = spearman(columns, truth)
    draws = _bootstrap(rng, columns, truth, given, resamples)
    p_values = _permutation_p(rng, columns, truth, observed, permutations)
    partials = np.full(len(names), math.nan) if given is None else partial_spearman(columns, truth, given)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    result = {}
    adjusted = holm(p_values)
    for index, name in enumerate(names):
        low, high = _interval(draws[0][:, index], tails)
        partial_low, partial_high = _interval(draws[1][:, index], tails)
        result[name] = RankCorrelation(
            rho=float(observed[index]),
            low=low,
            high=high,
            p=float(p_values[index]),
            p_holm=float(adjusted[index]),
            partial=float(partials[index]),
            partial_low=partial_low,
            partial_high=partial_high,
            n=columns.shape[1],
        )
    return result


def spearman(columns: Array, truth: Array) -> Array:
    """Spearman's rho of (..., N) with (..., N): (...); NaN where either is the same everywhere."""
    return _pearson(stats.rankdata(columns, axis=-1), stats.rankdata(truth, axis=-1))


def partial_spearman(columns: Array, truth: Array, given: Array) -> Array:
    """Partial rank correlation: Pearson's partial correlation of the ranks, `given` held fixed."""
    return _partial(spearman(columns, truth), spearman(columns, given), spearman(given, truth))


def _partial(xy: Any, xz: Any, zy: Any) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        value: Array = np.asarray((xy - xz * zy) / np.sqrt((1 - xz**2) * (1 - zy**2)))
    return value


def _pearson(first: Array, second: Array) -> Array:
    first = first - first.mean(axis=-1, keepdims=True)
    second = second - second.mean(axis=-1, keepdims=True)
    scale = np.sqrt((first**2).sum(axis=-1) * (second**2).sum(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        value: Array = np.asarray((first * second).sum(axis=-1) / scale)
    return value


def _bootstrap(
    rng: np.random.Generator, columns: Array, truth: Array, given: Array | None, resamples: int
) -> tuple[Array, Array]:
    """(R, K) resampled rho, and (R, K) resampled partial rho (NaN without `given`)."""
    count = columns.shape[1]
    simple = np.full((resamples, len(columns)), math.nan)
    partial = simple.copy()
    batch = max(1, AT_ONCE // count)
    for start in range(0, resamples, batch):
        part = slice(start, min(start + batch, resamples))
        drawn = rng.integers(count, size=(part.stop - start, count))
        truths = stats.rankdata(truth[drawn], axis=-1)
        lengths = truths if given is None else stats.rankdata(given[drawn], axis=-1)
        for index, column in enumerate(columns):
            values = stats.rankdata(column[drawn], axis=-1)
            simple[part, index] = _pearson(values, truths)
            if given is not None:
                partial[part, index] = _partial(
                    simple[part, index], _pearson(values, lengths), _pearson(lengths, truths)
                )
    return simple, partial


def _interval(values: Array, tails: list[float]) -> tuple[float, float]:
    if not np.isfinite(values).any():
        return math.nan, math.nan
    low, high = np.nanquantile(values, tails)
    return float(low), float(high)


def _permutation_p(rng: np.random.Generator, columns: Array, truth: Array, observed: Array, permutations: int) -> Array:
    ranks = stats.rankdata(columns, axis=-1)
    centred = ranks - ranks.mean(axis=-1, keepdims=True)
    spread = np.sqrt((centred**2).sum(axis=-1))
    target = stats.rankdata(truth)
    target = (target - target.mean()) / max(np.sqrt(((target - target.mean()) ** 2).sum()), 1e-300)
    reached = np.zeros(len(columns))
    batch = max(1, AT_ONCE // len(truth))
    for start in range(0, permutations, batch):
        shuffled = rng.permuted(np.tile(target, (min(batch, permutations - start), 1)), axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            found = np.abs(shuffled @ centred.T / spread)
        # Room for rounding: a permutation that leaves the ranks as they are counts as reaching the observed value.
        reached += (found >= np.abs(observed) - 1e-12).sum(axis=0)
    p: Array = np.where(np.isfinite(observed), (1 + reached) / (1 + permutations), 1.0)
    return p


def power(effect: float, count: int, alpha: float = 0.05) -> float:
    """Power to find a true rank correlation `effect` with `count` pairs, two-sided.

    Fisher's z with variance (1 + rho^2 / 2) / (n - 3) (Bonett and Wright 2000).
    """
    if count < 4:
        return math.nan
    shift = math.atanh(effect) / math.sqrt((1 + effect**2 / 2) / (count - 3))
    critical = stats.norm.ppf(1 - alpha / 2)
    return float(stats.norm.sf(critical - shift) + stats.norm.cdf(-critical - shift))


def needed(effect: float, alpha: float = 0.05, wanted: float = POWER) -> int:
    """Pairs needed to find a true rank correlation `effect` with that power, two-sided; as `power`."""
    total = stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(wanted)
    return int(np.ceil(3 + (1 + effect**2 / 2) * (total / math.atanh(effect)) ** 2))
