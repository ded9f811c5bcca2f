"""Does a second judge see the gain that the first sees? For second_opinion.parquet.

Policies learn to please the judge that their pairs were chosen by. The two judges have units of their own, so each
gain over the reference is divided by the standard deviation of the reference's rewards over the prompts, by that judge.
The excess, the first judge's gain minus the second's in these units, is a paired difference by prompt and seed. Above 0
the policy pleases the first judge more than the second bears out; this alone does not tell over-optimisation from
a first judge that sees more: the rank correlation of both on the reference's answers says how alike they judge.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mallowspo.compare_values import Values
from mallowspo.dispersion_study.association import rank_correlations
from mallowspo.inference import estimate, holm, paired_difference
from mallowspo.inference.interaction import LEAST_PROMPTS
from mallowspo.layout import REFERENCE
from mallowspo.metric_names import SECOND_REWARD

Array = NDArray[np.float64]
FIRST, SECOND, EXCESS, AGREEMENT = "first", "second", "excess", "agreement"
COLUMNS = ("method", "measure", "estimate", "ci_low", "ci_high", "p", "p_holm", "n", "seeds", "covers", "note")


def second_opinion_table(values: Values, methods: list[str], resampling: dict[str, Any]) -> pd.DataFrame:
    """Rows of `COLUMNS`; none without a second judge.

    Args:
        resampling: confidence, resamples, seed.

    Returns:
        measure first and second: the gains in standard deviations; excess: their difference, tested, and corrected by
        Holm over the methods; agreement (of the reference alone): Spearman's correlation of the two judges over
        prompts. Numbers are NaN, and the note says why, where a judge gives all prompts of the reference the same.
    """
    rows: list[dict[str, Any]] = []
    if SECOND_REWARD in values:
        rows = [_agreement(values, resampling), *_gains(values, methods, resampling)]
    if not rows:
        return pd.DataFrame({name: pd.Series(dtype=object) for name in COLUMNS})
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    tested = table["measure"] == EXCESS
    table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"]) if table.loc[tested, "p"].notna().all() else math.nan
    return table


def _gains(values: Values, methods: list[str], resampling: dict[str, Any]) -> list[dict[str, Any]]:
    standardised = [_standardised(values[metric], methods) for metric in ("reward", SECOND_REWARD)]
    note = next((f"the {name} judge gives all answers of the reference the same reward"
                 for name, found in zip((FIRST, SECOND), standardised, strict=True) if found is None), "")  # fmt: skip
    rows = []
    for at, label in enumerate(methods):
        prompts, seeds = values["reward"][label].shape
        row = {"method": label, "n": prompts, "seeds": seeds, "p": math.nan, "p_holm": math.nan, "note": note}
        if note:
            numbers = dict.fromkeys(("estimate", "ci_low", "ci_high"), math.nan)
            rows += [{**row, "measure": measure, **numbers, "covers": ""} for measure in (FIRST, SECOND, EXCESS)]
            continue
        first, second = (found for found in standardised if found is not None)
        for measure, runs in ((FIRST, first), (SECOND, second)):
            found = estimate(runs[at], resampling["confidence"], runs)
            numbers = {"estimate": found.mean, "ci_low": found.low, "ci_high": found.high}
            rows.append({**row, "measure": measure, **numbers, "covers": found.covers})
        excess = first - second
        tested = paired_difference(excess[at], np.zeros(prompts), **resampling, runs=excess)
        numbers = {"estimate": tested.difference, "ci_low": tested.low, "ci_high": tested.high, "p": tested.p}
        rows.append({**row, "measure": EXCESS, **numbers, "covers": tested.covers})
    return rows


def _standardised(by_label: dict[str, pd.DataFrame], methods: list[str]) -> Array | None:
    """(M, P, S), gains over the reference in its standard deviations over prompts; None where those are 0."""
    standard = by_label[REFERENCE].to_numpy().mean(axis=1)
    if np.ptp(standard) == 0:
        return None
    runs = np.stack([by_label[label].to_numpy() for label in methods])
    gains: Array = (runs - standard[:, None]) / standard.std(ddof=1)
    return gains


def _agreement(values: Values, resampling: dict[str, Any]) -> dict[str, Any]:
    first, second = (values[metric][REFERENCE].to_numpy().mean(axis=1) for metric in ("reward", SECOND_REWARD))
    row = {"method": REFERENCE, "measure": AGREEMENT, "n": len(first), "seeds": 1, "note": "", "p_holm": math.nan}
    if len(first) < LEAST_PROMPTS:
        numbers = dict.fromkeys(("estimate", "ci_low", "ci_high", "p"), math.nan)
        return {**row, **numbers, "covers": "", "note": f"fewer than {LEAST_PROMPTS} test prompts"}
    found = rank_correlations({SECOND: second}, first, **resampling)[SECOND]
    numbers = {"estimate": found.rho, "ci_low": found.low, "ci_high": found.high, "p": found.p}
    return {**row, **numbers, "covers": "new prompts, these runs only"}
