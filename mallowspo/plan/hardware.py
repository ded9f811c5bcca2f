"""How fast and how large what computes is. Rates are peaks; a plan reckons with a fraction of them.

Sources: `h100`, `h200` (SXM) and `a100` (SXM, 80 GB) are the makers' data sheets, without sparsity, and float32 without
TF32, which torch does not use by itself. `cpu` is one core of the AMD EPYC with AVX-512 that docs/benchmarks.md was
measured on (2048 x 2048 products, two threads: 184 thousand million operations a second in float32, 411 in bfloat16).
"""

from dataclasses import dataclass
from pathlib import Path

#: Share of the peak that trainings and scoring reach. On a core: fitted to one demo run, see docs/plan.md. On a GPU: a
#: choice, not measured.
ON_CORES, ON_GPUS = 0.5, 0.4
#: Seconds until a job computes: Python, torch, transformers.
STARTING = 6.0
#: Bytes a second in which weights are read and written, checked and copied.
READING = 0.3e9
#: Seconds that a GPU waits for Python, a layer and sampled token; for engine transformers only. A choice, not measured.
LAUNCHING = 0.001


@dataclass(frozen=True)
class Device:
    """One GPU, or one core of a processor."""

    name: str
    bfloat16: float  # peak rate of matrix products, operations a second
    float32: float
    bandwidth: float  # bytes a second from its memory
    fraction: float  # of the peak that is reached
    memory: float = 0.0  # bytes of a GPU; 0: the processor's, which the scheduler gives out

    @property
    def is_gpu(self) -> bool:
        return self.memory > 0

    def rate(self, precision: str) -> float:
        """Operations a second that are reckoned with."""
        return self.fraction * (self.bfloat16 if precision == "bfloat16" else self.float32)


DEVICES = {
    "cpu": Device("cpu", 205e9, 92e9, 10e9, ON_CORES),
    "a100": Device("a100", 312e12, 19.5e12, 2.0e12, ON_GPUS, 80e9),
    "h100": Device("h100", 989e12, 67e12, 3.35e12, ON_GPUS, 80e9),
    "h200": Device("h200", 989e12, 67e12, 4.8e12, ON_GPUS, 141e9),
}
#: What a plan takes where an experiment asks for GPUs and nobody says which.
USUAL_GPU = "a100"


def processor_precision() -> str:
    """What `model.precision: auto` becomes on this processor: `mallowspo.models.resolve_precision` without torch."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return "float32"
    return "bfloat16" if {"avx512_bf16", "amx_bf16"} & set(flags) else "float32"
