"""Is dispersion another signal than the betas of adaptive methods? Rank correlations by prompt, for signals.parquet.

Of each prompt the mean dispersion weight of its pairs, against what an adaptive method goes by or learned:

    prompt log-perplexity   what Learnable Beta DPO's beta starts from, of all prompts: it needs no training
    beta                    of the held-out pairs, as trained: mean over a prompt's pairs and over seeds
    learned factor          of Learnable Beta DPO: its beta over the perplexity and the label's own beta

Near 1 the two say the same, so that a method that has one gains nothing by the other; near 0 they are complementary.
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from mallowspo.dispersion_study.association import rank_correlations
from mallowspo.files import read_parquet
from mallowspo.inference import holm
from mallowspo.inference.interaction import LEAST_PROMPTS
from mallowspo.layout import REFERENCE, Layout
from mallowspo.pair_betas import labels_with_pair_beta, learns_from_the_prompt
from mallowspo.perplexity import log_perplexity

PERPLEXITY, BETA, LEARNED = "prompt log-perplexity", "beta", "learned factor"
COLUMNS = ("method", "signal", "prompts", "rho", "ci_low", "ci_high", "p", "p_holm", "n", "seeds", "note")


def signals_table(view: Any, layout: Layout, resampling: dict[str, Any]) -> pd.DataFrame:
    """Rows of `COLUMNS`; none without `evaluation.signals`.

    Args:
        view: .methods, .seeds, .evaluation.signals.
        resampling: confidence, resamples, seed.

    Returns:
        prompts: which, "training and test" or "test"; rho: Spearman's, with a bootstrap interval over prompts and a
        permutation p; p_holm: over all rows. Seeds are averaged: the interval is about these runs. NaN, with a note,
        where there are too few prompts or one of the two is the same everywhere.
    """
    rows = []
    for (method, signal), table in signal_values(view, layout).items():
        seeds = 1 if method == REFERENCE else len(view.seeds)
        where = "training and test" if method == REFERENCE else "test"
        rows.append({"method": method, "signal": signal, "prompts": where, "seeds": seeds, **_row(table, resampling)})
    if not rows:
        return pd.DataFrame({name: pd.Series(dtype=object) for name in COLUMNS})
    found = pd.DataFrame(rows)
    tested = found["rho"].notna()
    found["p_holm"] = math.nan
    found.loc[tested, "p_holm"] = holm(found.loc[tested, "p"])
    return found[list(COLUMNS)]


def signal_values(view: Any, layout: Layout) -> dict[tuple[str, str], pd.DataFrame]:
    """(method, signal) -> weight and signal by prompt_id; nothing without `evaluation.signals`."""
    if not view.evaluation.signals:
        return {}
    weights = read_parquet(layout.dispersion)[["pair_id", "weight"]]
    found = {(REFERENCE, PERPLEXITY): _by_prompt(_perplexities(layout), weights)}
    for label in labels_with_pair_beta(view.methods):
        tables = [read_parquet(layout.scores(label, seed) / "signals.parquet") for seed in view.seeds]
        every = pd.concat(tables)
        found[label, BETA] = _by_prompt(every.assign(signal=every["beta"]), weights)
        if learns_from_the_prompt(view.methods[label]):
            found[label, LEARNED] = _by_prompt(every.assign(signal=every["learned"]), weights)
    return found


def _perplexities(layout: Layout) -> pd.DataFrame:
    """Of all pairs: pair_id, prompt_id, signal in nats a token; prompts of one token are left out, as nothing tells."""
    parts = []
    for split in ("train", "test"):
        reference = read_parquet(layout.reference(split))
        values, known = log_perplexity(reference)
        prompts = read_parquet(layout.pairs(split))[["pair_id", "prompt_id"]]
        parts.append(reference[["pair_id"]].assign(signal=values)[known].merge(prompts, on="pair_id"))
    return pd.concat(parts)


def _by_prompt(signals: pd.DataFrame, weights: pd.DataFrame) -> pd.DataFrame:
    both = signals.merge(weights, on="pair_id").dropna(subset=["weight", "signal"])
    return both.groupby("prompt_id")[["weight", "signal"]].mean()


def _row(table: pd.DataFrame, resampling: dict[str, Any]) -> dict[str, Any]:
    weight, signal = table["weight"].to_numpy(), table["signal"].to_numpy()
    row: dict[str, Any] = {**dict.fromkeys(("rho", "ci_low", "ci_high", "p"), math.nan), "n": len(table), "note": ""}
    if len(table) < LEAST_PROMPTS:
        return {**row, "note": f"{len(table)} prompts, at least {LEAST_PROMPTS} are needed"}
    for name, values in (("dispersion weight", weight), ("signal", signal)):
        if np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())):
            return {**row, "note": f"the {name} is the same for all prompts"}
    found = rank_correlations({"signal": signal}, weight, **resampling)["signal"]
    return {**row, "rho": found.rho, "ci_low": found.low, "ci_high": found.high, "p": found.p}
