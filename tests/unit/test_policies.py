"""Names: who answers, and what a metric is of."""

import pytest

from mallowspo import metric_names
from mallowspo.errors import InputError
from mallowspo.policies import Policy


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("dpo", Policy("dpo")),
        ("dpo@temperature=0.7", Policy("dpo", temperature=0.7)),
        ("reference@temperature=0", Policy("reference", temperature=0)),
        ("mallows_phi@training=0.25", Policy("mallows_phi", training=0.25)),
    ],
)
def test_a_policy_and_its_name(name, policy):
    assert Policy.parse(name) == policy and policy.name == name
    assert policy.is_compared == ("@" not in name)


@pytest.mark.parametrize(
    "name",
    ["dpo@", "dpo@temperature", "dpo@temprature=0.7", "dpo@temperature=-1", "@training=1", "dpo@training=1@training=1"],
)
def test_what_is_no_policy(name):
    with pytest.raises(InputError, match=f"policy '{name}': give a label"):
        Policy.parse(name)


def test_metrics_say_what_they_are_of():
    published = metric_names.against("win_rate", "org/model on a hub")
    other = metric_names.on("accuracy", "hh")
    part = metric_names.part_of("mmlu", "mmlu_anatomy/acc")
    told = {
        name: [metric_names.bare(name), metric_names.opponent(name), metric_names.is_outcome(name)]
        for name in ("reward", "win_rate", "kl", published, other, "mmlu/acc", part)
    }
    assert told == {
        "reward": ["reward", "reference", True],
        "win_rate": ["win_rate", "reference", True],
        "kl": ["kl", "reference", False],
        published: ["win_rate", "org/model on a hub", True],
        other: ["accuracy", "reference", True],
        "mmlu/acc": ["mmlu/acc", "reference", True],
        part: [part, "reference", False],
    }
    assert [metric_names.is_benchmark(name) for name in (published, other, "mmlu/acc", part)] == [0, 0, 1, 1]
    assert [metric_names.is_on_other_pairs(name) for name in (published, other, "accuracy")] == [0, 1, 0]
