"""The output head on scored tokens alone, a chunk at a time: hidden states to log-probabilities and entropies.

Shapes: N scored tokens, D hidden units, V vocabulary (the width of the model's output). There is never an (R, T, V)
tensor. The head, the log-probabilities and the entropies are float32 always (bfloat16 logits err by up to 0.085 nats
a token, as large as the first margins of DPO).
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from mallowspo.head_chunks import CHUNK, KEEP
from mallowspo.products import applies, product

#: A product of fewer rows than this is rounded otherwise than one of more, so that a token's score would depend on how
#: many stand beside it.
FEWEST_ROWS = 8


class Want(NamedTuple):
    """What to compute of each law besides the log-probability of its token."""

    entropy: bool = False
    collision: bool = False


def head_scores(
    hidden: Tensor, head: Tensor, targets: Tensor, want: Want, products: torch.dtype, keep: int = KEEP
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of each target, entropy and log-collision of each law if wanted (else 0): (N,) each, nats.

    Differentiable in the first.

    Args:
        hidden: (N, D).
        head: (V, D), the weight of the head.
        products: dtype of the backward's two products with the head, as of the body's.
        keep: bytes of softmax that the forward may keep for the backward. The result has the same bits without.
    """
    count = len(targets)
    if count < FEWEST_ROWS:
        hidden = pad(hidden, (0, 0, 0, FEWEST_ROWS - count))
        targets = pad(targets, (0, FEWEST_ROWS - count))
    logp, entropy, collision = _HeadLogProbabilities.apply(hidden, head, targets, want, products, keep)
    return logp[:count], entropy[:count], collision[:count]


def chunks(count: int) -> Iterator[slice]:
    """Slices of `count` rows, of at most `CHUNK` each and all about equal: a short last one would be rounded
    otherwise than the rest."""
    number = -(-count // CHUNK)
    ends = [count * part // number for part in range(number + 1)]
    return (slice(start, end) for start, end in itertools.pairwise(ends))


class _HeadLogProbabilities(torch.autograd.Function):
    """The backward reads each chunk's softmax where the forward kept it, in `products`, and else computes the chunk
    again; with float32 products, neither rounds. What was kept is overwritten: there is one backward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, want: Want, products: torch.dtype, keep: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        logp = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        entropy, collision = torch.zeros_like(logp), torch.zeros_like(logp)
        ctx.products, ctx.softmax = products, []
        room = keep if ctx.needs_input_grad[0] or ctx.needs_input_grad[1] else 0
        buffer = _logits_buffer(hidden, head)
        for part in chunks(len(targets)):
            logits = _logits(hidden[part], head, buffer)
            logp[part], entropy[part], softmax = scores_in_place(logits, targets[part], want.entropy)
            if want.collision:
                collision[part] = softmax.square().sum(dim=-1).log()
            room -= softmax.numel() * products.itemsize
            ctx.softmax.append(softmax.to(products, copy=buffer is not None) if room >= 0 else None)
        ctx.save_for_backward(hidden, head, targets)
        ctx.mark_non_differentiable(entropy, collision)
        return logp, entropy, collision

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, head, targets = ctx.saved_tensors
        products = ctx.products
        hidden_gradient = torch.empty_like(hidden)
        head_gradient = torch.empty_like(head, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        head_rounded = head.to(products)
        buffer = _logits_buffer(hidden, head)  # memory that is not written to is not taken
        ctx.softmax.reverse()
        for part in chunks(len(targets)):
            softmax = ctx.softmax.pop()  # an error the second time
            if softmax is None:
                softmax = scores_in_place(_logits(hidden[part], head, buffer), targets[part], False)[2].to(products)
            slope = _slope_in_place(softmax, targets[part], gradients[0][part].to(products))
            hidden_gradient[part] = (slope @ head_rounded).to(
                hidden.dtype
            )  # by MKL: it sums a whole vocabulary in parts
            if head_gradient is not None:
                _add_product(head_gradient, slope.T, hidden[part].to(products), first=part.start == 0)
        return hidden_gradient, None if head_gradient is None else head_gradient.to(head.dtype), None, None, None, None


def _slope_in_place(softmax: Tensor, targets: Tensor, gradient: Tensor) -> Tensor:
    """Gradient with respect to the logits (n, V), of the log-probabilities' (n,): (onehot(target) - softmax) each."""
    slope = softmax.mul_(-gradient[:, None])
    slope[torch.arange(len(slope), device=slope.device), targets] += gradient
    return slope


def _add_product(total: Tensor, left: Tensor, right: Tensor, first: bool) -> None:
    """total += left @ right, or = where it holds nothing yet: filling it with zeros costs as much as a product."""
    if left.dtype == total.dtype:
        torch.addmm(total, left, right, beta=0.0 if first else 1.0, out=total)
    elif first:
        total.copy_(left @ right)
    else:
        total += left @ right


def _logits_buffer(hidden: Tensor, head: Tensor) -> Tensor | None:
    """One buffer for all chunks, or None where each product makes its own: taking 25 MB from the system for each would
    cost more than MKL's product, but freed memory is kept (`models.use_threads`), and oneDNN's is the faster one."""
    if applies(hidden.float(), head.float()):
        return None
    return torch.empty(min(CHUNK, len(hidden)), len(head), dtype=torch.float32, device=hidden.device)


def _logits(hidden: Tensor, head: Tensor, buffer: Tensor | None) -> Tensor:
    if buffer is None:
        return product(hidden.float(), head.float())
    return torch.mm(hidden.float(), head.float().T, out=buffer[: len(hidden)])


def scores_in_place(logits: Tensor, targets: Tensor, want_entropy: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of each target, entropy of each law if wanted (else 0), softmax: (N,), (N,), (N, V); nats.

    `logits` (N, V) float32 is overwritten, and is the softmax afterwards.

    Shifted by the maximum and summed by hand: torch.log_softmax in float32 on a CPU is off by up to 5e-4 here.
    """
    logits -= logits.amax(dim=-1, keepdim=True)
    chosen = logits.gather(-1, targets[:, None])[:, 0]
    if want_entropy:
        # -inf (a masked token) has weight 0: 0 * -inf must count as 0.
        shifted = logits.clamp_min(-1e4)
    weights = logits.exp_()
    total = weights.sum(dim=-1)
    entropy = torch.zeros_like(total)
    if want_entropy:
        entropy = total.log() - shifted.mul_(weights).sum(dim=-1) / total
    return chosen - total.log(), entropy, weights.div_(total[:, None])
