"""What resamples: the sign-flip test, the permutation test of a correlation, the bootstrap over prompts and seeds."""

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from mallowspo.inference.crossed import Array, as_table

Bytes = NDArray[np.int8]
#: Numbers held at once while resampling (8 bytes each).
RESAMPLED_AT_ONCE = 4_000_000
TEST_NAME = "paired sign-flip permutation test over prompts, two-sided"


def sign_flip_p(by_prompt: ArrayLike, resamples: int = 9999, seed: int = 0) -> float:
    """Two-sided p that the prompts' differences (P,) have mean 0: signs of whole prompts are flipped.

    All 2^P patterns of signs when that is not more than `resamples`. For differences of -1, 0 and 1 this is McNemar's
    exact test. It asks whether these trained policies differ on new prompts, and knows nothing of other seeds.

    The same p as scipy.stats.permutation_test, whose draws take all the time; here many tables of P rows share them.
    """
    values = np.asarray(by_prompt, dtype=float)
    # Equal on every prompt: no sign to flip, and nothing that speaks against "no difference".
    if not values.any():
        return 1.0
    exact = 2.0**values.size <= resamples
    signs = _all_signs(values.size) if exact else _drawn_signs(values.size, resamples, seed)
    flipped = np.concatenate([part.astype(float) @ values for part in _parts(signs)])
    # Room for rounding: a pattern that gives the observed mean counts as reaching it.
    reached = int((np.abs(flipped) >= abs(values.sum()) - 1e-9 * np.abs(values).sum()).sum())
    return reached / len(signs) if exact else (reached + 1) / (len(signs) + 1)


def association(values: ArrayLike, others: ArrayLike, resamples: int = 9999, seed: int = 0) -> tuple[float, float]:
    """Pearson's correlation of two quantities of the same prompts, and its two-sided permutation p.

    Resampled: which of `others` (P,) belongs to which of `values` (P,). (NaN, 1) where either is the same everywhere.
    """
    first, second = np.asarray(values, dtype=float), np.asarray(others, dtype=float)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan, 1.0
    standard = (second - second.mean()) / second.std()

    def correlation(shuffled: Array, axis: int = -1) -> Any:
        centred = shuffled - first.mean()
        return (centred * standard).mean(axis=axis) / first.std()

    result = stats.permutation_test(
        (first,),
        correlation,
        permutation_type="pairings",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, RESAMPLED_AT_ONCE // first.size),
        rng=np.random.default_rng(seed),
    )
    return float(result.statistic), float(result.pvalue)


def two_level_bootstrap(
    values: ArrayLike, confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of (P,) or (P, S); prompts and seeds are resampled independently of each other.

    The "pigeonhole" bootstrap of crossed factors (Owen 2007), with S - 1 of S seeds drawn: the variance of a mean of
    S - 1 draws equals s^2 / S, the unbiased estimate (Rao and Wu 1988); drawing S would halve it at two seeds. With one
    seed only prompts are resampled. It assumes no distribution of the prompts, but with few seeds it is too narrow:
    a resample of two seeds knows two values (docs/statistics.md has its coverage). So it stands beside the interval of
    `paired_difference`, not in its place.
    """
    means = bootstrap_means(as_table(values)[None], resamples, seed)[:, 0]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def bootstrap_means(tables: Array, resamples: int = 9999, seed: int = 0) -> Array:
    """Means of several measurements (M, P, S) of the same prompts and seeds in the same resamples: (R, M).

    Resampled as by `two_level_bootstrap`; for numbers that follow from several means.
    """
    of_prompts, of_seeds = _counts(*tables.shape[1:], resamples, seed)
    columns = []
    for table in tables:
        by_seed = np.concatenate([part.astype(float) @ table for part in _parts(of_prompts)]) / len(table)
        columns.append((by_seed * of_seeds).sum(axis=1) / of_seeds[0].sum())
    return np.stack(columns, axis=1)


# Draws are kept, as single bytes: all methods and metrics of an experiment are measured on the same prompts.


@lru_cache(maxsize=2)
def _drawn_signs(prompts: int, resamples: int, seed: int) -> Bytes:
    """(R, P) of -1 and 1."""
    bits = np.random.default_rng(seed).integers(0, 2, size=(resamples, prompts), dtype=np.int8)
    return 2 * bits - 1


def _all_signs(prompts: int) -> Bytes:
    """(2^P, P) of -1 and 1."""
    bits = np.arange(2**prompts)[:, None] >> np.arange(prompts) & 1
    return (2 * bits - 1).astype(np.int8)


@lru_cache(maxsize=2)
def _counts(prompts: int, seeds: int, resamples: int, seed: int) -> tuple[Bytes, Bytes]:
    """(R, P) and (R, S): how often each resample holds every prompt and every seed."""
    generator = np.random.default_rng(seed)
    of_prompts = np.empty((resamples, prompts), dtype=np.int8)
    for part in _parts(of_prompts):
        part[:] = generator.multinomial(prompts, np.full(prompts, 1 / prompts), size=len(part))
    of_seeds = generator.multinomial(max(1, seeds - 1), np.full(seeds, 1 / seeds), size=resamples).astype(np.int8)
    return of_prompts, of_seeds


def _parts(table: Bytes) -> list[Bytes]:
    """Views of as many rows as may be held at once as numbers of 8 bytes."""
    rows = max(1, RESAMPLED_AT_ONCE // table.shape[1])
    return [table[start : start + rows] for start in range(0, len(table), rows)]
