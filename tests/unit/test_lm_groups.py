"""Items of groups: the mean over them is the group's own number, and what it sums up is its part."""

import pandas as pd
import pytest

from mallowspo.evaluation.lm_groups import groups_of, with_groups


def items(**values: list[float]) -> pd.DataFrame:
    rows = [(task, n, "acc", value) for task, column in values.items() for n, value in enumerate(column)]
    return pd.DataFrame(rows, columns=["task", "doc_id", "metric", "value"])


TABLE = items(one=[1, 1, 0, 1], two=[0, 0], three=[1])


def means(table: pd.DataFrame, groups: dict[str, dict[str, object]]) -> dict[str, float]:
    found = with_groups(table, groups)
    assert not found.duplicated(["name", "item"]).any()
    return found.groupby("name")["value"].mean().to_dict()


def test_items_or_tasks_count_alike() -> None:
    for how, mean in (("items", 3 / 6), ("tasks", (3 / 4 + 0) / 2)):
        found = means(TABLE, {"both": {"tasks": ["one", "two"], "weights": {"acc": how}}})
        assert found == {"both > one/acc": 0.75, "both > two/acc": 0, "three/acc": 1, "both/acc": pytest.approx(mean)}


def test_a_group_without_a_number_is_a_list() -> None:
    assert set(means(TABLE, {"list": {"tasks": ["one", "two"], "weights": {}}})) == {"one/acc", "two/acc", "three/acc"}


def test_an_inner_group_is_a_part_of_the_largest_around_it() -> None:
    groups = {
        "list": {"tasks": ["one", "two", "three"], "weights": {}},
        "outer": {"tasks": ["one", "two"], "weights": {"acc": "items"}},
        "inner": {"tasks": ["two"], "weights": {"acc": "items"}},
    }
    expected = {"outer/acc", "outer > inner/acc", "outer > one/acc", "outer > two/acc", "three/acc"}
    assert set(means(TABLE, groups)) == expected


def test_only_metrics_that_the_group_sums_up_are_its_own() -> None:
    table = pd.concat([TABLE, TABLE.assign(metric="exact_match.strict"), TABLE.assign(metric="f1")])
    groups = {"both": {"tasks": ["one", "two"], "weights": {"acc": "items", "exact_match": "items"}}}
    own = {name for name in means(table, groups) if name.startswith("both/")}
    assert own == {"both/acc", "both/exact_match.strict"}


def test_groups_of_lm_eval() -> None:
    from lm_eval.api.group import Group
    from lm_eval.config.group import AggMetricConfig

    class Named:
        def __init__(self, name: str):
            self.task_name = name

    inner = Group("inner", aggregate_metric_list=[AggMetricConfig("acc", weight_by_size=False)])
    outer = Group("outer")
    outer.get_all_tasks = lambda: [Named("one"), Named("two")]  # type: ignore[method-assign]
    inner.get_all_tasks = lambda: [Named("two")]  # type: ignore[method-assign]
    assert groups_of({"outer": outer, "inner": inner}) == {
        "outer": {"tasks": ["one", "two"], "weights": {}},
        "inner": {"tasks": ["two"], "weights": {"acc": "tasks"}},
    }
