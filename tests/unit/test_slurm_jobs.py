"""Snakemake's Slurm executor and a Slurm that does not answer: its own code, with the question replaced."""

import asyncio
import logging
from types import SimpleNamespace

import pytest

from mallowspo.slurm_jobs import keep_jobs_while_slurm_is_silent

plugin = pytest.importorskip("snakemake_executor_plugin_slurm", reason="extra `slurm` is not installed")

JOBS = [SimpleNamespace(external_jobid=number, aux={}) for number in ("1", "2")]


class Limiter:
    async def __aenter__(self):
        return None

    async def __aexit__(self, *error):
        return None


def still_active(monkeypatch, answer):
    """What the executor waits for after a round in which Slurm said so."""

    async def query(command, logger):
        return (answer, 0.1) if answer is not None else (None, None)

    monkeypatch.setattr(plugin, "query_job_status", query)
    monkeypatch.setattr(plugin, "get_min_job_age", lambda: 300)
    executor = plugin.Executor.__new__(plugin.Executor)
    settings = SimpleNamespace(status_attempts=2, init_seconds_before_status_checks=1, status_command="squeue")
    executor.workflow = SimpleNamespace(executor_settings=settings)
    executor.logger, executor.run_uuid, executor.status_rate_limiter = logging.getLogger("test"), "run", Limiter()
    executor._next_seconds_between_status_checks = 1
    executor._status_query_calls = executor._status_query_failures = 0
    executor._status_query_total_seconds, executor._status_query_max_seconds = 0.0, 0.0
    executor._status_query_min_seconds, executor._status_query_cycle_rows = None, []
    executor.report_job_success = lambda job: None
    settings.keep_successful_logs = True
    return asyncio.run(round_of_questions(executor, JOBS))


async def round_of_questions(executor, jobs):
    return [job.external_jobid async for job in executor.check_active_jobs(jobs)]


@pytest.fixture
def kept(monkeypatch):
    """The executor as the workflow has it; at the end as it was."""
    monkeypatch.setattr(plugin.Executor, "check_active_jobs", plugin.Executor.check_active_jobs)
    keep_jobs_while_slurm_is_silent()
    yield
    del plugin.Executor.forgetful_check


def test_without_it_all_jobs_are_forgotten(monkeypatch):
    """Once the plugin mends this, `mallowspo.slurm_jobs` can go."""
    assert still_active(monkeypatch, None) == []


@pytest.mark.parametrize(
    ("answer", "active"),
    [(None, ["1", "2"]), ({"1": "RUNNING", "2": "COMPLETED"}, ["1"]), ({"1": "COMPLETED", "2": "COMPLETED"}, [])],
)
def test_jobs_are_kept_while_nothing_answers_and_no_longer(monkeypatch, kept, answer, active):
    assert still_active(monkeypatch, answer) == active


def test_the_first_round_may_come_before_the_executor_is_ready(kept):
    """Its thread starts before its counters are set; an error there would end the thread, and no job were ever done."""
    executor = plugin.Executor.__new__(plugin.Executor)
    executor.workflow = SimpleNamespace(executor_settings=SimpleNamespace(init_seconds_before_status_checks=1))
    executor.logger = logging.getLogger("test")
    assert asyncio.run(round_of_questions(executor, [])) == []
