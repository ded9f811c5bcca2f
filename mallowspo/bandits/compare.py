"""Frontiers at the same KL, paired differences over seeds, and the verdict on the cause.

A seed draws its own central rankings and comparisons, so seeds are independent and are the unit of every interval.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mallowspo.bandits.runs import CONTROLS, SOURCES, Runs, Variant
from mallowspo.bandits.settings import BanditStudy
from mallowspo.bandits.world import Floats
from mallowspo.inference import holm, paired_difference
from mallowspo.methods import METHODS
from mallowspo.report.table import rows_of

#: Outcomes of the controls: name in the table -> (what is compared, where).
SAME_KL, SAME_BETA = "same KL", "same beta"
CONTROL_OUTCOMES = (("reward", SAME_KL), ("win_rate", SAME_KL), ("reward", SAME_BETA))
#: What MallowsPO-theta has to beat before dispersion is called the cause: every control that changes the weights alone.
MUST_BEAT = ("dpo", "shuffled", "shuffled_contexts", "inverted")


class Frontiers:
    """The outcomes of one law, number of comparisons and stage, by label, seed and beta."""

    def __init__(self, runs: Runs, settings: BanditStudy, law: str, comparisons: int, stage: str = "end"):
        values = runs.values
        keep = (values["law"] == law) & (values["comparisons"] == comparisons) & (values["stage"] == stage)
        self.settings = settings
        self.table = values[keep]

    def at_beta(self, label: str, outcome: str) -> Floats:
        """(S,) outcome at `same_beta`."""
        return self._grid(label, outcome)[:, self.settings.betas.index(self.settings.same_beta)]

    def at_kl(self, labels: Sequence[str], outcome: str) -> tuple[dict[str, Floats], list[float]]:
        """(S,) outcome of each label averaged over the KL targets that every label reaches in every seed, and those.

        A seed's frontier is interpolated linearly between its betas; nothing is extrapolated.
        """
        kls = {label: self._grid(label, "kl") for label in labels}
        low = max(kl.min(axis=1).max() for kl in kls.values())
        high = min(kl.max(axis=1).min() for kl in kls.values())
        reached = [target for target in self.settings.kl_targets if low <= target <= high]
        if not reached:
            return {}, []
        found = {}
        for label in labels:
            values = self._grid(label, outcome)
            rows = [_interpolated(reached, kl, value) for kl, value in zip(kls[label], values, strict=True)]
            found[label] = np.array(rows)
        return found, reached

    def _grid(self, label: str, outcome: str) -> Floats:
        """(S, N) in the order of seeds and betas."""
        rows = self.table[self.table["label"] == label]
        values: Floats = rows[outcome].to_numpy().reshape(self.settings.seeds, len(self.settings.betas))
        return values


def _interpolated(targets: list[float], kl: Floats, values: Floats) -> float:
    order = np.argsort(kl, kind="stable")
    return float(np.interp(targets, kl[order], values[order]).mean())


def difference_row(
    frontiers: Frontiers, label: str, against: str, outcome: str, where: str
) -> dict[str, str | float | int]:
    """One paired difference over seeds; NaN where the two share no KL target."""
    settings = frontiers.settings
    row: dict[str, str | float | int] = {"label": label, "against": against, "outcome": outcome, "where": where}
    if where == SAME_KL:
        values, reached = frontiers.at_kl([label, against], outcome)
        if not reached:
            nothing = dict.fromkeys(("value", "difference", "ci_low", "ci_high", "p", "detectable"), math.nan)
            return {**row, **nothing, "n": settings.seeds, "kl_low": math.nan, "kl_high": math.nan}
        first, second = values[label], values[against]
        kl = {"kl_low": min(reached), "kl_high": max(reached)}
    else:
        first, second = frontiers.at_beta(label, outcome), frontiers.at_beta(against, outcome)
        kl = {"kl_low": math.nan, "kl_high": math.nan}
    found = paired_difference(first, second, settings.confidence, settings.resamples)
    return {
        **row,
        "value": float(first.mean()),
        "difference": found.difference,
        "ci_low": found.low,
        "ci_high": found.high,
        "p": found.p,
        "n": found.n,
        "detectable": found.detectable,
        **kl,
    }


def controls_table(runs: Runs, settings: BanditStudy, stage: str) -> pd.DataFrame:
    """MallowsPO-theta against DPO, and against itself with controlled weights; Holm over all rows."""
    rows = []
    for count in settings.comparisons:
        frontiers = Frontiers(runs, settings, "mallows", count, stage)
        for source in SOURCES:
            theta = Variant("mallows_theta", source)
            for name in ("dpo", *CONTROLS):
                against = "dpo" if name == "dpo" else Variant("mallows_theta", source, name).label
                for outcome, where in CONTROL_OUTCOMES:
                    row = difference_row(frontiers, theta.label, against, outcome, where)
                    rows.append({"comparisons": count, "weights": source, "control": name, **row})
    return with_holm(pd.DataFrame(rows))


def methods_table(runs: Runs, settings: BanditStudy, law: str) -> pd.DataFrame:
    """Every method's reward at DPO's KL; Holm over all rows."""
    rows = []
    for count in settings.comparisons:
        frontiers = Frontiers(runs, settings, law, count)
        labels = [label for label in dict.fromkeys(frontiers.table["label"]) if label != "dpo"]
        for label in labels:
            if not any(control in label.split() for control in CONTROLS):
                row = difference_row(frontiers, label, "dpo", "reward", SAME_KL)
                accuracy = float(frontiers.at_beta(label, "accuracy").mean())
                rows.append({"comparisons": count, **row, "accuracy": accuracy})
    return with_holm(pd.DataFrame(rows))


def with_holm(table: pd.DataFrame) -> pd.DataFrame:
    """The table with p_holm: Holm's correction over all its rows that have a p."""
    tested = table["p"].notna()
    adjusted = pd.Series(math.nan, index=table.index)
    adjusted[tested] = holm(table.loc[tested, "p"])
    return table.assign(p_holm=adjusted)


def verdict(row: Any, confidence: float) -> str:
    """higher or lower where Holm's p and the interval agree; else unclear."""
    if not (row.p_holm < 1 - confidence) or row.ci_low <= 0 <= row.ci_high:
        return "unclear"
    return "higher" if row.difference > 0 else "lower"


def causes(controls: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """One row per comparisons, weights and outcome: against which controls theta is higher, lower, unclear."""
    rows = []
    keys = ["comparisons", "weights", "outcome", "where"]
    for key, part in controls.groupby(keys, sort=False):
        told = {str(row.control): verdict(row, confidence) for row in rows_of(part)}
        caused = all(told[name] == "higher" for name in MUST_BEAT)
        rows.append({**dict(zip(keys, key, strict=True)), **told, "dispersion_is_the_cause": caused})
    return pd.DataFrame(rows)


def strongest_without(runs: Runs, settings: BanditStudy, methods: pd.DataFrame, comparisons: int) -> dict[str, Any]:
    """MallowsPO-theta against the method without a dispersion that earns most at DPO's KL; empty if none has its KL."""
    without = methods["label"].map(lambda label: label in METHODS and METHODS[label].weight == "constant").astype(bool)
    plain = methods[(methods["comparisons"] == comparisons) & methods["difference"].notna() & without]
    if plain.empty:
        return {}
    best = str(plain.sort_values("difference")["label"].iloc[-1])
    return difference_row(Frontiers(runs, settings, "mallows", comparisons), "mallows_theta", best, "reward", SAME_KL)


def order(runs: Runs, law: str, comparisons: int) -> dict[str, Floats]:
    """label -> (S,): rank correlation over contexts of the spread of learned rewards with -log phi; 1: no collapse."""
    wide = _spreads_by_phi(runs, law, comparisons)
    ranks = wide.rank(axis=1)
    agreement = ranks.apply(lambda row: np.corrcoef(row, -np.arange(wide.shape[1]))[0, 1], axis=1)
    return {str(label): agreement[label].to_numpy() for label in wide.index.unique("label")}


def _spreads_by_phi(runs: Runs, law: str, comparisons: int) -> pd.DataFrame:
    spreads = runs.spreads
    part = spreads[(spreads["law"] == law) & (spreads["comparisons"] == comparisons)]
    return part.pivot_table(index=["label", "seed"], columns="phi", values="value", sort=True)


def collapse(runs: Runs, law: str, comparisons: int) -> dict[str, Floats]:
    """label -> (S,): spread of learned rewards in the most dispersed context over that in the least dispersed.

    1: the same rewards however much people agree (collapse); 0: none where they do not agree.
    """
    wide = _spreads_by_phi(runs, law, comparisons)
    ratio = wide[wide.columns.max()] / wide[wide.columns.min()]
    return {str(label): ratio[label].to_numpy() for label in wide.index.unique("label")}


def collapse_table(runs: Runs, settings: BanditStudy) -> pd.DataFrame:
    """Each method's ratio of `collapse` and rank correlation of `order`, and its ratio minus DPO's; Holm over all."""
    rows = []
    for count in settings.comparisons:
        ratios, orders = collapse(runs, "mallows", count), order(runs, "mallows", count)
        for label in ratios:
            if label == "dpo" or any(control in label.split() for control in CONTROLS):
                continue
            found = paired_difference(ratios[label], ratios["dpo"], settings.confidence, settings.resamples)
            rows.append(
                {
                    "comparisons": count,
                    "label": label,
                    "ratio": float(ratios[label].mean()),
                    "ratio_dpo": float(ratios["dpo"].mean()),
                    "rank_correlation": float(orders[label].mean()),
                    "difference": found.difference,
                    "ci_low": found.low,
                    "ci_high": found.high,
                    "p": found.p,
                    "n": found.n,
                    "detectable": found.detectable,
                }
            )
    return with_holm(pd.DataFrame(rows))
