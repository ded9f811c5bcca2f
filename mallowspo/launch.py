"""Starts the processes of one training with torch's own launcher, and tells in one line how they ended."""

import signal
import sys
import tempfile
import uuid
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mallowspo.errors import InputError
from mallowspo.models import resolve_device
from mallowspo.processes import was_launched

__all__ = ["launch", "was_launched"]


def launch(arguments: list[str], count: int, device: str) -> None:
    """Run `mallowspo` with these arguments in so many processes of this machine, which share this one's torch threads.
    On GPUs, each process takes one.

    Raises:
        InputError: too few GPUs, or what a process raised.
        SystemExit: a process ended otherwise, or this one was told to end. None is left running.
    """
    on_gpus = resolve_device(device) == "cuda"
    if on_gpus and torch.cuda.device_count() < count:
        raise InputError(
            f"compute.processes: {count}, but torch sees {torch.cuda.device_count()} GPUs, and each process takes one"
        )
    with tempfile.TemporaryDirectory() as scratch:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            logs_specs=DefaultLogsSpecs(log_dir=scratch),
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",  # a free port
            local_addr="localhost",
            max_restarts=0,
            virtual_local_rank=on_gpus,
        )
        threads = max(1, torch.get_num_threads() // count)
        try:
            # An option that is given twice is what it is given last.
            elastic_launch(config, sys.executable)("-m", "mallowspo.cli", *arguments, "--threads", str(threads))
        except ChildFailedError as error:
            _tell(error, count)
        except SignalException as error:
            sys.exit(128 + error.sigval)


def _tell(error: ChildFailedError, count: int) -> None:
    """The cause is a process that told why, or else one that was killed, but not by the launcher, which ends the others
    with SIGTERM."""

    def order(item: tuple[int, ProcessFailure]) -> tuple[bool, bool, int]:
        failure = item[1]
        return _message(failure) is None, failure.exitcode == -signal.SIGTERM, failure.exitcode

    rank, failure = min(error.failures.items(), key=order)
    message = _message(failure)
    if message is not None:
        raise InputError(message) from None
    killed = failure.exitcode < 0
    how = f"was ended by {failure.signal_name()}" if killed else f"ended with status {failure.exitcode} (see above)"
    print(
        f"mallowspo: process {rank + 1} of {count} {how}; the others were stopped. The same command goes on from the "
        "last checkpoint",
        file=sys.stderr,
    )
    sys.exit(128 - failure.exitcode if killed else failure.exitcode)


def _message(failure: ProcessFailure) -> str | None:
    """The `InputError` that the process left (`cli.main`); None where it left nothing."""
    return str(failure.message) if Path(failure.error_file).is_file() else None
