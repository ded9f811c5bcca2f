"""Log-probabilities and entropies of responses: the one kernel that reference, training and evaluation share.

Shapes: R rows (a row is one prompt with one response), T tokens of the longest row, N scored tokens of all rows,
D hidden units, V vocabulary (the width of the model's output).

Three ways, the first that the model takes; `Scorer` tries on a few tokens which that is, and tells once if it is not
the first:

1. rows packed into one sequence that shares prompts (`mallowspo.packing`, `mallowspo.attention`), and the output head
   on scored tokens alone (`mallowspo.output_head`);
2. rows padded, and the head on scored tokens alone;
3. rows padded, and the model's own logits.

Matrix products of the body run in bfloat16 where the settings say so; the head, the log-probabilities and the
entropies are float32 always.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mallowspo import attention, fused_layer, products, tied_head
from mallowspo.errors import InputError
from mallowspo.output_head import KEEP, Want, chunks, head_scores
from mallowspo.packing import Batch, Packing, Row, make_batch, pack

logger = logging.getLogger(__name__)

#: Rows of the trial: prompts shared and not, responses of one token, and of the longest row three tokens in a row
#: that are the same, so that a wrong position or a wrong neighbour shows.
TRIAL = [
    *(Row(range(1, 8), response) for response in (range(8, 14), [3], [9, 9, 9, 2])),
    *(Row(prompt, range(2, 7)) for prompt in ([5], range(20, 32))),
]


class ResponseScores(NamedTuple):
    """Of each row's scored tokens; all (R,) but the last."""

    logp: Tensor  # sum over tokens of log pi(token | before), nats, float32
    tokens: Tensor  # number of those tokens
    entropy: Tensor | None = None  # sum over tokens of the next-token entropy, nats, float32
    confidence: Tensor | None = None  # mean over tokens of log pi(token) - log sum_v pi(v)^2, no gradient
    hidden: Tensor | None = None  # (R, D) what the head reads where the first token is predicted, no gradient


class TokenScores(NamedTuple):
    """Of each scored token, row by row; all (N,)."""

    logp: Tensor  # log pi(token | before), nats, float32
    entropy: Tensor  # of the law that the token was drawn from, nats, float32; 0 if not wanted
    collision: Tensor  # log sum_v pi(v)^2 of that law, no gradient; 0 if not wanted
    rows: Tensor  # which row the token stands in
    positions: Tensor  # where in its row the token stands


class _Predictions(NamedTuple):
    """What the body says of each scored token, row by row."""

    source: Tensor  # (N, D) hidden states, or (N, V) logits where the head is not taken apart
    targets: Tensor  # (N,)
    rows: Tensor  # (N,)
    positions: Tensor  # (N,)
    hidden: Tensor | None  # (N, D) hidden states; None if `source` is logits and they were not asked for
    head: Tensor  # (V, D) the head's weight


def _scores_of_full_logits(logits: Tensor, targets: Tensor, want: Want) -> tuple[Tensor, Tensor, Tensor]:
    """The plain path: (N, V), (N,) -> (N,), (N,), (N,); differentiable."""
    law = torch.log_softmax(logits, dim=-1)
    nothing = torch.zeros_like(law[:, 0])
    entropy = -(law.exp() * law.clamp_min(-1e4)).sum(dim=-1) if want.entropy else nothing
    collision = torch.logsumexp(2 * law, dim=-1) if want.collision else nothing
    return law.gather(-1, targets[:, None])[:, 0], entropy.detach(), collision.detach()


def sum_by_row(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """(N,) to (count,): summed in float64, so that the order of the tokens shows in no float32 bit."""
    zeros = torch.zeros(count, dtype=torch.float64, device=values.device)
    return zeros.index_add(0, rows, values.double()).to(values.dtype)


class Scorer:
    """Scores responses under a causal language model.

    The model's attention is set to `attention.NAME` where it takes packed rows; in all else that is "sdpa". Its linear
    layers multiply by the faster library (`mallowspo.products`).

    Args:
        model: a Hugging Face causal model, bare or wrapped by PEFT.
        precision: "float32" or "bfloat16", of the body's matrix products.

    Raises:
        InputError: the model is an encoder-decoder.
    """

    def __init__(self, model: nn.Module, precision: str):
        self.model = model
        self.softmax_kept = KEEP  # bytes, see `mallowspo.output_head.head_scores`
        self.precision = "float32"  # of the trials, whatever is asked for
        bare: Any = getattr(model, "get_base_model", lambda: model)  # what PEFT wraps
        self.causal: Any = bare()
        self.body: Any = self.causal.base_model
        name = type(self.causal).__name__
        if self.causal.config.is_encoder_decoder:
            raise InputError(f"{name} is an encoder-decoder; a causal language model is needed")
        products.use(model)
        if getattr(self.causal.config, "router_aux_loss_coef", None):
            logger.warning("%s is a mixture of experts: its load-balancing loss is no part of the training", name)
        self.packs = self.fused = self.tied = False
        self.plain = not self._head_is_linear()
        if self.plain:
            logger.warning(
                "%s changes its logits after the output head: scoring by full logits, exact but slower", name
            )
        else:
            reason = self._try_packing()
            if reason:
                logger.warning("%s does not take packed rows (%s): scoring padded rows, exact but slower", name, reason)
        self.precision = precision

    @property
    def vocabulary(self) -> int:
        """V: the width of the model's output, padding of the vocabulary included (as in the official code)."""
        return int(self.causal.get_output_embeddings().weight.shape[0])

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

    def __call__(
        self, batch: Batch, want_entropy: bool = False, want_confidence: bool = False, want_hidden: bool = False
    ) -> ResponseScores:
        """Score every row's response. Differentiable in `logp`."""
        found = self._predict(batch, want_hidden)
        logp, entropy, collision = self._scores(found, Want(want_entropy, want_confidence))
        rows = len(batch.tokens)
        tokens = torch.bincount(found.rows, minlength=rows)
        hidden = None
        if want_hidden and found.hidden is not None:
            first = found.positions == batch.prompt.to(self.device)[found.rows]
            hidden = found.hidden[first].detach().float()
        return ResponseScores(
            logp=sum_by_row(logp, found.rows, rows),
            tokens=tokens,
            entropy=sum_by_row(entropy, found.rows, rows) if want_entropy else None,
            confidence=sum_by_row(logp.detach() - collision, found.rows, rows) / tokens if want_confidence else None,
            hidden=hidden,
        )

    def token_scores(self, batch: Batch, want_entropy: bool = False) -> TokenScores:
        """Score every token that `batch.response` marks. Differentiable in `logp`."""
        found = self._predict(batch)
        return TokenScores(*self._scores(found, Want(entropy=want_entropy)), found.rows, found.positions)

    def _scores(self, found: _Predictions, want: Want) -> tuple[Tensor, Tensor, Tensor]:
        if self.plain:
            return _scores_of_full_logits(found.source.float(), found.targets, want)
        rounded = getattr(torch, self.precision)
        return head_scores(found.source, found.head, found.targets, want, rounded, self.softmax_kept)

    @torch.no_grad()
    def logits_in_chunks(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Float32 logits (n, V) and tokens (n,) of the marked tokens, chunk by chunk, ordered as `token_scores`."""
        found = self._predict(batch)
        for part in chunks(len(found.targets)):
            source = found.source[part].float()
            yield source if self.plain else source @ found.head.float().T, found.targets[part]

    def _predict(self, batch: Batch, want_hidden: bool = False) -> _Predictions:
        if self.packs and not self.plain:
            return self._predict_packed(batch.rows())
        batch = batch.to(self.device)
        predicting = batch.response[:, 1:]  # position t predicts token t + 1
        rows, before = predicting.nonzero(as_tuple=True)
        body = self.causal if self.plain else self.body
        besides = {"output_hidden_states": True} if self.plain and want_hidden else {}
        with self._autocast():
            output = body(input_ids=batch.tokens, attention_mask=batch.mask, use_cache=False, **besides)
        source = (output.logits if self.plain else output.last_hidden_state)[rows, before]
        hidden = source
        if self.plain:
            hidden = output.hidden_states[-1][rows, before] if want_hidden else None
        return _Predictions(source, batch.tokens[:, 1:][predicting], rows, before + 1, hidden, self._head)

    def _predict_packed(self, rows: list[Row]) -> _Predictions:
        # Products of few rows are rounded otherwise than those of more (`output_head.FEWEST_ROWS`);
        # FlexAttention works in blocks of 128, and compiles anew for every other length.
        packing: Packing = pack(rows, 8 if self.device.type == "cpu" else 128, self.device)
        inputs, head = {"input_ids": packing.tokens}, None
        if self.tied:  # the body's embeddings and the head, of one parameter
            embedding = self.causal.get_input_embeddings()
            embedded, head = tied_head.apart(embedding.weight, packing.tokens, embedding.padding_idx)
            inputs = {"inputs_embeds": embedded}
        with self._autocast(), attention.packed(packing):
            # A mask of ones: without one, transformers looks for packed rows itself, by their positions.
            output = self.body(
                **inputs,
                position_ids=packing.positions,
                attention_mask=torch.ones_like(packing.tokens),
                use_cache=False,
            )
        hidden: Tensor = output.last_hidden_state[0, packing.sources]
        # Not before: a head whose weight processes share out is whole once the body has worked.
        head = self._head if head is None else head
        return _Predictions(hidden, packing.targets, packing.rows, packing.places, hidden, head)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    @torch.no_grad()
    def _head_is_linear(self) -> bool:
        """Whether logits are just hidden states times the head's weight: tried, not inferred from a name.

        Soft-capped or scaled logits, a head with a bias, or a body that is not `base_model` answer False.
        """
        head = self.causal.get_output_embeddings()
        body = self.body
        # A bias of 0, as at the start of training, would not show in the trial.
        if body is self.causal or not isinstance(head, nn.Linear) or head.bias is not None:
            return False
        tokens = torch.arange(8, device=head.weight.device)[None] % head.weight.shape[0]
        with self._evaluating():
            expected = self.causal(input_ids=tokens, use_cache=False).logits[0]
            found = body(input_ids=tokens, use_cache=False).last_hidden_state[0].float() @ head.weight.float().T
        return bool(torch.allclose(expected.float(), found, rtol=1e-3, atol=1e-3))

    @torch.no_grad()
    def _try_packing(self) -> str:
        """Pack from now on if the hidden states of packed rows are those of padded rows; else say why not.

        With fused layers (`mallowspo.fused_layer`) where the model has their kind, and where they agree.
        """
        small = self.vocabulary
        rows = [Row([at % small for at in row.prompt], [at % small for at in row.response]) for row in TRIAL]
        before = self.causal.config._attn_implementation
        with self._evaluating():
            expected = self._predict(make_batch(rows)).source.float()
            self.fused = fused_layer.use(self.causal)
            self.tied = self.fused and tied_head.applies(self.causal)
            reason = self._difference(rows, expected)
            if reason and self.fused:
                fused_layer.leave(self.causal)
                self.fused = self.tied = False
                reason = self._difference(rows, expected)
        self.packs = not reason
        if reason:
            self.causal.set_attn_implementation(before)
        return reason

    def _difference(self, rows: list[Row], expected: Tensor) -> str:
        """Why packed rows cannot be taken, or nothing: their hidden states are as expected."""
        try:
            attention.use(self.causal)
            found = self._predict_packed(rows).source.float()
        except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        off = float((found - expected).abs().max() / expected.abs().max())
        return "" if off < 1e-3 else f"its hidden states are off by {off:.1g} of the largest"

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.causal.training
        self.causal.eval()
        try:
            yield
        finally:
            self.causal.train(was_training)
