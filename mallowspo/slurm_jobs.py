"""Snakemake keeps its Slurm jobs in mind while Slurm does not answer.

The Slurm executor (2.8.0) drops every job it waits for when all questions of one round fail, as they do while the
controller restarts; Snakemake then waits for ever, and says nothing.
"""

import sys
from collections.abc import AsyncIterator
from typing import Any

PLUGIN = "snakemake_executor_plugin_slurm"


def keep_jobs_while_slurm_is_silent() -> None:
    """Let the executor ask again in its next round. Does nothing where Snakemake has not loaded the plugin."""
    plugin = sys.modules.get(PLUGIN)
    if plugin and not hasattr(plugin.Executor, "forgetful_check"):
        plugin.Executor.forgetful_check = plugin.Executor.check_active_jobs
        plugin.Executor.check_active_jobs = _check_active_jobs


async def _check_active_jobs(executor: Any, active_jobs: list[Any]) -> AsyncIterator[Any]:
    """The jobs that still run: those that the executor tells, or all of them if no question was answered."""
    # The thread that asks may start before the executor's own counters are there; it has no jobs then.
    answers = executor._status_query_calls if active_jobs else None
    async for job in executor.forgetful_check(active_jobs):
        yield job
    if active_jobs and executor._status_query_calls == answers:
        for job in active_jobs:
            yield job
