"""Trainings that must be one: fifty steps by each way of cutting, scoring and interrupting them, against stored ones.

`python -m tests.golden.test_trajectories` writes trajectories.json anew, for a change that is meant to move them.
"""

import json
import subprocess
import tempfile
from pathlib import Path

import pytest

from mallowspo import training
from mallowspo.files import read_json, read_jsonl
from mallowspo.metrics import TIMING, MetricsFile
from mallowspo.scoring import Scorer
from tests.made_up_run import prepare, training_command

STORED = Path(__file__).with_name("trajectories.json")
METHODS = ("dpo", "mallows_theta", "mallows_phi")
COLUMNS = ("loss", "margin", "gradient_norm")
#: 40 pairs in steps of 8 for 10 epochs: 50 steps, over which the loss falls far.
SETTINGS = {"pairs_per_step": 8, "epochs": 10, "learning_rate": 1e-4, "checkpoint_every": 10}
WHOLE, HALF = 10_000, 320  # tokens_per_batch: a step in one part, and in about two


def trajectory(folder, method="mallows_phi", budget=WHOLE, memory_mb=2000, kill_at=None, monkeypatch=None):
    """Rows of metrics.jsonl without what the clock says."""
    folder.mkdir(exist_ok=True)
    experiment, layout, model_folder = prepare(
        folder, pairs=40, methods={method: {"beta": 0.5}}, tokens_per_batch=budget, **SETTINGS
    )
    arguments = (experiment.stage_view("train"), experiment.methods[method], method, 1, layout, model_folder)
    if kill_at:
        with monkeypatch.context() as patched:
            patched.setattr(MetricsFile, "append", _killed(kill_at))
            with pytest.raises(KeyboardInterrupt):
                training.run(*arguments, "cpu", memory_mb)
    training.run(*arguments, "cpu", memory_mb)
    rows = read_jsonl(layout.run(method, 1) / "metrics.jsonl")
    return [{key: row[key] for key in row if key not in TIMING} for row in rows]


def _killed(step):
    append = MetricsFile.append

    def appended(self, row):
        if row["step"] == step:
            raise KeyboardInterrupt
        append(self, row)

    return appended


def assert_equal_but_for_rounding(rows, expected, largest, mean):
    """Largest residual of any step, and the mean of all: a small error that always has one sign shows in the mean.
    Residuals are relative where a value is above 1."""
    assert [row["step"] for row in rows] == list(range(1, 51))
    for column in COLUMNS:
        both = zip(rows, expected[column], strict=True)
        residuals = [(row[column] - value) / max(1.0, abs(value)) for row, value in both]
        assert max(map(abs, residuals)) < largest, column
        assert abs(sum(residuals) / len(residuals)) < mean, column


@pytest.mark.parametrize("method", METHODS)
def test_a_training_is_the_stored_one(tmp_path, method):
    rows = trajectory(tmp_path / "run", method)
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]
    # Other processors round otherwise, and fifty steps carry that on.
    assert_equal_but_for_rounding(rows, read_json(STORED)[method], largest=1e-3, mean=1e-4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return trajectory(tmp_path_factory.mktemp("whole"))


def columns(rows):
    return {column: [row[column] for row in rows] for column in COLUMNS}


def pad_rows(self):
    """In place of `Scorer._try_packing`: rows are not packed."""


@pytest.mark.parametrize("way", ["in two parts", "padded", "by full logits", "padded in two parts"])
def test_cut_and_scored_otherwise_it_is_the_same(tmp_path, monkeypatch, whole, way):
    if "padded" in way:
        monkeypatch.setattr(Scorer, "_try_packing", pad_rows)
    if "full logits" in way:
        monkeypatch.setattr(Scorer, "_head_is_linear", lambda self: False)
    rows = trajectory(tmp_path / "run", budget=HALF if "two parts" in way else WHOLE)
    assert_equal_but_for_rounding(rows, columns(whole), largest=5e-5, mean=3e-6)


def test_recomputed_it_has_the_same_bits(tmp_path, whole):
    assert trajectory(tmp_path / "run", memory_mb=700) == whole


@pytest.mark.parametrize("step", [1, 10, 23, 50])
def test_interrupted_at_any_step_it_has_the_same_bits(tmp_path, monkeypatch, whole, step):
    assert trajectory(tmp_path / "run", kill_at=step, monkeypatch=monkeypatch) == whole


def test_in_two_processes_it_is_the_same(tmp_path, whole):
    """Each scores half of a step's pairs, in about one part."""
    methods = {"mallows_phi": {"beta": 0.5}}
    _, layout, _ = prepare(tmp_path, pairs=40, methods=methods, tokens_per_batch=HALF, **SETTINGS)
    subprocess.run(training_command(tmp_path, "mallows_phi", processes=2), check=True, capture_output=True)
    rows = read_jsonl(layout.run("mallows_phi", 1) / "metrics.jsonl")
    assert_equal_but_for_rounding(rows, columns(whole), largest=5e-5, mean=3e-6)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        stored = {method: columns(trajectory(Path(folder) / method, method)) for method in METHODS}
    STORED.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
