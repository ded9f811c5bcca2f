"""What the numbers say, in sentences: each verdict follows from an interval and Holm's p, a null one as such."""

import math
from typing import Any

import pandas as pd

from mallowspo.bandits.compare import SAME_BETA, SAME_KL, causes, order, strongest_without, verdict
from mallowspo.bandits.runs import CONTROLS, SOURCES, Runs
from mallowspo.bandits.settings import BanditStudy
from mallowspo.bandits.tables import AGAINST, told
from mallowspo.bandits.world import Floats
from mallowspo.inference import paired_difference
from mallowspo.methods import METHODS
from mallowspo.report.table import rows_of
from mallowspo.report.words import fixed, interval, plural

Controls = dict[str, pd.DataFrame]
Ratios = dict[int, dict[str, Floats]]


def findings(
    settings: BanditStudy,
    runs: Runs,
    controls: Controls,
    methods: pd.DataFrame,
    bradley_terry: pd.DataFrame,
    ratios: Ratios,
) -> list[str]:
    """The first answers the study's question."""
    confidence = settings.confidence
    strongest = {count: strongest_without(runs, settings, methods, count) for count in settings.comparisons}
    orders = {count: order(runs, "mallows", count) for count in settings.comparisons}
    told_causes = {stage: causes(table, confidence) for stage, table in controls.items()}
    return [
        _headline(controls["end"], told_causes["end"], settings),
        *(
            _cause(controls["end"], told_causes["end"], count, source, settings)
            for count in settings.comparisons
            for source in SOURCES
        ),
        _same_beta(controls["end"], settings),
        _early(told_causes["early"], settings),
        *(_without_dispersion(methods, strongest[count], count, confidence) for count in settings.comparisons),
        *(_collapse(ratios[count], orders[count], count, settings) for count in settings.comparisons),
        _control_law(bradley_terry, settings),
    ]


def cautions(settings: BanditStudy, methods: pd.DataFrame) -> list[str]:
    """What a reader must know before quoting a number."""
    nowhere = methods[methods["difference"].isna()].groupby("label", sort=False).size()
    never = [str(label) for label, times in nowhere.items() if times == len(settings.comparisons)]
    found = [
        "Reward counts places of the central ranking alike in every context. A policy that spreads its KL evenly over "
        "the contexts gains most on it. The probability to beat the reference's arm hardly rewards order where people "
        "do not agree: read both.",
        "The number of arms and comparisons and phi = 0.05 are guesses of the paper's setting; learning rate, steps, "
        "betas and the mix of dispersions are ours, and another mix gives other sizes of effect.",
        "The contexts share no parameters, and reward is known: nothing here says that the entropies of a language "
        "model measure dispersion. That is the study of estimates, not this one.",
        "Oracle weights come from the true phi, which no experiment with people has.",
        f"The unit is the seed (n = {settings.seeds}): each draws its own rankings and comparisons.",
    ]
    if never:
        found.append(f"No KL in common with DPO within the list of betas, so not compared: {', '.join(never)}.")
    return found


def numbers(
    settings: BanditStudy, runs: Runs, controls: Controls, methods: pd.DataFrame, ratios: Ratios
) -> dict[str, float]:
    """What the tracking store compares between runs."""
    found: dict[str, float] = {}
    for stage, table in controls.items():
        for row in rows_of(table):
            where = row.where.replace(" ", "_")
            found[f"{stage}/{row.comparisons}/{row.weights}/minus_{row.control}/{row.outcome}_{where}"] = row.difference
    for row in rows_of(methods):
        found[f"methods/{row.comparisons}/{row.label}/reward_minus_dpo_same_KL"] = row.difference
    for count, by_label in ratios.items():
        orders = order(runs, "mallows", count)
        for label in ("dpo", "mallows_theta", "mallows_phi"):
            found[f"collapse/{count}/{label}/ratio"] = float(by_label[label].mean())
            found[f"collapse/{count}/{label}/rank_correlation"] = float(orders[label].mean())
    at = runs.values[(runs.values["law"] == "mallows") & (runs.values["stage"] == "end")]
    means = at[at["beta"] == settings.same_beta].groupby(["comparisons", "label"], sort=False)[["reward", "kl"]].mean()
    for count in settings.comparisons:
        for label in ("dpo", "mallows_theta", "mallows_phi"):
            for outcome in ("reward", "kl"):
                found[f"same_beta/{count}/{label}/{outcome}"] = float(means[outcome][count, label])
    return {name.replace(" ", "_"): value for name, value in found.items() if math.isfinite(value)}


def _headline(controls: pd.DataFrame, told_causes: pd.DataFrame, settings: BanditStudy) -> str:
    parts = []
    for count in settings.comparisons:
        reward = _cell_rows(controls, count, "oracle")["reward", "dpo"]
        if _cell(told_causes, count, "oracle", "reward").dispersion_is_the_cause:
            said = "clear, and clearly above the same weights shuffled or inverted, so dispersion is the cause"
        else:
            said = f"{_said(verdict(reward, settings.confidence))}; dispersion is not shown to be a cause"
        parts.append(f"{told(reward)} with {count} comparisons a context ({said})")
    return f"MallowsPO-theta with the true dispersion, reward minus DPO's at the same KL: {'; '.join(parts)}."


def _cause(controls: pd.DataFrame, told_causes: pd.DataFrame, count: int, source: str, settings: BanditStudy) -> str:
    """Reward against every control, the win rate against DPO, and what follows."""
    rows = _cell_rows(controls, count, source)
    reward, wins = rows["reward", "dpo"], rows["win_rate", "dpo"]
    cell = _cell(told_causes, count, source, "reward")
    groups = {
        words: [AGAINST[name] for name in CONTROLS if getattr(cell, name) == answer]
        for answer, words in (("higher", "clearly above"), ("unclear", "cannot tell from"), ("lower", "clearly below"))
    }
    against = "; ".join(f"{words} {', '.join(names)}" for words, names in groups.items() if names)
    result = "dispersion is the cause" if cell.dispersion_is_the_cause else "dispersion is not shown to be the cause"
    return (
        f"{count} comparisons, {source} weights, at the same KL: reward minus DPO's {told(reward)} "
        f"({_said(verdict(reward, settings.confidence))}); theta with controlled weights: {against}. So {result}. "
        f"Probability to win minus DPO's {told(wins)} ({_said(verdict(wins, settings.confidence))})."
    )


def _cell_rows(controls: pd.DataFrame, count: int, source: str) -> dict[tuple[str, str], Any]:
    keep = (controls["comparisons"] == count) & (controls["weights"] == source) & (controls["where"] == SAME_KL)
    return {(row.outcome, row.control): row for row in rows_of(controls[keep])}


def _cell(told_causes: pd.DataFrame, count: int, source: str, outcome: str) -> Any:
    keep = (told_causes["comparisons"] == count) & (told_causes["weights"] == source)
    keep &= (told_causes["where"] == SAME_KL) & (told_causes["outcome"] == outcome)
    return rows_of(told_causes[keep])[0]


def _said(told_verdict: str) -> str:
    return {"higher": "clear", "lower": "clear, the other way", "unclear": "cannot tell"}[told_verdict]


def _same_beta(controls: pd.DataFrame, settings: BanditStudy) -> str:
    keep = (controls["where"] == SAME_BETA) & (controls["control"] == "dpo")
    parts = [
        f"{row.comparisons} comparisons, {row.weights} weights {told(row)} ({_said(verdict(row, settings.confidence))})"
        for row in rows_of(controls[keep])
    ]
    return (
        f"At the same mean effective beta ({settings.same_beta:g}; the weights have mean 1), where the KL differs too, "
        f"reward minus DPO's: {'; '.join(parts)}."
    )


def _early(told_causes: pd.DataFrame, settings: BanditStudy) -> str:
    groups: dict[bool, list[str]] = {True: [], False: []}
    for row in rows_of(told_causes[told_causes["where"] == SAME_KL]):
        outcome = row.outcome.replace("_", " ")
        groups[row.dispersion_is_the_cause].append(f"{outcome} with {row.comparisons} and {row.weights} weights")
    return (
        f"Stopped after {settings.training.early_steps} of {settings.training.steps} steps, dispersion is the cause of "
        f"more at the same KL in {', '.join(groups[True]) or 'no case'}; not shown in "
        f"{', '.join(groups[False]) or 'no case'}."
    )


def _without_dispersion(methods: pd.DataFrame, strongest: dict[str, Any], count: int, confidence: float) -> str:
    part = methods[(methods["comparisons"] == count) & methods["difference"].notna()]
    plain = [
        row.label
        for row in rows_of(part)
        if row.label in METHODS and METHODS[row.label].weight == "constant" and _clear(row, confidence)
    ]
    counted = (
        f"Without any dispersion, {count} comparisons: {plural(len(plain), 'method')} clearly above DPO's reward at "
        f"the same KL ({', '.join(plain) or 'none'})."
    )
    if not strongest:
        return counted
    theta = pd.Series(strongest)
    return (
        f"{counted} MallowsPO-theta minus {theta['against']}, which earns most of all methods without "
        f"(picked after the fact, no correction): {told(theta)}."
    )


def _clear(row: Any, confidence: float) -> bool:
    return bool(row.p_holm < 1 - confidence and row.ci_low > 0)


def _collapse(by_label: dict[str, Floats], orders: dict[str, Floats], count: int, settings: BanditStudy) -> str:
    names = [label for label in ("dpo", "mallows_theta", "mallows_phi", "ipo") if label in by_label]
    ratios = ", ".join(f"{label} {fixed(float(by_label[label].mean()), 3)}" for label in names)
    ranks = ", ".join(f"{label} {fixed(float(orders[label].mean()), 2)}" for label in names)
    found = paired_difference(by_label["mallows_theta"], by_label["dpo"], settings.confidence, settings.resamples)
    change = interval(found.difference, found.low, found.high, 3, True)
    return (
        f"Reward collapse, {count} comparisons: spread of learned rewards in the most dispersed context over that in "
        f"the least dispersed (1 is collapse) {ratios}; theta minus DPO {change}. Rank correlation of spread and "
        f"agreement over all contexts (1 is no collapse): {ranks}."
    )


def _control_law(bradley_terry: pd.DataFrame, settings: BanditStudy) -> str:
    parts = [
        f"{row.label}, {row.comparisons} comparisons {told(row)}"
        for row in rows_of(bradley_terry[bradley_terry["label"] != "dpo"])
    ]
    return (
        "Where preferences are Bradley-Terry, so that DPO's model is right, reward minus DPO's at the same KL: "
        f"{'; '.join(parts)}. A gain here cannot be owed to Mallows' law of rankings."
    )
