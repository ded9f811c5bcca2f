"""A second judge of the same answers: its scores, the gains by both, and what is said where it sees nothing."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mallowspo import compare
from mallowspo.errors import InputError
from mallowspo.evaluation import second_judge
from mallowspo.experiments import validate
from mallowspo.files import read_parquet, write_jsonl
from mallowspo.judges.names import is_a_model
from mallowspo.judges.reward import judge_answers
from mallowspo.layout import Layout
from mallowspo.report import variants
from mallowspo.report.results import read_results
from mallowspo.report.second_judge import second_judge_figure, second_judge_table, second_judge_words
from mallowspo.report.style import Look
from mallowspo.report.tables import main_table
from mallowspo.settings import Experiment
from mallowspo.tracking.contents import read_run
from mallowspo.tracking.findings import experiment_metrics
from tests.made_up_results import rewrite, settings, write

SHARED = os.environ.get("MALLOWSPO_SHARED_DATA")
METHODS = ("dpo", "mallows_theta")
JUDGE = {"second_judge": "reward:pattern", "comparison": {"baseline": "dpo", "resamples": 199}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    evaluation = {**JUDGE, "temperatures": [0.5]}
    made = write(tmp_path_factory.mktemp("results"), steps=3, lm_eval=False, evaluation=evaluation, keep=(0.5,))
    compare.run(made.experiment.stage_view("compare"), made.layout)
    return made


@pytest.fixture(scope="module")
def results(made):
    return read(made)


def read(made):
    return read_results(made.experiment.stage_view("report"), made.layout, made.settings_text)


def gains(made):
    return read_parquet(made.layout.second_opinion).set_index(["method", "measure"])


def test_pattern_tells_good_from_bad_without_a_download():
    answers = ["A wonderful, brilliant film.", "The film was terrible, and I hated it.", "It is a film.", "not good"]
    good, bad, neither, negated = judge_answers("reward:pattern", [""] * 4, answers)
    assert (
        good == pytest.approx(0.95) and bad == pytest.approx(-0.95) and neither == 0 and negated == pytest.approx(-0.35)
    )


@pytest.mark.skipif(SHARED is None, reason="MALLOWSPO_SHARED_DATA names no folder of real data")
def test_what_the_docs_say_of_both_lexicons():
    """docs/evaluation.md: on how many labelled sentences the two are right, 0 counted half, and how alike they rank."""
    with gzip.open(Path(SHARED) / "sentence_polarity.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    texts, labels = [row["text"] for row in rows], np.array([row["label"] for row in rows])
    found = {name: np.array(judge_answers(name, texts, texts)) for name in ("reward:vader", "reward:pattern")}
    right = [np.where(values == 0, 0.5, (values > 0) == (labels == 1)).mean() for values in found.values()]
    assert len(rows) == 10662 and right == pytest.approx([0.626, 0.628], abs=0.0005)
    assert stats.spearmanr(*found.values()).statistic == pytest.approx(0.486, abs=0.0005)


def test_the_same_answers_are_scored_in_the_form_of_the_first_judges_scores(tmp_path):
    layout = Layout(str(tmp_path), "e")
    answers = [("a", 0, "a good film"), ("a", 1, "a bad film"), ("b", 0, "a film")]
    rows = [{"prompt_id": p, "answer_index": i, "instruction": "?", "output": text} for p, i, text in answers]
    write_jsonl(layout.samples("dpo@training=0.5", 1), rows)
    second_judge.run(settings(("dpo",), (1,), False, JUDGE).stage_view("second-score"), layout, "dpo@training=0.5", 1)
    table = read_parquet(layout.scores("dpo@training=0.5", 1) / "second.parquet")
    assert list(table) == ["prompt_id", "answer_index", "metric", "value", "judge"]
    assert table["value"].tolist() == pytest.approx([0.7, -0.7, 0.0])
    assert set(table["metric"]) == {"second_reward"} and set(table["judge"]) == {"reward:pattern"}


def test_it_is_an_outcome_of_its_own(made, results):
    estimates = read_parquet(made.layout.estimates).set_index(["method", "metric"])
    assert {"reference", "dpo"} <= set(estimates.xs("second_reward", level="metric").index)
    comparison = read_parquet(made.layout.comparison)
    own = comparison[comparison["metric"] == "second_reward"]
    assert len(own) == 2 + 3 and (own["family"] == [f"outcomes against {name}" for name in own["baseline"]]).all()
    main = main_table(results).numbers.set_index("method")
    row = estimates.loc[("dpo", "second_reward")]
    assert main.loc["dpo", "second_reward"] == pytest.approx(row["estimate"])
    assert main.loc["dpo", "second_reward_ci_low"] == pytest.approx(row["ci_low"])


def test_policies_along_the_training_and_at_other_temperatures_have_it_too(made, results):
    table = read_parquet(made.layout.variants)
    own = table[table["metric"] == "second_reward"]
    assert set(own["training"]) == {0.5, 1.0} and set(own["temperature"]) == {0.5, 1.0}
    for condition in (variants.TEMPERATURE, variants.ALONG_TRAINING):
        assert "Second judge" in variants.variants_table(results, condition).shown


def test_gains_are_in_standard_deviations_of_the_reference(made):
    found = gains(made)
    for measure, file, metric in (("first", "score", "reward"), ("second", "second", "second_reward")):
        means = {}
        for label, seeds in (("reference", (0,)), ("mallows_theta", (0, 1))):
            tables = [read_parquet(made.layout.scores(label, seed) / f"{file}.parquet") for seed in seeds]
            own = [table[table["metric"] == metric].groupby("prompt_id")["value"].mean() for table in tables]
            means[label] = pd.concat(own, axis=1)
        standard = means["reference"].iloc[:, 0]
        expected = (means["mallows_theta"].mean(axis=1) - standard).mean() / standard.std()
        row = found.loc[("mallows_theta", measure)]
        assert row["estimate"] == pytest.approx(expected)
        assert row["ci_low"] < expected < row["ci_high"]
    first, second, excess = (found["estimate"]["mallows_theta", name] for name in ("first", "second", "excess"))
    assert excess == pytest.approx(first - second)
    assert found.loc[("mallows_theta", "excess"), "p"] <= found.loc[("mallows_theta", "excess"), "p_holm"]


def test_a_second_judge_that_says_the_same_in_another_unit_leaves_no_excess(tmp_path):
    made = write(tmp_path, METHODS, (0,), False, steps=3, evaluation=JUDGE)
    for method, seed in [("reference", 0), *made.experiment.runs()]:
        first = read_parquet(made.layout.scores(method, seed) / "score.parquet")
        first = first[first["metric"] == "reward"].assign(metric="second_reward", value=lambda t: 10 * t["value"] - 3)
        rewrite(made.layout.scores(method, seed) / "second.parquet", lambda _, own=first: own)
    compare.run(made.experiment.stage_view("compare"), made.layout)
    found = gains(made)
    np.testing.assert_allclose(found.xs("excess", level="measure")["estimate"], 0, atol=1e-9)
    assert found.loc[("reference", "agreement"), "estimate"] == pytest.approx(1)


def test_a_judge_that_sees_no_difference_is_told_and_the_page_is_made(tmp_path):
    made = write(tmp_path, METHODS, (0,), False, steps=3, evaluation=JUDGE)
    for method, seed in [("reference", 0), *made.experiment.runs()]:
        rewrite(made.layout.scores(method, seed) / "second.parquet", lambda table: table.assign(value=0.0))
    compare.run(made.experiment.stage_view("compare"), made.layout)
    found = gains(made)
    assert found["estimate"].isna().all()
    assert "the second judge gives all answers of the reference the same" in found.loc[("dpo", "excess"), "note"]
    said = read(made)
    words = second_judge_words(said)
    assert words.endswith("No numbers: the second judge gives all answers of the reference the same reward.")
    assert second_judge_table(said).shown["Excess"].tolist() == ["–"] * 2
    assert second_judge_figure(said, Look(said.methods)) == []


def test_the_report_says_who_judges_and_how_alike(made, results):
    assert second_judge_words(results).startswith("First judge: reward:vader. Second: reward:pattern.")
    second_judge_figure(results, Look(results.methods))
    figure = pd.read_csv(made.layout.figures / "second_opinion.csv")
    assert figure["method"].tolist() == ["dpo", "mallows_theta", "mallows_phi"]
    row = gains(made).loc[("dpo", "second")]
    assert figure["second_ci_high"][0] == pytest.approx(row["ci_high"])


def test_without_a_second_judge_nothing_is_said(tmp_path):
    made = write(tmp_path, METHODS, (0,), False, steps=3)
    compare.run(made.experiment.stage_view("compare"), made.layout)
    assert read_parquet(made.layout.second_opinion).empty
    said = read(made)
    assert second_judge_table(said) is None and second_judge_words(said) == ""
    assert "second_reward" not in main_table(said).numbers


def test_the_store_gets_it(made):
    child = read_run(made.layout, made.experiment, "dpo", 0)
    scores = read_parquet(made.layout.scores("dpo", 0) / "second.parquet")
    assert child.evaluation["eval/second_reward"] == pytest.approx(scores["value"].mean())
    assert child.tags["mallowspo.second_judge"] == "reward:pattern"
    found = experiment_metrics(made.experiment.evaluation, made.layout)
    assert found["second_judge/dpo/excess"] == gains(made)["estimate"]["dpo", "excess"]
    assert "second_judge/reference/agreement" in found


def test_a_run_without_it_is_named(tmp_path):
    made = write(tmp_path, steps=3, lm_eval=False, evaluation=JUDGE)
    (made.layout.scores("mallows_phi", 1) / "second.parquet").unlink()
    with pytest.raises(InputError, match="mallows_phi/seed=1/second.parquet"):
        compare.run(made.experiment.stage_view("compare"), made.layout)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reward:vader", "second_judge is the first judge (reward:vader); name another, or remove it"),
        ("reward:patern", "did you mean 'reward:pattern'?"),
        ("openai:gpt", "compares two answers and gives no reward for one"),
    ],
)
def test_a_wrong_second_judge_is_refused_in_one_line(name, message):
    values = settings(("dpo",), (0,), False).model_dump()
    values["evaluation"]["second_judge"] = name
    with pytest.raises(InputError) as error:
        validate(Experiment, values, "file.yaml")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_models_are_told_from_functions():
    assert is_a_model("reward:path:folder") and is_a_model("reward:hub:a/b@main#logit=1")
    assert not is_a_model("reward:pattern") and not is_a_model("reward:my.module:judge")
