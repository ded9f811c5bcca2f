"""MLflow's own pages for one experiment's runs, ready-made: its comparison of runs, and its table with chosen columns.

The addresses and the shared view are those of MLflow 3.17's user interface (read from its JavaScript; nothing of it is
documented): `#/compare-runs?runs=[...]&experiments=[...]`, and `#/experiments/ID/runs?viewStateShareKey=KEY`, for which
the experiment has a tag `mlflow.sharedViewState.KEY` with filter, order and columns as JSON. Another version that does
not know the key shows its table as usual.
"""

import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from mallowspo.errors import InputError
from mallowspo.files import read_json
from mallowspo.layout import Layout

#: Name of the shared view, and the tag that holds it.
VIEW = "mallowspo"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
#: Where `mallowspo server` listens.
LOCAL = "http://127.0.0.1:5000"
#: Columns in this order, as far as the runs have them; then other opponents and pairs, then benchmarks.
PARAMS = ("method", "seed", "beta")
METRICS = ("eval/reward", "eval/win_rate", "eval/accuracy", "eval/kl", "eval/length", "eval/margin", "eval/complete")
#: Columns at most, and characters that a tag may have in every store.
MOST_COLUMNS, MOST_CHARACTERS = 30, 5000


def view_state(metrics: Iterable[str]) -> str:
    """The shared view as JSON: the present trainings, the largest reward first, with the columns of `columns`.

    Args:
        metrics: names of the runs' metrics.
    """
    shown = columns(metrics)
    while True:
        state = {
            "searchFilter": "tags.`mallowspo.kind` = 'training' AND tags.`mallowspo.superseded` = 'false'",
            "orderByKey": "metrics.`eval/reward`",
            "orderByAsc": False,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "selectedColumns": shown,
            "columnOrder": shown,
            "runsHiddenMode": "SHOW_ALL",
        }
        text = json.dumps(state)
        if len(text) <= MOST_CHARACTERS:
            return text
        shown = shown[:-1]


def columns(metrics: Iterable[str]) -> list[str]:
    """MLflow's names of the columns, in their order."""
    found = set(metrics)
    first = [name for name in METRICS if name in found]
    others = sorted(name for name in found - set(first) if name.startswith(("eval/win_rate", "eval/accuracy")))
    benchmarks = sorted(name for name in found if name.startswith("lm_eval/"))
    names = [*(("params", name) for name in PARAMS), *(("metrics", name) for name in (*first, *others, *benchmarks))]
    # A backtick would end the name.
    return [f"{kind}.`{name}`" for kind, name in names[:MOST_COLUMNS] if "`" not in name]


def links(layout: Layout, server: str | None = None) -> dict[str, str]:
    """What to open in a browser: the runs in MLflow's comparison, and in its table; of a study, its run.

    Args:
        layout: of a tracked experiment or study.
        server: address of the MLflow server; default: the store's where it is one, else where `mallowspo server`
            listens.

    Raises:
        InputError: it was not tracked yet.
    """
    if not layout.tracked.exists():
        raise InputError(f"{layout.tracked}: no such file; run mallowspo track {layout.experiment} first")
    record: dict[str, Any] = read_json(layout.tracked)
    store = str(record["store"])
    base = (server or (store if store.startswith("http") else LOCAL)).rstrip("/")
    experiment = record["experiment_id"]
    table = f"{base}/#/experiments/{experiment}/runs"
    if "children" not in record:
        return {"run": f"{table}/{record['run_id']}"}
    runs = quote(json.dumps(list(record["children"].values()), separators=(",", ":")))
    compared = f"{base}/#/compare-runs?runs={runs}&experiments={quote(json.dumps([experiment]))}"
    return {"compare": compared, "table": f"{table}?viewStateShareKey={VIEW}"}
