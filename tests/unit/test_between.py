"""`mallowspo compare FOLDER FOLDER`: two finished experiments against each other."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner

from mallowspo.between.differences import compare_finished, named_pairs
from mallowspo.between.finished import open_finished
from mallowspo.between.told import as_json
from mallowspo.cli import app
from mallowspo.errors import InputError
from mallowspo.files import read_json, read_jsonl, write_text
from mallowspo.inference import holm, paired_difference
from mallowspo.inference.independent import independent_difference
from tests.made_up_results import write


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two experiments on the same 12 test prompts; dpo and mallows_theta are in both, with 2 and with 3 seeds."""
    root = tmp_path_factory.mktemp("results")
    a = write(root / "one", steps=2)
    b = write(root / "two", methods=("dpo", "mallows_theta", "other"), seeds=(0, 1, 2), steps=2)
    return a.layout.root, b.layout.root


@pytest.fixture(scope="module")
def opened(folders):
    return tuple(open_finished(str(folder), "results") for folder in folders)


def command(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def refused(*arguments):
    """What the command line says of bad input."""
    error = command(*arguments).exception
    assert isinstance(error, InputError)
    return str(error)


def test_every_common_label_and_outcome_is_compared(folders, opened):
    found = compare_finished(*opened, None)
    table = found.table.set_index(["metric", "a_policy"])
    assert set(found.table["a_policy"]) == {"dpo", "mallows_theta"}
    assert (found.table["a_policy"] == found.table["b_policy"]).all()
    metrics = list(dict.fromkeys(found.table["metric"]))
    assert metrics[:3] == ["reward", "win_rate", "accuracy"] and {"kl", "length", "margin"} <= set(metrics)
    row = table.loc[("reward", "mallows_theta")]
    means = []
    for folder, seeds in zip(folders, ((0, 1), (0, 1, 2)), strict=True):
        runs = [pd.read_parquet(folder / f"scores/mallows_theta/seed={seed}/score.parquet") for seed in seeds]
        rewards = pd.concat(runs).query("metric == 'reward'")["value"]
        means.append(rewards.mean())
    assert row["a"] == pytest.approx(means[0]) and row["b"] == pytest.approx(means[1])
    assert row["difference"] == pytest.approx(means[0] - means[1])
    assert row["ci_low"] < row["difference"] < row["ci_high"]
    assert (row["a_seeds"], row["b_seeds"], row["shared"], row["paired"]) == (2, 3, 12, True)
    assert list(found.table["p_holm"]) == list(holm(found.table["p"]))
    assert found.shared == 12
    # A win rate against a policy of one's own experiment is no number to compare.
    assert found.left_out == ["win_rate against dpo: each against a policy of its own experiment"]


def test_named_policies_are_compared_in_all_pairs(opened):
    found = compare_finished(*opened, "a:mallows_phi,b:dpo, b:other")
    pairs = set(zip(found.table["a_policy"], found.table["b_policy"], strict=True))
    assert pairs == {("mallows_phi", "dpo"), ("mallows_phi", "other")}
    assert named_pairs("a:reference,b:reference", *opened) == [("reference", "reference")]
    metrics = set(compare_finished(*opened, "a:reference,b:reference").table["metric"])
    assert "reward" in metrics and "win_rate" not in metrics


@pytest.mark.parametrize(
    ("policies", "says"),
    [
        ("dpo", "--policies dpo: write a:LABEL"),
        ("a:dpo", "names no policy of b"),
        ("a:dpo,b:dop", "--policies b:dop: b has reference, dpo, mallows_theta, other"),
    ],
)
def test_policies_that_cannot_be_read(opened, policies, says):
    with pytest.raises(InputError, match=re.escape(says)):
        named_pairs(policies, *opened)


def renamed(side):
    """The same experiment on other prompts."""
    values = {
        metric: {label: table.rename(index=lambda unit: f"other {unit}") for label, table in by_label.items()}
        for metric, by_label in side.values.items()
    }
    return replace(side, values=values)


def test_other_prompts_are_two_samples(opened):
    a, b = opened[0], renamed(opened[1])
    found = compare_finished(a, b, "a:reference,b:reference")
    row = found.table.set_index("metric").loc["reward"]
    assert not row["paired"] and row["shared"] == 0 and found.shared == 0
    samples = [side.values["reward"]["reference"].to_numpy()[:, 0] for side in (a, b)]
    welch = stats.ttest_ind(*samples, equal_var=False)
    assert row["p"] == pytest.approx(welch.pvalue)
    interval = welch.confidence_interval(0.95)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((interval.low, interval.high))
    assert row["test"].startswith("Welch")
    # As many seeds as there are make the interval wider.
    trained = compare_finished(a, b, "a:dpo,b:dpo").table.set_index("metric").loc["reward"]
    assert trained["covers"] == "new prompts, new seeds" and "Welch" in trained["test"]


def test_how_many_shared_prompts_pair_them(opened):
    a, b = opened
    for kept, paired in ((11, True), (9, False)):
        rewards = {label: table.iloc[:kept] for label, table in b.values["reward"].items()}
        row = compare_finished(a, replace(b, values={"reward": rewards}), None).table.iloc[0]
        sizes = (kept, kept, kept) if paired else (kept, 12, kept)
        assert (row["paired"], row["shared"], row["a_n"], row["b_n"]) == (paired, *sizes)


def test_settings_that_differ_are_told(opened):
    told = compare_finished(*opened, None).settings.set_index("key")
    assert tuple(told.loc["seeds"]) == ("0, 1", "0, 1, 2")
    assert tuple(told.loc["methods.mallows_phi.method"]) == ("mallows_phi", "–")
    assert "title" not in told.index and "training.learning_rate" not in told.index


def test_rewards_of_different_judges_are_no_comparison(opened):
    a, b = opened
    judged = b.settings.evaluation.model_copy(update={"judge": "reward:path:mine"})
    other = replace(b, settings=b.settings.model_copy(update={"evaluation": judged}))
    found = compare_finished(a, other, None)
    assert "reward" not in set(found.table["metric"]) and "kl" in set(found.table["metric"])
    assert found.left_out[0] == "reward: judged by reward:vader in a and by reward:path:mine in b"
    only = replace(other, values={"reward": b.values["reward"]})
    with pytest.raises(InputError, match="no outcome in common: reward: judged by"):
        compare_finished(a, only, None)


def test_the_command_prints_and_writes(folders, tmp_path):
    done = command(*folders, "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.exception
    printed = json.loads(done.stdout)
    assert printed == read_json(tmp_path / "out" / "comparison.json")
    assert printed["shared_prompts"] == 12 and printed["a"]["seeds"] == [0, 1] and printed["b"]["prompts"] == 12
    table = pd.read_csv(tmp_path / "out" / "differences.csv")
    assert list(table["difference"]) == pytest.approx([row["difference"] for row in printed["differences"]])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "comparison.json", "differences.csv", "differences.md", "differences.tex",
        "settings.csv", "settings.md", "settings.tex",
    }  # fmt: skip
    shown = command(*folders).stdout
    assert "a minus b" in shown and "12 paired" in shown and "Settings that differ" in shown
    assert "12 test prompts are in both" in shown.replace("\n", " ")


def test_json_holds_no_number_that_json_has_not(opened):
    found = compare_finished(*opened, "a:reference,b:reference")
    json.dumps(as_json(found), allow_nan=False)


def test_bad_input_is_told_in_one_line(folders, tmp_path):
    a, b = folders
    assert "no such folder" in refused(a, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'}: no experiment's folder: it has no settings.yaml" in refused(tmp_path / "empty", b)
    assert "are one experiment" in refused(a, a)
    assert "one folder; give two finished experiments' folders" in refused(a)
    assert "--policies, --shared, --out and --json are for two experiments" in refused("demo", "--json")
    assert "results/nothing: no such folder" in refused("nothing", b)


def test_what_is_missing_is_named_with_its_command(folders, tmp_path):
    made = write(tmp_path / "results", seeds=(0,), steps=2)
    missing = made.layout.scores("dpo", 0) / "alpaca.parquet"
    missing.unlink()
    said = refused(made.layout.root, folders[1])
    assert "not finished: scores/dpo/seed=0/alpaca.parquet is missing" in said
    assert f"`mallowspo alpaca made_up --method dpo --seed 0 --results {tmp_path}/results`" in said
    made.layout.settings.unlink()
    assert "settings.yaml is missing; `mallowspo report made_up" in refused(made.layout.root, folders[1])
    study = Path(__file__).parents[2] / "config/experiments/bandit.yaml"
    write_text(made.layout.settings, study.read_text(encoding="utf-8"))
    assert "a study (kind: bandit)" in refused(made.layout.root, folders[1])


def test_no_label_in_common(folders, tmp_path):
    made = write(tmp_path / "results", methods=("mine",), seeds=(0,), steps=2)
    said = refused(folders[0], made.layout.root)
    assert "no label in common (a: dpo, mallows_theta, mallows_phi; b: mine)" in said
    assert "--policies a:dpo,b:mine" in said
    assert read_jsonl(made.layout.samples("mine", 0))


def test_one_seed_and_shared_prompts_are_the_paired_test():
    generator = np.random.default_rng(1)
    first, second = generator.normal(0.3, 1, (20, 1)), generator.normal(0, 1, (20, 1))
    found = independent_difference(first, second, paired=True)
    expected = paired_difference(first, second)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (found.p, found.test) == (expected.p, expected.test)
    assert found.covers == "new prompts, these runs only"
    # One seed on one side is enough to leave other seeds out of the claim.
    several = independent_difference(np.hstack([first, first + 1]), second, paired=True)
    assert several.covers == found.covers


def test_tables_that_cannot_be_paired():
    with pytest.raises(ValueError, match="3 and 4 prompts cannot be paired"):
        independent_difference(np.zeros((3, 1)), np.zeros((4, 1)), paired=True)


@pytest.mark.parametrize("paired", [True, False])
def test_the_interval_covers_new_prompts_and_new_seeds(paired):
    """400 pairs of experiments without a difference: seeds, prompts and noise as in docs/statistics.md."""
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(400):
        prompts = [generator.normal(0, 1, (30, 1))] * 2 if paired else generator.normal(0, 1, (2, 30, 1))
        runs = [
            prompts[side] + generator.normal(0, 0.3, (4, 1, seeds)) + generator.normal(0, 0.8, (4, 30, seeds))
            for side, seeds in enumerate((3, 2))
        ]
        found = independent_difference(runs[0][0], runs[1][0], paired, (runs[0], runs[1]), resamples=19)
        covered += found.low <= 0 <= found.high
    assert 0.92 <= covered / 400 <= 0.995
