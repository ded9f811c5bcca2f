"""Policies at other temperatures: the same answers' numbers as a comparison of their own would give."""

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


def test_a_missing_answer_is_named(tmp_path):
    made = write(tmp_path, lm_eval=False, evaluation={"temperatures": [0.5]})
    rewrite(made.layout.scores("dpo@temperature=0.5", 1) / "score.parquet", lambda table: table.iloc[1:])
    with pytest.raises(InputError, match=r"dpo@temperature=0.5.seed=1.score.parquet: .* is missing"):
        variants(made)
