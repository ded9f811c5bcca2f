"""How often each policy's implicit reward is right about pairs, and how sure it is, by set and kind of pair."""

from typing import Any

import pandas as pd

from mallowspo.report.table import Table, rows_of
from mallowspo.report.words import count, fixed, interval, meaningful_decimals, number

NAME = "held_out_pairs"
TITLES = {"source": "source", "length_ratio": "length of chosen / rejected", "dispersion": "dispersion"}


def pair_table(found: pd.DataFrame) -> Table:
    """`accuracy_by_group.parquet` for people: one row a group of pairs and method."""
    rank = found["by"].map(["all", *TITLES].index)
    numbers = found.assign(rank=rank, place=found["pair_set"].map(list(dict.fromkeys(found["pair_set"])).index))
    numbers = numbers.sort_values(["place", "rank"], kind="stable").drop(columns=["place", "rank"])
    decimals = {
        name: meaningful_decimals(numbers[f"{name}_high"] - numbers[f"{name}_low"])
        for name in ("accuracy", "margin", "calibration_error")
    }
    shown = pd.DataFrame([_shown(row, decimals) for row in rows_of(numbers)])
    return Table(NAME, numbers, shown, ("Set", "Pairs", "Method"))


def pair_views(table: Table) -> dict[str, Table]:
    """The same for the page: one table a set."""
    views = {}
    for pair_set in dict.fromkeys(table.numbers["pair_set"]):
        keep = (table.numbers["pair_set"] == pair_set).to_numpy()
        shown = table.shown[keep].drop(columns="Set")
        views[str(pair_set)] = Table(NAME, table.numbers[keep], shown, ("Pairs", "Method"))
    return views


def _shown(row: Any, decimals: dict[str, int]) -> dict[str, str]:
    def told(name: str) -> str:
        value, low, high = (float(getattr(row, f"{name}{bound}")) for bound in ("", "_low", "_high"))
        return interval(value, low, high, decimals[name])

    return {
        "Set": str(row.pair_set),
        "Pairs": _group(row),
        "Method": str(row.method),
        "Accuracy": told("accuracy"),
        "Margin (nats)": told("margin"),
        "Calibration error": told("calibration_error"),
        "if calibrated": fixed(row.calibration_error_if_calibrated, decimals["calibration_error"]),
        "Beta": number(row.beta),
        "n": count(row.pairs),
        "Prompts": count(row.prompts),
    }


def _group(row: Any) -> str:
    if row.by == "all":
        return "all"
    if row.by == "source":
        return f"source {row.group}"
    return f"{TITLES[row.by]} {number(row.group_low)} to {number(row.group_high)}"
