"""Held-out pairs: how often each policy's implicit reward is right, and how sure it is, by kind of pair."""

from typing import Any

import pandas as pd

from mallowspo.report.table import Table, rows_of
from mallowspo.report.words import count, fixed, interval, meaningful_decimals, number

NAME = "held_out_pairs"
TITLES = {"source": "source", "length_ratio": "length of chosen / rejected", "dispersion": "dispersion"}


def pair_table(found: pd.DataFrame) -> Table:
    """`accuracy_by_group.parquet` for people: one row a group of pairs and method."""
    numbers = found.sort_values("by", key=lambda by: by.map(["all", *TITLES].index), kind="stable")
    decimals = {
        name: meaningful_decimals(numbers[f"{name}_high"] - numbers[f"{name}_low"])
        for name in ("accuracy", "margin", "calibration_error")
    }
    shown = pd.DataFrame([_shown(row, decimals) for row in rows_of(numbers)])
    return Table(NAME, numbers, shown, ("Pairs", "Method"))


def _shown(row: Any, decimals: dict[str, int]) -> dict[str, str]:
    def told(name: str) -> str:
        value, low, high = (float(getattr(row, f"{name}{bound}")) for bound in ("", "_low", "_high"))
        return interval(value, low, high, decimals[name])

    return {
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
