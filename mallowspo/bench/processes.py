"""Starts a process for each measurement and reads what it found."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mallowspo.errors import InputError
from mallowspo.files import read_json, write_json


def run(spec: dict[str, Any], name: str, folder: Path) -> dict[str, Any]:
    """Measure `spec` (`worker`) in a process of its own.

    Args:
        spec: JSON-able; kind, device and threads at least.
        name: of the files that the process leaves in `folder`: its task, its result and what it printed.

    Returns:
        its result, with process_seconds, from its start to its end.

    Raises:
        InputError: the process failed; the message has the last line that it printed.
    """
    task, result, log = (folder / f"{name}.{kind}" for kind in ("task.json", "result.json", "log"))
    write_json(task, spec)
    threads = str(spec["threads"])
    environment = os.environ | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
    }
    command = [sys.executable, "-m", "mallowspo.bench.worker", str(task), str(result)]
    started = time.perf_counter()
    with log.open("w", encoding="utf-8") as printed:
        done = subprocess.run(command, env=environment, stdout=printed, stderr=subprocess.STDOUT, check=False)
    took = time.perf_counter() - started
    if done.returncode:
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
        reason = lines[-1] if lines else f"status {done.returncode}"
        raise InputError(f"bench: measurement '{name}' failed ({reason}); all that it printed is in {log}")
    return {**read_json(result), "process_seconds": took}
