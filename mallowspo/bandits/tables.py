"""The tables of the bandit's page: numbers for the CSV, and the same in words."""

from typing import Any

import pandas as pd

from mallowspo.bandits.compare import CONTROL_OUTCOMES, SAME_KL
from mallowspo.bandits.runs import Runs
from mallowspo.bandits.settings import BanditStudy
from mallowspo.bandits.world import Floats
from mallowspo.inference import estimate
from mallowspo.methods import METHODS
from mallowspo.report.table import Table, rows_of
from mallowspo.report.words import ABSENT, fixed, interval, p_value

DECIMALS = 3
OUTCOME_TITLES = {
    ("reward", SAME_KL): "Reward, same KL",
    ("win_rate", SAME_KL): "Win rate, same KL",
    ("reward", "same beta"): "Reward, same beta",
}
HOLM_TITLES = {
    ("reward", SAME_KL): "reward",
    ("win_rate", SAME_KL): "win rate",
    ("reward", "same beta"): "same beta",
}
AGAINST = {
    "dpo": "DPO (weight 1)",
    "shuffled": "shuffled over comparisons",
    "shuffled_contexts": "shuffled over contexts",
    "inverted": "inverted",
    "outside": "outside the link",
}
#: What a row becomes with one-token responses, whose lengths are all 1.
REDUCTIONS = {
    "ipo": "sum and mean over tokens are one",
    "simpo": "uniform reference: DPO with a home advantage",
    "cpo": "uniform reference: DPO with an SFT term of weight 1",
    "orpo": "log-odds of one token; its beta scales the loss",
    "rdpo": "DPO: all lengths are equal",
    "rainbowpo": "uniform reference: simpo with (1 - mixing) of its advantage",
    "alpha_dpo": "uniform reference: DPO with a running target margin",
    "lb_dpo": "features: the context, one-hot; prompt perplexity 1",
    "mallows_theta": "DPO with beta times the context's weight",
    "mallows_ipo": "sum and mean over tokens are one",
    "mallows_simpo": "uniform reference: mallows_theta with a home advantage",
    "mallows_rainbowpo": "as rainbowpo, times the weight",
    "mallows_lb": "as lb_dpo, times the weight",
}


def told(row: Any) -> str:
    """A difference with its interval."""
    return ABSENT if pd.isna(row.difference) else interval(row.difference, row.ci_low, row.ci_high, DECIMALS, True)


def settings_table(settings: BanditStudy) -> Table:
    """What was set, and whether it is a guess of the paper's setting."""
    guess, ours = "guess of the paper's (not seen in its text)", "ours"
    reference = "uniform" if settings.reference is None else _listed(settings.reference)
    rows = [
        ("Arms", str(settings.arms), guess),
        ("Preferences", f"Mallows, Kendall's tau, phi^({settings.exponent} d)", guess),
        ("phi of the contexts", _listed(settings.phis), "0.05: " + guess + "; the others: " + ours),
        ("Comparisons a context", _listed(settings.comparisons), guess),
        ("Reference policy", reference, guess),
        ("Policies", "a logit for every context and arm", guess),
        ("betas", _listed(settings.betas), ours + " (the paper's list was not found)"),
        (
            "Training",
            f"{settings.training.steps} full-batch steps of Adam with one second moment a policy, "
            f"rate {settings.training.learning_rate:g} falling to 0",
            ours + " (the paper's was not found)",
        ),
        ("Reward of an arm", "1 for the first place of the central ranking to 0 for the last, in equal steps", ours),
        ("Seeds", str(settings.seeds), ours + "; each draws its own rankings and comparisons"),
    ]
    table = pd.DataFrame(rows, columns=["Setting", "Value", "Whose"])
    return Table("settings", table, table, ("Setting", "Value", "Whose"))


def controls_view(name: str, controls: pd.DataFrame) -> Table:
    """One row a comparison: every outcome with interval and Holm's p."""
    rows = []
    for key, part in controls.groupby(["comparisons", "weights", "control"], sort=False):
        count, weights, control = key
        cells = {"Comparisons": str(count), "Weights": str(weights), "theta minus": AGAINST[str(control)]}
        found = {(row.outcome, row.where): row for row in rows_of(part)}
        for outcome in CONTROL_OUTCOMES:
            cells[OUTCOME_TITLES[outcome]] = told(found[outcome])
            cells[f"Holm p, {HOLM_TITLES[outcome]}"] = p_value(found[outcome].p_holm)
        rows.append(cells)
    shown = pd.DataFrame(rows)
    return Table(name, controls, shown, ("Weights", "theta minus"))


def collapse_view(table: pd.DataFrame) -> Table:
    """One row a method and number of comparisons: the ratio of spreads, and how it differs from DPO's."""
    shown = pd.DataFrame(
        {
            "Comparisons": str(row.comparisons),
            "Method": str(row.label),
            "Spread ratio": fixed(row.ratio, DECIMALS),
            "DPO's": fixed(row.ratio_dpo, DECIMALS),
            "Minus DPO's": told(row),
            "Holm p": p_value(row.p_holm),
            "Rank correlation": fixed(row.rank_correlation, 2),
        }
        for row in rows_of(table)
    )
    return Table("collapse", table, shown, ("Method",))


def methods_view(
    name: str, methods: pd.DataFrame, settings: BanditStudy, ratios: dict[int, dict[str, Floats]], same: dict[str, str]
) -> Table:
    """One row a method: reward at DPO's KL with few and many comparisons, accuracy, collapse."""
    labels = ["dpo", *dict.fromkeys(methods["label"])]
    many = settings.comparisons[-1]
    rows = []
    for label in labels:
        cells = {"Method": label, "With one token": _reduction(label, same)}
        for count in settings.comparisons:
            found = methods[(methods["label"] == label) & (methods["comparisons"] == count)]
            row = next(iter(rows_of(found)), None)
            cells[f"Reward minus DPO's, same KL, {count}"] = told(row) if row is not None else "0"
            cells[f"Holm p, {count}"] = p_value(row.p_holm) if row is not None else ABSENT
        ratio = estimate(ratios[many][label], settings.confidence)
        cells[f"Spread ratio, {many}"] = interval(ratio.mean, ratio.low, ratio.high, DECIMALS)
        rows.append(cells)
    return Table(name, methods, pd.DataFrame(rows), ("Method", "With one token"))


def _reduction(label: str, same: dict[str, str]) -> str:
    parts = [REDUCTIONS.get(label.split()[0], "")]
    if label in same:
        parts.append(f"here the same policies as {same[label]}")
    if label not in METHODS and label.split()[0] in METHODS:
        parts.append("weights estimated from the comparisons")
    return "; ".join(part for part in parts if part) or ABSENT


def same_policies(runs: Runs, law: str) -> dict[str, str]:
    """label -> the first label whose policies are the same to 1e-9 with every number of comparisons."""
    of_law = {key: value for key, value in runs.policies.items() if key[0] == law}
    labels = list(dict.fromkeys(label for _, _, label in of_law))
    counts = list(dict.fromkeys(count for _, count, _ in of_law))
    same: dict[str, str] = {}
    for position, label in enumerate(labels):
        for earlier in labels[:position]:
            pairs = [(of_law[law, count, label], of_law[law, count, earlier]) for count in counts]
            if all(float((one - other).abs().max()) < 1e-9 for one, other in pairs):
                same[label] = earlier
                break
    return same


def _listed(values: list[Any]) -> str:
    return ", ".join(f"{value:g}" for value in values)
