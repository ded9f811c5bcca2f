"""Stage "train": one policy by one method and one seed, on transformers.Trainer.

The reference policy is not loaded: its log-probabilities come from the reference table by pair_id. Everything lies in
RUN/work until the training has ended (checkpoints, metrics so far), so a killed job goes on from its last whole
checkpoint, and what a later stage reads appears only when it is whole.
"""

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from mallowspo.errors import InputError
from mallowspo.examples import Example, Examples, collate, load_examples
from mallowspo.files import (
    digest,
    read_json,
    sha256_file,
    whole_directory,
    write_json,
    write_jsonl,
    write_text,
)
from mallowspo.layout import Layout
from mallowspo.methods import METHODS
from mallowspo.metrics import MetricsFile, StepMetrics
from mallowspo.models import load_model, load_tokenizer, resolve_device, resolve_precision
from mallowspo.objectives import Objective, PairLosses, PairScores
from mallowspo.provenance import code_digest, environment
from mallowspo.scoring import Batch, Scorer
from mallowspo.signals import Signals
from mallowspo.tracking import track_live

#: Largest |margin| allowed before the first step, nats: the policy still is the reference, so only rounding is left.
#: bfloat16 products round differently when pairs are batched differently.
STEP0_TOLERANCE = {"float32": 1e-2, "bfloat16": 0.5}


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
        self.objective = _objective(method, seed, self.scorer)
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
        batch = Batch(inputs["input_ids"], inputs["attention_mask"], inputs["response"])
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


class ObjectiveState(TrainerCallback):
    """Moves what a method remembers or learns after each step, and keeps it in the checkpoints."""

    NAME = "objective.pt"

    def __init__(self, objective: Objective):
        self.objective = objective

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.objective.after_step()

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


def run(
    view: Any,
    method: Any,
    label: str,
    seed: int,
    layout: Layout,
    model_folder: Path,
    device: str,
    live_store: str | None = None,
) -> None:
    """Train one policy and write RUN/{model,metrics.jsonl,settings.yaml,summary.json,environment.json}.

    Args:
        method: `MethodSettings` of the run.
        live_store: MLflow store that also gets the curves while the training runs; its failures never stop it.
    """
    device = resolve_device(device)
    precision = resolve_precision(view.model.precision, device)
    folder = layout.run(label, seed)
    identity = _identity(view, method, seed, layout, model_folder, precision)
    work = _open_work(folder / "work", identity)
    set_seed(seed)
    tokenizer = load_tokenizer(model_folder)
    examples = Examples(load_examples(tokenizer, view, method, layout))
    model = _policy(model_folder, device, view.training, seed)
    sizes = _sizes(model)
    metrics = MetricsFile(work / "metrics.jsonl")
    trainer = PreferenceTrainer(
        model=model,
        args=_arguments(view.training, work, seed, device, len(examples)),
        train_dataset=examples,
        data_collator=collate,
        method=method,
        seed=seed,
        model_folder=model_folder,
        precision=precision,
        metrics=metrics,
        live=track_live(layout, label, seed, identity["digest"], live_store) if live_store else None,
    )
    checkpoint = last_checkpoint(work)
    step0 = _step0(trainer, precision, work) if checkpoint is None else read_json(work / "step0.json")
    if checkpoint is not None:
        trainer.objective.load_state_dict(
            torch.load(checkpoint / ObjectiveState.NAME, map_location=trainer.args.device)
        )
    metrics.keep_up_to(int(checkpoint.name.split("-")[1]) if checkpoint else 0)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        if trainer.live:
            trainer.live.close(timeout=30)
    with whole_directory(folder / "model") as temporary:
        final = model.merge_and_unload() if view.training.lora else model
        final.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    rows = metrics.rows()
    write_text(folder / "settings.yaml", yaml.safe_dump(_run_settings(view, method, label, seed), sort_keys=False))
    write_json(folder / "environment.json", environment(device))
    write_json(folder / "summary.json", _summary(identity, rows, step0, sizes, precision, metrics.resumed_from))
    write_jsonl(folder / "metrics.jsonl", rows)
    shutil.rmtree(work)


def _open_work(work: Path, identity: dict[str, str]) -> Path:
    """The folder of the training under way; what another run left there (other settings, code or data) is removed."""
    if not (work / "identity.json").exists() or read_json(work / "identity.json") != identity:
        shutil.rmtree(work, ignore_errors=True)
        write_json(work / "identity.json", identity)
    return work


def _sizes(model: nn.Module) -> dict[str, int]:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trainable_parameters": sum(parameter.numel() for parameter in trainable),
    }


def _policy(model_folder: Path, device: str, training: Any, seed: int) -> Any:
    model = load_model(model_folder, device)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # the reference was scored without dropout
    if hasattr(model.config, "attention_dropout"):
        model.config.attention_dropout = 0.0
    if training.lora is None:
        return model
    from peft import LoraConfig, get_peft_model

    set_seed(seed)
    settings = training.lora
    modules = settings.target_modules
    adapter = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=modules if isinstance(modules, str) else list(modules),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, adapter)


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


def _arguments(training: Any, work: Path, seed: int, device: str, pairs: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(work),
        num_train_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        per_device_train_batch_size=training.pairs_per_batch,
        gradient_accumulation_steps=training.pairs_per_step // training.pairs_per_batch,
        learning_rate=training.learning_rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(training.schedule, training.schedule),
        warmup_steps=round(training.warmup_ratio * _steps(training, pairs)),
        optim={"adamw": "adamw_torch_fused", "rmsprop": "rmsprop"}[training.optimizer],
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_gradient_norm,
        activation_checkpointing=training.gradient_checkpointing,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_steps=training.checkpoint_every,
        save_total_limit=1,
        seed=seed,
        data_seed=seed,
        use_cpu=device == "cpu",
        remove_unused_columns=False,
        report_to="none",
    )


def _steps(training: Any, pairs: int) -> int:
    """Optimizer steps of the whole training."""
    per_epoch = -(-pairs // training.pairs_per_step)
    return int(training.max_steps or per_epoch * training.epochs)


@contextmanager
def _no_gradient_in_training_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.train()
    with torch.no_grad():
        yield
    model.train(was_training)


def _step0(trainer: PreferenceTrainer, precision: str, work: Path) -> dict[str, float]:
    """Before the first step the policy is the reference: every margin 0 and every loss log 2, up to rounding.

    What it catches: another tokenizer, template or model than the reference table's, a packing or masking error.
    """
    dataset = trainer.train_dataset
    size = trainer.args.per_device_train_batch_size
    batch = collate([dataset[index] for index in range(min(size, len(dataset)))])  # type: ignore[index,arg-type]
    with _no_gradient_in_training_mode(trainer.scorer.model):
        losses = trainer.losses({key: value.to(trainer.args.device) for key, value in batch.items()})
    trainer.step_metrics = StepMetrics()
    largest = float(losses.margin.abs().max())
    if not largest <= STEP0_TOLERANCE[precision]:
        raise InputError(
            f"before the first step the margin is {largest:.3g} nats where policy and reference are the same model "
            f"(allowed: {STEP0_TOLERANCE[precision]}): the reference table belongs to another model, tokenizer or "
            "template; delete the reference folder and run again"
        )
    result = {"step0_max_abs_margin": largest, "step0_loss": float(losses.loss.mean())}
    write_json(work / "step0.json", result)
    return result


def _identity(view: Any, method: Any, seed: int, layout: Layout, model_folder: Path, precision: str) -> dict[str, str]:
    """What a run is: settings, seed, code and the content of what it reads. Its digest is the MLflow run's key."""
    inputs = [layout.pairs("train"), layout.reference("train"), model_folder / "source.json"]
    if "dispersion" in METHODS[method.method].needs:
        inputs.append(layout.dispersion)
    parts = {
        "settings": digest([view.model.precision, precision, view.tokens.model_dump(), view.training.model_dump()]),
        "method": digest([method.model_dump(), seed]),
        "code": code_digest("train"),
        "inputs": digest([sha256_file(file) for file in inputs]),
    }
    return {**parts, "digest": digest(parts)}


def _run_settings(view: Any, method: Any, label: str, seed: int) -> dict[str, Any]:
    return {
        "label": label,
        "seed": seed,
        "method": method.model_dump(),
        "precision": view.model.precision,
        "tokens": view.tokens.model_dump(),
        "training": view.training.model_dump(),
    }


def _summary(
    identity: dict[str, str],
    rows: list[dict[str, Any]],
    step0: dict[str, float],
    sizes: dict[str, int],
    precision: str,
    resumed: list[int],
) -> dict[str, Any]:
    return {
        "digest": identity["digest"],
        "steps": rows[-1]["step"],
        "pairs": sum(row["pairs"] for row in rows),
        "tokens": sum(row["tokens"] for row in rows),
        "seconds": sum(row["seconds"] for row in rows),
        "resumed_from_step": resumed,
        **step0,
        **sizes,
        "precision": precision,
    }
