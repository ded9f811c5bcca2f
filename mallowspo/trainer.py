"""The trainer: transformers.Trainer with the losses of `mallowspo.objectives`, its metrics, and whole checkpoints."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from mallowspo.errors import InputError
from mallowspo.examples import Example
from mallowspo.files import write_text
from mallowspo.metrics import MetricsFile, StepMetrics
from mallowspo.objectives import Objective, PairLosses, PairScores
from mallowspo.packing import Batch
from mallowspo.scoring import Scorer
from mallowspo.signals import Signals

#: Columns of a batch that come from the tables and go into `PairScores` as they are.
FROM_TABLES = ("reference_chosen", "reference_rejected", "weight", "prompt_perplexity")


class PreferenceTrainer(Trainer):
    """transformers.Trainer with the loss of a pair, averaged over the pairs of an optimizer step."""

    # compute_loss divides by the pairs of the whole step, so that a last, shorter batch weighs no more than it should.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        method: Any,
        seed: int,
        model_folder: Path,
        precision: str,
        metrics: MetricsFile,
        live: Any = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.live = live
        self.scorer = Scorer(kwargs["model"], precision)
        self.objective: Objective = _objective(method, seed, self.scorer)
        self.signals = Signals(self.objective.row, self.objective.options, self.scorer, model_folder)
        self.add_callback(ObjectiveState(self.objective))
        self.add_callback(MarkWhole())
        self.metrics_file = metrics
        self.step_metrics = StepMetrics()

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, sum(len(batch["index"]) for batch in batches)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        losses = self.losses(inputs)
        if not bool(losses.loss.isfinite().all()):
            raise InputError(self._non_finite(inputs, losses))
        return losses.loss.sum() / num_items_in_batch

    def losses(self, inputs: dict[str, Tensor]) -> PairLosses:
        """Losses of one batch; its metrics are added to the step's."""
        batch = Batch(inputs["input_ids"], inputs["attention_mask"], inputs["response"], inputs["prompt"])
        scores = self.scorer(batch, want_confidence=self.signals.wants_confidence)
        (chosen, rejected), (chosen_tokens, rejected_tokens) = scores.logp.chunk(2), scores.tokens.chunk(2)
        pairs = PairScores(
            chosen_logp=chosen,
            rejected_logp=rejected,
            chosen_tokens=chosen_tokens,
            rejected_tokens=rejected_tokens,
            **{key: inputs[key] for key in FROM_TABLES},
            **self.signals(batch, scores),
        )
        losses: PairLosses = self.objective(pairs)
        self.step_metrics.add(losses, scores)
        return losses

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The policy's optimizer, with what the objective itself learns as a group of its own."""
        optimizer = super().create_optimizer(*args, **kwargs)
        learned = list(self.objective.parameters())
        if learned:
            optimizer.add_param_group({"params": learned, "weight_decay": 0.0})
        return optimizer

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The last place before the optimizer moves that knows the gradient's norm."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not math.isfinite(float(norm)):
            raise InputError(
                f"step {self.state.global_step + 1}: the gradient is not finite; the policy was left as the "
                "step before made it. Lower training.learning_rate"
            )
        return norm

    def _non_finite(self, inputs: dict[str, Tensor], losses: PairLosses) -> str:
        broken = torch.nonzero(~losses.loss.isfinite())[:, 0].tolist()
        examples: list[Example] = self.train_dataset.examples  # type: ignore[union-attr]
        ids = [examples[int(inputs["index"][row])].pair.pair_id for row in broken]
        return (
            f"step {self.state.global_step + 1}: the loss is not finite for pairs {', '.join(ids[:5])}; the policy was "
            "left as the step before made it. Lower training.learning_rate, or look at these pairs"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if "grad_norm" not in logs:  # the closing summary is no step
            return
        row = self.step_metrics.row(self.state.global_step, float(self.state.epoch or 0), logs)
        self.metrics_file.append(row)
        if self.live:
            self.live.update(row)
        self.step_metrics = StepMetrics()


def _objective(method: Any, seed: int, scorer: Scorer) -> Objective:
    objective = Objective(
        method.method,
        method.beta,
        method.options,
        outside=method.control == "outside",
        hidden_size=scorer.hidden_size,
        seed=seed,
    )
    return objective.to(scorer.device)


class ObjectiveState(TrainerCallback):
    """Moves what a method remembers or learns after each step, and keeps it in the checkpoints."""

    NAME = "objective.pt"

    def __init__(self, objective: Objective):
        self.objective = objective

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.objective.after_step()
        self.objective.zero_grad()  # the Trainer clears the gradients of the policy only

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir or "") / f"checkpoint-{state.global_step}"
        torch.save(self.objective.state_dict(), folder / self.NAME)


class MarkWhole(TrainerCallback):
    """Leaves a mark in each checkpoint once it is whole: one that a kill cut short has none and is not resumed from."""

    NAME = "whole"

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = False  # the end needs no checkpoint: the model itself is saved

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        write_text(Path(args.output_dir or "") / f"checkpoint-{state.global_step}" / self.NAME, "")


def last_checkpoint(work: Path) -> Path | None:
    """The newest whole checkpoint; those without the mark are removed."""
    whole = []
    for folder in work.glob("checkpoint-*"):
        if (folder / MarkWhole.NAME).exists():
            whole.append(folder)
        else:
            shutil.rmtree(folder)
    return max(whole, key=lambda folder: int(folder.name.split("-")[1]), default=None)
