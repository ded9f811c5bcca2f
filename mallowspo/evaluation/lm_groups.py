"""Items of lm-eval's groups, so that two models are compared on a group's own number, too.

A group that says how its tasks are put together has a number of its own. It stands for its tasks and inner groups: they
are its parts, shown beside it and no claims of their own. A group without is a list, and its tasks stand by themselves.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from mallowspo.metric_names import part_of

#: name -> {"tasks": all tasks inside, "weights": metric -> "items" or "tasks", whichever count alike in its mean}
Groups = Mapping[str, Mapping[str, Any]]


def groups_of(groups: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`Groups` of lm-eval's own group objects."""
    return {
        name: {
            "tasks": [task.task_name for task in group.get_all_tasks()],
            "weights": {
                how.metric: "items" if how.weight_by_size else "tasks" for how in group.aggregate_metric_list or []
            },
        }
        for name, group in groups.items()
    }


def with_groups(table: pd.DataFrame, groups: Groups) -> pd.DataFrame:
    """Items of tasks and groups by the metric that they are of.

    Args:
        table: lm_eval.parquet: task, doc_id, metric, value.

    Returns:
        name (as in `mallowspo.metric_names`), item, value. A group's items are those of its tasks; where tasks count
        alike, each value is weighted so that the mean over items is the mean over tasks.
    """
    table = table.reset_index(drop=True)
    scored = {name: group for name, group in groups.items() if group["weights"]}
    tasks = table.assign(name=_names(table["task"], table["metric"], {t: {t} for t in set(table["task"])}, scored))
    parts = [tasks.assign(item=tasks["doc_id"].astype(str))]
    for name, group in scored.items():
        inside = table[table["task"].isin(group["tasks"])]
        # exact_match.strict-match: a filter's name stands behind the metric's.
        inside = inside.assign(weights=[group["weights"].get(m.partition(".")[0]) for m in inside["metric"]])
        inside = inside[inside["weights"].notna()]
        size = inside.groupby(["metric", "task"])["value"].transform("size")
        total = inside.groupby("metric")["value"].transform("size")
        count = inside.groupby("metric")["task"].transform("nunique")
        factor = (total / (count * size)).where(inside["weights"] == "tasks", 1.0)
        own = pd.Series(name, inside.index, str)
        parts.append(
            inside.assign(
                name=_names(own, inside["metric"], {name: set(group["tasks"])}, scored),
                item=inside["task"] + " " + inside["doc_id"].astype(str),
                value=inside["value"] * factor,
            )
        )
    return pd.concat(parts, ignore_index=True)[["name", "item", "value"]]


def _names(owners: pd.Series, metrics: pd.Series, tasks_of: Mapping[str, set[str]], scored: Groups) -> list[str]:
    """OWNER/METRIC, as a part of the largest group around the owner, if there is one."""
    around = {owner: _around(owner, tasks, scored) for owner, tasks in tasks_of.items()}
    names = []
    for owner, metric in zip(owners, metrics, strict=True):
        name = f"{owner}/{metric}"
        names.append(part_of(around[owner], name) if around[owner] else name)
    return names


def _around(owner: str, tasks: set[str], scored: Groups) -> str:
    inside = {name: len(group["tasks"]) for name, group in scored.items() if tasks <= set(group["tasks"])}
    inside.pop(owner, None)
    largest = max(inside, key=inside.__getitem__, default="")
    # Of two groups of the same tasks the first by name stands for both.
    if largest and owner in scored and inside[largest] == len(tasks):
        return largest if largest < owner else ""
    return largest
