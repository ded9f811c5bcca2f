"""Locks on GPUs, with made-up GPUs and real processes."""

import os
import subprocess
import sys
import time

import pytest

from mallowspo import devices
from mallowspo.errors import InputError

GPUS = ["GPU-aa", "GPU-bb", "GPU-cc"]

#: Takes its GPUs, says which, and holds them until its input ends.
JOB = """
import sys
from mallowspo import devices
devices.installed = lambda: {gpus}
devices.PAUSE = 0.05
print(",".join(devices.claim({count})), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def start(tmp_path):
    """start(count, **environment): a job that asks for so many GPUs."""
    jobs = []

    def start_one(count, **environment):
        hidden = {devices.VISIBLE, devices.HELD, "MALLOWSPO_SHARE_GPUS", *devices.SCHEDULERS}
        inherited = {name: value for name, value in os.environ.items() if name not in hidden}
        job = subprocess.Popen(
            [sys.executable, "-c", JOB.format(gpus=GPUS, count=count)],
            env={**inherited, "MALLOWSPO_LOCKS": str(tmp_path / "locks"), **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        jobs.append(job)
        return job

    yield start_one
    for job in jobs:
        job.kill()
        job.communicate()


def taken(job):
    line = job.stdout.readline().strip()
    return line.split(",") if line else []


def test_no_two_jobs_have_the_same_gpu(start):
    jobs = [start(1) for _ in GPUS]
    assert sorted(gpu for job in jobs for gpu in taken(job)) == GPUS


def test_a_job_waits_until_enough_are_free_and_a_killed_one_leaves_no_lock(start):
    first = start(2)
    held = taken(first)
    second = start(2)
    time.sleep(0.5)
    assert second.poll() is None
    third = start(1)
    assert taken(third) == [gpu for gpu in GPUS if gpu not in held]  # what waits for two holds none
    first.kill()
    assert sorted(taken(second)) == sorted(held)


@pytest.mark.parametrize(
    "environment", [{"SLURM_JOB_ID": "7"}, {"MALLOWSPO_SHARE_GPUS": "1"}, {"CUDA_VISIBLE_DEVICES": ""}]
)
def test_nothing_is_locked_where_gpus_were_dealt_out_are_shared_or_are_hidden(start, environment):
    assert taken(start(1, **environment)) == []


def test_a_persons_choice_of_gpus_is_kept_to(start):
    jobs = [start(1, CUDA_VISIBLE_DEVICES="2,0") for _ in range(2)]
    assert sorted(gpu for job in jobs for gpu in taken(job)) == ["GPU-aa", "GPU-cc"]


@pytest.mark.parametrize("seen", ["GPU-aa,GPU-bb", "GPU-bb"])
def test_a_jobs_own_processes_lock_nothing_again(start, seen):
    assert taken(start(1, CUDA_VISIBLE_DEVICES=seen, MALLOWSPO_HELD_GPUS="GPU-aa,GPU-bb")) == []


def test_too_many_are_an_error_and_the_environment_shows_what_was_locked(monkeypatch, tmp_path):
    for name in (*devices.SCHEDULERS, "MALLOWSPO_SHARE_GPUS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MALLOWSPO_LOCKS", str(tmp_path))
    monkeypatch.setenv(devices.VISIBLE, "1")
    monkeypatch.setenv(devices.HELD, "")
    monkeypatch.setattr(devices, "installed", lambda: GPUS)
    with pytest.raises(InputError, match="compute.gpus: 2, but this machine has 1"):
        devices.claim(2)
    assert devices.claim(1) == ["GPU-bb"]
    assert os.environ[devices.VISIBLE] == os.environ[devices.HELD] == "GPU-bb"
    assert devices.claim(1) == []  # a process of the job


def test_numbers_are_read_as_cuda_reads_them():
    assert devices.visible(GPUS, None) == GPUS
    assert devices.visible(GPUS, "1, GPU-zz") == ["GPU-bb", "GPU-zz"]
    assert devices.visible(GPUS, "0,7,1") == ["GPU-aa"]
    assert devices.visible(GPUS, "-1") == []


def test_a_machine_without_a_driver_has_no_gpus(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.installed() == []
