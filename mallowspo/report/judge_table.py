"""Every win rate beside what its judge was like: who won against whom, and whether position or length decided it."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from mallowspo.files import read_json
from mallowspo.layout import Layout
from mallowspo.report.table import Table, rows_of
from mallowspo.report.words import ABSENT, count, interval, number, plural

RATES = ("prefer_first", "flips", "ties")
#: Of the judge alone: on the labels of the stage "judge", and when the same pair is shown again.
OF_THE_JUDGE = ("agreement", "self_consistency")
#: Of the interval that a rate or a slope has in judge.json, in standard errors.
WIDTH = 2 * 1.959963984540054
NAME = "win_rates_and_judge"
UNKNOWN: dict[str, Any] = {"value": None, "low": None, "high": None}


def judge_table(layout: Layout, runs: Sequence[tuple[str, int]]) -> Table:
    """One row for each method and opponent, over seeds and answers; empty where no run has a judge.json.

    Columns of the CSV: method, against, judge, comparisons (pairs), win_rate (percent), lc_winrate_official,
    lc_winrate_approximate (percent; never in one column), prefer_first, flips, ties (shares), length_slope, agreement
    (with people's labels, elsewhere: the same in every row), self_consistency, each with _low and _high, failed
    (replies), and equal_answers (pairs that are ties and were not judged). Means over seeds and answers are weighted by
    pairs, the slope's by precision.
    """
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    labelled = {"agreement": (on_labels(layout, runs) or {}).get("agreement")}
    for method, seed in runs:
        path = layout.scores(method, seed) / "judge.json"
        if path.exists():
            content = read_json(path)
            for comparison in content["comparisons"]:
                found.setdefault((method, comparison["against"]), []).append(
                    {**labelled, **comparison, "judge": content["judge"]}
                )
    rows = [{"method": method, "against": against, **_row(parts)} for (method, against), parts in found.items()]
    numbers = pd.DataFrame(rows, columns=_columns())
    shown = pd.DataFrame([_shown(row) for row in rows_of(numbers)], columns=_titles(numbers))
    return Table(NAME, numbers, shown, ("Method", "Against"))


def on_labels(layout: Layout, runs: Sequence[tuple[str, int]]) -> dict[str, Any] | None:
    """What the stage "judge" found on pairs with human labels, if it was of the judge behind these runs' win rates."""
    files = [layout.scores(*run) / "judge.json" for run in runs]
    judged = next((read_json(file).get("judge_digest") for file in files if file.exists()), None)
    if judged is None or not layout.judge_measured.exists():
        return None
    measured: dict[str, Any] = read_json(layout.judge_measured)
    return measured if measured["judge_digest"] == judged else None


def label_words(layout: Layout, runs: Sequence[tuple[str, int]]) -> str:
    """How far the judge agrees with people, by subset; or that it is not known."""
    measured = on_labels(layout, runs)
    if measured is None:
        return "How far the judge agrees with people was not measured (evaluation.judge_labels)."
    by_subset = "; ".join(f"{name} {_percent(value)}" for name, value in measured["by_subset"].items())
    pairs = plural(measured["agreement"]["n"], "pair")
    return (
        f"Agrees with people: on the {pairs} of {measured['labels']}, whose better answer people labelled; no "
        f"preference counts half{f' ({by_subset})' if by_subset else ''}."
    )


def _percent(value: dict[str, Any]) -> str:
    return f"{interval(100 * value['value'], 100 * value['low'], 100 * value['high'], 0)} %"


def judge_words(layout: Layout, runs: Sequence[tuple[str, int]]) -> str:
    """How the table was made, in one sentence; empty where there is none."""
    paths = [layout.scores(*run) / "judge.json" for run in runs]
    contents = [read_json(path) for path in paths if path.exists()]
    if not contents:
        return ""
    orders = "both orders of each pair" if contents[0]["orders"] == "both" else "one order of each pair"
    versions = ", ".join(f"{name} {version}" for name, version in contents[0]["versions"].items())
    return f"Judge {contents[0]['judge']}, {orders}; counted by {versions}."


def _columns() -> list[str]:
    bounds = [f"{name}{bound}" for name in (*RATES, "length_slope", *OF_THE_JUDGE) for bound in ("", "_low", "_high")]
    return ["method", "against", "judge", "comparisons", "win_rate", "lc_winrate_official", "lc_winrate_approximate",
            *bounds, "failed", "equal_answers"]  # fmt: skip


def _row(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Comparisons of one method with one opponent, together."""
    pairs = [part["n_total"] for part in parts]
    row: dict[str, Any] = {"judge": parts[0]["judge"], "comparisons": sum(pairs)}
    for name in ("win_rate", "lc_winrate_official", "lc_winrate_approximate"):
        values = [part[name] for part in parts]
        row[name] = math.nan if None in values else _mean(values, pairs)
    for name in RATES:
        pooled = _pooled(name, [part[name] for part in parts], by_precision=False)
        row |= {column: value if math.isnan(value) else min(1.0, max(0.0, value)) for column, value in pooled.items()}
    row |= _pooled("length_slope", [part["length_slope"] for part in parts], by_precision=True)
    row |= _fields("agreement", parts[0]["agreement"] or UNKNOWN)
    again = [part.get("self_consistency", UNKNOWN) for part in parts]
    known = [one for one in again if one["low"] is not None]
    # Of a deterministic judge nothing was asked again: 1, without an interval.
    row |= _pooled("self_consistency", known, by_precision=False) if known else _fields("self_consistency", again[0])
    return {**row, **{name: sum(part[name] for part in parts) for name in ("failed", "equal_answers")}}


def _fields(name: str, found: dict[str, Any]) -> dict[str, float]:
    bounds = {"": "value", "_low": "low", "_high": "high"}
    return {f"{name}{end}": math.nan if found[key] is None else float(found[key]) for end, key in bounds.items()}


def _pooled(name: str, parts: list[dict[str, Any]], by_precision: bool) -> dict[str, float]:
    """Weighted mean of estimates and the half-width of its interval, as of independent ones."""
    known = [part for part in parts if part["value"] is not None]
    if len(known) < len(parts) or not known:
        return {name: math.nan, f"{name}_low": math.nan, f"{name}_high": math.nan}
    errors = [(part["high"] - part["low"]) / WIDTH for part in known]
    weights = [
        1 / error**2 if by_precision and error > 0 else part["n"] for error, part in zip(errors, known, strict=True)
    ]
    value = _mean([part["value"] for part in known], weights)
    # Wilson's interval is not symmetric: each side is put together by itself.
    below, above = (
        math.sqrt(sum((w * (part["value"] - part[side])) ** 2 for w, part in zip(weights, known, strict=True)))
        / sum(weights)
        for side in ("low", "high")
    )
    return {name: value, f"{name}_low": value - below, f"{name}_high": value + above}


def _mean(values: list[float], weights: Sequence[float]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def _titles(numbers: pd.DataFrame) -> list[str]:
    controlled = {"LC %": "lc_winrate_official", "LC (approx.) %": "lc_winrate_approximate"}
    kept = [title for title, column in controlled.items() if numbers[column].notna().any()]
    return [
        "Method",
        "Against",
        "Win rate %",
        *kept,
        "Prefers first",
        "Flips",
        "Ties",
        "Length slope",
        *(["Agrees with people"] if numbers["agreement"].notna().any() else []),
        "Agrees with itself",
        "Failed",
        "Equal",
        "n",
    ]


def _shown(row: Any) -> dict[str, str]:
    def rate(name: str, decimals: int = 2) -> str:
        value, low, high = (float(getattr(row, f"{name}{bound}")) for bound in ("", "_low", "_high"))
        return ABSENT if math.isnan(value) else interval(value, low, high, decimals)

    ends_unknown = math.isnan(row.self_consistency_low)
    return {
        "Method": str(row.method),
        "Against": str(row.against),
        "Win rate %": number(row.win_rate),
        "LC %": number(row.lc_winrate_official),
        "LC (approx.) %": number(row.lc_winrate_approximate),
        "Prefers first": rate("prefer_first"),
        "Flips": rate("flips"),
        "Ties": rate("ties"),
        "Length slope": rate("length_slope"),
        "Agrees with people": rate("agreement"),
        "Agrees with itself": "always" if row.self_consistency == 1 and ends_unknown else rate("self_consistency"),
        "Failed": count(row.failed),
        "Equal": count(row.equal_answers),
        "n": count(row.comparisons),
    }
