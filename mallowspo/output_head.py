"""The output head on scored tokens alone, a tile at a time: hidden states to log-probabilities and entropies.

Shapes: N scored tokens, D hidden units, V vocabulary (the width of the model's output); a tile is n of the tokens by w
of the vocabulary's words. There is never an (R, T, V) tensor. The head, the log-probabilities and the entropies are
float32 always (bfloat16 logits err by up to 0.085 nats a token, as large as the first margins of DPO).
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from mallowspo.head_chunks import CHUNK, KEEP, ROWS, WORDS
from mallowspo.products import applies, product

#: A product of fewer rows than this may be rounded otherwise than one of more (MKL's; oneDNN's from 2 on), so that a
#: token's score would depend on how many stand beside it.
FEWEST_ROWS = 16
#: Words over which oneDNN sums a hidden state's gradient at a time.
TERMS = 128


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
        keep: bytes of exponentials that the forward may keep for the backward. The result has the same bits without.
    """
    count = len(targets)
    if count < FEWEST_ROWS:
        hidden = pad(hidden, (0, 0, 0, FEWEST_ROWS - count))
        targets = pad(targets, (0, FEWEST_ROWS - count))
    logp, entropy, collision = _HeadLogProbabilities.apply(hidden, head, targets, want, products, keep)
    return logp[:count], entropy[:count], collision[:count]


def chunks(count: int, most: int = CHUNK) -> Iterator[slice]:
    """Slices of `count` rows, of at most `most` each and all about equal: a short last one would be rounded otherwise
    than the rest."""
    number = -(-count // most)
    ends = [count * part // number for part in range(number + 1)]
    return (slice(start, end) for start, end in itertools.pairwise(ends))


class LawSums:
    """What is summed over the vocabulary of n laws, a tile after the other.

    By hand, and shifted by the largest logit so far: torch.log_softmax in float32 on a CPU is off by up to 5e-4 here.
    """

    def __init__(self, targets: Tensor, want: Want):
        self.targets, self.want = targets, want
        self.chosen = torch.zeros(len(targets), dtype=torch.float32, device=targets.device)  # logits of the targets
        self.largest = torch.full_like(self.chosen, torch.finfo(torch.float32).min)
        self.total = torch.zeros_like(self.chosen)  # of exp(logit - largest)
        self.along = torch.zeros_like(self.chosen)  # of that times (logit - largest)
        self.squares = torch.zeros_like(self.chosen)  # of its square

    def add(self, logits: Tensor, first_word: int) -> Tensor:
        """Add a tile (n, w); returns by how much it was shifted, (n,). `logits` is then exp(logits - shift)."""
        here = self.targets - first_word
        within = (here >= 0) & (here < logits.shape[1])
        self.chosen += logits.gather(-1, here.clamp(0, logits.shape[1] - 1)[:, None])[:, 0].where(within, 0.0)
        largest = torch.maximum(self.largest, logits.amax(dim=-1))
        self._shift(largest)
        logits -= largest[:, None]
        if self.want.entropy:
            # -inf (a masked word) has weight 0: 0 * -inf must count as 0.
            shifted = logits.clamp_min(-1e4)
        weights = logits.exp_()
        self.total += weights.sum(dim=-1)
        if self.want.entropy:
            self.along += shifted.mul_(weights).sum(dim=-1)
        if self.want.collision:
            self.squares += weights.square().sum(dim=-1)
        return largest

    def _shift(self, largest: Tensor) -> None:
        by = (self.largest - largest).clamp_min(-1e4)  # before the first tile there was none
        scale = by.exp()
        self.along = (self.along + self.total * by) * scale
        self.total *= scale
        self.squares *= scale.square()
        self.largest = largest

    def scores(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probability of each target, entropy and log-collision if wanted (else 0), nats."""
        log_total, nothing = self.total.log(), torch.zeros_like(self.total)
        entropy = log_total - self.along / self.total if self.want.entropy else nothing
        collision = self.squares.log() - 2 * log_total if self.want.collision else nothing
        return self.chosen - self.largest - log_total, entropy, collision


class _HeadLogProbabilities(torch.autograd.Function):
    """The backward reads each tile's exponentials where the forward kept them, in `products`, and else computes the
    tile again; with float32 products, neither rounds. What was kept is overwritten: there is one backward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, want: Want, products: torch.dtype, keep: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        logp = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        entropy, collision = torch.empty_like(logp), torch.empty_like(logp)
        ctx.products, ctx.kept, ctx.shifts = products, [], []
        ctx.normalizers = torch.empty_like(logp)  # logarithm of the sum of exponentials
        room = keep if ctx.needs_input_grad[0] or ctx.needs_input_grad[1] else 0
        for rows in chunks(len(targets), ROWS):
            sums = LawSums(targets[rows], want)
            for words in _tiles(head):
                weights = _logits(hidden[rows], head[words])
                ctx.shifts.append(sums.add(weights, words.start))
                room -= weights.numel() * products.itemsize
                ctx.kept.append(weights.to(products) if room >= 0 else None)
            logp[rows], entropy[rows], collision[rows] = sums.scores()
            ctx.normalizers[rows] = sums.largest + sums.total.log()
        ctx.save_for_backward(hidden, head, targets)
        ctx.mark_non_differentiable(entropy, collision)
        return logp, entropy, collision

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, head, targets = ctx.saved_tensors
        products = ctx.products
        hidden_gradient = torch.zeros_like(hidden, dtype=torch.float32)
        head_gradient = torch.empty_like(head, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for rows in chunks(len(targets), ROWS):
            of_rows = hidden[rows].to(products)
            for words in _tiles(head):
                weights, shift = ctx.kept.pop(0), ctx.shifts.pop(0)  # an error the second time
                if weights is None:
                    weights = (_logits(hidden[rows], head[words]) - shift[:, None]).exp_().to(products)
                gradient = gradients[0][rows]
                inverse_total = (shift - ctx.normalizers[rows]).exp()
                slope = weights.mul_((-gradient * inverse_total).to(products)[:, None])
                _add_to_targets(slope, targets[rows] - words.start, gradient)
                _add_product(hidden_gradient[rows], slope, head[words].to(products))
                if head_gradient is not None:
                    of_head = product(slope.T, of_rows.T)
                    # Filling it with zeros first would cost as much as a product.
                    head_gradient[words] = of_head if rows.start == 0 else of_head + head_gradient[words]
        rounded = None if head_gradient is None else head_gradient.to(head.dtype)
        return hidden_gradient.to(hidden.dtype), rounded, None, None, None, None


def _tiles(head: Tensor) -> Iterator[slice]:
    return (slice(start, start + WORDS) for start in range(0, len(head), WORDS))


def _logits(hidden: Tensor, head: Tensor) -> Tensor:
    return product(hidden.float(), head.float())


def _add_product(total: Tensor, slope: Tensor, head: Tensor) -> None:
    """Add slope @ head, (n, w) and (w, D), to `total`.

    oneDNN adds one term after the other: with all of a tile's words at once, gradients would be four times as far off.
    """
    terms = TERMS if applies(slope, head) else len(head)
    for words in chunks(len(head), terms):
        total += product(slope[:, words], head[words].T)


def _add_to_targets(slope: Tensor, targets: Tensor, gradient: Tensor) -> None:
    """The gradient with respect to the logits, of the log-probabilities', is (onehot(target) - softmax) each."""
    here = ((targets >= 0) & (targets < slope.shape[1])).nonzero()[:, 0]
    slope[here, targets[here]] += gradient[here].to(slope.dtype)
