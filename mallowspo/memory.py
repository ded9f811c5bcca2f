"""How a training fits into the memory of its job: what is kept for the backward, and what is computed again.

Neither changes a result: what is computed again has the same bits.
"""

import logging
from typing import Any, NamedTuple

import torch
from torch import nn

from mallowspo.output_head import KEEP, working_bytes
from mallowspo.packing import Row, make_batch
from mallowspo.scoring import Scorer

logger = logging.getLogger(__name__)

MEBIBYTE = 1 << 20
#: Python with torch and transformers loaded, on a CPU.
PROCESS = 700 * MEBIBYTE
#: Share of the memory that is planned for; allocators leave gaps.
USED = 0.9
#: Tokens of the two trials that the cost of a token is told from.
TRIAL = (32, 96)


class MemoryPlan(NamedTuple):
    """Bytes, but for the flag."""

    budget: int
    fixed: int  # weights, gradients, optimizer, the process
    activations: int  # of the body, for the largest batch
    head: int  # its gradient, and logits of a chunk with their slopes
    checkpointing: bool  # keep the layers' inputs alone and compute the rest again
    softmax_kept: int  # of the output head; what is beyond is computed again

    @property
    def total(self) -> int:
        return self.fixed + self.activations + self.head + self.softmax_kept


def plan(scorer: Scorer, tokens: int, budget: int) -> MemoryPlan:
    """How to train within `budget` bytes with `tokens` tokens of a batch in memory; told if it does not fit at all."""
    fixed = _fixed(scorer.model) + (PROCESS if scorer.device.type == "cpu" else 0)
    once, each = _activations(scorer)
    head = working_bytes(scorer.vocabulary, scorer.hidden_size)
    usable = int(budget * USED)
    kept, recomputed = once + tokens * each, once + tokens * _recomputed(scorer.causal.config, each)
    checkpointing = fixed + head + kept > usable
    activations = min(kept, recomputed) if checkpointing else kept
    room = usable - fixed - head - activations
    if room < 0:
        logger.warning(
            "a batch of %d tokens needs about %d MiB, more than %d %% of the %d that the job has: lower "
            "training.tokens_per_batch, or raise compute.memory_mb",
            *(tokens, (fixed + head + activations) // MEBIBYTE, 100 * USED, budget // MEBIBYTE),
        )
    return MemoryPlan(budget, fixed, activations, head, checkpointing, min(max(room, 0), KEEP))


def apply(scorer: Scorer, chosen: MemoryPlan) -> None:
    """Set the model and its scorer to the plan."""
    scorer.softmax_kept = chosen.softmax_kept
    if chosen.checkpointing:
        scorer.model.activation_checkpointing_enable(  # type: ignore[operator]
            activation_checkpointing_kwargs={"use_reentrant": False}
        )


def available(device: str, memory_mb: int) -> int:
    """Bytes that a training may take: of the GPU what it has, else what the job asked for."""
    return int(torch.cuda.mem_get_info(device)[1]) if device.startswith("cuda") else memory_mb * MEBIBYTE


def _fixed(model: nn.Module) -> int:
    """Weights, and for what is trained a gradient and Adam's two moments."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return weights + 3 * sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)


def _activations(scorer: Scorer) -> tuple[int, int]:
    """Bytes that the body keeps for its backward: whatever the batch (weights in another precision), and a token."""
    few, many = (_saved_bytes(scorer, tokens) for tokens in TRIAL)
    each = max(0, many - few) // (TRIAL[1] - TRIAL[0])
    return max(0, few - TRIAL[0] * each), each


def _saved_bytes(scorer: Scorer, tokens: int) -> int:
    """Of one row with so many tokens, by looking at each tensor that autograd keeps."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in scorer.model.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    row = Row([at % scorer.vocabulary for at in range(tokens)], [0])
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scores = scorer(make_batch([row]))
    del scores
    return sum(saved.values())


def _recomputed(config: Any, each: int) -> int:
    """The same of a token where layers are computed again: every layer's input, and one layer whole."""
    layers = max(1, int(config.num_hidden_layers))
    return 4 * layers * int(config.hidden_size) + each // layers
