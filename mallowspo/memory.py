"""How a training fits into the memory of its job: what is kept for the backward, and what is computed again.

Neither changes a result: what is computed again has the same bits.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from mallowspo import recompute
from mallowspo.head_chunks import working_bytes
from mallowspo.memory_formula import (
    MEBIBYTE,
    PROCESS,
    USED,
    MemoryPlan,
    fit,
    fixed_bytes,
    recomputed_bytes,
    shared_out_bytes,
)
from mallowspo.packing import Batch, Row, make_batch
from mallowspo.scoring import Scorer
from mallowspo.sharding import layers

logger = logging.getLogger(__name__)

#: Tokens of the two trials that the cost of a token is told from.
TRIAL = (32, 96)


def plan(scorer: Scorer, tokens: int, budget: int, processes: int = 1) -> MemoryPlan:
    """How to train within `budget` bytes with `tokens` tokens of a batch in memory; told if it does not fit at all.

    Args:
        processes: that will share the policy out.
    """
    fixed = _fixed(scorer, processes) + (PROCESS if scorer.device.type == "cpu" else 0)
    once, whole = _activations(scorer)
    head = working_bytes(scorer.vocabulary, scorer.hidden_size)
    config = scorer.causal.config
    depth, hidden = max(1, int(config.num_hidden_layers)), int(config.hidden_size)
    recomputed = recomputed_bytes(depth, hidden, whole)
    each = recomputed + _of_a_token(scorer, _product_bytes)[1] if keeps_products(scorer) else whole
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
    if chosen.checkpointing or keeps_products(scorer):
        arguments: dict[str, Any] = {"use_reentrant": False}
        if not chosen.checkpointing:
            arguments["context_fn"] = recompute.contexts
        scorer.model.activation_checkpointing_enable(activation_checkpointing_kwargs=arguments)  # type: ignore[operator]


def keeps_products(scorer: Scorer) -> bool:
    """Whether layers keep their products and attentions at most, and compute again what lies between
    (`mallowspo.recompute`): in float32 on a CPU, where it takes little time and 40 % less memory. Under bfloat16
    products are not ours; adapters have twice the products. Fused layers keep as little by themselves."""
    trained = all(parameter.requires_grad for parameter in scorer.model.parameters())
    return scorer.device.type == "cpu" and scorer.precision == "float32" and trained and not scorer.fused


def available(device: str, memory_mb: int) -> int:
    """Bytes that a training may take: of the GPU what it has, else what the job asked for."""
    return int(torch.cuda.mem_get_info(device)[1]) if device.startswith("cuda") else memory_mb * MEBIBYTE


def _fixed(scorer: Scorer, processes: int) -> int:
    weights = _weight_bytes(scorer.model)
    fixed = fixed_bytes(weights, sum(p.nbytes for p in scorer.model.parameters() if p.requires_grad))
    if processes == 1:
        return fixed
    of_layers = [_weight_bytes(layer) for layer in layers(scorer.causal)]
    return shared_out_bytes(fixed, processes, max(of_layers), weights - sum(of_layers))


def _weight_bytes(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def _activations(scorer: Scorer) -> tuple[int, int]:
    """Bytes that the body keeps for its backward where nothing is computed again: whatever the batch (weights in
    another precision), and a token."""
    return _of_a_token(scorer, _saved_bytes)


def _of_a_token(scorer: Scorer, bytes_of: Callable[[Scorer, int], int]) -> tuple[int, int]:
    """Bytes whatever the batch, and a token's, told from two short rows."""
    few, many = (bytes_of(scorer, tokens) for tokens in TRIAL)
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

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scores = scorer(_row_of(tokens, scorer.vocabulary))
    del scores
    return sum(saved.values())


def _product_bytes(scorer: Scorer, tokens: int) -> int:
    """Of products and attentions (`mallowspo.recompute`), for one row with so many tokens."""
    with torch.no_grad(), recompute.watched() as kept:
        scorer(_row_of(tokens, scorer.vocabulary))
    return sum(result.nbytes for result in tree_leaves(list(kept)))


def _row_of(tokens: int, vocabulary: int) -> Batch:
    return make_batch([Row([at % vocabulary for at in range(tokens)], [0])])
