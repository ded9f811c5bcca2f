"""Log-probabilities and entropies of responses: the one kernel that reference, training and evaluation share.

Shapes: R rows (a row is one prompt with one response), T tokens of the longest row, N response tokens of all rows,
D hidden units, V vocabulary (the width of the model's output).

Only response positions go through the output head, a chunk at a time, and the backward recomputes each chunk: there
is never an (R, T, V) tensor. Matrix products of the body run in bfloat16 where the settings say so; the head,
the log-probabilities and the entropies are float32 always (bfloat16 logits err by up to 0.085 nats a token, as
large as the first margins of DPO).
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mallowspo.errors import InputError

logger = logging.getLogger(__name__)

#: Rows of hidden states that pass the head at a time: 256 x 49152 float32 logits are 50 MB.
CHUNK = 256


class Batch(NamedTuple):
    """Rows, padded on the right."""

    tokens: Tensor  # (R, T) token ids
    mask: Tensor  # (R, T) 1 for prompt and response, 0 for padding
    response: Tensor  # (R, T) True where a token belongs to the response

    def to(self, device: str | torch.device) -> "Batch":
        return Batch(self.tokens.to(device), self.mask.to(device), self.response.to(device))


class ResponseScores(NamedTuple):
    """Of each row's response; all (R,)."""

    logp: Tensor  # sum over tokens of log pi(token | before), nats, float32
    tokens: Tensor  # number of those tokens
    entropy: Tensor | None = None  # sum over tokens of the next-token entropy, nats, float32
    confidence: Tensor | None = None  # mean over tokens of log pi(token) - log sum_v pi(v)^2, no gradient


class Want(NamedTuple):
    """What to compute of each law besides the log-probability of its token."""

    entropy: bool = False
    collision: bool = False


class TokenScores(NamedTuple):
    """Of each token where `Batch.response` is True, row by row; all (N,)."""

    logp: Tensor  # log pi(token | before), nats, float32
    entropy: Tensor  # of the law that the token was drawn from, nats, float32; 0 if not wanted
    collision: Tensor  # log sum_v pi(v)^2 of that law, no gradient; 0 if not wanted
    rows: Tensor  # which row the token stands in
    positions: Tensor  # where in its row the token stands


def make_batch(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Batch:
    """Pad (prompt tokens, response tokens) on the right. Padding goes by length, never by the id of a pad token.

    Raises:
        InputError: for an empty prompt or response; there is nothing to predict from, or to predict.
    """
    for prompt, response in rows:
        if not prompt or not response:
            raise InputError("a row has an empty prompt or response after tokenisation; see pairs/unusable.jsonl")
    longest = max(len(prompt) + len(response) for prompt, response in rows)
    tokens = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    is_response = torch.zeros(len(rows), longest, dtype=torch.bool)
    for row, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response)
        tokens[row, :end] = torch.tensor([*prompt, *response])
        mask[row, :end] = 1
        is_response[row, len(prompt) : end] = True
    return Batch(tokens, mask, is_response)


class _HeadLogProbabilities(torch.autograd.Function):
    """Hidden states to log-probabilities and entropies of target tokens, in chunks of rows.

    With `products` bfloat16, the backward's two products with the head run in it like the body's, and read the
    forward's softmax, kept in bfloat16 (2 bytes a response token and vocabulary entry). With float32 the chunks are
    computed again, and nothing is kept or rounded.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, want: "Want", products: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        logp = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        entropy, collision = torch.zeros_like(logp), torch.zeros_like(logp)
        ctx.products, ctx.softmax = products, []
        keep = products == torch.bfloat16 and (ctx.needs_input_grad[0] or ctx.needs_input_grad[1])
        buffer = _logits_buffer(hidden, head)
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            logits = _logits(hidden[part], head, buffer)
            logp[part], entropy[part], softmax = scores_in_place(logits, targets[part], want.entropy)
            if want.collision:
                collision[part] = torch.einsum("nv,nv->n", softmax, softmax).log()
            if keep:
                ctx.softmax.append(softmax.to(products))
        ctx.save_for_backward(hidden, head, targets)
        ctx.mark_non_differentiable(entropy, collision)
        return logp, entropy, collision

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        hidden, head, targets = ctx.saved_tensors
        products = ctx.products
        hidden_gradient = torch.empty_like(hidden)
        head_gradient = torch.zeros_like(head, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        head_rounded = head.to(products)
        buffer = None if ctx.softmax else _logits_buffer(hidden, head)
        for number, start in enumerate(range(0, len(targets), CHUNK)):
            part = slice(start, start + CHUNK)
            if buffer is None:
                slope = ctx.softmax[number].neg()
            else:
                slope = (
                    scores_in_place(_logits(hidden[part], head, buffer), targets[part], False)[2].to(products).neg_()
                )
            # d logp / d logits = onehot(target) - softmax
            slope[torch.arange(len(slope), device=slope.device), targets[part]] += 1
            slope *= gradients[0][part, None].to(products)
            hidden_gradient[part] = (slope @ head_rounded).to(hidden.dtype)
            if head_gradient is not None:
                head_gradient += slope.T @ hidden[part].to(products)
        return hidden_gradient, None if head_gradient is None else head_gradient.to(head.dtype), None, None, None


def _logits_buffer(hidden: Tensor, head: Tensor) -> Tensor:
    """One buffer for all chunks: taking 50 MB from the system for each would cost more than the product."""
    return torch.empty(min(CHUNK, len(hidden)), len(head), dtype=torch.float32, device=hidden.device)


def _logits(hidden: Tensor, head: Tensor, buffer: Tensor) -> Tensor:
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
        entropy = total.log() - torch.einsum("nv,nv->n", weights, shifted) / total
    return chosen - total.log(), entropy, weights.div_(total[:, None])


def _scores_of_full_logits(logits: Tensor, targets: Tensor, want: "Want") -> tuple[Tensor, Tensor, Tensor]:
    """The plain path: (N, V), (N,) -> (N,), (N,), (N,); differentiable."""
    law = torch.log_softmax(logits, dim=-1)
    nothing = torch.zeros_like(law[:, 0])
    entropy = -(law.exp() * law.clamp_min(-1e4)).sum(dim=-1) if want.entropy else nothing
    collision = torch.logsumexp(2 * law, dim=-1) if want.collision else nothing
    return law.gather(-1, targets[:, None])[:, 0], entropy.detach(), collision.detach()


class Scorer:
    """Scores responses under a causal language model.

    Args:
        model: a Hugging Face causal model, bare or wrapped by PEFT.
        precision: "float32" or "bfloat16", of the body's matrix products.
    """

    def __init__(self, model: nn.Module, precision: str):
        self.model = model
        self.precision = precision
        wrapped: Any = model
        self.causal: Any = wrapped.get_base_model() if hasattr(model, "get_base_model") else model
        self.plain = not self._head_is_linear()
        if self.plain:
            logger.warning(
                "%s changes its logits after the output head: scoring by full logits, exact but slower",
                type(self.causal).__name__,
            )

    @property
    def vocabulary(self) -> int:
        """V: the width of the model's output, padding of the vocabulary included (as in the official code)."""
        return int(self.causal.get_output_embeddings().weight.shape[0])

    def __call__(self, batch: Batch, want_entropy: bool = False, want_confidence: bool = False) -> ResponseScores:
        """Score every row's response. Differentiable in `logp`."""
        scores = self._scores(batch, Want(want_entropy, want_confidence))
        zeros = torch.zeros(len(batch.tokens), device=scores.logp.device)
        tokens = zeros.long().index_add(0, scores.rows, torch.ones_like(scores.rows))
        confidence = zeros.index_add(0, scores.rows, scores.logp.detach() - scores.collision) / tokens
        return ResponseScores(
            logp=zeros.index_add(0, scores.rows, scores.logp),
            tokens=tokens,
            entropy=zeros.index_add(0, scores.rows, scores.entropy) if want_entropy else None,
            confidence=confidence if want_confidence else None,
        )

    def token_scores(self, batch: Batch, want_entropy: bool = False) -> TokenScores:
        """Score every token that `batch.response` marks; the first token of a row cannot be: nothing predicts it.

        Differentiable in `logp`.
        """
        return self._scores(batch, Want(entropy=want_entropy))

    def _scores(self, batch: Batch, want: Want) -> TokenScores:
        batch = batch.to(self.device)
        predicting = batch.response[:, 1:]  # position t predicts token t + 1
        targets = batch.tokens[:, 1:][predicting]
        rows, before = predicting.nonzero(as_tuple=True)
        if self.plain:
            scores = _scores_of_full_logits(self._full_logits(batch)[predicting].float(), targets, want)
        else:
            hidden = self._hidden(batch)[predicting]
            products = getattr(torch, self.precision)
            scores = _HeadLogProbabilities.apply(hidden, self._head, targets, want, products)
        return TokenScores(*scores, rows, before + 1)

    @property
    def hidden_size(self) -> int:
        """D: the width of the hidden states that the output head reads."""
        return int(self._head.shape[1])

    @property
    def device(self) -> torch.device:
        device: torch.device = self._head.device
        return device

    @property
    def _head(self) -> Tensor:
        weight: Tensor = self.causal.get_output_embeddings().weight
        return weight

    def _hidden(self, batch: Batch) -> Tensor:
        """Last hidden states (R, T - 1, D): of each position that predicts another."""
        with torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            output = self.causal.base_model(input_ids=batch.tokens, attention_mask=batch.mask, use_cache=False)
        hidden: Tensor = output.last_hidden_state[:, :-1]
        return hidden

    def _full_logits(self, batch: Batch) -> Tensor:
        with torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits: Tensor = self.causal(input_ids=batch.tokens, attention_mask=batch.mask, use_cache=False).logits
        return logits[:, :-1]

    @torch.no_grad()
    def logits_in_chunks(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Float32 logits (n, V) and tokens (n,) of the marked tokens, chunk by chunk, ordered as `token_scores`."""
        batch = batch.to(self.device)
        predicting = batch.response[:, 1:]
        targets = batch.tokens[:, 1:][predicting]
        source = (self._full_logits(batch) if self.plain else self._hidden(batch))[predicting]
        for start in range(0, len(targets), CHUNK):
            part = source[start : start + CHUNK].float()
            yield part if self.plain else part @ self._head.float().T, targets[start : start + CHUNK]

    @torch.no_grad()
    def last_hidden(self, batch: Batch) -> Tensor:
        """(R, D): the last layer's output at the position that predicts a response's first token, float32."""
        batch = batch.to(self.device)
        with torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            output = self.causal(
                input_ids=batch.tokens, attention_mask=batch.mask, use_cache=False, output_hidden_states=True
            )
        before_first = batch.response.int().argmax(dim=1) - 1
        hidden: Tensor = output.hidden_states[-1][torch.arange(len(before_first)), before_first].float()
        return hidden

    @torch.no_grad()
    def _head_is_linear(self) -> bool:
        """Whether logits are just hidden states times the head's weight: tried, not inferred from a name.

        Soft-capped or scaled logits, a head with a bias, or a body that is not `base_model` answer False.
        """
        head = self.causal.get_output_embeddings()
        body = self.causal.base_model
        if body is self.causal or not isinstance(head, nn.Linear):
            return False
        tokens = torch.arange(8, device=head.weight.device)[None] % head.weight.shape[0]
        was_training = self.causal.training
        self.causal.eval()
        try:
            expected = self.causal(input_ids=tokens, use_cache=False).logits[0]
            found = body(input_ids=tokens, use_cache=False).last_hidden_state[0].float() @ head.weight.float().T
        finally:
            self.causal.train(was_training)
        return bool(torch.allclose(expected.float(), found, rtol=1e-3, atol=1e-3))
