"""What an experiment of a given size can find, and the size that a given difference needs.

From the variance components of the paired differences, so that more prompts and more seeds are told apart: prompts
average out what differs between prompts, and only seeds average out what differs between runs.

Variances and degrees of freedom are those of the interval (`mallowspo.inference.crossed`), with one difference: an
interval goes by the mean squares as they turned out, a power by what they are expected to be, which for prompts and
seeds is never below the noise. Of few runs that happen to agree the interval is narrow, then, and the detectable
effect, which speaks of any experiment of this size, is not.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats
from statsmodels.stats.power import TTestPower

from mallowspo.inference.crossed import Array, Spread, squared_half_width

#: Power at which a difference counts as detectable.
POWER = 0.8
#: More than this many prompts or seeds is told as "out of reach".
MOST_PROMPTS, MOST_SEEDS = 10_000_000, 10_000
#: Quantiles that stand for the chance in the seeds' own spread.
_QUANTILES = 400


@dataclass(frozen=True)
class Components:
    """Variances of one paired difference (p, s): from the prompt, from the seed, from neither alone.

    Attributes:
        pooled: degrees of freedom between seeds over S - 1: how many methods' worth of runs tell the seeds' variance.
    """

    prompt: float
    seed: float
    noise: float
    pooled: float = 1.0


def components(spread: Spread) -> Components:
    """By the expectations of the mean squares, none below 0; with one seed all is the prompt's."""
    prompts, seeds = spread.prompts, spread.seeds
    return Components(
        prompt=max(spread.of_prompts - spread.of_noise, 0.0) * prompts,
        seed=max(spread.of_seeds - spread.of_noise, 0.0) * seeds,
        noise=spread.of_noise * prompts * seeds,
        pooled=spread.seed_freedom / (seeds - 1) if seeds > 1 else 1.0,
    )


def power(effect: float, of: Components, prompts: int, seeds: int, alpha: float = 0.05) -> float:
    """Probability that the test of `paired_difference` finds a true mean difference `effect`.

    The interval's half-width is taken over the distribution of the seeds' mean square; the prompts' is taken as known.
    With one seed this is the power to tell these runs apart, by a paired t-test over prompts.
    """
    if seeds == 1:
        standardised = abs(effect) / math.sqrt(of.prompt + of.noise)
        return float(TTestPower().power(standardised, prompts, alpha))
    of_noise = of.noise / (prompts * seeds)
    of_prompts, of_seeds = of.prompt / prompts + of_noise, of.seed / seeds + of_noise
    freedom = of.pooled * (seeds - 1)
    squared = squared_half_width(of_prompts, of_seeds * _mean_squares(freedom), of_noise, (prompts - 1, freedom), alpha)
    half, error = np.sqrt(squared), math.sqrt(of_prompts + of_seeds - of_noise)
    found = special.ndtr((abs(effect) - half) / error) + special.ndtr((-abs(effect) - half) / error)
    return float(found.mean())


def detectable_effect(spread: Spread, alpha: float = 0.05) -> float:
    """Smallest true mean difference found with 80 % power by as many prompts and seeds as the spread is from.

    Two-sided, before any correction for several tests; in the unit of the differences. NaN for fewer than three
    prompts, where no spread can be trusted; 0 where nothing varies.
    """
    prompts, seeds = spread.prompts, spread.seeds
    if prompts < 3:
        return math.nan
    of = components(spread)
    scale = math.sqrt(of.prompt + of.seed + of.noise)
    if scale == 0:
        return 0.0
    if seeds == 1:
        standardised = TTestPower().solve_power(effect_size=None, nobs=prompts, alpha=alpha, power=POWER)
        return float(np.squeeze(standardised)) * scale
    # 0 finds less than 80 %; a thousand standard deviations and Student's quantiles find more.
    most = 1000 * scale * (1 - float(special.stdtrit(spread.seed_freedom, alpha / 2)))
    found = optimize.brentq(lambda effect: power(effect, of, prompts, seeds, alpha) - POWER, 0.0, most, rtol=1e-4)
    return float(found)


def prompts_needed(effect: float, spread: Spread, alpha: float = 0.05) -> float:
    """Prompts at which a true difference `effect` is found with 80 % power with as many seeds as the spread is from.

    Infinite where no number of prompts is enough: then the runs themselves differ too much, and seeds are needed.
    NaN for fewer than three prompts.
    """
    if spread.prompts < 3 or math.isnan(effect):
        return math.nan
    of = components(spread)
    return _least(lambda prompts: power(effect, of, prompts, spread.seeds, alpha), 3, MOST_PROMPTS, effect, of)


def seeds_needed(effect: float, spread: Spread, alpha: float = 0.05) -> float:
    """Seeds at which a true difference `effect` is found with 80 % power on as many prompts as the spread is from.

    Infinite where no number of seeds is enough: then more prompts are needed. NaN for one seed, which says nothing
    about how seeds differ, and for fewer than three prompts.
    """
    if spread.prompts < 3 or spread.seeds == 1 or math.isnan(effect):
        return math.nan
    of = components(spread)
    return _least(lambda seeds: power(effect, of, spread.prompts, seeds, alpha), 2, MOST_SEEDS, effect, of)


def discordant_power(effect: float, discordance: float, prompts: ArrayLike, alpha: float = 0.05) -> Array:
    """Power of McNemar's test of two policies on the same prompts, one answer each.

    phi((effect sqrt(n) - z sqrt(d)) / sqrt(d - effect^2)), z the two-sided quantile (Connor 1987, Biometrics 43).

    Args:
        effect: true difference of the two win rates, such as 0.02.
        discordance: d, share of the prompts on which one wins and the other does not; above `effect`.
        prompts: n, any shape.
    """
    z = stats.norm.ppf(1 - alpha / 2)
    counts = np.asarray(prompts, dtype=float)
    shift = (effect * np.sqrt(counts) - z * math.sqrt(discordance)) / math.sqrt(discordance - effect**2)
    found: Array = stats.norm.cdf(shift)
    return found


@lru_cache(maxsize=64)
def _mean_squares(freedom: float) -> Array:
    """(Q,) equally likely values of a mean square with expectation 1."""
    middle = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    values: Array = special.chdtri(freedom, 1 - middle) / freedom
    return values


def _least(power_at: Callable[[int], float], low: int, most: int, effect: float, of: Components) -> float:
    """Smallest whole number at which the power is reached, by doubling and halving; power grows with it."""
    if effect == 0:
        return math.inf
    if of.prompt + of.seed + of.noise == 0 or power_at(low) >= POWER:
        return float(low)
    high = low
    while power_at(high) < POWER:
        low, high = high, 2 * high
        if low >= most:
            return math.inf
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_at(middle) >= POWER else (middle, high)
    return float(high)
