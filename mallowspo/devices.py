"""GPUs of one machine: several jobs never share one, unless told so.

A scheduler gives every job GPUs of its own. Without one, a job locks as many as it asks for, a file each, and sees no
others (CUDA_VISIBLE_DEVICES); where all are taken it waits. The kernel opens a lock when its process ends, however that
ends, so none is left behind. Users of one machine share the folder of the locks.

    CUDA_VISIBLE_DEVICES      set by a person: the GPUs that jobs may take
    MALLOWSPO_SHARE_GPUS=1    nothing is locked, every job sees all
    MALLOWSPO_LOCKS           the folder of the locks, else one below the system's temporary folder
"""

import fcntl
import logging
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mallowspo.errors import InputError

logger = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
#: Set in the environment of a job's own processes: these GPUs are theirs already.
HELD = "MALLOWSPO_HELD_GPUS"
#: A job of one of these schedulers has its GPUs from it.
SCHEDULERS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID", "KUBERNETES_SERVICE_HOST")
#: Seconds between looks at taken GPUs.
PAUSE = 2.0

#: Open lock files of this process. A lock lives as long as its file is open, so they are kept to the end.
_kept: list[int] = []


def claim(count: int) -> list[str]:
    """Lock so many GPUs for this process and its children, and show them no others. To be called before torch looks.

    Returns:
        the GPUs; none where nothing is to be locked: no GPU is asked for or there, or they were dealt out already.

    Raises:
        InputError: the machine has fewer.
    """
    if count == 0 or _dealt_out():
        return []
    devices = visible(installed(), os.environ.get(VISIBLE))
    if not devices:
        return []
    if count > len(devices):
        raise InputError(f"compute.gpus: {count}, but this machine has {len(devices)} for jobs ({', '.join(devices)})")
    taken = lock(devices, count, lock_folder())
    os.environ[VISIBLE] = os.environ[HELD] = ",".join(taken)
    return taken


def _dealt_out() -> bool:
    held, seen = (os.environ.get(name, "") for name in (HELD, VISIBLE))
    if held and set(seen.split(",")) <= set(held.split(",")):
        return True
    return any(os.environ.get(name) for name in (*SCHEDULERS, "MALLOWSPO_SHARE_GPUS"))


def installed() -> list[str]:
    """Identifiers of this machine's GPUs (GPU-...), in the driver's order; none where there is no driver."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def visible(devices: Sequence[str], said: str | None) -> list[str]:
    """Those of `devices` that CUDA_VISIBLE_DEVICES names, by number or identifier; all where it is not set."""
    if said is None:
        return list(devices)
    found = []
    for name in (part.strip() for part in said.split(",")):
        if name.isdecimal() and int(name) < len(devices):
            found.append(devices[int(name)])
        elif name.startswith(("GPU-", "MIG-")):
            found.append(name)
        else:
            break  # as CUDA: what follows a name of no GPU, such as -1, is not seen
    return found


def lock(devices: Sequence[str], count: int, folder: Path) -> list[str]:
    """Lock any `count` of `devices`; waits until so many are free. All are taken at once or none, so two jobs that
    want several never wait for each other."""
    told = False
    while True:
        taken: dict[str, int] = {}
        for device in devices:
            file = _try(folder / re.sub(r"[^A-Za-z0-9.-]", "_", device))
            if file is not None:
                taken[device] = file
            if len(taken) == count:
                _kept.extend(taken.values())
                return list(taken)
        for file in taken.values():
            os.close(file)
        if not told:
            logger.info("waiting: other jobs have %d of %d GPUs", len(devices) - len(taken), len(devices))
            told = True
        time.sleep(PAUSE * (1 + os.getpid() % 100 / 100))  # not in step with another that waits


def lock_folder() -> Path:
    """Where the locks lie, made if it is not there, for every user of the machine."""
    folder = Path(os.environ.get("MALLOWSPO_LOCKS") or Path(tempfile.gettempdir()) / "mallowspo-gpus")
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)
    return folder


def _try(path: Path) -> int | None:
    """An open, locked file, or None where another process has it."""
    file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file
