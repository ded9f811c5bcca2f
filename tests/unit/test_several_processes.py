"""One training in several processes: as with one, up to rounding; killed, and gone on with by another number."""

import os
import signal
import sys

import pytest
import torch

from mallowspo.errors import InputError
from mallowspo.examples import load_examples
from mallowspo.files import read_json, read_jsonl, read_parquet, write_parquet
from mallowspo.launch import launch
from mallowspo.shard import Shard
from tests.several_processes import (
    TOLERANCE,
    assert_same_training,
    kill_in_the_middle,
    made_up,
    none_is_left,
    start,
    start_and_wait_for_a_checkpoint,
    train_in,
    train_in_one,
)


@pytest.mark.parametrize(
    ("method", "settings"),
    [("beta_dpo", {}), ("epsilon_dpo", {}), ("lb_dpo", {"lora": {"rank": 4, "alpha": 8}, "learning_rate": 2e-3})],
)
def test_two_processes_train_as_one(tmp_path, method, settings):
    """beta-DPO compares the pairs of a step, epsilon-DPO remembers them, LB-DPO learns a part of its loss."""
    expected = train_in_one(made_up(tmp_path / "one", method, **settings))
    run = train_in(2, tmp_path / "two", made_up(tmp_path / "two", method, **settings))
    assert_same_training(run, expected)
    summary = read_json(run / "summary.json")
    assert (summary["processes"], summary["pairs_per_step"], summary["steps"]) == (2, 4, 20)
    assert summary["step0_max_abs_margin"] == 0
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in expected.iterdir())


def test_two_processes_go_on_from_the_checkpoint_of_one(tmp_path):
    expected = train_in_one(made_up(tmp_path / "one", "beta_dpo"))
    prepared = made_up(tmp_path / "cut", "beta_dpo")
    kill_in_the_middle(prepared)
    run = train_in(2, tmp_path / "cut", prepared)
    assert read_json(run / "summary.json")["resumed_from_step"] == [12]
    assert_same_training(run, expected)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_killed_process_ends_the_job_and_one_goes_on_from_its_checkpoint(tmp_path, sharded):
    settings = {"epochs": 60, "max_steps": None}
    expected = train_in_one(made_up(tmp_path / "one", **settings))
    prepared = made_up(tmp_path / "cut", **settings)
    run = prepared[1].run("trained", 1)
    job, workers = start_and_wait_for_a_checkpoint(tmp_path / "cut", run, sharded)
    os.kill(workers[1].pid, signal.SIGKILL)
    _, told = job.communicate(timeout=60)
    assert job.returncode == 128 + signal.SIGKILL
    assert "was ended by SIGKILL; the others were stopped" in told.splitlines()[-1]
    assert none_is_left(workers)
    assert not (run / "model").exists(), "killed too late to test anything"
    train_in_one(prepared)
    assert read_json(run / "summary.json")["resumed_from_step"][0] >= 6
    rows, others = (read_jsonl(folder / "metrics.jsonl") for folder in (run, expected))
    assert [row["step"] for row in rows] == list(range(1, 181))
    # Later steps carry the roundings of the first ones further.
    found, wanted = ([row["loss"] for row in these[:40]] for these in (rows, others))
    assert found == pytest.approx(wanted, abs=TOLERANCE)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not end a process with the one that started it")
def test_no_process_outlives_a_killed_launcher(tmp_path):
    _, layout, _ = made_up(tmp_path / "run", epochs=200, max_steps=None)
    job, workers = start_and_wait_for_a_checkpoint(tmp_path / "run", layout.run("trained", 1))
    job.kill()
    assert none_is_left(workers)
    job.communicate(timeout=60)


def test_bad_input_is_told_once(tmp_path):
    prepared = made_up(tmp_path / "run")
    path = prepared[1].reference("train")
    write_parquet(path, read_parquet(path).iloc[1:])
    _, told = (job := start(2, tmp_path / "run")).communicate(timeout=120)
    assert job.returncode == 2
    assert [line for line in told.splitlines() if "no row for 1 of 9 pairs" in line] == [told.splitlines()[-1]]
    assert told.splitlines()[-1].startswith("mallowspo: ")


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shares_of_a_step_are_its_pairs(tmp_path, count):
    """Each pair once, in as many parts in every process; long and short pairs are dealt out evenly."""
    experiment, layout, _ = made_up(tmp_path / "run")
    view, method = experiment.stage_view("train"), experiment.methods["trained"]
    shares = [load_examples(view, method, layout, Shard(number, count)) for number in range(1, count + 1)]
    for indices in ([3, 1, 7, 2], [8], list(range(9))):
        steps = [share.collate(indices) for share in shares]
        found = sorted(
            (place, index)
            for step in steps
            for part in step["parts"]
            for place, index in zip(part["place"].tolist(), part["index"].tolist(), strict=True)
        )
        assert [place for place, _ in found] == list(range(len(indices)))
        assert [index for _, index in found] == sorted(indices, key=shares[0].tokens.__getitem__)
        assert len({len(step["parts"]) for step in steps}) == 1
        assert {step["pairs"] for step in steps} == {len(indices)}
        sums = [sum(int(shares[0].tokens[i]) for part in step["parts"] for i in part["index"]) for step in steps]
        assert max(sums) - min(sums) <= max(shares[0].tokens[indices])


def test_each_process_needs_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="compute.processes: 2, but torch sees 1 GPUs"):
        launch(["train"], 2, "cuda")
