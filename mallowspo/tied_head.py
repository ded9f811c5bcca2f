"""Embeddings and output head that are one parameter, with one gradient.

Autograd makes two as large as the vocabulary, that of the embeddings filled with zeros but for a batch's few hundred
words, and adds them. Here the embeddings' is added to the head's.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def applies(causal: Any) -> bool:
    """Whether a causal model's embeddings are its head's weight, and looked up as they are."""
    embedding, head = causal.get_input_embeddings(), causal.get_output_embeddings()
    usual = type(embedding) is nn.Embedding and embedding.max_norm is None and not embedding.scale_grad_by_freq
    return usual and embedding.weight is head.weight


def apart(weight: Tensor, tokens: Tensor, padding: int | None) -> tuple[Tensor, Tensor]:
    """The embeddings of `tokens` and the head's weight, of the one parameter, and differentiable in it.

    The backward adds to the gradient that it is given for the head, so that must be a tensor of its own, as
    `mallowspo.output_head.head_scores` makes it.

    Args:
        weight: (V, D).
        tokens: (...) token ids.
        padding: a token whose embedding has no gradient.

    Returns:
        (..., D), and (V, D).
    """
    embedded, head = _Apart.apply(weight, tokens, padding)
    return embedded, head


class _Apart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, tokens: Tensor, padding: int | None) -> tuple[Tensor, Tensor]:
        ctx.tokens, ctx.padding = tokens, padding
        return nn.functional.embedding(tokens, weight), weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_embedded: Tensor, of_head: Tensor) -> tuple[Tensor, None, None]:
        tokens, of_rows = ctx.tokens.flatten(), of_embedded.flatten(0, -2)
        if ctx.padding is not None:
            learned = tokens != ctx.padding
            tokens, of_rows = tokens[learned], of_rows[learned]
        # In place: nobody else has the head's, which its backward has just made.
        return of_head.index_add_(0, tokens, of_rows), None, None
