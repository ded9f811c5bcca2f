"""Numbers of a whole experiment, which no training alone has, as metrics of its parent run. Needs no MLflow."""

import math
from pathlib import Path
from typing import Any

from mallowspo.files import read_parquet
from mallowspo.layout import Layout
from mallowspo.tracking.contents import metric_name

#: Which columns of a table are logged: the first under the row's name, the others with /COLUMN behind it.
COLUMNS = ("estimate", "ci_low", "ci_high", "p_holm")


def experiment_metrics(evaluation: Any, layout: Layout) -> dict[str, float]:
    """Of what `evaluation` asks for, in the tables of the stage "compare"; only finite numbers."""
    found: dict[str, float] = {}
    if evaluation.factorial:
        found |= _rows("factorial", layout.factorial, ("effect", "metric"))
    if evaluation.second_judge:
        found |= _rows("second_judge", layout.second_opinion, ("method", "measure"))
    if evaluation.selection:
        found |= _rows("selection", layout.selection, ("group", "metric"), ("estimate", "difference", "p_holm", "runs"))
    if evaluation.signals:
        found |= _rows("signals", layout.signals, ("method", "signal"), ("rho", "ci_low", "ci_high", "p_holm", "n"))
    return found


def experiment_tags(evaluation: Any, layout: Layout) -> dict[str, str]:
    """Which label was selected of each method."""
    if evaluation.selection is None:
        return {}
    selected = read_parquet(layout.selection).drop_duplicates("group")
    names = zip(selected["group"], selected["method"], strict=True)
    return {f"mallowspo.selected.{metric_name(group)}": label for group, label in names}


def _rows(prefix: str, file: Path, keys: tuple[str, ...], columns: tuple[str, ...] = COLUMNS) -> dict[str, float]:
    found: dict[str, float] = {}
    for row in read_parquet(file).to_dict("records"):
        name = metric_name(prefix, *(str(row[key]) for key in keys))
        found |= {name if column == columns[0] else f"{name}/{column}": float(row[column]) for column in columns}
    return {name: value for name, value in found.items() if math.isfinite(value)}
