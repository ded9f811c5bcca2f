"""Made-up trainings in one process and in several, and what they must have in common."""

import subprocess
import time

import psutil
import pytest
import torch

from mallowspo import training
from mallowspo.files import read_jsonl
from mallowspo.metrics import TIMING, MetricsFile
from mallowspo.models import load_model
from tests.made_up_run import prepare, training_command

#: Between one process and two, where gradients are added up in another order: of a metric (relative above 1) at each of
#: twenty steps, and of a weight at their end.
TOLERANCE = 2e-5

#: Steps of 4, 4 and 1 pairs, in which the second process has none; parts of about two pairs.
SETTINGS = {"pairs_per_step": 4, "tokens_per_batch": 160, "epochs": 7, "max_steps": 20, "checkpoint_every": 6}


def made_up(folder, method="dpo", **settings):
    folder.mkdir(exist_ok=True)
    return prepare(folder, pairs=9, methods={"trained": {"method": method, "beta": 0.5}}, **(SETTINGS | settings))


def train_in_one(prepared):
    experiment, layout, model_folder = prepared
    view = experiment.stage_view("train")
    training.run(view, experiment.methods["trained"], "trained", 1, layout, model_folder, "cpu", 2000)
    return layout.run("trained", 1)


def train_in(processes, folder, prepared, sharded=False):
    subprocess.run(training_command(folder, "trained", processes, sharded), check=True, capture_output=True)
    return prepared[1].run("trained", 1)


def start(processes, folder, sharded=False):
    command = training_command(folder, "trained", processes, sharded)
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def assert_same_training(run, expected):
    """Every metric of every step, and every weight.

    But for the first step's accuracy: its margins are 0, or what rounding leaves there.
    """
    rows, others = (read_jsonl(folder / "metrics.jsonl") for folder in (run, expected))
    assert [row["step"] for row in rows] == [row["step"] for row in others]
    for row, other in zip(rows, others, strict=True):
        for name in other.keys() - {*TIMING, *(["accuracy"] if row["step"] == 1 else [])}:
            assert row[name] == pytest.approx(other[name], rel=TOLERANCE, abs=TOLERANCE), (row["step"], name)
        assert [row[name] for name in ("pairs", "tokens")] == [other[name] for name in ("pairs", "tokens")]
    weights, expected_weights = (load_model(folder / "model").state_dict() for folder in (run, expected))
    for name, values in expected_weights.items():
        assert torch.allclose(weights[name], values, rtol=0, atol=TOLERANCE), name


def kill_in_the_middle(prepared):
    """A training in one process that ends at step 15, behind its checkpoint of step 12."""

    def killed(self, row, append=MetricsFile.append):
        if row["step"] == 15:
            raise KeyboardInterrupt
        append(self, row)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(MetricsFile, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            train_in_one(prepared)


def start_and_wait_for_a_checkpoint(folder, run, sharded=False):
    """A training in two processes that has come so far; the processes."""
    job = start(2, folder, sharded)
    deadline = time.monotonic() + 120
    while not list(run.glob("work/checkpoint-*/whole")):
        assert time.monotonic() < deadline and job.poll() is None, "no checkpoint came"
        time.sleep(0.002)
    workers = psutil.Process(job.pid).children()
    assert len(workers) == 2
    return job, workers


def none_is_left(workers):
    return not psutil.wait_procs(workers, timeout=30)[1]
