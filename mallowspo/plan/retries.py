"""More memory or time for a job that is tried again, where the lack of it was the cause.

Snakemake tells a retry's number and not why the job before failed. Slurm writes that into the job's own log, which the
executor keeps at LOGDIR/rule_RULE/WILDCARDS/JOBID.log. A job that failed for another reason, or without such a log (on
one machine there is none), is tried again with what it had.
"""

import re
from pathlib import Path

from mallowspo.plan.requests import Request

#: What slurmstepd writes: killed by the kernel in the job's control group, or by Slurm's own look at the memory.
OUT_OF_MEMORY = re.compile(r"oom[-_]kill|exceeded (job |step )?memory limit|out[- ]of[- ]memory", re.IGNORECASE)
OUT_OF_TIME = re.compile(r"DUE TO TIME LIMIT")
MORE_MEMORY, MORE_TIME = 1.5, 2


def grown(asked: Request, logs: str | Path | None, rule: str, wildcards: list[str], attempt: int) -> Request:
    """What attempt number `attempt` (from 1) asks for, after what ended those before."""
    texts = last_logs(Path(logs), rule, wildcards, attempt - 1) if logs else []
    memory = sum(bool(OUT_OF_MEMORY.search(text)) for text in texts)
    time = sum(bool(OUT_OF_TIME.search(text)) for text in texts)
    return Request(round(asked.memory_mb * MORE_MEMORY**memory), asked.minutes * MORE_TIME**time)


def last_logs(logs: Path, rule: str, wildcards: list[str], count: int) -> list[str]:
    """Texts of the job's newest `count` logs, the newest last."""
    folder = logs / f"rule_{rule}" / "_".join(wildcards).replace("/", "_")
    files = sorted(folder.glob("*.log"), key=lambda file: file.stat().st_mtime)
    return [file.read_text(encoding="utf-8", errors="replace") for file in (files[-count:] if count else [])]
