"""How a training fits into the memory of its job: what is kept for the backward, and what is computed again.

Neither changes a result: what is computed again has the same bits.
"""

import logging

import torch
from torch import nn

from mallowspo.head_chunks import working_bytes
from mallowspo.memory_formula import MEBIBYTE, PROCESS, USED, MemoryPlan, fit, fixed_bytes, recomputed_bytes
from mallowspo.packing import Row, make_batch
from mallowspo.scoring import Scorer

logger = logging.getLogger(__name__)

#: Tokens of the two trials that the cost of a token is told from.
TRIAL = (32, 96)


def plan(scorer: Scorer, tokens: int, budget: int) -> MemoryPlan:
    """How to train within `budget` bytes with `tokens` tokens of a batch in memory; told if it does not fit at all."""
    fixed = _fixed(scorer.model) + (PROCESS if scorer.device.type == "cpu" else 0)
    once, each = _activations(scorer)
    head = working_bytes(scorer.vocabulary, scorer.hidden_size)
    config = scorer.causal.config
    recomputed = recomputed_bytes(max(1, int(config.num_hidden_layers)), int(config.hidden_size), each)
    chosen = fit(fixed, once, each, recomputed, head, tokens, budget)
    if not chosen.fits:
        logger.warning(
            "a batch of %d tokens needs about %d MiB, more than %d %% of the %d that the job has: lower "
            "training.tokens_per_batch, or raise compute.memory_mb",
            *(tokens, chosen.total // MEBIBYTE, 100 * USED, budget // MEBIBYTE),
        )
    return chosen


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
    parameters = list(model.parameters())
    return fixed_bytes(sum(p.nbytes for p in parameters), sum(p.nbytes for p in parameters if p.requires_grad))


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
