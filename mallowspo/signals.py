"""What some methods read of a batch besides log-probabilities: the table of methods says which (`Method.needs`)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mallowspo.methods import Method
from mallowspo.models import load_model
from mallowspo.packing import Batch
from mallowspo.scoring import ResponseScores, Scorer


class Signals:
    """Computes the signals that a method needs, without gradient.

    "reference_logits" alone needs the reference policy itself, so that for such a method, and no other, it is in memory
    while the policy trains.
    """

    def __init__(self, row: Method, options: dict[str, Any], scorer: Scorer, model_folder: Path):
        self.needs = row.needs
        self.scorer = scorer
        self.reference: Scorer | None = None
        if "reference_logits" in row.needs:
            self.epsilon = float(options["epsilon"])
            self.reference = Scorer(load_model(model_folder, str(scorer.device)).eval(), scorer.precision)

    @property
    def wanted(self) -> dict[str, bool]:
        """What to ask the scorer for, by keyword."""
        return {"want_confidence": "confidence" in self.needs, "want_hidden": "prompt_hidden" in self.needs}

    def __call__(self, batch: Batch, scores: ResponseScores) -> dict[str, Tensor]:
        """Fields of `PairScores`, by name. Rows of the batch and its scores: all chosen, then all rejected."""
        found: dict[str, Tensor] = {}
        if scores.confidence is not None:
            found["chosen_confidence"], found["rejected_confidence"] = scores.confidence.chunk(2)
        if scores.hidden is not None:
            found["prompt_hidden"] = scores.hidden.chunk(2)[0]  # both sides' prompts are the same
        if self.reference is not None:
            found["interpolated_plus"], found["interpolated_minus"] = interpolated_margins(
                self.scorer, self.reference, batch, self.epsilon
            )
        return found


def interpolated_margins(policy: Scorer, reference: Scorer, batch: Batch, epsilon: float) -> tuple[Tensor, Tensor]:
    """Log-probability differences (B,) of the policies with logits (1 +- epsilon) policy -+ epsilon reference."""
    plus: list[Tensor] = []
    minus: list[Tensor] = []
    chunks = zip(policy.logits_in_chunks(batch), reference.logits_in_chunks(batch), strict=True)
    for (logits, targets), (reference_logits, _) in chunks:
        step = epsilon * (logits - reference_logits)
        for found, moved in ((plus, logits + step), (minus, logits - step)):
            found.append(torch.log_softmax(moved, dim=-1).gather(-1, targets[:, None])[:, 0])
    rows = batch.response[:, 1:].nonzero()[:, 0].to(policy.device)
    sums = [
        torch.zeros(len(batch.tokens), device=policy.device).index_add(0, rows, torch.cat(x)) for x in (plus, minus)
    ]
    differences = [chosen - rejected for chosen, rejected in (total.chunk(2) for total in sums)]
    return differences[0], differences[1]
