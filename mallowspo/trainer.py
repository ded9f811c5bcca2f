"""The trainer: transformers.Trainer with the losses of `mallowspo.objectives`, its metrics, and whole checkpoints."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from mallowspo.checkpoints import MarkWhole
from mallowspo.errors import InputError
from mallowspo.examples import Examples
from mallowspo.metrics import MetricsFile, StepMetrics
from mallowspo.objectives import Objective, PairLosses, PairScores, join
from mallowspo.packing import Batch
from mallowspo.processes import Processes
from mallowspo.scoring import Scorer
from mallowspo.signals import Signals

#: Columns of a batch that come from the tables and go into `PairScores` as they are.
FROM_TABLES = ("reference_chosen", "reference_rejected", "weight", "prompt_perplexity")


class PreferenceTrainer(Trainer):
    """transformers.Trainer with the loss of a pair, averaged over the pairs of an optimizer step.

    Its batches are optimizer steps: the pairs of a step are the same for every method, every memory and every number
    of processes, and each process gets its own in parts that fit (`Examples.collate`).
    """

    def __init__(
        self,
        *,
        method: Any,
        seed: int,
        model_folder: Path,
        scorer: Scorer,
        metrics: MetricsFile,
        processes: Processes,
        live: Any = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.live = live
        self.scorer = scorer
        self.objective: Objective = _objective(method, seed, self.scorer)
        self.signals = Signals(self.objective.row, self.objective.options, self.scorer, model_folder)
        self.add_callback(ObjectiveState(self.objective))
        self.add_callback(MarkWhole())
        if not processes.first:  # one progress bar is enough
            self.remove_callback(ProgressCallback)
            self.remove_callback(PrinterCallback)
        self.metrics_file = metrics
        self.processes = processes
        self.step_metrics = StepMetrics()

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        with self.step_metrics.waiting_for_data():
            steps, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return steps, sum(step["pairs"] for step in steps)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of one optimizer step, a part of its pairs at a time.

        Where the loss of a pair depends on all others of the step, all parts are scored before there is a loss.
        """
        model.train()
        parts = self.on_device(inputs)
        rounds = [parts] if self.objective.compares_pairs else [[part] for part in parts]
        total = torch.zeros((), device=self.args.device)
        for of_round in rounds:
            total += self._forward_and_backward(of_round, num_items_in_batch)
        self.add_up_gradients()
        return total

    def add_up_gradients(self) -> None:
        """Over all processes, once a step."""
        self.processes.add_up_gradients(self.scorer.model.parameters())

    def whole_policy(self) -> Any:
        """The policy as the first process may write it; None in the others. To be called in all of them."""
        return self.scorer.model if self.processes.first else None

    def on_device(self, inputs: Any) -> list[dict[str, Tensor]]:
        """The parts of what `Examples.collate` gives."""
        parts: Any = self._prepare_inputs(inputs)["parts"]
        return list(parts)

    def _forward_and_backward(self, parts: list[dict[str, Tensor]], pairs: int) -> Tensor:
        """The loss of these parts' pairs, here and in the other processes, over the number of pairs of the step.

        It is a function of log-probabilities, computed in every process from those of all; its slope goes back into
        the policy where each was scored. Of several parts no graph is kept: they are scored once more, one by one.
        """
        several = len(parts) > 1
        with torch.set_grad_enabled(not several):
            scored = [self.pair_scores(part) for part in parts]
        together, index, place = self.of_all_processes(parts, scored)
        sides = (together.chosen_logp.requires_grad_(), together.rejected_logp.requires_grad_())
        loss = self.losses(together, index).loss.sum() / pairs
        loss.backward()
        for part, scores in zip(parts, scored, strict=True):
            again = self.pair_scores(part) if several else scores
            own = torch.searchsorted(place, part["place"])
            torch.autograd.backward((again.chosen_logp, again.rejected_logp), [_slope(side)[own] for side in sides])
        return loss.detach()

    def of_all_processes(
        self, parts: list[dict[str, Tensor]], scored: list[PairScores]
    ) -> tuple[PairScores, Tensor, Tensor]:
        """Scores of these parts' pairs and of those of the other processes, without gradient, in the step's order.

        Returns:
            scores; positions of the pairs in the examples; places in the step, ascending. All (B,).
        """
        index, place = (self.processes.gather(torch.cat([part[name] for part in parts])) for name in ("index", "place"))
        order = place.argsort()
        values = {name: value for name, value in vars(join(scored)).items() if value is not None}
        together = PairScores(**{name: self.processes.gather(value)[order] for name, value in values.items()})
        return together, index[order], place[order]

    def pair_scores(self, part: dict[str, Tensor]) -> PairScores:
        """What the objective reads of those of a part's pairs that count."""
        batch, counted = _rows(part), len(part["place"])
        scores = self.scorer(batch, **self.signals.wanted)
        chosen_logp, rejected_logp = scores.logp.chunk(2)
        chosen_tokens, rejected_tokens = scores.tokens.chunk(2)
        found = {
            "chosen_logp": chosen_logp,
            "rejected_logp": rejected_logp,
            "chosen_tokens": chosen_tokens,
            "rejected_tokens": rejected_tokens,
            **self.signals(batch, scores),
        }
        of_tables = {name: part[name] for name in FROM_TABLES}
        return PairScores(**of_tables, **{name: values[:counted] for name, values in found.items()})

    def losses(self, pairs: PairScores, indices: Tensor) -> PairLosses:
        """Losses of a batch; its metrics are added to the step's.

        Args:
            indices: positions of the pairs in the examples, (B,).

        Raises:
            InputError: a loss is not finite.
        """
        losses: PairLosses = self.objective(pairs)
        self.step_metrics.add(losses, pairs)
        if not bool(losses.loss.isfinite().all()):
            raise InputError(self._non_finite(indices, losses))
        return losses

    def floating_point_ops(self, inputs: Any) -> int:
        """Not estimated: the Trainer's formula counts padded tokens, which this training does not have."""
        return 0

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

    def _non_finite(self, indices: Tensor, losses: PairLosses) -> str:
        examples: Examples = self.train_dataset  # type: ignore[assignment]
        ids = [examples.pairs.pair_ids[index] for index in indices[~losses.loss.isfinite()].tolist()]
        return (
            f"step {self.state.global_step + 1}: the loss is not finite for pairs {', '.join(ids[:5])}; the policy was "
            "left as the step before made it. Lower training.learning_rate, or look at these pairs"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if "grad_norm" not in logs:  # the closing summary is no step
            return
        row = self.step_metrics.row(self.state.global_step, float(self.state.epoch or 0), logs)
        if self.processes.first:
            self.metrics_file.append(row)
        if self.live:
            self.live.update(row)
        self.step_metrics = StepMetrics()


def _rows(part: dict[str, Tensor]) -> Batch:
    return Batch(part["input_ids"], part["attention_mask"], part["response"], part["prompt"])


def _slope(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


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
