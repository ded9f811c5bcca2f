"""Held-out pairs by group: means and intervals per prompt, and a calibration error that knows what chance gives."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from mallowspo import compare
from mallowspo.evaluation.pair_accuracy import accuracy_by_group, calibration_error, pair_facts
from mallowspo.files import read_parquet
from mallowspo.inference import estimate
from mallowspo.report.pair_table import pair_table
from tests.made_up_results import write


def facts(count: int, **columns: object) -> pd.DataFrame:
    index = pd.Index([f"pair{n}" for n in range(count)], name="pair_id")
    values = {
        "prompt_id": [f"prompt{n // 2}" for n in range(count)],
        "source": "all of it",
        "length_ratio": np.linspace(0.5, 2, count),
        "dispersion": np.linspace(0.9, 0.1, count),
    }
    return pd.DataFrame({**values, **columns}, index=index)


def test_rows_are_means_over_prompts_of_the_groups_pairs() -> None:
    known = facts(30)
    draw = np.random.default_rng(0)
    margins = {label: pd.DataFrame(draw.normal(0.5, 1, (30, 2)), index=known.index) for label in ("dpo", "phi")}
    # Rows in any order: they are joined by id.
    shuffled = {label: table.sample(frac=1, random_state=1) for label, table in margins.items()}
    found = accuracy_by_group(shuffled, known, {"dpo": 0.1, "phi": 0.2}).set_index(["method", "by", "group"])
    assert set(found.index.get_level_values("by")) == {"all", "length_ratio", "dispersion"}
    row = found.loc[("phi", "all", "all")]
    right = (margins["phi"] > 0).astype(float).groupby(known["prompt_id"]).mean()
    runs = np.stack([(table > 0).groupby(known["prompt_id"]).mean().to_numpy() for table in margins.values()])
    expected = estimate(right, 0.95, runs)
    assert row["accuracy"] == pytest.approx(expected.mean)
    assert row["accuracy_low"] == pytest.approx(max(0, expected.low))
    assert row["margin"] == pytest.approx(margins["phi"].to_numpy().mean())
    assert (row["pairs"], row["prompts"], row["seeds"], row["beta"]) == (30, 15, 2, 0.2)
    longest = found.loc[("dpo", "length_ratio", "3 of 3")]
    assert longest["pairs"] == 10 and longest["group_high"] == 2.0
    assert longest["margin"] == pytest.approx(margins["dpo"].iloc[20:].to_numpy().mean())
    least = found.loc[("dpo", "dispersion", "1 of 5")]
    assert least["group_low"] == 0.1 and least["margin"] == pytest.approx(margins["dpo"].iloc[24:].to_numpy().mean())
    parts = found.loc["dpo"].groupby("by")["pairs"].sum()
    assert set(parts) == {30}


def test_sources_and_equal_lengths() -> None:
    known = facts(12, source=["a"] * 8 + ["b"] * 4, length_ratio=1.0, dispersion=[0.2] * 6 + [0.4] * 6)
    found = accuracy_by_group({"dpo": pd.DataFrame({0: 1.0}, index=known.index)}, known, {"dpo": 0.1})
    assert list(found["by"]) == ["all", "source", "source", "dispersion", "dispersion"], "equal lengths make no parts"
    assert list(found["pairs"]) == [12, 8, 4, 6, 6] and set(found["accuracy"]) == {1.0}


def test_facts_come_from_the_rows_meta_and_the_reference() -> None:
    pairs = pd.DataFrame({"pair_id": ["x", "y"], "prompt_id": ["p", "q"], "source": "path:f",
                          "meta": [json.dumps({"domain": "cooking"}), json.dumps({})]})  # fmt: skip
    reference = pd.DataFrame({"pair_id": ["y", "x"], "chosen_tokens": [10, 4], "rejected_tokens": [5, 8],
                              "chosen_entropy": [20.0, 4.0], "rejected_entropy": [5.0, 24.0]})  # fmt: skip
    found = pair_facts(pairs, reference, None)
    assert list(found["source"]) == ["cooking", "path:f"] and list(found["length_ratio"]) == [0.5, 2.0]
    assert list(found["dispersion"]) == [2.0, 1.5]
    table = pd.DataFrame({"pair_id": ["y", "x"], "dispersion_index": [0.1, 0.3]})
    assert list(pair_facts(pairs, reference, table)["dispersion"]) == [0.3, 0.1]


def test_calibration_of_a_calibrated_and_of_an_overconfident_policy() -> None:
    draw = np.random.default_rng(1)
    truth = draw.normal(0, 2, (4000, 1))
    right = draw.random((4000, 1)) < expit(np.abs(truth))
    scaled = np.abs(truth) * np.where(right, 1, -1)
    prompts = np.arange(4000) // 2
    good = calibration_error(scaled, prompts)
    assert good[""] == pytest.approx(good["_if_calibrated"], abs=0.01) and good[""] < 0.03
    sure = calibration_error(3 * scaled, prompts)
    # By hand: the mean over tenths of |how sure - how often right|.
    order = np.argsort(np.abs(scaled).ravel(), kind="stable").reshape(10, -1)
    gaps = [expit(3 * np.abs(scaled.ravel()[part])).mean() - right.ravel()[part].mean() for part in order]
    assert sure[""] == pytest.approx(np.abs(gaps).mean(), abs=1e-3)
    assert good["_high"] < sure["_low"] < sure[""] < sure["_high"]


def test_calibration_of_few_pairs() -> None:
    found = calibration_error(np.array([[1.0], [-1.0], [2.0]]), np.array(["p", "p", "p"]))
    assert math.isnan(found["_low"]) and math.isnan(found["_high"])
    assert found[""] == pytest.approx(abs((2 * expit(1.0) + expit(2.0)) / 3 - 2 / 3))
    assert found["_if_calibrated"] > 0.1
    lucky = calibration_error(np.log([[3.0]] * 3 + [[1 / 3]]), np.arange(4))
    assert lucky["_low"] <= lucky[""] == pytest.approx(0) and lucky["_high"] > 0.2


def test_the_stage_writes_them_and_the_report_shows_them(tmp_path) -> None:
    made = write(tmp_path)
    compare.run(made.experiment.stage_view("compare"), made.layout)
    found = read_parquet(made.layout.accuracy_by_group)
    estimates = read_parquet(made.layout.estimates).set_index(["method", "metric"])
    assert set(found["pair_set"]) == {"test"}
    for row in found[found["by"] == "all"].itertuples():
        for metric, value in (("accuracy", row.accuracy), ("margin", row.margin)):
            assert value == pytest.approx(estimates.loc[(row.method, metric), "estimate"])
        assert row.beta == made.experiment.methods[row.method].beta
    assert set(found["by"]) == {"all", "length_ratio", "dispersion"}
    table = pair_table(found)
    assert list(table.shown["Pairs"])[:3] == ["all"] * 3 and len(table.shown) == len(found)
    assert table.shown["Pairs"].str.startswith("dispersion 0.").any()
