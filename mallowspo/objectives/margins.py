"""What the log-probabilities of a pair say about its margin."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PairScores:
    """Pairs as an objective sees them: tensors of shape (..., B), nats; leading dimensions are independent runs.

    Statistics over a batch go over the last dimension only. Which of the optional fields a method needs, its row in
    `mallowspo.methods.METHODS` says.
    """

    chosen_logp: Tensor  #: log pi(chosen | prompt), summed over tokens
    rejected_logp: Tensor
    reference_chosen: Tensor | None = None  #: the same under the reference policy
    reference_rejected: Tensor | None = None
    chosen_tokens: Tensor | None = None  #: number of response tokens
    rejected_tokens: Tensor | None = None
    weight: Tensor | None = None  #: dispersion weight w = -2 log phi(prompt), mean 1
    chosen_confidence: Tensor | None = None  #: mean over tokens of log pi(token) - log sum_v pi(v)^2, no gradient
    rejected_confidence: Tensor | None = None
    prompt_perplexity: Tensor | None = None  #: log-perplexity of the prompt under the reference, scaled to mean 1
    prompt_hidden: Tensor | None = None  #: (..., B, D) features of the prompt, no gradient
    interpolated_plus: Tensor | None = None  #: log-probability difference at logits (1+e) policy - e reference
    interpolated_minus: Tensor | None = None  #: ... at (1-e) policy + e reference

    def need(self, name: str) -> Tensor:
        """A field that must be there.

        Raises:
            ValueError: when it is not.
        """
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise ValueError(f"this method needs `{name}` of the pairs; see `needs` of its row in METHODS")
        return value


def join(parts: Sequence[PairScores]) -> PairScores:
    """Parts of one batch as a whole, in their order; a field that is None in one is None in all."""
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(PairScores):
        values = [getattr(part, field.name) for part in parts]
        by_pair = -2 if field.name == "prompt_hidden" else -1
        fields[field.name] = None if values[0] is None else torch.cat(values, dim=by_pair)
    return PairScores(**fields)


#: Which share of the reference's log-probability a margin subtracts; "mixed" takes its share from the options.
_REFERENCE_SHARE = {"log_ratio": 1.0, "log_probability": 0.0}


def margin_of(kind: str, scores: PairScores, options: dict[str, Any]) -> Tensor:
    """Margin of each pair, (..., B), before home advantage.

    kind: "log_ratio", "log_probability", "mixed" or "log_odds"; options: "length" (sum or mean), "mixing".
    """
    if kind == "log_odds":
        return _log_odds(_per_token(scores.chosen_logp, scores, "chosen")) - _log_odds(
            _per_token(scores.rejected_logp, scores, "rejected")
        )
    share = _REFERENCE_SHARE[kind] if kind in _REFERENCE_SHARE else float(options["mixing"])
    sides = []
    for side, logp in (("chosen", scores.chosen_logp), ("rejected", scores.rejected_logp)):
        value = logp - share * scores.need(f"reference_{side}") if share else logp
        sides.append(_per_token(value, scores, side) if options.get("length") == "mean" else value)
    return sides[0] - sides[1]


def home_advantage(kind: str, options: dict[str, Any]) -> float:
    """What is subtracted from the margin before the link: SimPO's gamma / beta, RainbowPO's share of it."""
    advantage = float(options.get("home_advantage", 0.0))
    return (1 - float(options["mixing"])) * advantage if kind == "mixed" else advantage


def log_ratio_margin(scores: PairScores) -> Tensor:
    """(..., B) nats: how much more than the reference the policy prefers the chosen side; summed over tokens."""
    return margin_of("log_ratio", scores, {})


def _per_token(value: Tensor, scores: PairScores, side: str) -> Tensor:
    return value / scores.need(f"{side}_tokens")


def _log_odds(mean_logp: Tensor) -> Tensor:
    """log(p / (1 - p)) for p = exp(mean_logp); the cap keeps p = 1 finite."""
    logp = mean_logp.clamp_max(-1e-6)
    return logp - torch.log(-torch.expm1(logp))
