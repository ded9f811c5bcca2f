"""Experiments that begin where another one ended."""

from pathlib import Path

import pytest
import yaml

from mallowspo.chains import first_model, load_all, located
from mallowspo.errors import InputError
from mallowspo.experiments import load_comparison

SMOKE_TEXT = Path("config/experiments/smoke.yaml").read_text()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with experiments of its own; a call writes one."""
    smoke = yaml.safe_load(SMOKE_TEXT)
    smoke["model"].pop("sha256", None)
    (tmp_path / "config/experiments").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    def write(name, source, **changed):
        values = {**smoke, **changed, "model": {"source": source, "precision": "float32"}}
        (tmp_path / f"config/experiments/{name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False))

    return write


def test_what_an_experiment_begins_from_comes_with_it(folder):
    folder("bare", "made_up:two_layers")
    folder("tuned", "policy:bare/dpo/seed=1")
    folder("last", "policy:tuned/mallows_theta/seed=1")
    files, experiments = load_all(["last"])
    assert list(experiments) == list(files) == ["last", "tuned", "bare"]
    assert files["bare"] == "config/experiments/bare.yaml"
    assert first_model(experiments["last"].model).source == "made_up:two_layers"
    keys = {experiment.model.key for experiment in experiments.values()}
    assert len(keys) == 3


def test_an_experiment_that_is_asked_for_by_its_path_is_the_one_that_others_begin_from(folder, tmp_path):
    folder("tuned", "policy:bare/dpo/seed=1")
    folder("bare", "made_up:two_layers")
    moved = tmp_path / "elsewhere" / "bare.yaml"
    moved.parent.mkdir()
    (tmp_path / "config/experiments/bare.yaml").rename(moved)
    files, _ = load_all(["tuned", str(moved)])
    assert files["bare"] == str(moved)


def test_a_trained_policy_lies_where_its_training_leaves_it():
    assert located("policy:hh_sft/sft/seed=-3", "out") == "path:out/hh_sft/runs/sft/seed=-3/model"
    assert located("hub:a/b@c", "out") == "hub:a/b@c"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (
            "policy:bare/dpq/seed=1",
            "policy:bare/dpq/seed=1: no such label in config/experiments/bare.yaml; did you mean",
        ),
        ("policy:bare/dpo/seed=9", "config/experiments/bare.yaml has the seeds 1"),
        ("policy:bear/dpo/seed=1", "no such experiment 'bear'; did you mean 'bare'"),
        ("policy:tuned/dpo/seed=1", "begin from each other"),
    ],
)
def test_a_policy_that_nothing_trains(folder, source, says):
    folder("bare", "made_up:two_layers")
    folder("tuned", source)
    with pytest.raises(InputError, match=says):
        load_all(["tuned"])


def test_a_ring_of_two(folder):
    folder("one", "policy:two/dpo/seed=1")
    folder("two", "policy:one/dpo/seed=1")
    with pytest.raises(InputError, match="begin from each other"):
        load_all(["one"])


@pytest.mark.parametrize("source", ["policy:bare", "policy:bare/dpo", "policy:bare/dpo/1", "policy:/dpo/seed=1"])
def test_a_policy_in_other_words(folder, source):
    folder("tuned", source)
    with pytest.raises(InputError, match="policy:EXPERIMENT/LABEL/seed=N"):
        load_comparison("tuned")


JUDGE = "reward:path:results/judge/model"


def test_the_reward_model_that_judges_comes_with_it(folder):
    evaluation = yaml.safe_load(SMOKE_TEXT)["evaluation"]
    folder("judged", "made_up:two_layers", evaluation={**evaluation, "judge": JUDGE})
    assert list(load_all(["judged"])[1]) == ["judged"], "there is no file of that name: the folder must be there"
    folder("judge", "made_up:two_layers")
    assert list(load_all(["judged"])[1]) == ["judged", "judge"]
    assert list(load_all(["judged"], "./results")[1]) == ["judged", "judge"]
    assert list(load_all(["judged"], "elsewhere")[1]) == ["judged"], "its place is in other results"
    pairs = yaml.safe_load(SMOKE_TEXT)["pairs"]
    pairs["on_policy"]["judge"] = JUDGE
    folder("ranked", "made_up:two_layers", pairs=pairs)
    assert list(load_all(["ranked"])[1]) == ["ranked", "judge"]
    folder("twice", "made_up:two_layers", evaluation={**evaluation, "second_judge": JUDGE})
    assert list(load_all(["twice"])[1]) == ["twice", "judge"]
