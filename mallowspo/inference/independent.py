"""The difference of two policies of different experiments, whose trainings share no seed.

As `mallowspo.inference.crossed`, with two changes. The seeds of the two are independent, whatever their numbers say:
their parts of the variance add up. Where both answered the same prompts, the prompts are paired; else they are two
independent samples, whose parts add up, too, with Welch's degrees of freedom. What both share all the same (some of
the prompts, the order of the pairs under one seed) makes the interval wider than it need be, never narrower.
"""

import math

import numpy as np

from mallowspo.inference.crossed import Array, Spread, as_table, half_width, p_value, pooled_seeds, spread_of
from mallowspo.inference.differences import Difference
from mallowspo.inference.resampling import TEST_NAME, sign_flip_p

PAIRED_SEVERAL = "t-type test over paired prompts and independent seeds, two-sided"
UNPAIRED_SEVERAL = "t-type test over independent prompts (Welch) and independent seeds, two-sided"
UNPAIRED_ONE = "Welch's t-test over prompts, two-sided"


def independent_difference(
    first: Array,
    second: Array,
    paired: bool,
    runs: tuple[Array, Array] | None = None,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Difference:
    """Mean of first - second, with interval, test and detectable effect.

    Args:
        first, second: (P, S) and (Q, T), finite: values of one policy each.
        paired: row by row the same prompts; P = Q.
        runs: (M, P, S) and (N, Q, T), the values of all methods of each experiment, to pool the spread between seeds.
        confidence: of the interval.
        resamples, seed: of the sign-flip test, where prompts are paired.

    Returns:
        With one seed on either side the interval speaks of these runs only. n: pairs of prompts, or the prompts of the
        smaller side.

    Raises:
        ValueError: a value is not finite, or paired tables differ in their rows.
    """
    tables = (as_table(first), as_table(second))
    if paired and len(tables[0]) != len(tables[1]):
        raise ValueError(f"{len(tables[0])} and {len(tables[1])} prompts cannot be paired")
    mean = float(tables[0].mean() - tables[1].mean())
    spread = _spread(tables, paired, runs or (tables[0][None], tables[1][None]))
    half = half_width(spread, confidence)
    by_prompt = [table.mean(axis=1) for table in tables]
    flips = sign_flip_p(by_prompt[0] - by_prompt[1], resamples, seed) if paired else math.nan
    several = spread.seeds > 1
    if paired:
        test, p = (PAIRED_SEVERAL, p_value(mean, spread)) if several else (TEST_NAME, flips)
    else:
        test, p = (UNPAIRED_SEVERAL if several else UNPAIRED_ONE), p_value(mean, spread)
    return Difference(
        difference=mean,
        low=mean - half,
        high=mean + half,
        p=p,
        n=min(map(len, tables)),
        test=test,
        p_policies=flips if paired else p_value(mean, _one_seed(spread)),
        covers=spread.covers,
        confidence=confidence,
        spread=spread,
    )


def _spread(tables: tuple[Array, Array], paired: bool, runs: tuple[Array, Array]) -> Spread:
    """Of the difference of two means: parts of both added up, or the prompts' from the paired differences."""
    parts = [
        spread_of(table, pooled_seeds(of.mean(axis=1), paired=False) if table.shape[1] > 1 else None)
        for table, of in zip(tables, runs, strict=True)
    ]
    by_prompt = [table.mean(axis=1) for table in tables]
    if paired:
        prompts = spread_of(as_table(by_prompt[0] - by_prompt[1]))
        of_prompts, prompt_freedom = prompts.of_prompts, prompts.prompt_freedom
    else:
        shares = np.array([values.var(ddof=1) / len(values) if len(values) > 1 else math.nan for values in by_prompt])
        of_prompts = float(shares.sum())
        prompt_freedom = _satterthwaite(shares, np.array([len(values) - 1 for values in by_prompt]))
    count = min(map(len, tables))
    if min(part.seeds for part in parts) == 1:
        return Spread(of_prompts, 0.0, 0.0, count, 1, prompt_freedom, 0)
    of_seeds = np.array([part.of_seeds for part in parts])
    freedom = _satterthwaite(of_seeds, np.array([part.seed_freedom for part in parts]))
    of_noise = sum(part.of_noise for part in parts)
    seeds = min(part.seeds for part in parts)
    return Spread(of_prompts, float(of_seeds.sum()), of_noise, count, seeds, prompt_freedom, freedom)


def _one_seed(spread: Spread) -> Spread:
    return Spread(spread.of_prompts, 0.0, 0.0, spread.prompts, 1, spread.prompt_freedom, 0)


def _satterthwaite(parts: Array, freedoms: Array) -> float:
    """Degrees of freedom of a sum of independent mean squares (Satterthwaite 1946); of parts that are all 0, theirs."""
    if parts.sum() == 0:
        return float(freedoms.sum())
    return float(parts.sum() ** 2 / (parts**2 / freedoms).sum())
