"""How sure a mean over prompts and seeds is, when every run answers every prompt.

Model (two-way layout, both factors random): value(p, s) = mean + prompt(p) + seed(s) + noise(p, s). The noise is the
prompt's interaction with the seed and the chance in sampling its answers. Three parts of the mean's variance follow
from the usual mean squares:

    of_prompts = MS(prompts) / (P S)     expectation: var(prompt) / P + of_noise
    of_seeds   = MS(seeds) / (P S)       expectation: var(seed) / S + of_noise
    of_noise   = MS(residual) / (P S)    expectation: var(noise) / (P S)

The mean's error has two independent parts: one of prompts, of_prompts - of_noise, known from P - 1 degrees of freedom,
and one of seeds, of_seeds, known from f, which is S - 1 for one method alone. With t(d) Student's quantile,

    half^2 = max(t(P-1)^2 of_prompts,  t(P-1)^2 (of_prompts - of_noise) + t(f)^2 (of_seeds - 2 of_noise / (4 + f))).

Squared half-widths are added as by Howe (1974, "Approximate confidence limits on the mean of X + Y", JASA 69, 789-794).
The maximum says that seeds cannot vary less than not at all. A share of the noise is taken off because with few seeds
most of of_seeds may be noise that of_prompts already counts; 2 / (4 + f) was set by calibration.

What the spread of two or three runs lacks in degrees of freedom, the other methods of the experiment have:
`pooled_seeds` takes one variance between seeds for all of them, as an analysis of variance does.

What else was tried is in docs/statistics.md: Satterthwaite's degrees of freedom and the bootstrap cover too little with
few seeds, and adding the squares without taking off any noise too much. With one seed, only prompts count, and the
interval says nothing about another seed.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

Array = NDArray[np.float64]
#: A p below is 0: its quantiles squared would leave the range of numbers.
SMALLEST_P = 1e-100


@dataclass(frozen=True)
class Spread:
    """Parts of the variance of a mean over prompts and seeds: see the module's docstring.

    Attributes:
        of_prompts, of_seeds, of_noise: in the unit's square; the last two are 0 with one seed.
        prompts, seeds: how many.
        prompt_freedom, seed_freedom: degrees of freedom behind of_prompts and of_seeds.
    """

    of_prompts: float
    of_seeds: float
    of_noise: float
    prompts: int
    seeds: int
    prompt_freedom: float
    seed_freedom: float

    @property
    def standard_error(self) -> float:
        """Of the mean; NaN for one prompt."""
        return math.sqrt(max(self.of_prompts, self.of_prompts - self.of_noise + self.of_seeds))

    @property
    def covers(self) -> str:
        """What an interval from this spread speaks of."""
        return "new prompts, new seeds" if self.seeds > 1 else "new prompts, these runs only"


def as_table(values: ArrayLike) -> Array:
    """(P,) or (P, S) -> (P, S).

    Raises:
        ValueError: the shape is another, or a value is not finite.
    """
    table = np.asarray(values, dtype=float)
    if table.ndim == 1:
        table = table[:, None]
    if table.ndim != 2 or table.size == 0 or not np.isfinite(table).all():
        raise ValueError(f"expected finite values of shape (prompts,) or (prompts, seeds), got shape {table.shape}")
    return table


def spread_of(table: Array, seeds_part: tuple[float, float] | None = None) -> Spread:
    """From (P, S) values; `seeds_part`: of_seeds and its degrees of freedom, where other methods tell them.

    One prompt leaves everything unknown: NaN.
    """
    prompts, seeds = table.shape
    if prompts == 1:
        return Spread(math.nan, math.nan, math.nan, prompts, seeds, 0, 0)
    by_prompt, by_seed = table.mean(axis=1), table.mean(axis=0)
    of_prompts = float(by_prompt.var(ddof=1)) / prompts
    if seeds == 1:
        return Spread(of_prompts, 0.0, 0.0, prompts, seeds, prompts - 1, 0)
    residual = table - by_prompt[:, None] - by_seed + table.mean()
    of_noise = float((residual**2).sum()) / ((prompts - 1) * (seeds - 1) * prompts * seeds)
    of_seeds, freedom = seeds_part or pooled_seeds(by_seed[None], paired=False)
    return Spread(of_prompts, of_seeds, of_noise, prompts, seeds, prompts - 1, freedom)


def pooled_seeds(runs: Array, paired: bool) -> tuple[float, float]:
    """of_seeds and its degrees of freedom from (M, S), one number of every run of M methods with the same S seeds.

    Assumes that the runs of every method vary alike from seed to seed.

    Args:
        paired: the number asked for is a difference of two of these methods with the same seeds. Then what a seed does
            to all methods alike drops out: the mean square of method x seed, (M - 1)(S - 1) degrees of freedom. Else it
            is one method's own: the mean square within methods. Runs that share a seed may be alike, then, and M of
            them are worth less than M: with their intraclass correlation r, M (S - 1) / (1 + (M - 1) r^2).
    """
    methods, seeds = runs.shape
    own = runs - runs.mean(axis=1, keepdims=True)
    if paired:
        own = own - own.mean(axis=0)
        freedom = (methods - 1) * (seeds - 1)
        return 2 * float((own**2).sum()) / freedom / seeds, float(freedom)
    total = float((own**2).sum())
    alike = 1.0
    if methods > 1:
        together = float((own.sum(axis=0) ** 2).sum())
        alike = min(max((together - total) / ((methods - 1) * total), 0.0), 1.0) if total > 0 else 0.0
    freedom = methods * (seeds - 1)
    return total / freedom / seeds, freedom / (1 + (methods - 1) * alike**2)


def half_width(spread: Spread, confidence: float) -> float:
    """Half of the two-sided interval; NaN for one prompt."""
    return math.sqrt(_squared(spread, 1 - confidence)) if spread.prompts > 1 else math.nan


def p_value(difference: float, spread: Spread) -> float:
    """Two-sided p of the test that fits the interval: 1 - the confidence at which the interval ends at zero.

    1 for a difference of 0; 0 where nothing varies and the difference is not 0; NaN for one prompt.
    """
    target = difference**2
    if target == 0:
        return 1.0
    if spread.prompts == 1:
        return math.nan
    if _squared(spread, SMALLEST_P) <= target:
        return 0.0
    # The interval shrinks as alpha grows, from beyond the difference to nothing at alpha 1.
    found = optimize.brentq(lambda log_alpha: _squared(spread, math.exp(log_alpha)) - target, math.log(SMALLEST_P), 0.0)
    return math.exp(float(found))


def squared_half_width(
    of_prompts: float, of_seeds: Array, of_noise: float, freedoms: tuple[float, float], alpha: float
) -> Array:
    """Square of half the interval for any shape of of_seeds; freedoms of prompts and of seeds (0: one seed)."""
    t_prompts = float(special.stdtrit(freedoms[0], alpha / 2)) ** 2
    if freedoms[1] == 0:
        return np.full(np.shape(of_seeds), t_prompts * of_prompts)
    t_seeds = float(special.stdtrit(freedoms[1], alpha / 2)) ** 2
    both = t_prompts * max(of_prompts - of_noise, 0.0) + t_seeds * (of_seeds - 2 * of_noise / (4 + freedoms[1]))
    return np.maximum(t_prompts * of_prompts, both)


def _squared(spread: Spread, alpha: float) -> float:
    freedoms = (spread.prompt_freedom, spread.seed_freedom)
    return float(squared_half_width(spread.of_prompts, np.array(spread.of_seeds), spread.of_noise, freedoms, alpha))
