"""Softmax policies trained by a row of the table of methods, all seeds and betas at once.

Shape legend: S seeds, N betas, C contexts, K arms, B comparisons of one seed.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from mallowspo.bandits.settings import BanditTraining
from mallowspo.bandits.world import Comparisons, Floats, World, every_pair
from mallowspo.objectives import Objective, PairScores

#: Adam's own: gradients below are not blown up to full steps.
EPSILON = 1e-8


def tallied(comparisons: Comparisons, weight: Floats | None, world: World) -> tuple[Comparisons, Floats, Floats | None]:
    """The same data with equal comparisons counted together: each ordered pair of arms once, its share, its weight.

    Only for weights that are equal within a context, and for methods that look at one comparison at a time.
    """
    seeds, contexts, arms = world.place.shape
    counts = np.zeros((seeds, contexts, arms, arms))
    seed = np.arange(seeds)[:, None]
    np.add.at(counts, (seed, comparisons.context, comparisons.chosen, comparisons.rejected), 1.0)
    pairs = every_pair(world)
    share = counts[seed, pairs.context, pairs.chosen, pairs.rejected] / comparisons.context.shape[1]
    if weight is None:
        return pairs, share, None
    of_context = np.zeros((seeds, contexts))
    of_context[seed, comparisons.context] = weight
    if not np.array_equal(of_context[seed, comparisons.context], weight):
        raise ValueError("weights differ within a context: comparisons cannot be counted together")
    return pairs, share, of_context[seed, pairs.context]


class OneScaleAdam:
    """Adam with one second moment for the whole policy of a run.

    Adam scales every parameter apart. A context of a bandit has parameters of its own, so Adam would undo what a weight
    does to the size of a context's gradient; in a language model contexts share their parameters, and it cannot.
    """

    def __init__(self, logits: Tensor, decay: tuple[float, float] = (0.9, 0.999)):
        self.logits = logits
        self.decay = decay
        self.first = torch.zeros_like(logits)
        self.second = torch.zeros_like(logits[..., :1, :1])
        self.steps = 0

    def step(self, learning_rate: float) -> None:
        """Move the logits (..., C, K) by their gradient and clear it."""
        gradient = self.logits.grad
        assert gradient is not None, "backward() comes before step()"
        keep_first, keep_second = self.decay
        self.steps += 1
        self.first.lerp_(gradient, 1 - keep_first)
        self.second.lerp_((gradient**2).mean((-2, -1), keepdim=True), 1 - keep_second)
        mean = self.first / (1 - keep_first**self.steps)
        scale = (self.second / (1 - keep_second**self.steps)).sqrt() + EPSILON
        with torch.no_grad():
            self.logits -= learning_rate * mean / scale
        self.logits.grad = None


def train(
    method: str,
    comparisons: Comparisons,
    weight: Floats | None,
    log_reference: Tensor,
    contexts: int,
    betas: Tensor,
    training: BanditTraining,
    *,
    share: Floats | None = None,
    outside: bool = False,
    options: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-policies (S, N, C, K) after `training.early_steps` and after all steps; each starts as the reference.

    Args:
        method: a row of METHODS.
        comparisons: of all seeds.
        weight: (S, B) dispersion weights; None for a method without.
        log_reference: (K,) float64.
        contexts: C.
        betas: (N,).
        training: steps and learning rate.
        share: (S, B) how much of the data each comparison stands for; default: all alike.
        outside: the weight stands outside the link.
        options: in place of the row's own.
    """
    seeds, arms = len(comparisons.context), len(log_reference)
    runs = (seeds, len(betas))
    logits = log_reference.expand(*runs, contexts, arms).clone().requires_grad_()
    objective = Objective(
        method, betas[:, None], options, outside=outside, runs=runs, hidden_size=contexts, seed=0
    ).double()
    view = _View(comparisons, weight, log_reference, runs, contexts, objective)
    mass = None if share is None else torch.from_numpy(share)[:, None]
    optimizer = OneScaleAdam(logits)
    learned = list(objective.parameters())
    learned_optimizer = torch.optim.Adam(learned, lr=training.learning_rate) if learned else None
    early = logits.detach()
    for step in range(training.steps):
        loss = objective(view.scores(logits)).loss
        total = loss.mean(-1) if mass is None else (loss * mass).sum(-1)
        total.sum().backward()
        optimizer.step(training.learning_rate * (1 - step / training.steps))
        if learned_optimizer is not None:
            learned_optimizer.step()
            learned_optimizer.zero_grad()
        objective.after_step()
        if step + 1 == training.early_steps:
            early = logits.detach().log_softmax(-1)
    final = logits.detach().log_softmax(-1)
    if not bool(torch.isfinite(final).all()):
        raise ValueError(f"{method}: a policy is not finite after {training.steps} steps")
    return early, final


class _View:
    """The comparisons as pairs of one-token responses: what an objective needs, gathered from the logits."""

    def __init__(
        self,
        comparisons: Comparisons,
        weight: Floats | None,
        log_reference: Tensor,
        runs: tuple[int, int],
        contexts: int,
        objective: Objective,
    ):
        self.needs = objective.row.needs
        self.epsilon = float(objective.options.get("epsilon", 0.0))
        self.contexts, self.arms, self.runs = contexts, len(log_reference), runs
        context = torch.from_numpy(comparisons.context)
        chosen, rejected = torch.from_numpy(comparisons.chosen), torch.from_numpy(comparisons.rejected)
        shape = (*runs, context.shape[-1])
        self.context = context[:, None].expand(shape)
        self.chosen = (context * self.arms + chosen)[:, None].expand(shape)
        self.rejected = (context * self.arms + rejected)[:, None].expand(shape)
        ones = torch.ones(shape[-1], dtype=torch.float64)
        self.fixed: dict[str, Tensor] = {
            "reference_chosen": log_reference[chosen][:, None],
            "reference_rejected": log_reference[rejected][:, None],
            "chosen_tokens": ones,
            "rejected_tokens": ones,
            "prompt_perplexity": ones,
        }
        if weight is not None:
            self.fixed["weight"] = torch.from_numpy(weight)[:, None]
        if "prompt_hidden" in self.needs:
            self.fixed["prompt_hidden"] = one_hot(context, contexts).double()[:, None]

    def scores(self, logits: Tensor) -> PairScores:
        """The pairs under the present policies."""
        log_policy = logits.log_softmax(-1)
        flat = log_policy.flatten(-2)
        chosen, rejected = flat.gather(-1, self.chosen), flat.gather(-1, self.rejected)
        extra: dict[str, Tensor] = {}
        with torch.no_grad():
            if "confidence" in self.needs:
                collision = log_policy.exp().square().sum(-1).log().gather(-1, self.context)
                extra |= {"chosen_confidence": chosen - collision, "rejected_confidence": rejected - collision}
            if "reference_logits" in self.needs:
                gap = chosen - rejected
                reference = self.fixed["reference_chosen"] - self.fixed["reference_rejected"]
                extra["interpolated_plus"] = (1 + self.epsilon) * gap - self.epsilon * reference
                extra["interpolated_minus"] = (1 - self.epsilon) * gap + self.epsilon * reference
        return PairScores(chosen_logp=chosen, rejected_logp=rejected, **self.fixed, **extra)
