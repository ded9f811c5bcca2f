"""The memory of a training as sums of bytes: the one place that knows them, and it needs no torch.

    fixed        weights, and of what is trained a gradient and Adam's two moments (float32: 16 bytes a parameter);
                 of a policy that processes share out their part of it, and what is put together for a while
    activations  tokens of the largest batch x what the body keeps of a token for the backward
    head         logits and slopes of a tile, the head's gradient (`mallowspo.head_chunks`)
    softmax      what of it is kept, as far as there is room

A training measures what its model keeps of a token (`mallowspo.memory`); `mallowspo plan` tells it from the model's
shape (`mallowspo.plan.room`).
"""

from typing import NamedTuple

from mallowspo.head_chunks import KEEP

MEBIBYTE = 1 << 20
#: Python with torch and transformers loaded, on a CPU.
PROCESS = 700 * MEBIBYTE
#: Share of the memory that is planned for; allocators leave gaps.
USED = 0.9


class MemoryPlan(NamedTuple):
    """Bytes, but for the flag."""

    budget: int
    fixed: int  # weights, gradients, optimizer, the process
    activations: int  # of the body, for the largest batch
    head: int  # its gradient, and logits of a tile with their slopes
    checkpointing: bool  # keep the layers' inputs alone and compute the rest again
    softmax_kept: int  # of the output head; what is beyond is computed again

    @property
    def total(self) -> int:
        return self.fixed + self.activations + self.head + self.softmax_kept

    @property
    def fits(self) -> bool:
        return self.total <= int(self.budget * USED)


def fixed_bytes(weights: int, trained: int) -> int:
    """Weights, and for what is trained a gradient and Adam's two moments; all in bytes."""
    return weights + 3 * trained


def shared_out_bytes(fixed: int, processes: int, layer: int, outside: int) -> int:
    """Of `fixed` bytes that processes share out (`mallowspo.sharding`), what each holds at most at a time.

    Besides its part: of the weights outside the layers themselves, their gradient, and a copy that is sent. Of a layer
    these three, and the next one's weights as they come and as they are used.

    Args:
        layer: bytes of the weights of one layer.
        outside: bytes of the weights outside the layers.
    """
    return -(-fixed // processes) + 5 * layer + 3 * outside


def recomputed_bytes(layers: int, hidden: int, each: int) -> int:
    """Kept of a token where layers are computed again: every layer's input, and one layer whole.

    Args:
        each: bytes of a token where nothing is computed again.
    """
    return 4 * layers * hidden + each // layers


def fit(fixed: int, once: int, each: int, recomputed: int, head: int, tokens: int, budget: int) -> MemoryPlan:
    """What is kept and what is computed again, so that a batch of `tokens` tokens fits into `budget` bytes.

    Args:
        once: bytes that the body keeps whatever the batch (weights in another precision).
        each: bytes that it keeps of a token; `recomputed` where layers are computed again.
    """
    usable = int(budget * USED)
    kept, again = once + tokens * each, once + tokens * recomputed
    checkpointing = fixed + head + kept > usable
    activations = min(kept, again) if checkpointing else kept
    room = usable - fixed - head - activations
    return MemoryPlan(budget, fixed, activations, head, checkpointing, min(max(room, 0), KEEP))
