"""The paper's claim: where prompts are less dispersed, the method gains more. A slope, not a mean, tests it."""

from dataclasses import dataclass

import numpy as np
import statsmodels.api as sm
from numpy.typing import ArrayLike
from scipy import stats

from mallowspo.inference.crossed import Array, Spread, as_table, half_width, p_value, pooled_seeds

#: Fewer prompts leave a slope nothing to stand on.
LEAST_PROMPTS = 10


@dataclass(frozen=True)
class Slope:
    """Change of the paired difference with one standard deviation more dispersion; n is the number of prompts.

    Attributes:
        rank_correlation, rank_p: Spearman's rho of difference and dispersion, and its p, as a check that asks for no
            straight line; about these runs only.
    """

    slope: float
    low: float
    high: float
    p: float
    n: int
    covers: str
    rank_correlation: float
    rank_p: float


def dispersion_slope(
    values: ArrayLike,
    baseline: ArrayLike,
    dispersion: ArrayLike,
    confidence: float = 0.95,
    runs: ArrayLike | None = None,
) -> Slope:
    """Slope of the prompts' differences, values - baseline, on their standardised dispersion, robust by prompt.

    Least squares on the prompts' means over seeds. In this balanced layout that is the slope of all P x S differences,
    and a robust error of the means is the error clustered by prompt; HC3 (MacKinnon and White 1985), for few prompts of
    unequal spread. Seeds, where there are several, enter as in `mallowspo.inference.crossed`: each seed's run has a
    slope of its own, and those slopes differ.

    Args:
        values, baseline, runs: as in `paired_difference`.
        dispersion: (P,), in any unit; standardised here (mean 0, standard deviation 1 over the prompts).

    Raises:
        ValueError: fewer than LEAST_PROMPTS prompts, or the dispersion is the same everywhere.
    """
    subtrahend = as_table(baseline)
    table, unit = as_table(values) - subtrahend, np.asarray(dispersion, dtype=float)
    if len(table) < LEAST_PROMPTS or unit.shape != (len(table),) or np.ptp(unit) == 0:
        raise ValueError(f"no slope of differences {table.shape} on dispersion {unit.shape}: too few, or all the same")
    standard = (unit - unit.mean()) / unit.std()
    by_prompt = table.mean(axis=1)
    fitted = sm.OLS(by_prompt, sm.add_constant(standard)).fit(cov_type="HC3", use_t=True)
    slope = float(fitted.params[1])
    own_slopes = None if runs is None else standard @ np.asarray(runs, dtype=float) / len(table)
    spread = _spread(table, standard, float(fitted.bse[1]) ** 2, own_slopes, paired=subtrahend.shape[1] > 1)
    half = half_width(spread, confidence)
    # Differences that are equal everywhere have no ranks.
    ranks = stats.spearmanr(standard, by_prompt) if np.ptp(by_prompt) > 0 else None
    return Slope(
        slope=slope,
        low=slope - half,
        high=slope + half,
        p=p_value(slope, spread),
        n=len(table),
        covers=spread.covers,
        rank_correlation=float(ranks.statistic) if ranks else float("nan"),
        rank_p=float(ranks.pvalue) if ranks else 1.0,
    )


def _spread(table: Array, standard: Array, of_prompts: float, own_slopes: Array | None, paired: bool) -> Spread:
    """Of the slope. Seeds: from the slopes of runs, (M, S); noise: from what a seed's line leaves of each value."""
    prompts, seeds = table.shape
    if seeds == 1:
        return Spread(of_prompts, 0.0, 0.0, prompts, seeds, prompts - 2, 0)
    own = table - table.mean(axis=1, keepdims=True)
    slopes = standard @ own / prompts
    residual = own - own.mean(axis=0) - np.outer(standard, slopes)
    of_noise = float((standard**2 @ residual**2).sum()) / (prompts * (prompts - 2) * seeds * (seeds - 1))
    alone = own_slopes is None
    of_seeds, freedom = pooled_seeds(slopes[None] if own_slopes is None else own_slopes, paired and not alone)
    return Spread(of_prompts, of_seeds, of_noise, prompts, seeds, prompts - 2, freedom)
