"""One measurement in a process of its own: `python -m mallowspo.bench.worker SPEC.json RESULT.json`."""

import importlib
import sys
from typing import Any

from mallowspo.errors import InputError
from mallowspo.files import read_json, write_json

#: What can be measured, and the function that does it: a dictionary in, a dictionary out.
KINDS = {
    "reference": "mallowspo.bench.ours:measure_reference",
    "dispersion": "mallowspo.bench.ours:measure_dispersion",
    "training": "mallowspo.bench.ours:measure_training",
    "trl": "mallowspo.bench.with_trl:measure_trl",
    "matmul": "mallowspo.bench.operations:measure_matmul",
    "plain_forward": "mallowspo.bench.plain:measure_forward",
    "scaling": "mallowspo.bench.scaling_point:measure",
    "generation": "mallowspo.bench.generation:measure",
}


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Do what `spec` says, here and now; its result with this process's peak memory, bytes."""
    module, name = KINDS[spec["kind"]].split(":")
    found: dict[str, Any] = getattr(importlib.import_module(module), name)(spec)
    from mallowspo.bench.clock import peak_memory

    return {**found, "peak_memory_bytes": peak_memory(spec["device"])}


def main(spec_file: str, result_file: str) -> None:
    spec = read_json(spec_file)
    if spec["kind"] not in KINDS:
        raise InputError(f"{spec_file}: kind '{spec['kind']}': known: {', '.join(KINDS)}")
    _set_threads(spec)
    write_json(result_file, measure(spec))


def _set_threads(spec: dict[str, Any]) -> None:
    import torch

    from mallowspo.models import use_threads

    if spec["kind"] == "trl":  # its users have torch's setting alone; ours goes with one of the allocator
        torch.set_num_threads(spec["threads"])
    else:
        use_threads(spec["threads"])


if __name__ == "__main__":
    main(*sys.argv[1:])
