"""A row of the table of methods as a function of pairs: margin x weight x link, and what changes during training."""

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mallowspo.methods import METHODS
from mallowspo.objectives.adaptations import ADAPTATIONS, Adapted
from mallowspo.objectives.links import LINKS
from mallowspo.objectives.margins import PairScores, home_advantage, log_ratio_margin, margin_of


class PairLosses(NamedTuple):
    """What one batch gives; every field has shape (..., B)."""

    loss: Tensor
    margin: Tensor  # log-ratio difference to the reference, nats; the method's own margin where no reference is given
    scaled_margin: Tensor  # effective beta times the method's margin: the gap of implicit rewards that it acts on
    effective_beta: Tensor  # beta of the pair, times its dispersion weight
    loss_weight: Tensor  # outside the link; 0 for a pair that the method drops


class Objective(nn.Module):
    """Losses of pairs under one method.

        margin = what the row says of log pi, log pi_ref and lengths
        s      = beta * (margin - home advantage) + length_coefficient * (len_chosen - len_rejected)
        loss   = link(s, weight) + sft * -log pi(chosen)

    Args:
        method: a name in `METHODS`.
        beta: strength of the KL term, > 0; a tensor (..., 1) gives each independent run its own.
        options: values in place of the row's own.
        outside: put the dispersion weight outside the link (a control: the same weights, as a reweighting of pairs).
        runs: leading dimensions of the pairs, for methods that learn or remember.
        hidden_size: D of `PairScores.prompt_hidden`, for methods that read it.
        seed: of the draws of methods that drop pairs.

    Raises:
        ValueError: an unknown method or option, or a beta that is not above 0.
    """

    def __init__(
        self,
        method: str,
        beta: float | Tensor,
        options: dict[str, Any] | None = None,
        *,
        outside: bool = False,
        runs: tuple[int, ...] = (),
        hidden_size: int | None = None,
        seed: int = 0,
    ):
        super().__init__()
        if method not in METHODS:
            raise ValueError(f"unknown method '{method}'; known: {', '.join(METHODS)}")
        self.row = METHODS[method]
        unknown = set(options or {}) - set(self.row.options)
        if unknown:
            raise ValueError(f"method '{method}' has no option '{min(unknown)}'; it has {list(self.row.options)}")
        self.options: dict[str, Any] = {**self.row.options, **(options or {})}
        # A number stays exact in float64: as a tensor without dimensions it does not widen what it multiplies.
        value = beta if isinstance(beta, Tensor) else torch.tensor(beta, dtype=torch.float64)
        self.register_buffer("beta", value, persistent=False)
        if not bool((self.beta > 0).all()):
            raise ValueError(f"beta must be above 0, not {beta}")
        self.outside = outside
        self.link = LINKS[self.row.link]
        accepted = inspect.signature(self.link).parameters
        self.link_options = {name: value for name, value in self.options.items() if name in accepted}
        kind = self.row.adaptive
        self.adaptation = ADAPTATIONS[kind](self.options, runs, hidden_size, seed) if kind else None

    beta: Tensor

    def forward(self, scores: PairScores) -> PairLosses:
        """Losses of a batch.

        Raises:
            ValueError: a field that the method needs is missing.
        """
        weight = self._weight(scores)
        inside = torch.ones_like(weight) if self.outside else weight
        adapted = self.adaptation(scores, self.beta) if self.adaptation is not None else Adapted(self.beta)
        margin = margin_of(self.row.margin, scores, self.options)
        target = home_advantage(self.row.margin, self.options) + adapted.shift
        loss = self._linked(margin - target, adapted.beta, inside, scores) + adapted.penalty
        loss_weight = adapted.loss_weight * (weight if self.outside else torch.ones_like(margin))
        return PairLosses(
            loss=loss * loss_weight + self._sft(scores),
            margin=margin if scores.reference_chosen is None else log_ratio_margin(scores),
            scaled_margin=adapted.beta * inside * margin,
            effective_beta=(adapted.beta * weight).expand_as(margin),
            loss_weight=loss_weight.expand_as(margin),
        )

    @property
    def compares_pairs(self) -> bool:
        """Whether the loss of a pair depends on the other pairs of its step: they must then come in one batch."""
        return self.adaptation is not None and self.adaptation.compares_pairs

    def after_step(self) -> None:
        """To be called once after each optimizer step."""
        if self.adaptation is not None:
            self.adaptation.after_step()

    def _weight(self, scores: PairScores) -> Tensor:
        if self.row.weight == "dispersion":
            return scores.need("weight")
        return torch.ones_like(scores.chosen_logp)

    def _linked(self, gap: Tensor, beta: Tensor, weight: Tensor, scores: PairScores) -> Tensor:
        if self.row.margin == "log_odds":  # ORPO: its lambda, our beta, scales the loss and not the margin
            return beta * self.link(gap, weight, **self.link_options)
        s = beta * gap
        if "length_coefficient" in self.options:
            lengths = scores.need("chosen_tokens") - scores.need("rejected_tokens")
            s = s + float(self.options["length_coefficient"]) * lengths
        loss: Tensor = self.link(s, weight, **self.link_options)
        return loss / beta**2 if self.options.get("scaling") == "published" else loss

    def _sft(self, scores: PairScores) -> Tensor:
        coefficient = float(self.options.get("sft", 0.0))
        if coefficient == 0:
            return torch.zeros_like(scores.chosen_logp)
        logp = scores.chosen_logp
        if self.options.get("length") == "mean":
            logp = logp / scores.need("chosen_tokens")
        return -coefficient * logp
