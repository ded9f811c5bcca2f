"""What changes while a policy trains: running means, a beta of each pair, learned parts.

State lies in buffers and parameters, so that a checkpoint holds it. Shapes: (..., B) pairs, leading dimensions are
independent runs; running values have shape (..., 1).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mallowspo.objectives.margins import PairScores, log_ratio_margin, margin_of

#: Below, a running standard deviation counts as 0: at the first step every log-ratio is 0 but for rounding.
_SMALL = 1e-6


class Adapted(NamedTuple):
    """What an adaptation gives the objective; all broadcast to (..., B)."""

    beta: Tensor
    shift: Tensor | float = 0.0  # subtracted from the margin
    loss_weight: Tensor | float = 1.0  # outside the link
    penalty: Tensor | float = 0.0  # added to the loss


class Adaptation(nn.Module):
    """Base: one `forward` a batch, one `after_step` an optimizer step."""

    #: Whether the loss of a pair depends on the other pairs of the batch.
    compares_pairs = False

    def __init__(self, options: dict[str, Any], runs: tuple[int, ...], hidden_size: int | None, seed: int):
        super().__init__()
        self.options = options
        self.runs = runs

    def forward(self, scores: PairScores, beta: Tensor) -> Adapted:
        raise NotImplementedError

    def after_step(self) -> None:
        """Called after the optimizer has moved."""


class _RunningMoments(Adaptation):
    """Exponential moving mean and standard deviation of the batch, both from 0 as in the published codes."""

    compares_pairs = True
    mean: Tensor
    deviation: Tensor

    def __init__(self, options: dict[str, Any], runs: tuple[int, ...], hidden_size: int | None, seed: int):
        super().__init__(options, runs, hidden_size, seed)
        self.register_buffer("mean", torch.zeros(*runs, 1))
        self.register_buffer("deviation", torch.zeros(*runs, 1))

    def z_score(self, values: Tensor) -> Tensor:
        """Update by this batch, then standardise it; a batch of one has deviation 0."""
        keep = float(self.options["momentum"])
        correction = 1 if values.shape[-1] > 1 else 0
        deviation = values.std(dim=-1, keepdim=True, correction=correction)
        mean = keep * self.mean + (1 - keep) * values.mean(dim=-1, keepdim=True)
        deviation = keep * self.deviation + (1 - keep) * deviation
        if torch.is_grad_enabled():  # a look at the loss without training (the step-0 check) leaves no trace
            self.mean, self.deviation = mean, deviation
        return (values - mean) / deviation.clamp_min(_SMALL)


class BetaDPO(_RunningMoments):
    """beta-DPO: beta grows with how far the batch's log-ratio margin lies above its running mean; outliers are dropped.

    The batch is the pairs of the optimizer step, however many are in memory at a time. Pairs are dropped by a seeded
    draw without replacement, with odds exp(-z^2 / 2) of being kept; the kept ones weigh B / kept, so that the mean
    over the batch is the mean over the kept.
    """

    def __init__(self, options: dict[str, Any], runs: tuple[int, ...], hidden_size: int | None, seed: int):
        super().__init__(options, runs, hidden_size, seed)
        self.generator = torch.Generator().manual_seed(seed)

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self.generator.set_state(state.cpu())

    def forward(self, scores: PairScores, beta: Tensor) -> Adapted:
        gap = log_ratio_margin(scores).detach()
        z = self.z_score(gap)
        kept = self._keep(z)
        centre = gap if self.options["level"] == "instance" else _mean_of(gap, kept)
        factor = 1 + float(self.options["sensitivity"]) * (centre - self.mean)
        weight = kept * (gap.shape[-1] / kept.sum(dim=-1, keepdim=True))
        return Adapted((beta * factor).clamp_min(1e-3), loss_weight=weight)

    def _keep(self, z: Tensor) -> Tensor:
        pairs = z.shape[-1]
        count = max(1, int((1 - float(self.options["dropped"])) * pairs))
        odds = torch.exp(-(z**2) / 2).clamp_min(1e-12).reshape(-1, pairs).cpu()
        drawn = torch.multinomial(odds, count, generator=self.generator)
        return torch.zeros_like(odds).scatter(-1, drawn, 1.0).reshape(z.shape).to(z)


class EpsilonDPO(Adaptation):
    """epsilon-DPO: a beta for each pair, smaller or larger by a step, as interpolated policies order the pair.

    k = 1 where the log-probability difference rises on the way from the reference through the policy and beyond, -1
    where it falls, else 0; beta / (1 + epsilon k). After a step, beta itself is divided by 1 + epsilon * mean(k).
    """

    scale: Tensor
    steps_sum: Tensor
    pairs_seen: Tensor

    def __init__(self, options: dict[str, Any], runs: tuple[int, ...], hidden_size: int | None, seed: int):
        super().__init__(options, runs, hidden_size, seed)
        self.register_buffer("scale", torch.ones(*runs, 1))
        self.register_buffer("steps_sum", torch.zeros(*runs, 1))
        self.register_buffer("pairs_seen", torch.zeros(1))

    def forward(self, scores: PairScores, beta: Tensor) -> Adapted:
        here = (scores.chosen_logp - scores.rejected_logp).detach()
        plus, minus = scores.need("interpolated_plus"), scores.need("interpolated_minus")
        rises, falls = (plus > here) & (here > minus), (minus > here) & (here > plus)
        step = rises.to(here.dtype) - falls.to(here.dtype)
        if torch.is_grad_enabled():
            self.steps_sum = self.steps_sum + step.sum(dim=-1, keepdim=True)
            self.pairs_seen = self.pairs_seen + step.shape[-1]
        return Adapted(beta * self.scale / (1 + float(self.options["epsilon"]) * step))

    def after_step(self) -> None:
        if self.pairs_seen > 0:
            mean = self.steps_sum / self.pairs_seen
            self.scale = self.scale / (1 + float(self.options["epsilon"]) * mean)
        self.steps_sum, self.pairs_seen = torch.zeros_like(self.steps_sum), torch.zeros_like(self.pairs_seen)


class AlphaDPO(_RunningMoments):
    """AlphaDPO: the target margin of a pair grows with the z-score of its per-token log-ratio margin (no gradient)."""

    def forward(self, scores: PairScores, beta: Tensor) -> Adapted:
        gap = margin_of("log_ratio", scores, {"length": "mean"}).detach()
        return Adapted(beta, shift=float(self.options["alpha"]) * self.z_score(gap))


class WPO(Adaptation):
    """WPO: a pair weighs less the less likely the policy itself is to write it; min(1, exp(A_chosen + A_rejected))."""

    def forward(self, scores: PairScores, beta: Tensor) -> Adapted:
        both = (scores.need("chosen_confidence") + scores.need("rejected_confidence")).detach()
        return Adapted(beta, loss_weight=torch.exp(both).clamp_max(1.0))


class LearnableBeta(Adaptation):
    """Learnable Beta DPO: beta(x) = beta c(x) f(x), f(x) = v (1 + range tanh(u . h(x) + u0)), v and u learned.

    c(x) is the prompt's log-perplexity under the *reference* (its source says policy in one place and reference in
    another; a fixed one cannot be gamed by the policy), h(x) the policy's last hidden state at the prompt's end,
    without gradient. Where a pair is ordered rightly the loss falls as beta grows without bound, and the other way
    round: the penalty log(f)^2 holds f near 1. With penalty 0 it diverges, as a test shows.
    """

    def __init__(self, options: dict[str, Any], runs: tuple[int, ...], hidden_size: int | None, seed: int):
        super().__init__(options, runs, hidden_size, seed)
        if hidden_size is None:
            raise ValueError("lb_dpo: hidden_size, the width of prompt_hidden, must be given")
        self.log_scale = nn.Parameter(torch.zeros(*runs, 1))
        self.direction = nn.Parameter(torch.zeros(*runs, hidden_size, 1))
        self.offset = nn.Parameter(torch.zeros(*runs, 1))

    def forward(self, scores: PairScores, beta: Tensor) -> Adapted:
        hidden = scores.need("prompt_hidden").to(self.direction.dtype)
        turned = torch.tanh((hidden @ self.direction).squeeze(-1) + self.offset)
        log_factor = self.log_scale + torch.log1p(float(self.options["range"]) * turned)
        beta = beta * scores.need("prompt_perplexity") * torch.exp(log_factor)
        return Adapted(beta, penalty=float(self.options["penalty"]) * log_factor**2)


def _mean_of(values: Tensor, kept: Tensor) -> Tensor:
    return (values * kept).sum(dim=-1, keepdim=True) / kept.sum(dim=-1, keepdim=True)


#: Adaptations by the name that a row of `mallowspo.methods.METHODS` gives.
ADAPTATIONS: dict[str, type[Adaptation]] = {
    "beta_dpo": BetaDPO,
    "epsilon_dpo": EpsilonDPO,
    "alpha_dpo": AlphaDPO,
    "wpo": WPO,
    "lb_dpo": LearnableBeta,
}
