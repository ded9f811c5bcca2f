"""Attention on a CPU, segment by segment of a packed sequence: a prompt sees itself, a response its prompt and itself.

Shapes: H heads, G heads of keys and values, each of which H / G heads share; P places; D units of a head; L places of a
segment, S that it sees: its prompt's, if it is a response, and its own.

A segment is attended to by PyTorch's fused kernel, or, where it is long and oneDNN the faster library, by products
(`mallowspo.product_attention`). Its numbers depend on its prompt and itself alone, not on what else is in the sequence.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mallowspo import product_attention
from mallowspo.packing import Segment
from mallowspo.recompute import once

_fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_fused_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class Run(NamedTuple):
    """One segment that has any place, as slices of the sequence."""

    places: slice
    prompt: slice  # empty for a prompt
    mask: Tensor | None  # (L, S), 0 or -inf; None, for a prompt alone: causal


class SegmentMasks(NamedTuple):
    """What the layers get in place of a mask. It goes along as an argument, so that checkpointed layers find it again
    when they are computed a second time."""

    runs: tuple[Run, ...]  # each prompt, followed by its responses


def runs(segments: Sequence[Segment], mask: Callable[[Segment], Tensor | None]) -> SegmentMasks:
    """Where each segment and its prompt lie, and what `mask` says of it."""
    found = []
    start, prompt = 0, slice(0, 0)
    for segment in segments:
        places = slice(start, start + segment.length)
        start = places.stop
        if segment.prompt == 0:
            prompt = places
        if segment.length:
            found.append(Run(places, prompt if segment.prompt else slice(0, 0), mask(segment)))
    return SegmentMasks(tuple(found))


def attend_by_segments(
    query: Tensor, key: Tensor, value: Tensor, masks: SegmentMasks, scaling: float | None = None
) -> Tensor:
    """Queries (1, H, P, D), keys and values (1, G, P, D) to (1, P, H, D)."""
    output: Tensor = _SegmentAttention.apply(query, key, value, masks, scaling)[0]
    return output


class _SegmentAttention(torch.autograd.Function):
    """One function for all segments: autograd would fill the whole sequence with zeros for the slope of each."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, masks: SegmentMasks, scaling: float | None
    ) -> tuple[Tensor, Tensor]:
        output, sums = once(lambda: forward(query, key, value, masks, scaling))
        ctx.save_for_backward(query, key, value, output, sums)
        ctx.mark_non_differentiable(sums)
        ctx.masks, ctx.scaling = masks, scaling
        return output, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        query, key, value, output, sums = ctx.saved_tensors
        return *backward(gradient, query, key, value, output, sums, ctx.masks, ctx.scaling), None, None


def forward(
    query: Tensor, key: Tensor, value: Tensor, masks: SegmentMasks, scaling: float | None
) -> tuple[Tensor, Tensor]:
    """What is attended to, (1, P, H, D), and the logarithm of each softmax's sum, (1, H, P), where one was told."""
    output = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
    sums = query.new_zeros(query.shape[:3])
    for places, prompt, mask in masks.runs:
        heads = query[:, :, places], _seen(key, prompt, places), _seen(value, prompt, places)
        if product_attention.applies(*heads):
            found = product_attention.forward(*heads, mask, scaling)
        else:
            found, sums[:, :, places] = _fused(*heads, is_causal=mask is None, attn_mask=mask, scale=scaling)
        output[:, places] = found.transpose(1, 2)
    return output, sums


def backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    sums: Tensor,
    masks: SegmentMasks,
    scaling: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    of_query, of_key, of_value = (torch.empty_like(heads) for heads in (query, key, value))
    gradient, output = gradient.transpose(1, 2), output.transpose(1, 2)
    for places, prompt, mask in masks.runs:
        heads = query[:, :, places], _seen(key, prompt, places), _seen(value, prompt, places)
        slope = gradient[:, :, places]
        if product_attention.applies(*heads):
            found = product_attention.backward(slope, *heads, mask, scaling)
        else:
            result = output[:, :, places], sums[:, :, places]
            found = _fused_backward(slope, *heads, *result, 0.0, mask is None, attn_mask=mask, scale=scaling)
        of_query[:, :, places] = found[0]
        for whole, part in ((of_key, found[1]), (of_value, found[2])):
            before = prompt.stop - prompt.start
            whole[:, :, places] = part[:, :, before:]
            if before:
                whole[:, :, prompt] += part[:, :, :before]  # to its own, which came before
    return of_query, of_key, of_value


def _seen(heads: Tensor, prompt: slice, places: slice) -> Tensor:
    """(1, G, S, D)."""
    own = heads[:, :, places]
    return own if prompt.stop == 0 else torch.cat([heads[:, :, prompt], own], dim=2)
