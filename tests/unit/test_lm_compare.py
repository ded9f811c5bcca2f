"""Two models on the same items: paired, by doc_id, with the test that fits the values."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner

from mallowspo.cli import app
from mallowspo.errors import InputError
from mallowspo.evaluation.lm_compare import MCNEMAR, compare_items
from mallowspo.files import write_parquet
from mallowspo.inference import holm, paired_difference, sign_flip_p


def items(task: str, values: np.ndarray, metric: str = "acc", prompt: str = "p") -> pd.DataFrame:
    ids = np.arange(len(values))
    hashes = {"doc_hash": [f"d{n}" for n in ids], "prompt_hash": [f"{prompt}{n}" for n in ids]}
    return pd.DataFrame({"task": task, "doc_id": ids, "metric": metric, "value": values.astype(float), **hashes})


def compared(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    return compare_items(ours, theirs, ("ours", "theirs")).set_index(["task", "metric"])


def test_zeros_and_ones_by_mcnemar_whatever_the_order_of_the_rows() -> None:
    ours, theirs = np.ones(40), np.ones(40)
    ours[:3], theirs[5:15] = 0, 0
    theirs[30:], ours[30:] = 0, 0
    found = compared(items("t", ours), items("t", theirs).sample(frac=1, random_state=1)).loc[("t", "acc")]
    assert (found["only_ours"], found["only_theirs"], found["n"]) == (10, 3, 40)
    assert found["p"] == pytest.approx(stats.binomtest(3, 13).pvalue) and found["test"] == MCNEMAR
    assert found["difference"] == pytest.approx(7 / 40)
    expected = paired_difference(ours, theirs)
    assert (found["ci_low"], found["ci_high"]) == (pytest.approx(expected.low), pytest.approx(expected.high))
    # An unpaired comparison has a wider interval: the ten items that both get wrong say nothing.
    unpaired = math.sqrt(ours.var(ddof=1) / 40 + theirs.var(ddof=1) / 40)
    assert (expected.high - expected.low) / 2 < 1.96 * unpaired


def test_equal_models_do_not_differ() -> None:
    values = np.arange(10) % 2
    found = compared(items("t", values), items("t", values)).loc[("t", "acc")]
    assert (found["difference"], found["p"], found["ci_low"], found["ci_high"]) == (0, 1, 0, 0)


def test_other_values_by_sign_flips_and_holm_over_all_rows() -> None:
    draw = np.random.default_rng(0)
    ours, theirs = draw.normal(0.3, 1, 50), draw.normal(0, 1, 50)
    right = draw.integers(0, 2, 50)
    table = compared(
        pd.concat([items("t", ours, "f1"), items("u", right)]),
        pd.concat([items("t", theirs, "f1"), items("u", 1 - right)]),
    )
    found = table.loc[("t", "f1")]
    assert math.isnan(found["only_ours"]) and found["p"] == sign_flip_p(ours - theirs)
    np.testing.assert_allclose(table["p_holm"], holm(table["p"]))


def test_what_cannot_be_paired(tmp_path: Path) -> None:
    one = items("t", np.ones(4))
    with pytest.raises(InputError, match=r"theirs: lacks 1 items that ours has \(first: t/acc, doc_id 3\)"):
        compared(one, one.head(3))
    with pytest.raises(InputError, match="ours: .* is there twice"):
        compared(pd.concat([one, one.head(1)]), one)
    with pytest.raises(InputError, match="1 items of t differ .first: doc_id 2."):
        compared(one, one.assign(doc_hash=["d0", "d1", "other", "d3"]))
    assert compared(one, items("t", np.ones(4), prompt="chat")).loc[("t", "acc"), "other_prompts"] == 4


def test_the_command(tmp_path: Path) -> None:
    ours, theirs = np.ones(20), np.ones(20)
    theirs[:6] = 0
    for name, values in (("a", ours), ("b", theirs)):
        write_parquet(tmp_path / f"{name}.parquet", items("t", values))
    files = [str(tmp_path / f"{name}.parquet") for name in "ab"]
    (row,) = json.loads(CliRunner().invoke(app, ["lm-compare", *files, "--json"]).stdout)
    assert row["p"] == pytest.approx(2 * 0.5**6) and row["difference"] == pytest.approx(0.3)
    shown = CliRunner().invoke(app, ["lm-compare", *files]).stdout
    assert "1.0000 - 0.7000 = +0.3000" in shown and "n = 20, 6 against 0; McNemar" in shown
