"""Means and paired differences with their interval, their test and what this size can detect."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mallowspo.inference.crossed import Array, Spread, as_table, half_width, p_value, pooled_seeds, spread_of
from mallowspo.inference.power import detectable_effect
from mallowspo.inference.resampling import TEST_NAME, sign_flip_p

CROSSED_TEST_NAME = "t-type test with prompts and seeds crossed, two-sided (Howe's interval)"


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval and standard error; n: prompts, `covers`: what both speak of."""

    mean: float
    low: float
    high: float
    n: int
    covers: str
    standard_error: float


@dataclass(frozen=True)
class Difference:
    """A mean paired difference, its interval, its test, and what this size can detect (in the difference's unit).

    Attributes:
        p: of the claim that the interval makes, named by `test`: about the methods where there are several seeds.
        p_policies: sign-flip test: do these trained policies differ on new prompts? The same as p with one seed.
        confidence: of the interval.
        spread: what the interval rests on; `equivalence_p`, `prompts_needed` and `seeds_needed` take it.
    """

    difference: float
    low: float
    high: float
    p: float
    n: int
    test: str
    p_policies: float
    covers: str
    confidence: float
    spread: Spread

    @property
    def detectable(self) -> float:
        """Smallest true difference that a test at 1 - confidence finds with 80 % power at this size."""
        return detectable_effect(self.spread, 1 - self.confidence)


def estimate(values: ArrayLike, confidence: float = 0.95, runs: ArrayLike | None = None) -> Estimate:
    """Mean over prompts and seeds with its interval (`mallowspo.inference.crossed`); nothing is resampled.

    Args:
        values: (P,) or (P, S), finite; one value a prompt and seed.
        confidence: of the interval, such as 0.95.
        runs: (M, P, S), the values of all methods of the experiment, to pool the spread between seeds; default: the
            spread of these values alone.

    Returns:
        low and high are NaN where there is one prompt.
    """
    table = as_table(values)
    mean = float(table.mean())
    spread = spread_of(table, _seeds_part(table, runs, paired=False))
    half = half_width(spread, confidence)
    return Estimate(mean, mean - half, mean + half, len(table), spread.covers, spread.standard_error)


def paired_difference(
    values: ArrayLike,
    baseline: ArrayLike,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
    runs: ArrayLike | None = None,
) -> Difference:
    """Mean of values - baseline on the same prompts, with interval, test and detectable effect.

    Args:
        values: (P,) or (P, S), finite.
        baseline: (P,), (P, 1) or (P, S), row by row the same prompts, column by column the same seeds; one column
            serves all seeds.
        confidence: of the interval; the detectable effect is that of a test at 1 - confidence.
        resamples, seed: of the sign-flip test.
        runs: as in `estimate`; with a baseline of S columns, that is one of the methods.
    """
    minuend, subtrahend = as_table(values), as_table(baseline)
    if len(minuend) != len(subtrahend) or subtrahend.shape[1] not in (1, minuend.shape[1]):
        raise ValueError(f"shapes {minuend.shape} and {subtrahend.shape} cannot be paired")
    table = minuend - subtrahend
    spread = spread_of(table, _seeds_part(table, runs, paired=subtrahend.shape[1] > 1))
    return _difference(table, spread, confidence, resamples, seed)


def contrast(
    runs: ArrayLike,
    coefficients: ArrayLike,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Difference:
    """A weighted sum of several methods' means on the same prompts, as of two factors: sum of c_m method_m.

    A paired difference is the contrast 1, -1. Coefficients that sum to 0 take out what a prompt or a seed does to all
    methods alike; what is left of the seeds is their mean square with the methods, times the sum of the c_m^2.

    Args:
        runs: (M, P, S), finite, the values of all methods of the experiment.
        coefficients: (M,), sum 0; 0 for a method that only helps to tell how much runs differ.

    Raises:
        ValueError: other shapes, or the coefficients do not sum to 0.
    """
    values, weights = np.asarray(runs, dtype=float), np.asarray(coefficients, dtype=float)
    if values.ndim != 3 or weights.shape != (len(values),) or not np.isclose(weights.sum(), 0):
        raise ValueError(f"no contrast of runs {values.shape} by coefficients {weights.tolist()}")
    table = as_table(np.tensordot(weights, values, axes=1))
    part = None
    if table.shape[1] > 1:
        of_two, freedom = pooled_seeds(values.mean(axis=1), paired=True)
        part = (of_two / 2 * float((weights**2).sum()), freedom)
    return _difference(table, spread_of(table, part), confidence, resamples, seed)


def _difference(table: Array, spread: Spread, confidence: float, resamples: int, seed: int) -> Difference:
    """From (P, S) differences and what their spread is."""
    mean = float(table.mean())
    half = half_width(spread, confidence)
    p_policies = sign_flip_p(table.mean(axis=1), resamples, seed)
    crossed = spread.seeds > 1 and half > 0
    return Difference(
        difference=mean,
        low=mean - half,
        high=mean + half,
        p=p_value(mean, spread) if crossed else p_policies,
        n=len(table),
        test=CROSSED_TEST_NAME if crossed else TEST_NAME,
        p_policies=p_policies,
        covers=spread.covers,
        confidence=confidence,
        spread=spread,
    )


def _seeds_part(table: Array, runs: ArrayLike | None, paired: bool) -> tuple[float, float] | None:
    if runs is None or table.shape[1] == 1:
        return None
    means = np.asarray(runs, dtype=float).mean(axis=1)
    if means.ndim != 2 or means.shape[1] != table.shape[1]:
        raise ValueError(f"expected runs of shape (methods, prompts, {table.shape[1]}), got {np.shape(runs)}")
    return pooled_seeds(means, paired)
