"""Attention over a packed sequence (`mallowspo.packing`), for any model that takes transformers' attention interface.

On a CPU by segments (`mallowspo.segment_attention`); a dense mask over the whole sequence would compute and throw away
what other rows see. On a GPU by FlexAttention with a block mask. The model's own rule (a sliding window, say) is kept:
who sees whom is what both allow.

A segment's numbers depend on its prompt and itself alone, not on what else is in the batch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mallowspo.packing import Packing
from mallowspo.segment_attention import SegmentMasks, attend_by_segments, runs

#: The name that models know this attention by. Outside `packed` it is "sdpa".
NAME = "mallowspo_segments"

#: What other attentions are asked for by keyword and this one cannot do.
_REFUSED = ("softcap", "s_aux", "position_bias")

_active: ContextVar[Packing | None] = ContextVar("packing", default=None)

#: (batch, head, query, key) -> whether it may be seen; tensors of positions, broadcast.
Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def use(model: Any) -> None:
    """Set a transformers model's attention to this one.

    Raises:
        NotImplementedError: the model computes its attention by itself.
    """
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        raise NotImplementedError("its attention cannot be replaced")


@contextmanager
def packed(packing: Packing) -> Iterator[None]:
    """Models whose attention is `NAME` take what they are given here for this packed sequence."""
    token = _active.set(packing)
    try:
        yield
    finally:
        _active.reset(token)


def packed_mask(**arguments: Any) -> Any:
    """A mask for transformers' AttentionMaskInterface: once a forward, and once more for a second kind of layer."""
    packing = _active.get()
    if packing is None:
        return sdpa_mask(**arguments)
    rule: Rule = arguments["mask_function"]
    device = torch.device(arguments["device"])
    if device.type == "cpu":
        return segment_masks(packing, rule, _at_least_float32(arguments["dtype"]))
    size = packing.tokens.shape[1]
    return create_block_mask(packed_rule(packing, rule), None, None, size, size, device=str(device))


def packed_rule(packing: Packing, rule: Rule) -> Rule:
    """The model's own rule within what `packing` makes visible, over places of the packed sequence."""
    positions = packing.positions[0]

    def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return packing.visible(query, key) & rule(batch, head, positions[query], positions[key])

    return allowed


def segment_masks(packing: Packing, rule: Rule, dtype: torch.dtype) -> SegmentMasks:
    """The same, segment by segment."""
    return runs(packing.segments, lambda segment: _segment_mask(segment.prompt, segment.length, rule, dtype))


def _segment_mask(prompt: int, length: int, rule: Rule, dtype: torch.dtype) -> Tensor | None:
    zero = torch.zeros((), dtype=torch.long)
    places = torch.arange(prompt + length)
    allowed = rule(zero, zero, places[prompt:, None], places[None, :])
    causal = torch.ones(length, prompt + length, dtype=torch.bool).tril(prompt)
    if prompt == 0 and bool((allowed == causal).all()):
        return None
    return torch.zeros(length, prompt + length, dtype=dtype).masked_fill(~(allowed & causal), float("-inf"))


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """An attention for transformers' AttentionInterface: heads (1, H, P, D) to (1, P, H, D).

    Raises:
        NotImplementedError: the model asks for what this attention cannot do.
    """
    if not isinstance(attention_mask, SegmentMasks | BlockMask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    asked = [name for name in _REFUSED if kwargs.get(name) is not None]
    if dropout and isinstance(attention_mask, SegmentMasks):
        asked.append("dropout")  # which a policy here never has: its reference was scored without
    if asked:
        raise NotImplementedError(f"attention with {' and '.join(asked)}")
    if isinstance(attention_mask, BlockMask):
        result: tuple[Tensor, Tensor | None] = flex_attention_forward(
            module, query, key, value, attention_mask, scaling, dropout=dropout, **kwargs
        )
        return result
    # In float32 whatever the precision: the products are a small part, and what they give would be rounded each time.
    dtype = _at_least_float32(value.dtype)
    heads = (query.to(dtype), key.to(dtype), value.to(dtype))
    with torch.autocast("cpu", enabled=False):
        output = attend_by_segments(*heads, attention_mask, scaling)
    return output.to(value.dtype), None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, packed_mask)
