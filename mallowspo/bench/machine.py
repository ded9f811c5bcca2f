"""What the figures were measured on and with."""

import importlib.metadata
import os
from typing import Any


def machine(device: str, threads: int) -> dict[str, Any]:
    """Processor, its cores, GPU, versions, and how busy the machine was (load average of the last minute)."""
    from mallowspo.provenance import environment

    found = environment(device)
    versions = {**found["versions"], "trl": _version("trl")}
    return {**found, "threads": threads, "versions": versions, "cores": os.cpu_count(), "load": os.getloadavg()[0]}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
