"""Numbers of a whole experiment, which no training alone has, as metrics of its parent run. Needs no MLflow."""

import math
from pathlib import Path
from typing import Any

from mallowspo.files import read_parquet
from mallowspo.layout import Layout
from mallowspo.tracking.contents import metric_name

#: Which columns of a table are logged, each under the name that its estimate has with /COLUMN behind it.
COLUMNS = ("estimate", "ci_low", "ci_high", "p_holm")


def experiment_metrics(evaluation: Any, layout: Layout) -> dict[str, float]:
    """Of what `evaluation` asks for, in factorial.parquet and second_opinion.parquet; only finite numbers."""
    found: dict[str, float] = {}
    if evaluation.factorial:
        found |= _rows("factorial", layout.factorial, ("effect", "metric"))
    if evaluation.second_judge:
        found |= _rows("second_judge", layout.second_opinion, ("method", "measure"))
    return found


def _rows(prefix: str, file: Path, keys: tuple[str, ...]) -> dict[str, float]:
    found: dict[str, float] = {}
    for row in read_parquet(file).to_dict("records"):
        name = metric_name(prefix, *(str(row[key]) for key in keys))
        found |= {name if column == "estimate" else f"{name}/{column}": float(row[column]) for column in COLUMNS}
    return {name: value for name, value in found.items() if math.isfinite(value)}
