"""One tuning budget for all: the best label of each method by the validation prompts, told once by the test prompts.

A method's labels under one control (`mallowspo.tuning`), which differ in beta or options, are its tuning runs. A share
of the test prompts is held apart, by a draw that goes by the prompt (`evaluation.selection`). The label with the
largest mean of the outcome over these prompts and all seeds is selected; of equal ones the first. What the selected
ones reach on the other prompts has not been selected for, so that their intervals and tests hold. All other tables of
the stage "compare" go by those other prompts too: no number there has selected a label.
"""

import math
from typing import Any

import pandas as pd

from mallowspo.compare_standards import bounded, runs_of, standard_of
from mallowspo.compare_values import Values, read_validation_values
from mallowspo.inference import estimate, holm, paired_difference
from mallowspo.layout import Layout
from mallowspo.metric_names import is_outcome
from mallowspo.tuning import group_of, tuning_groups

TUNING = ("group", "method", "beta", "options", "outcome", "estimate", "ci_low", "ci_high", "n", "seeds", "selected")
SELECTION = ("group", "method", "labels", "runs", "outcome", "validation", "validation_low", "validation_high",
             "n_validation", "metric", "estimate", "ci_low", "ci_high", "baseline", "difference", "difference_low",
             "difference_high", "p", "p_holm", "detectable", "n", "seeds", "covers")  # fmt: skip


def selection_tables(
    view: Any, layout: Layout, values: Values, resampling: dict[str, Any]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of TUNING for tuning.parquet and of SELECTION for selection.parquet; none without `evaluation.selection`.

    Args:
        view: .methods, .seeds, .evaluation, as `read_values` takes it.
        values: of the test prompts.
        resampling: confidence, resamples, seed.

    Returns:
        tuning: a row a label, on the validation prompts.
        selection: a row a group and outcome, on the test prompts; labels: tuning runs of the method, runs: these times
        seeds; difference: to the label that was selected of the baseline's group; p_holm: over all rows together.

    Raises:
        InputError: a part has fewer than two prompts.
    """
    settings = view.evaluation.selection
    if settings is None:
        return _empty(TUNING), _empty(SELECTION)
    tuning = _tuning(view, read_validation_values(view, layout)[settings.outcome], resampling["confidence"])
    selected = tuning[tuning["selected"]].set_index("group")
    standard = str(selected["method"][group_of(view.evaluation.comparison.baseline, view.methods)])
    rows = []
    for group, labels in tuning_groups(view.methods).items():
        chosen = selected.loc[group]
        told = {"group": group, "method": chosen["method"], "labels": len(labels), "outcome": settings.outcome}
        told |= {"runs": len(labels) * len(view.seeds), "validation": chosen["estimate"], "baseline": standard}
        told |= {"validation_low": chosen["ci_low"], "validation_high": chosen["ci_high"], "n_validation": chosen["n"]}
        for metric, by_label in values.items():
            if is_outcome(metric) and chosen["method"] in by_label:
                rows.append({**told, "metric": metric, **_tested(metric, by_label, told, view, resampling)})
    table = pd.DataFrame(rows)
    tested = table["p"].notna()
    table["p_holm"] = math.nan
    table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"])
    return tuning, table[list(SELECTION)]


def _tuning(view: Any, by_label: dict[str, pd.DataFrame], confidence: float) -> pd.DataFrame:
    runs = runs_of(by_label, list(view.methods))
    found = {label: estimate(by_label[label], confidence, runs) for label in view.methods}
    outcome = view.evaluation.selection.outcome
    rows = []
    for group, labels in tuning_groups(view.methods).items():
        best = max(labels, key=lambda label: found[label].mean)
        for label in labels:
            settings, own = view.methods[label], found[label]
            options = ", ".join(f"{name} = {value}" for name, value in settings.options.items())
            row = {"group": group, "method": label, "beta": settings.beta, "options": options}
            low, high = bounded(outcome, own.low, own.high)
            row |= {"outcome": outcome, "estimate": own.mean, "ci_low": low, "ci_high": high}
            rows.append({**row, "n": own.n, "seeds": len(view.seeds), "selected": label == best})
    return pd.DataFrame(rows)[list(TUNING)]


def _tested(
    metric: str, by_label: dict[str, pd.DataFrame], told: dict[str, Any], view: Any, resampling: dict[str, Any]
) -> dict[str, Any]:
    """The selected label on the test prompts, and its difference to the baseline's; NaN of the baseline itself."""
    label, baseline = told["method"], told["baseline"]
    runs, mine = runs_of(by_label, list(view.methods)), by_label[label].to_numpy()
    own = estimate(mine, resampling["confidence"], runs)
    low, high = bounded(metric, own.low, own.high)
    row = {"estimate": own.mean, "ci_low": low, "ci_high": high, "n": own.n, "covers": own.covers}
    row |= {"seeds": mine.shape[1], **dict.fromkeys(("difference", "difference_low", "difference_high"), math.nan)}
    row |= {"p": math.nan, "detectable": math.nan}
    standard = standard_of(by_label, metric, baseline)
    if label == baseline or standard is None:
        return row
    found = paired_difference(mine, standard, **resampling, runs=runs)
    bounds = {"difference": found.difference, "difference_low": found.low, "difference_high": found.high}
    return {**row, **bounds, "p": found.p, "detectable": found.detectable}


def _empty(columns: tuple[str, ...]) -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(dtype=object) for name in columns})
