"""Tuning runs of each method, which was selected, and what it reached on prompts that did not select it."""

from typing import Any

import pandas as pd

from mallowspo.report.results import Results
from mallowspo.report.table import Table, rows_of
from mallowspo.report.words import ABSENT, count, interval, metric_title, p_value

NAME, TUNING = "selection", "tuning"


def selection_tables(results: Results) -> list[Table]:
    """The selected labels on the test prompts, and all labels on the validation prompts; none without a selection."""
    if results.selection.empty:
        return []
    order = {metric: position for position, metric in enumerate(results.metrics())}
    outcome = results.selection["outcome"].iloc[0]
    rank = results.selection["metric"].map(lambda metric: -1 if metric == outcome else order[metric])
    numbers = results.selection.assign(rank=rank).sort_values("rank", kind="stable").drop(columns="rank")
    shown = pd.DataFrame([_tested(results, row) for row in rows_of(numbers)])
    runs = pd.DataFrame([_tuned(results, row) for row in rows_of(results.tuning)])
    return [
        Table(NAME, numbers, shown, ("Metric", "Tuned method", "Method")),
        Table(TUNING, results.tuning, runs, ("Tuned method", "Method", "Options", "Selected")),
    ]


def selection_words(results: Results) -> str:
    """How many prompts and runs selected what; empty without a selection."""
    if results.selection.empty:
        return ""
    row = rows_of(results.selection)[0]
    budgets = sorted(set(results.selection["runs"]))
    told = f"{budgets[0]} tuning runs" if len(budgets) == 1 else f"{budgets[0]} to {budgets[-1]} tuning runs (unequal)"
    return (
        f"Every method had {told}: its labels times {row.seeds} seeds. Of each the label with the largest mean of "
        f"{metric_title(row.outcome).lower()} on {row.n_validation} validation prompts was selected, and is compared "
        f"with {row.baseline}, which was selected of the baseline's. No validation prompt is among those of the other "
        f"columns, nor behind any comparison on this page. {results.confidence} intervals; Holm's correction over all "
        "selected methods and outcomes."
    )


def _tested(results: Results, row: Any) -> dict[str, str]:
    decimals = results.decimals(row.metric)
    own = row.metric == row.outcome
    validation = (row.validation, row.validation_low, row.validation_high, decimals)
    difference = (row.difference, row.difference_low, row.difference_high, decimals, True)
    return {
        "Metric": metric_title(row.metric),
        "Tuned method": row.group,
        "Runs": count(row.runs),
        "Method": row.method,
        "Validation": interval(*validation) if own else ABSENT,
        "Test": interval(row.estimate, row.ci_low, row.ci_high, decimals),
        f"Minus {row.baseline}": ABSENT if pd.isna(row.difference) else interval(*difference),
        "p": p_value(row.p),
        "Holm p": p_value(row.p_holm),
        "n": count(row.n),
        "Seeds": str(row.seeds),
    }


def _tuned(results: Results, row: Any) -> dict[str, str]:
    return {
        "Tuned method": row.group,
        "Method": row.method,
        "Beta": f"{row.beta:g}",
        "Options": row.options or ABSENT,
        "Validation": interval(row.estimate, row.ci_low, row.ci_high, results.decimals(row.outcome)),
        "Selected": "yes" if row.selected else "",
        "n": count(row.n),
        "Seeds": str(row.seeds),
    }
