"""Policies at other temperatures and along their training: the numbers that a comparison of their own would give."""

import numpy as np
import pandas as pd
import pytest

from mallowspo import compare
from mallowspo.errors import InputError
from mallowspo.files import read_parquet
from tests.made_up_results import rewrite, write


def variants(made):
    compare.run(made.experiment.stage_view("compare"), made.layout)
    return read_parquet(made.layout.variants)


def value(table, metric, method, temperature):
    own = table[(table["metric"] == metric) & (table["method"] == method) & (table["temperature"] == temperature)]
    assert len(own) == 1
    return own.iloc[0]


def test_nothing_without_other_temperatures(tmp_path):
    found = variants(write(tmp_path, lm_eval=False))
    assert found.empty and "estimate" in found


def test_each_temperature_stands_beside_the_compared_one(tmp_path):
    made = write(tmp_path, lm_eval=False, evaluation={"temperatures": [0.5, 0.25]})
    found = variants(made)
    estimates = read_parquet(made.layout.estimates).set_index(["method", "metric"])
    assert set(found["temperature"]) == {1.0, 0.5, 0.25}
    for method in ("reference", "dpo", "mallows_theta", "mallows_phi"):
        for metric in ("reward", "kl", "length", "complete"):
            mine, theirs = value(found, metric, method, 1.0), estimates.loc[(method, metric)]
            for column in ("estimate", "ci_low", "ci_high", "n", "seeds"):
                assert mine[column] == pytest.approx(theirs[column])
    shifted = value(found, "reward", "dpo", 0.25)
    assert shifted["estimate"] == pytest.approx(value(found, "reward", "dpo", 1.0)["estimate"] + 0.75)
    assert value(found, "win_rate", "dpo", 0.25)["estimate"] == 1.0
    assert "reference" not in set(found[found["metric"] == "win_rate"]["method"])


def test_wins_are_against_the_reference_at_the_same_temperature(tmp_path):
    made = write(tmp_path, lm_eval=False, evaluation={"temperatures": [0.5]})
    tables = []
    for seed in (0, 1):
        file = made.layout.scores("dpo@temperature=0.5", seed) / "score.parquet"
        rewrite(file, lambda table: table.assign(value=table["value"] - 0.7 * (table["metric"] == "reward")))
        tables.append(pd.read_parquet(file))
    reference = pd.read_parquet(made.layout.scores("reference@temperature=0.5", 0) / "score.parquet")
    standard, *rewards = [table[table["metric"] == "reward"]["value"].to_numpy() for table in (reference, *tables)]
    expected = np.mean([mine > standard for mine in rewards])
    assert 0 < expected < 1
    assert value(variants(made), "win_rate", "dpo", 0.5)["estimate"] == pytest.approx(expected)


def along(made, method, metric):
    """Estimates by share of the training, as compared otherwise."""
    found = variants(made)
    own = found[(found["metric"] == metric) & (found["method"] == method) & (found["temperature"] == 1.0)]
    return own.set_index("training")["estimate"]


def test_policies_along_their_training_stand_before_its_end(tmp_path):
    """Made up: reward and KL grow in proportion to the share."""
    made = write(tmp_path, lm_eval=False, keep=(0.25, 0.5), evaluation={"temperatures": [0.5]})
    estimates = read_parquet_of_estimates(made)
    for metric in ("reward", "kl"):
        end = estimates.loc[("dpo", metric)]
        assert along(made, "dpo", metric).to_dict() == pytest.approx({1.0: end, 0.25: end / 4, 0.5: end / 2})
    assert along(made, "dpo", "length").nunique() == 1
    assert along(made, "reference", "reward").index.tolist() == [1.0], "the reference is not trained"
    # Each policy is scored on all answers: n and seeds are those of the comparison.
    rows = variants(made).query("training == 0.25 and metric == 'reward'")
    assert rows["method"].tolist() == list(made.experiment.methods) and set(rows["seeds"]) == {2}


def read_parquet_of_estimates(made):
    variants(made)
    return read_parquet(made.layout.estimates).set_index(["method", "metric"])["estimate"]


def test_trainings_are_compared_at_equal_kl(tmp_path):
    """Made up: every path is a straight line from 0, so that what a line of the baseline's gives can be worked out."""
    made = write(tmp_path, lm_eval=False, keep=(0.25, 0.5))
    ends = read_parquet_of_estimates(made)
    table = read_parquet(made.layout.frontier)
    assert set(table["along"]) == {"training"}, "the experiment has one beta a method"
    equal = table[table["measure"] == "reward at equal KL"].set_index("method")
    others = ("mallows_theta", "mallows_phi")
    shares = {"@training=0.25": 0.25, "@training=0.5": 0.5, "": 1.0}
    assert equal.index.tolist() == [method + end for method in others for end in shares]
    assert set(equal["against"]) == {"dpo"}
    baseline_kl, slope = ends["dpo", "kl"], ends["dpo", "reward"] / ends["dpo", "kl"]
    compared = 0
    for method in others:
        for end, share in shares.items():
            kl, reward = (share * ends[method, metric] for metric in ("kl", "reward"))
            row = equal.loc[method + end]
            assert row["kl"] == pytest.approx(kl)
            if 0.25 * baseline_kl <= kl <= baseline_kl:
                assert row["estimate"] == pytest.approx(reward - slope * kl)
                assert row["ci_low"] < row["estimate"] < row["ci_high"]
                compared += 1
            else:
                assert np.isnan(row["estimate"]) and "outside the curve's" in row["note"]
    assert compared >= 3
    volumes = table[table["measure"] != "reward at equal KL"]
    assert volumes["measure"].tolist() == ["hypervolume"] * 3 + ["hypervolume gain"] * 2
    assert volumes["method"].tolist() == ["dpo", *others, *others]


def test_betas_and_trainings_are_told_apart(tmp_path):
    made = write(tmp_path, methods=("dpo", "dpo_low", "mallows_theta"), lm_eval=False, keep=(0.5,))
    variants(made)
    table = read_parquet(made.layout.frontier)
    assert table["along"].tolist() == ["beta"] * 2 + ["training"] * (4 + 3 + 2)
    assert table[table["along"] == "beta"]["method"].tolist() == ["mallows_theta", "dpo, dpo_low"]


def test_a_missing_answer_is_named(tmp_path):
    made = write(tmp_path, lm_eval=False, evaluation={"temperatures": [0.5]})
    rewrite(made.layout.scores("dpo@temperature=0.5", 1) / "score.parquet", lambda table: table.iloc[1:])
    with pytest.raises(InputError, match=r"dpo@temperature=0.5.seed=1.score.parquet: .* is missing"):
        variants(made)
