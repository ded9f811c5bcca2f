"""Two factors over four labels (factorial.parquet): what each does, and whether they add up."""

from typing import Any

import pandas as pd

from mallowspo.compare_factorial import INTERACTION
from mallowspo.metric_names import is_outcome
from mallowspo.report.results import Results
from mallowspo.report.summary import Finding, verdict
from mallowspo.report.table import Table, rows_of
from mallowspo.report.words import count, fixed, interval, meaningful_decimals, metric_title, p_value

NAME = "factorial"


def factorial_table(results: Results) -> Table | None:
    """Every effect on every metric, outcomes first; None where no factors are crossed."""
    if results.factorial.empty:
        return None
    order = {metric: position for position, metric in enumerate(results.metrics())}
    rank = results.factorial["metric"].map(order)
    numbers = results.factorial.assign(rank=rank).sort_values("rank", kind="stable").drop(columns="rank")
    shown = pd.DataFrame(
        {
            "Metric": metric_title(row.metric),
            "Effect": row.name,
            "Estimate": _told(numbers, row),
            "p": p_value(row.p),
            "Holm p": p_value(row.p_holm),
            "p, these runs": p_value(row.p_policies),
            "Detectable": fixed(row.detectable, _decimals(numbers, row.metric)),
            "n": count(row.n),
            "Seeds": str(row.seeds),
        }
        for row in rows_of(numbers)
    )
    return Table(NAME, numbers, shown, ("Metric", "Effect"))


def factorial_view(table: Table) -> Table:
    """The outcomes alone, for the page; the files hold the rest."""
    keep = table.numbers["metric"].map(is_outcome).to_numpy()
    return Table(table.name, table.numbers[keep], table.shown[keep], table.text_columns)


def factorial_findings(results: Results) -> list[Finding]:
    """Of each outcome: is there a main effect, and do the two add up?"""
    alpha = 1 - results.view.evaluation.comparison.confidence
    found = []
    for metric in results.metrics():
        rows = rows_of(results.factorial[results.factorial["metric"] == metric]) if is_outcome(metric) else []
        if rows:
            answers = [(row.name, _answer(results.factorial, row, alpha)) for row in rows]
            found.append(Finding(f"{metric_title(metric)} (n = {rows[0].n})", answers))
    return found


def _answer(table: pd.DataFrame, row: Any, alpha: float) -> str:
    told = f"{_told(table, row)} (Holm p {p_value(row.p_holm)})"
    side = verdict(row, alpha)
    if side == "cannot tell":
        return f"cannot be told from none: {told}, detectable {fixed(row.detectable, _decimals(table, row.metric))}"
    if row.effect == INTERACTION:
        return f"together {'more' if side == 'higher' else 'less'} than the sum of both: {told}"
    return f"{side} with it: {told}"


def _told(table: pd.DataFrame, row: Any) -> str:
    return interval(row.estimate, row.ci_low, row.ci_high, _decimals(table, row.metric), True)


def _decimals(table: pd.DataFrame, metric: str) -> int:
    own = table[table["metric"] == metric]
    return meaningful_decimals(own["ci_high"] - own["ci_low"])
