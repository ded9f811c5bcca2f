"""Stage "compare" on made-up results."""

import math

import numpy as np
import pandas as pd
import pytest

from mallowspo import compare
from mallowspo.compare_by_dispersion import prompt_dispersion
from mallowspo.errors import InputError
from mallowspo.files import read_parquet
from mallowspo.inference import benjamini_hochberg, holm, paired_difference
from mallowspo.settings import Experiment
from tests.made_up_results import TASK, rewrite, write


@pytest.fixture
def made(tmp_path):
    return write(tmp_path)


def run(made):
    compare.run(made.experiment.stage_view("compare"), made.layout)
    return pd.read_parquet(made.layout.root / "estimates.parquet"), pd.read_parquet(made.layout.comparison)


def row(table, **wanted):
    found = table
    for column, value in wanted.items():
        found = found[found[column] == value]
    assert len(found) == 1
    return found.iloc[0]


def test_estimates_are_means_over_prompts_and_runs(made):
    estimates, _ = run(made)
    scores = [pd.read_parquet(made.layout.scores("dpo", seed) / "score.parquet") for seed in (0, 1)]
    rewards = pd.concat(scores).query("metric == 'reward'")["value"]
    found = row(estimates, method="dpo", metric="reward")
    assert found["estimate"] == pytest.approx(rewards.mean())
    assert found["ci_low"] < found["estimate"] < found["ci_high"]
    assert (found["n"], found["seeds"]) == (12, 2)
    assert set(estimates["metric"]) == {
        "reward", "kl", "length", "complete", "accuracy", "margin", "win_rate", f"{TASK}/acc",
        "kl_k3", "kl_k3_by_token", "distinct_1", "distinct_2", "repetition", "refusal", "chosen_fell", "chosen_change",
        "rejected_change", "chosen_change_per_token", "rejected_change_per_token",
    }  # fmt: skip
    assert row(estimates, method="dpo", metric=f"{TASK}/acc")["n"] == 30


def test_standard_errors_are_of_the_mean_over_prompts(tmp_path):
    made = write(tmp_path, methods=("dpo",), seeds=(0,), lm_eval=False)
    estimates, _ = run(made)
    kl = pd.read_parquet(made.layout.scores("dpo", 0) / "score.parquet").query("metric == 'kl'")["value"]
    found = row(estimates, method="dpo", metric="kl")
    assert found["standard_error"] == pytest.approx(kl.std() / math.sqrt(12))


def test_displacement_is_estimated_by_prompt_and_not_tested(made):
    def fell_for_one_prompt(table):
        """Of the first prompt's two pairs one rises by more than the other falls."""
        first = table.iloc[[0]].assign(pair_id="another", chosen_change=9.0)
        return pd.concat([table.assign(chosen_change=-1.0), first])

    for label in ("dpo", "mallows_theta", "mallows_phi"):
        for seed in (0, 1):
            rewrite(made.layout.scores(label, seed) / "pairs.parquet", fell_for_one_prompt)
    estimates, comparison = run(made)
    assert row(estimates, method="dpo", metric="chosen_fell")["estimate"] == pytest.approx(11 / 12)
    assert row(estimates, method="dpo", metric="chosen_change")["estimate"] == pytest.approx((4 - 11) / 12)
    assert not estimates.query("method == 'reference'")["metric"].isin(["chosen_fell", "chosen_change"]).any()
    assert set(comparison["metric"]) == {
        "reward", "kl", "length", "complete", "accuracy", "margin", "win_rate", f"{TASK}/acc"
    }  # fmt: skip


def test_scores_of_an_earlier_version_are_named(made):
    path = made.layout.scores("mallows_phi", 1) / "pairs.parquet"
    rewrite(path, lambda table: table.drop(columns="chosen_change"))
    with pytest.raises(InputError, match=r"seed=1.pairs.parquet: lacks a column \(.*chosen_change.*\); run its"):
        run(made)


def test_reference_has_half_the_wins_by_definition(made):
    estimates, _ = run(made)
    found = row(estimates, method="reference", metric="win_rate")
    assert found["estimate"] == 0.5 and math.isnan(found["ci_low"]) and math.isnan(found["ci_high"])
    kl = row(estimates, method="reference", metric="kl")
    assert (kl["estimate"], kl["ci_low"], kl["ci_high"]) == (0.0, 0.0, 0.0)


def test_differences_and_holm_families(made):
    estimates, comparison = run(made)
    found = row(comparison, method="mallows_theta", baseline="dpo", metric="reward")
    means = estimates.set_index(["method", "metric"])["estimate"]
    assert found["difference"] == pytest.approx(means["mallows_theta", "reward"] - means["dpo", "reward"])
    assert found["ci_low"] > 0.1 and found["p"] < 0.02 and 0 < found["detectable"] < 0.2
    to_reference = row(comparison, method="dpo", baseline="reference", metric="win_rate")
    assert to_reference["difference"] == pytest.approx(means["dpo", "win_rate"] - 0.5)
    for baseline, methods in (("dpo", 2), ("reference", 3)):
        against = comparison[comparison["baseline"] == baseline]
        outcomes = against["metric"].isin(["reward", "win_rate", "accuracy", f"{TASK}/acc"])
        for family in (against[outcomes], against[~outcomes]):
            assert len(family) == methods * 4
            assert family["family"].nunique() == 1 and set(family["family_size"]) == {methods * 4}
            np.testing.assert_allclose(family["p_holm"], holm(family["p"]))
            np.testing.assert_allclose(family["p_bh"], benjamini_hochberg(family["p"]))
            assert (family["p_bh"] <= family["p_holm"] + 1e-12).all()
    assert not ((comparison["method"] == "dpo") & (comparison["baseline"] == "dpo")).any()


def test_the_spread_between_seeds_is_pooled_over_methods(made):
    _, comparison = run(made)
    values = compare.read_values(made.layout, list(made.experiment.methods), [0, 1], with_tasks=True)["reward"]
    runs = np.stack([values[label].to_numpy() for label in made.experiment.methods])
    expected = paired_difference(values["mallows_theta"], values["dpo"], runs=runs, resamples=1999)
    found = row(comparison, method="mallows_theta", baseline="dpo", metric="reward")
    assert expected.spread.seed_freedom == 2
    for column, value in (("ci_low", expected.low), ("p", expected.p), ("p_policies", expected.p_policies)):
        assert found[column] == pytest.approx(value)
    assert found["covers"] == "new prompts, new seeds"
    assert found["bootstrap_low"] < found["difference"] < found["bootstrap_high"]


def test_equivalence_margins_and_sizes_needed(made):
    _, comparison = run(made)
    values = compare.read_values(made.layout, list(made.experiment.methods), [0, 1], with_tasks=True)
    shares = comparison["metric"].isin(["win_rate", "accuracy", "complete", f"{TASK}/acc"])
    assert (comparison.loc[shares, "equivalence_margin"] == 0.02).all()
    found = row(comparison, method="mallows_theta", baseline="dpo", metric="reward")
    spread = values["reward"]["dpo"].mean(axis=1).std()
    assert found["equivalence_margin"] == pytest.approx(0.1 * spread)
    assert 0.5 < found["p_equivalence"] <= 1
    assert math.isnan(row(comparison, method="dpo", baseline="reference", metric="kl")["equivalence_margin"])
    wins = comparison["metric"] == "win_rate"
    assert comparison.loc[wins, "n_needed_two_points"].notna().all()
    assert comparison.loc[~wins, "n_needed_two_points"].isna().all()
    assert found["n_needed"] < 12 or found["detectable"] > found["difference"]


def test_a_planted_slope_on_dispersion_is_found(tmp_path):
    made = write(tmp_path, prompts=40)
    dispersion, _ = prompt_dispersion(made.layout)
    standard = (dispersion - dispersion.mean()) / dispersion.std(ddof=0)
    for seed in (0, 1):

        def plant(table):
            gain = (table["metric"] == "reward") * table["prompt_id"].map(-0.5 * standard)
            return table.assign(value=table["value"] + gain)

        rewrite(made.layout.scores("mallows_theta", seed) / "score.parquet", plant)
    run(made)
    table = pd.read_parquet(made.layout.interaction)
    found = row(table, method="mallows_theta", baseline="dpo", metric="reward")
    assert found["ci_low"] < -0.5 < found["ci_high"] < 0 and found["p_holm"] < 0.01
    assert found["rank_correlation"] < -0.9 and (found["n"], found["note"]) == (40, "")
    other = row(table, method="mallows_phi", baseline="dpo", metric="reward")
    assert other["p_holm"] > 0.05 and other["ci_low"] < 0 < other["ci_high"]
    assert not table["metric"].str.contains("/").any() and set(table["baseline"]) == {"dpo", "reference"}
    outcomes = table[table["family"] == "outcomes against dpo"]
    assert set(outcomes["metric"]) == {"reward", "win_rate", "accuracy"} and set(outcomes["family_size"]) == {6}
    np.testing.assert_allclose(outcomes["p_holm"], holm(outcomes["p"]))


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda table: table[table["split"] == "train"], "no slope: dispersion.parquet has no test prompt"),
        (lambda table: table.assign(dispersion_index=0.5), "no slope: all test prompts have the same dispersion"),
        (lambda table: table[table["split"] == "test"].head(5), "no slope: 5 test prompts have a dispersion"),
        (lambda table: table[table["split"] == "test"].head(11), "1 of 12 test prompts have no dispersion"),
        (None, "no slope: dispersion.parquet is missing"),
    ],
)
def test_slopes_that_cannot_be_say_why(tmp_path, change, note):
    made = write(tmp_path, methods=("dpo", "mallows_theta"), lm_eval=False)
    if change is None:
        made.layout.dispersion.unlink()
    else:
        rewrite(made.layout.dispersion, change)
    run(made)
    table = pd.read_parquet(made.layout.interaction)
    assert len(table) == 3 * 7 and table["note"].str.startswith(note).all()
    assert table["slope"].isna().all() == note.startswith("no slope")


def test_row_order_does_not_matter(made):
    before = run(made)
    rewrite(made.layout.scores("dpo", 1) / "score.parquet", lambda table: table.iloc[::-1])
    rewrite(made.layout.scores("reference", 0) / "lm_eval.parquet", lambda table: table.sample(frac=1, random_state=1))
    for old, new in zip(before, run(made), strict=True):
        pd.testing.assert_frame_equal(old, new)


def test_missing_prompt_is_named(made):
    path = made.layout.scores("mallows_phi", 1) / "score.parquet"
    lost = pd.read_parquet(path)["prompt_id"].iloc[0]
    rewrite(path, lambda table: table[table["prompt_id"] != lost])
    with pytest.raises(InputError, match=rf"mallows_phi.seed=1.score.parquet: .* of {lost} answer 0 is missing"):
        run(made)


def test_extra_pair_names_the_run_that_lacks_it(made):
    path = made.layout.scores("mallows_phi", 1) / "pairs.parquet"
    rewrite(path, lambda table: pd.concat([table, table.tail(1).assign(pair_id="extra")]))
    with pytest.raises(InputError, match=r"dpo.seed=0.pairs.parquet: accuracy of extra is missing"):
        run(made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.assign(value=[math.nan, *table["value"][1:]]), "is not finite"),
        (lambda table: pd.concat([table, table.head(1)]), "is there twice"),
        (lambda table: table.head(0), "no rows"),
    ],
)
def test_broken_scores_are_refused(made, change, message):
    rewrite(made.layout.scores("dpo", 0) / "alpaca.parquet", change)
    with pytest.raises(InputError, match=message):
        run(made)


def test_missing_file_is_named(made):
    (made.layout.scores("dpo", 1) / "lm_eval.parquet").unlink()
    with pytest.raises(InputError, match=r"dpo.seed=1.lm_eval.parquet: no such file"):
        run(made)


def test_one_method_one_seed_without_lm_eval(tmp_path):
    estimates, comparison = run(write(tmp_path, methods=("dpo",), seeds=(3,), lm_eval=False))
    assert set(comparison["baseline"]) == {"reference"}
    assert not estimates["metric"].str.contains("/").any()
    assert set(estimates["seeds"]) == {1}


def test_task_results_of_an_earlier_run_are_not_taken_up(tmp_path):
    """lm_eval was set to null after a run: its files still lie there."""
    made = write(tmp_path, methods=("dpo",), seeds=(3,))
    values = made.experiment.model_dump()
    values["evaluation"]["lm_eval"] = None
    view = Experiment.model_validate(values).stage_view("compare")
    compare.run(view, made.layout)
    assert not [name for name in read_parquet(made.layout.estimates)["metric"] if "/" in name]
