"""Stage "compare" on made-up results."""

import math

import numpy as np
import pandas as pd
import pytest

from mallowspo import compare
from mallowspo.compare_by_dispersion import prompt_dispersion
from mallowspo.errors import InputError
from mallowspo.files import read_json, read_parquet, write_json
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
        "reward", "kl", "length", "complete", "accuracy", "margin", "win_rate", f"{TASK}/acc", "win_rate against dpo",
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
        "reward", "kl", "length", "complete", "accuracy", "margin", "win_rate", f"{TASK}/acc", "win_rate against dpo"
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
    for baseline, methods, sizes in (("dpo", 2, (5, 4)), ("reference", 3, (4, 4))):
        against = comparison[comparison["baseline"] == baseline]
        outcomes = against["metric"].isin(["reward", "win_rate", "win_rate against dpo", "accuracy", f"{TASK}/acc"])
        for size, family in zip(sizes, (against[outcomes], against[~outcomes]), strict=True):
            assert len(family) == methods * size
            assert family["family"].nunique() == 1 and set(family["family_size"]) == {methods * size}
            np.testing.assert_allclose(family["p_holm"], holm(family["p"]))
            np.testing.assert_allclose(family["p_bh"], benjamini_hochberg(family["p"]))
            assert (family["p_bh"] <= family["p_holm"] + 1e-12).all()
    assert not ((comparison["method"] == "dpo") & (comparison["baseline"] == "dpo")).any()


def test_the_spread_between_seeds_is_pooled_over_methods(made):
    _, comparison = run(made)
    values = compare.read_values(made.experiment.stage_view("compare"), made.layout)["reward"]
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
    values = compare.read_values(made.experiment.stage_view("compare"), made.layout)
    shares = comparison["metric"].isin(["win_rate", "win_rate against dpo", "accuracy", "complete", f"{TASK}/acc"])
    assert (comparison.loc[shares, "equivalence_margin"] == 0.02).all()
    found = row(comparison, method="mallows_theta", baseline="dpo", metric="reward")
    spread = values["reward"]["dpo"].mean(axis=1).std()
    assert found["equivalence_margin"] == pytest.approx(0.1 * spread)
    assert 0.5 < found["p_equivalence"] <= 1
    assert math.isnan(row(comparison, method="dpo", baseline="reference", metric="kl")["equivalence_margin"])
    wins = comparison["metric"].str.startswith("win_rate")
    assert comparison.loc[wins, "n_needed_two_points"].notna().all()
    assert comparison.loc[~wins, "n_needed_two_points"].isna().all()
    assert found["n_needed"] < 12 or found["detectable"] > found["difference"]


def test_margins_are_settings(tmp_path):
    comparison = {"baseline": "dpo", "resamples": 99, "share_margin": 0.05, "standard_margin": 0.5}
    made = write(tmp_path, evaluation={"comparison": comparison})
    _, found = run(made)
    values = compare.read_values(made.experiment.stage_view("compare"), made.layout)["reward"]["dpo"]
    reward = row(found, method="mallows_theta", baseline="dpo", metric="reward")
    assert reward["equivalence_margin"] == pytest.approx(0.5 * values.mean(axis=1).std())
    assert row(found, method="mallows_theta", baseline="dpo", metric="win_rate")["equivalence_margin"] == 0.05


def test_win_rates_against_the_baseline_are_compared_with_one_half(made):
    estimates, comparison = run(made)
    runs = np.stack([wins_against_dpo(made, label) for label in ("mallows_theta", "mallows_phi")])
    found = row(estimates, method="mallows_phi", metric="win_rate against dpo")
    assert found["estimate"] == pytest.approx(runs[1].mean())
    assert row(estimates, method="dpo", metric="win_rate against dpo")["covers"] == "by definition"
    expected = paired_difference(runs[1], np.full(12, 0.5), runs=runs, resamples=1999)
    difference = row(comparison, method="mallows_phi", metric="win_rate against dpo")
    assert difference["baseline"] == "dpo" and difference["difference"] == pytest.approx(runs[1].mean() - 0.5)
    for column, value in (("ci_low", expected.low), ("p", expected.p), ("p_policies", expected.p_policies)):
        assert difference[column] == pytest.approx(value)


def wins_against_dpo(made, label):
    """(prompts, seeds), the mean over a prompt's answers."""
    tables = [pd.read_parquet(made.layout.scores(label, seed) / "alpaca_against.parquet") for seed in (0, 1)]
    return np.transpose([table.groupby("prompt_id")["value"].mean() for table in tables])


def test_published_outputs_are_a_common_opponent(tmp_path):
    """All methods meet them, so methods are compared with the baseline; the reference does not meet them."""
    made = write(tmp_path, evaluation={"alpaca": {"against": ["baseline", "path:other.json"]}})
    for label in made.experiment.methods:
        for seed in (0, 1):
            folder = made.layout.scores(label, seed)
            published = pd.read_parquet(folder / "alpaca.parquet").assign(against="org/model on a hub")
            rewrite(folder / "alpaca_against.parquet", lambda table, more=published: pd.concat([table, more]))
    estimates, comparison = run(made)
    metric = "win_rate against org/model on a hub"
    found = comparison[comparison["metric"] == metric]
    assert found["method"].tolist() == ["mallows_theta", "mallows_phi"] and set(found["baseline"]) == {"dpo"}
    assert set(found["family"]) == {"outcomes against dpo"}
    same = comparison[(comparison["metric"] == "win_rate") & (comparison["baseline"] == "dpo")]
    for column in ("difference", "p", "equivalence_margin", "n_needed_two_points"):
        np.testing.assert_allclose(found[column], same[column])
    assert set(estimates[estimates["metric"] == metric]["method"]) == set(made.experiment.methods)


def test_other_pairs_are_compared_like_the_held_out_ones(tmp_path):
    sets = {"other_pairs": {"hh": {"source": "path:hh.jsonl"}}}
    made = write(tmp_path, evaluation=sets)
    estimates, comparison = run(made)
    assert {"accuracy on hh", "margin on hh"} <= set(estimates["metric"])
    pairs = [pd.read_parquet(made.layout.other_pairs("hh").scores("dpo", s) / "pairs.parquet") for s in (0, 1)]
    found = row(estimates, method="dpo", metric="accuracy on hh")
    assert found["estimate"] == pytest.approx(np.mean([table["correct"] for table in pairs]))
    to_reference = row(comparison, method="dpo", baseline="reference", metric="accuracy on hh")
    assert to_reference["family"] == "outcomes against reference" and to_reference["equivalence_margin"] == 0.02
    assert to_reference["difference"] == pytest.approx(found["estimate"] - 0.5)
    assert row(comparison, method="mallows_phi", baseline="dpo", metric="margin on hh")["family"].startswith("descr")
    assert not read_parquet(made.layout.interaction)["metric"].str.contains(" on ").any()
    by_group = read_parquet(made.layout.accuracy_by_group)
    whole = by_group[by_group["by"] == "all"].set_index(["pair_set", "method"])
    assert whole.loc[("hh", "dpo"), "accuracy"] == pytest.approx(found["estimate"])
    # Without weights of its own, a set's dispersion is the reference's entropy a token.
    own = by_group[(by_group["pair_set"] == "hh") & (by_group["by"] == "dispersion")]
    assert own.empty, "the made-up entropies all are 2 nats a token"
    assert set(by_group["pair_set"]) == {"test", "hh"}


def test_parts_of_a_group_are_in_no_family(made):
    """A group of two tasks: its own number counts, what it sums up does not."""
    groups = {"both": {"tasks": [TASK, "second"], "weights": {"acc": "items"}}}
    for label, seed in [("reference", 0), *made.experiment.runs()]:
        folder = made.layout.scores(label, seed)
        rewrite(folder / "lm_eval.parquet", lambda table: pd.concat([table, table.assign(task="second", value=1.0)]))
        if label == "reference":
            write_json(folder / "lm_eval.json", read_json(folder / "lm_eval.json") | {"groups": groups})
    estimates, comparison = run(made)
    task = made.layout.scores("dpo", 0) / "lm_eval.parquet"
    assert row(estimates, method="dpo", metric="both/acc")["n"] == 60 == len(pd.read_parquet(task))
    parts = comparison[comparison["metric"].isin([f"both > {TASK}/acc", "both > second/acc"])]
    assert len(parts) == 10 and parts["family"].isna().all() and parts["p_holm"].isna().all()
    assert parts["p"].notna().all()
    outcomes = comparison[comparison["family"] == "outcomes against dpo"]
    assert set(outcomes["metric"]) == {"reward", "win_rate", "win_rate against dpo", "accuracy", "both/acc"}
    assert set(outcomes["family_size"]) == {10}
    np.testing.assert_allclose(outcomes["p_holm"], holm(outcomes["p"]))


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
    assert set(outcomes["metric"]) == {"reward", "win_rate", "win_rate against dpo", "accuracy"}
    assert set(outcomes["family_size"]) == {8}
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
    assert len(table) == 3 * 7 + 1 and table["note"].str.startswith(note).all()
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
