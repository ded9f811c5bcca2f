"""One tuning budget for all: groups, prompts held apart, the selected label by the validation prompts alone."""

import numpy as np
import pandas as pd
import pytest

from mallowspo import compare
from mallowspo.compare_values import read_validation_values, read_values
from mallowspo.errors import InputError
from mallowspo.evaluation.held_apart import is_validation
from mallowspo.experiments import validate
from mallowspo.files import read_parquet
from mallowspo.inference import holm, paired_difference
from mallowspo.report.results import read_results
from mallowspo.report.selection_table import selection_tables, selection_words
from mallowspo.settings import Experiment, MethodSettings
from mallowspo.stage_reads import STAGE_READS
from mallowspo.tracking.findings import experiment_metrics, experiment_tags
from mallowspo.tuning import tuning_groups
from tests.made_up_results import rewrite, settings, write

METHODS = ("dpo", "dpo_b", "mallows_theta", "mallows_theta_b")
SELECTION = {
    "selection": {"outcome": "reward", "validation_share": 0.4, "seed": 3},
    "comparison": {"baseline": "dpo", "resamples": 199},
}


def shift(made, label, on_validation, on_test):
    """Move the rewards of one label on each part of the prompts."""
    selection = made.experiment.evaluation.selection
    for seed in made.experiment.seeds:

        def moved(table):
            validation = table["prompt_id"].map(lambda name: is_validation(name, selection))
            by = np.where(validation, on_validation, on_test) * (table["metric"] == "reward")
            return table.assign(value=table["value"] + by)

        rewrite(made.layout.scores(label, seed) / "score.parquet", moved)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """dpo_b is better on the validation prompts and worse on the others; mallows_theta stays ahead of its twin."""
    made = write(tmp_path_factory.mktemp("results"), METHODS, prompts=20, steps=3, lm_eval=False, evaluation=SELECTION)
    shift(made, "dpo_b", 3.0, -3.0)
    shift(made, "mallows_theta_b", -3.0, 3.0)
    compare.run(made.experiment.stage_view("compare"), made.layout)
    return made


def parts(made):
    prompts = read_parquet(made.layout.prompts)["prompt_id"]
    held = {name for name in prompts if is_validation(name, made.experiment.evaluation.selection)}
    return held, set(prompts) - held


def test_a_methods_labels_under_one_control_are_a_group():
    methods = {
        "dpo": MethodSettings(method="dpo", beta=0.1),
        "theta": MethodSettings(method="mallows_theta", beta=0.1),
        "theta_shuffled": MethodSettings(method="mallows_theta", beta=0.1, control="shuffled"),
        "theta_b": MethodSettings(method="mallows_theta", beta=0.3, options={}),
        "theta_length": MethodSettings(method="mallows_theta", beta=0.1, control="length_matched"),
    }
    assert tuning_groups(methods) == {
        "dpo": ["dpo"],
        "mallows_theta": ["theta", "theta_b"],
        "mallows_theta (shuffled)": ["theta_shuffled"],
        "mallows_theta (length-matched)": ["theta_length"],
    }


def test_prompts_are_held_apart_one_by_one(made):
    held, others = parts(made)
    assert (len(held), len(others)) == (7, 13), "a fixed draw"
    assert not is_validation("any prompt", None)
    selection = made.experiment.evaluation.selection
    all_of_them = selection.model_copy(update={"validation_share": 0.999999})
    assert all(is_validation(name, all_of_them) for name in others)
    draws = np.array([is_validation(str(number), selection) for number in range(5000)])
    assert draws.mean() == pytest.approx(0.4, abs=0.02)


def test_the_parts_share_no_prompt_and_nothing_else_is_cut(tmp_path):
    """Nor are sets of pairs and benchmarks, whose units are no test prompts."""
    evaluation = {**SELECTION, "other_pairs": {"more": {"source": "path:more.jsonl"}}}
    made = write(tmp_path, METHODS[:2], (0,), prompts=20, steps=3, evaluation=evaluation)
    view = made.experiment.stage_view("compare")
    tests, validation = read_values(view, made.layout), read_validation_values(view, made.layout)
    held, others = parts(made)
    for metric in ("reward", "accuracy", "win_rate", "win_rate against dpo"):
        assert len(tests[metric]) >= 1
        assert all(set(table.index) == others for table in tests[metric].values())
        assert all(set(table.index) == held for table in validation[metric].values())
    assert len(tests["accuracy on more"]["dpo"]) == 20 and len(tests["made_up_task/acc"]["dpo"]) == 30
    assert "made_up_task/acc" not in validation


def test_the_best_on_the_validation_prompts_is_selected(made):
    tuning = read_parquet(made.layout.tuning).set_index("method")
    assert tuning.index[tuning["selected"]].tolist() == ["dpo_b", "mallows_theta"]
    held, _ = parts(made)
    rewards = [read_parquet(made.layout.scores("dpo_b", seed) / "score.parquet") for seed in (0, 1)]
    own = pd.concat(rewards)
    own = own[(own["metric"] == "reward") & own["prompt_id"].isin(held)]
    assert tuning["estimate"]["dpo_b"] == pytest.approx(own["value"].mean())
    assert (tuning["n"] == len(held)).all() and tuning["group"]["mallows_theta_b"] == "mallows_theta"


def test_the_selected_are_told_by_the_other_prompts(made):
    table = read_parquet(made.layout.selection)
    found = table[table["metric"] == "reward"].set_index("group")
    assert found["method"].tolist() == ["dpo_b", "mallows_theta"]
    assert (found["labels"] == 2).all() and (found["runs"] == 4).all() and (found["baseline"] == "dpo_b").all()
    values = read_values(made.experiment.stage_view("compare"), made.layout)["reward"]
    runs = np.stack([values[label].to_numpy() for label in METHODS])
    expected = paired_difference(values["mallows_theta"], values["dpo_b"], runs=runs, resamples=199)
    row = found.loc["mallows_theta"]
    assert row["difference"] == pytest.approx(expected.difference) and row["difference"] > 2
    assert (row["difference_low"], row["p"]) == pytest.approx((expected.low, expected.p))
    assert row["estimate"] == pytest.approx(values["mallows_theta"].to_numpy().mean()) and row["n"] == 13
    assert np.isnan(found["difference"]["dpo"])
    shares = table[table["metric"].isin(["accuracy", "win_rate"])]
    assert shares["ci_low"].min() >= 0 and shares["ci_high"].max() <= 1, "shares end at 0 and 1"
    tested = table[table["p"].notna()]
    assert set(tested["metric"]) == {"reward", "accuracy", "win_rate", "win_rate against dpo"}
    assert tested["p_holm"].tolist() == pytest.approx(list(holm(tested["p"])))


def test_no_table_of_the_comparison_has_a_validation_prompt(made):
    for file in ("estimates", "comparison", "interaction"):
        table = read_parquet(getattr(made.layout, file))
        assert set(table["n"]) == {13}, file
    by_group = read_parquet(made.layout.accuracy_by_group)
    assert set(by_group[by_group["by"] == "all"]["prompts"]) == {13}


def test_policies_under_other_conditions_too(tmp_path):
    evaluation = {**SELECTION, "temperatures": [0.5]}
    made = write(tmp_path, METHODS[:2], (0,), False, 20, 3, evaluation, keep=(0.5,))
    compare.run(made.experiment.stage_view("compare"), made.layout)
    assert set(read_parquet(made.layout.variants)["n"]) == {13}
    assert set(read_parquet(made.layout.frontier)["n"]) == {13}


def test_the_report_says_how_many_runs_selected_what(made):
    results = read_results(made.experiment.stage_view("report"), made.layout, made.settings_text)
    words = selection_words(results)
    assert words.startswith("Every method had 4 tuning runs: its labels times 2 seeds.")
    assert "on 7 validation prompts was selected" in words
    selected, tuning = selection_tables(results)
    assert list(selected.shown)[:7] == ["Metric", "Tuned method", "Runs", "Method", "Validation", "Test", "Minus dpo_b"]
    assert selected.shown.iloc[0][["Metric", "Tuned method", "Runs", "Method"]].tolist() == [
        "Reward",
        "dpo",
        "4",
        "dpo_b",
    ]
    assert tuning.shown["Selected"].tolist() == ["", "yes", "yes", ""]
    assert results.n_prompts == 13


def test_the_store_gets_the_selected(made):
    evaluation = made.experiment.evaluation
    assert experiment_tags(evaluation, made.layout) == {
        "mallowspo.selected.dpo": "dpo_b",
        "mallowspo.selected.mallows_theta": "mallows_theta",
    }
    found = experiment_metrics(evaluation, made.layout)
    assert found["selection/mallows_theta/reward/runs"] == 4
    assert found["selection/mallows_theta/reward/difference"] > 2
    assert "selection/dpo/reward/difference" not in found and "selection/dpo/reward" in found


def test_without_a_selection_nothing_is_cut_or_said(tmp_path):
    made = write(tmp_path, lm_eval=False, steps=3)
    compare.run(made.experiment.stage_view("compare"), made.layout)
    assert read_parquet(made.layout.tuning).empty and read_parquet(made.layout.selection).empty
    assert set(read_parquet(made.layout.estimates)["n"]) == {12}
    assert experiment_tags(made.experiment.evaluation, made.layout) == {}


def test_too_few_prompts_are_told(tmp_path):
    few = {**SELECTION, "selection": {"validation_share": 0.01}}
    made = write(tmp_path, METHODS, lm_eval=False, steps=3, evaluation=few)
    with pytest.raises(InputError, match=r"leaves \d of 12 test prompts to select by; change its validation_share"):
        compare.run(made.experiment.stage_view("compare"), made.layout)


@pytest.mark.parametrize(
    ("methods", "selection", "message"),
    [
        (("dpo", "dpo_b", "mallows_theta"), {}, "unequal tuning budgets (dpo 2, mallows_theta 1 labels)"),
        (("dpo", "mallows_theta"), {}, "every method has one label, nothing can be selected"),
        (METHODS, {"outcome": "second_reward"}, "selection.outcome second_reward needs a second_judge"),
        (METHODS, {"outcome": "kl"}, "evaluation.selection.outcome: 'kl'"),
        (
            METHODS,
            {"validation_shar": 0.5},
            "evaluation.selection.validation_shar: unknown key; did you mean 'validation_share'",
        ),
    ],
)
def test_a_selection_that_does_not_fit_is_refused_in_one_line(methods, selection, message):
    values = settings(methods, (0,), False).model_dump()
    values["evaluation"]["selection"] = selection
    with pytest.raises(InputError) as error:
        validate(Experiment, values, "file.yaml")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_unequal_budgets_may_be_allowed(tmp_path):
    allowed = {**SELECTION, "selection": {**SELECTION["selection"], "unequal": "allow"}}
    made = write(tmp_path, METHODS[:3], (0,), False, 20, 3, allowed)
    compare.run(made.experiment.stage_view("compare"), made.layout)
    found = read_parquet(made.layout.selection).drop_duplicates("group").set_index("group")
    assert found["runs"].to_dict() == {"dpo": 2, "mallows_theta": 1}


def test_a_selection_touches_comparison_and_report_alone(made):
    without = settings(METHODS, (0, 1), False)
    changed = {stage for stage in STAGE_READS if without.stage_digest(stage) != made.experiment.stage_digest(stage)}
    assert changed == {"compare", "report"}
