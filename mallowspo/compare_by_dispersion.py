"""Does a method's gain depend on the dispersion of the prompt? One slope a method and metric, for interaction.parquet.

A test prompt's dispersion is the mean dispersion index of its test pairs.
"""

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mallowspo.files import read_parquet
from mallowspo.inference import dispersion_slope
from mallowspo.inference.interaction import LEAST_PROMPTS
from mallowspo.layout import Layout

Array = NDArray[np.float64]


def prompt_dispersion(layout: Layout) -> tuple[pd.Series, str]:
    """Mean dispersion index of every test prompt's test pairs, by prompt_id; empty, and why, where there is none."""
    if not layout.dispersion.exists():
        return pd.Series(dtype=float), f"no slope: {layout.dispersion.name} is missing"
    pairs = read_parquet(layout.pairs("test"))[["pair_id", "prompt_id"]]
    found = read_parquet(layout.dispersion)[["pair_id", "dispersion_index"]].merge(pairs, on="pair_id")
    by_prompt = found.groupby("prompt_id")["dispersion_index"].mean().dropna()
    return by_prompt, f"no slope: {layout.dispersion.name} has no test prompt" if by_prompt.empty else ""


def slope_row(
    prompts: pd.Index, values: tuple[Array, Array, Array], dispersion: pd.Series, missing: str, confidence: float
) -> dict[str, float | str]:
    """Slope of the difference on the prompts' dispersion, per standard deviation of it.

    Where there is no slope (no dispersion of the test prompts, too few of them, or all the same) the numbers are NaN
    and the note says why.

    Args:
        prompts: prompt_id of the P rows of the values.
        values: method (P, S), baseline (P, S) or (P, 1), and all runs (M, P, S).
        dispersion, missing: from `prompt_dispersion`.
    """
    known = prompts.isin(dispersion.index)
    unit = dispersion.reindex(prompts[known]).to_numpy()
    note = missing or _obstacle(unit)
    mine, standard, runs = values
    row: dict[str, float | str] = dict.fromkeys(
        ("slope", "ci_low", "ci_high", "p", "rank_correlation", "rank_p"), math.nan
    )
    row |= {"n": int(known.sum()), "seeds": mine.shape[1], "covers": "", "note": note}
    if note:
        return row
    if not known.all():
        row["note"] = f"{(~known).sum()} of {len(prompts)} test prompts have no dispersion"
    found = dispersion_slope(mine[known], standard[known], unit, confidence, runs[:, known])
    ranks = {"rank_correlation": found.rank_correlation, "rank_p": found.rank_p}
    return {
        **row,
        "slope": found.slope,
        "ci_low": found.low,
        "ci_high": found.high,
        "p": found.p,
        **ranks,
        "covers": found.covers,
    }


def _obstacle(dispersion: Array) -> str:
    if len(dispersion) < LEAST_PROMPTS:
        return f"no slope: {len(dispersion)} test prompts have a dispersion, at least {LEAST_PROMPTS} are needed"
    return "no slope: all test prompts have the same dispersion" if np.ptp(dispersion) == 0 else ""
