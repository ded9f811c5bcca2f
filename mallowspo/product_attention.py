"""Attention of one long segment by products of the faster library (`mallowspo.products`), on a CPU.

Shapes as in `mallowspo.segment_attention`. A block of queries is taken at a time, with the keys that any of them sees:
of a long prompt that leaves out nearly half of what a product with all keys would compute. Heads that share keys are
the rows of one product. The backward computes the scores again; nothing of the size L x S is kept.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mallowspo import products
from mallowspo.products import product

#: Scores (L x S) of a segment from which on it is faster than PyTorch's fused kernel, whose products are MKL's.
LARGE = 30_000
#: Queries of a block, at most.
BLOCK = 256


def applies(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether a segment is attended to here: long, where oneDNN is the faster library. It goes by its shape alone."""
    return query.shape[2] * key.shape[2] >= LARGE and products.applies(query, key, value)


def forward(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """(1, H, L, D), (1, G, S, D), (1, G, S, D), (L, S) to (1, H, L, D)."""
    output = torch.empty_like(query)
    for block in _blocks(query, key, value, mask, scaling):
        found = product(block.weights(), block.values.T)
        output[0, block.heads, block.queries] = found.view(-1, block.length, found.shape[1])
    return output


def backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values; `gradient` is that of the output."""
    of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
    for block in _blocks(query, key, value, mask, scaling):
        weights = block.weights()
        slopes = gradient[0, block.heads, block.queries].reshape(len(weights), -1)
        of_value[0, block.group, : block.seen] += product(slopes.T, weights.T).T
        of_scores = torch._softmax_backward_data(product(slopes, block.values), weights, -1, weights.dtype)
        of_key[0, block.group, : block.seen] += product(block.rows.T, of_scores.T).T
        of_rows = product(of_scores, block.keys.T).mul_(block.scaling)
        of_query[0, block.heads, block.queries] = of_rows.view(-1, block.length, of_rows.shape[1])
    return of_query, of_key, of_value


class _Block(NamedTuple):
    """Some queries of the heads that share keys; R rows: heads x queries."""

    rows: Tensor  # (R, D) queries, scaled
    keys: Tensor  # (seen, D) from the first on, that any of them sees
    values: Tensor  # (seen, D)
    mask: Tensor | None  # (queries, seen); None: causal
    group: int  # of heads
    heads: slice
    queries: slice
    scaling: float

    @property
    def seen(self) -> int:
        return len(self.keys)

    @property
    def length(self) -> int:
        """Number of queries."""
        return int(self.queries.stop - self.queries.start)

    def weights(self) -> Tensor:
        """(R, seen): what each query takes of each key."""
        scores = product(self.rows, self.keys)
        of_heads = scores.view(-1, self.length, self.seen)
        if self.mask is None:
            # What is before the block, all see; of the block itself a query sees what is not after it.
            own = of_heads[..., self.seen - self.length :]
            own += _causal(self.length, scores.dtype)
        else:
            of_heads += self.mask
        return torch.softmax(scores, dim=-1)


@functools.lru_cache(maxsize=64)
def _causal(length: int, dtype: torch.dtype) -> Tensor:
    return torch.full((length, length), float("-inf"), dtype=dtype).triu_(1)


def _blocks(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Iterator[_Block]:
    scaling = query.shape[3] ** -0.5 if scaling is None else scaling
    length, groups = query.shape[2], key.shape[1]
    shared, before = query.shape[1] // groups, key.shape[2] - length
    for group in range(groups):
        heads = slice(group * shared, (group + 1) * shared)
        keys, values = key[0, group].contiguous(), value[0, group].contiguous()
        for start in range(0, length, BLOCK):
            queries = slice(start, min(start + BLOCK, length))
            seen = before + queries.stop
            rows = (query[0, heads, queries] * scaling).reshape(-1, query.shape[3])
            of_block = None if mask is None else mask[queries, :seen]
            yield _Block(rows, keys[:seen], values[:seen], of_block, group, heads, queries, scaling)
