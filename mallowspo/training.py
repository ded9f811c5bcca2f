"""Stage "train": one policy by one method and one seed, on transformers.Trainer.

The reference policy is not loaded: its log-probabilities come from the reference table by pair_id. Everything lies in
RUN/work until the training has ended (checkpoints, metrics so far), so a killed job goes on from its last whole
checkpoint, and what a later stage reads appears only when it is whole.
"""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
import yaml
from filelock import FileLock, Timeout
from safetensors.torch import save_file
from torch import nn
from transformers import TrainingArguments, set_seed

from mallowspo import memory
from mallowspo.checkpoints import last_checkpoint
from mallowspo.errors import InputError
from mallowspo.examples import Examples, load_examples
from mallowspo.files import read_json, whole_directory, write_json, write_jsonl, write_text
from mallowspo.kept import KeepWeights, save_policy, steps_kept
from mallowspo.layout import Layout
from mallowspo.memory import MemoryPlan
from mallowspo.metrics import MetricsFile, StepMetrics
from mallowspo.models import resolve_device, resolve_precision
from mallowspo.pair_betas import OBJECTIVE
from mallowspo.processes import Processes
from mallowspo.provenance import environment
from mallowspo.quantized import count
from mallowspo.scoring import Scorer
from mallowspo.sharding import ShardedTrainer, bytes_held
from mallowspo.tracking import track_live
from mallowspo.trainer import ObjectiveState, PreferenceTrainer
from mallowspo.training_job import Job

logger = logging.getLogger(__name__)

#: Largest |margin| allowed before the first step, nats: the policy still is the reference, so only rounding is left.
#: None is left on a CPU; products on a GPU, above all in bfloat16, are rounded otherwise in another batch.
STEP0_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5}

#: What was found before the first step, for a training that goes on behind it.
STEP0 = "step0.json"

#: Seconds to wait for another job at the same training: one that was told to end takes a while.
PATIENCE = 60.0


def run(
    view: Any,
    method: Any,
    label: str,
    seed: int,
    layout: Layout,
    model_folder: Path,
    device: str,
    memory_mb: int,
    live_store: str | None = None,
    sharded: bool = False,
) -> None:
    """Train one policy and write RUN/{model,metrics.jsonl,settings.yaml,summary.json,environment.json}.

    And RUN/kept/SHARE for each share of `training.keep` (`mallowspo.kept`).

    Args:
        method: `MethodSettings` of the run.
        memory_mb: MiB that the job may take on a CPU. Where they do not hold what the backward reads, it computes it
            again: slower, with the same result.
        live_store: MLflow store that also gets the curves while the training runs; its failures never stop it.
        sharded: the processes share the policy out (`mallowspo.sharding`).

    Raises:
        InputError: the tables lack a pair or belong to another model, a loss, gradient or weight is not finite,
            two shares of training.keep are one step, or another job is at this very training.
    """
    device, processes = resolve_device(device), Processes.of_environment()
    precision = resolve_precision(view.model.precision, device)
    job = Job(view, method, label, seed, layout, model_folder, device, precision, processes, sharded)
    with _alone(layout, label, seed) if processes.first else nullcontext():
        _run(job, memory_mb, live_store)


@contextmanager
def _alone(layout: Layout, label: str, seed: int) -> Iterator[None]:
    """Held by one job at a time; that of a killed one is open."""
    lock = FileLock(layout.training_lock(label, seed), timeout=PATIENCE)
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except Timeout:
        folder = layout.run(label, seed)
        raise InputError(f"{folder}: another job is at this training; wait for it, or end it first") from None
    try:
        yield
    finally:
        lock.release()


def _run(job: Job, memory_mb: int, live_store: str | None) -> None:
    identity = job.identity()
    examples = load_examples(job.view, job.method, job.layout, job.processes.share)
    kept = steps_kept(job.settings.keep, job.steps(len(examples)))
    arguments = _arguments(job, len(examples))
    job.processes.connect(job.device)
    checkpoint = job.processes.from_first(lambda: last_checkpoint(_open_work(job, identity)))
    set_seed(job.seed)
    model = job.initial_policy(job.device, four_bits=job.precision if job.view.model.quantized else None)
    sizes = _sizes(model)
    scorer = Scorer(model, job.precision)
    memory_plan = _fit(scorer, examples, job, memory_mb)
    live = live_store if job.processes.first else None
    trainer = _trainer(job)(
        model=model,
        args=arguments,
        train_dataset=examples,
        data_collator=examples.collate,
        method=job.method,
        seed=job.seed,
        model_folder=job.model_folder,
        scorer=scorer,
        metrics=MetricsFile(job.work / "metrics.jsonl"),
        processes=job.processes,
        live=track_live(job.layout, job.label, job.seed, identity["digest"], live) if live else None,
    )
    trainer.add_callback(KeepWeights(trainer.whole_policy, kept, job.kept, job.model_folder))
    step0 = read_json(job.work / STEP0) if checkpoint else _step0(trainer, job)
    _train(trainer, checkpoint)
    facts = {**step0, **sizes, "bytes_held": bytes_held(trainer), "memory": memory_plan._asdict()}
    policy = trainer.whole_policy()
    job.processes.leave()
    if job.processes.first:
        _write(job, trainer, policy, {"digest": identity["digest"], **facts})


def _write(job: Job, trainer: PreferenceTrainer, policy: Any, facts: dict[str, Any]) -> None:
    """Write RUN's files, in the first process, and remove what the training under way left."""
    with whole_directory(job.folder / "model") as temporary:
        save_policy(policy, temporary, job.model_folder)
        if trainer.objective.adaptation is not None:
            save_file(trainer.objective.state_dict(), temporary / OBJECTIVE)
    rows = trainer.metrics_file.rows()
    write_text(job.folder / "settings.yaml", yaml.safe_dump(job.described(), sort_keys=False))
    write_json(job.folder / "environment.json", environment(job.device))
    examples: Examples = trainer.train_dataset  # type: ignore[assignment]
    facts |= {"pairs_over_budget": len(examples.over_budget), "resumed_from_step": trainer.metrics_file.resumed_from}
    write_json(job.folder / "summary.json", facts | _summary(job, rows))
    write_jsonl(job.folder / "metrics.jsonl", rows)
    shutil.rmtree(job.work)


def _trainer(job: Job) -> Callable[..., PreferenceTrainer]:
    return partial(ShardedTrainer, initial_policy=job.initial_policy) if job.sharded else PreferenceTrainer


def _train(trainer: PreferenceTrainer, checkpoint: Path | None) -> None:
    """From the checkpoint on, if there is one."""
    if trainer.processes.first:
        trainer.metrics_file.keep_up_to(int(checkpoint.name.split("-")[1]) if checkpoint else 0)
    try:
        if checkpoint is not None:
            # Tensors and nothing else, as the Trainer reads its own files.
            state = torch.load(checkpoint / ObjectiveState.NAME, map_location=trainer.args.device, weights_only=True)
            trainer.objective.load_state_dict(state)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except UnpicklingError:
        raise InputError(
            f"{checkpoint}: a file of it is damaged, or holds more than tensors and could run code; it was not read: "
            "remove the folder"
        ) from None
    finally:
        if trainer.live:
            trainer.live.close(timeout=30)


def _open_work(job: Job, identity: dict[str, str]) -> Path:
    """The folder of the training under way; what another run left there or kept (other settings, code or data) goes."""
    known = job.work / "identity.json"
    if not known.exists() or read_json(known) != identity:
        shutil.rmtree(job.work, ignore_errors=True)
        shutil.rmtree(job.kept, ignore_errors=True)
        write_json(known, identity)
    return job.work


def _fit(scorer: Scorer, examples: Examples, job: Job, memory_mb: int) -> MemoryPlan:
    """Fit the largest batch into the memory; tell of pairs that are longer than a batch may be."""
    if examples.over_budget:
        logger.warning(
            "%d of %d pairs are longer than training.tokens_per_batch (%d) and run alone: %s",
            *(len(examples.over_budget), len(examples), job.settings.tokens_per_batch),
            ", ".join(examples.over_budget[:5]),
        )
    tokens = np.sort(examples.tokens)[::-1]
    of_a_step = int(tokens[: job.settings.pairs_per_step].sum())
    largest = max(int(tokens[0]), min(job.settings.tokens_per_batch, of_a_step))
    # Processes on a CPU share the job's memory; each has a GPU of its own.
    budget = memory.available(job.device, memory_mb) // (job.processes.count if job.device == "cpu" else 1)
    chosen = memory.plan(scorer, largest, budget, job.processes.count if job.sharded else 1)
    memory.apply(scorer, chosen)
    return chosen


def _sizes(model: nn.Module) -> dict[str, int]:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return {
        "parameters": sum(count(parameter) for parameter in model.parameters()),
        "trainable_parameters": sum(parameter.numel() for parameter in trainable),
    }


def _arguments(job: Job, pairs: int) -> TrainingArguments:
    training = job.settings
    return TrainingArguments(
        output_dir=str(job.work),
        num_train_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        per_device_train_batch_size=training.pairs_per_step,  # the trainer takes them in parts
        learning_rate=training.learning_rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(training.schedule, training.schedule),
        warmup_steps=round(training.warmup_ratio * job.steps(pairs)),
        optim={"adamw": "adamw_torch_fused", "rmsprop": "rmsprop"}[training.optimizer],
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_gradient_norm,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps" if job.processes.first else "no",
        save_steps=training.checkpoint_every,
        save_total_limit=1,
        seed=job.seed,
        data_seed=job.seed,
        use_cpu=job.device == "cpu",
        remove_unused_columns=False,
        report_to="none",
    )


@contextmanager
def _no_gradient_in_training_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.train()
    with torch.no_grad():
        yield
    model.train(was_training)


def _step0(trainer: PreferenceTrainer, job: Job) -> dict[str, float]:
    """Before the first step the policy is the reference: every margin 0 and every loss log 2, up to rounding.

    What it catches: another tokenizer, template or model than the reference table's, a packing or masking error.
    """
    examples: Examples = trainer.train_dataset  # type: ignore[assignment]
    pairs = range(min(trainer.args.per_device_train_batch_size, len(examples)))
    parts = trainer.on_device(examples.collate(list(pairs)))
    with _no_gradient_in_training_mode(trainer.scorer.model):
        scores, index, _ = trainer.of_all_processes(parts, [trainer.pair_scores(part) for part in parts])
        losses = trainer.losses(scores, index)
    trainer.step_metrics = StepMetrics()
    largest = float(losses.margin.abs().max())
    if not largest <= STEP0_TOLERANCE[job.precision]:
        raise InputError(
            f"before the first step the margin is {largest:.3g} nats where policy and reference are the same model "
            f"(allowed: {STEP0_TOLERANCE[job.precision]}): the reference table belongs to another model, tokenizer or "
            "template; delete the reference folder and run again"
        )
    result = {"step0_max_abs_margin": largest, "step0_loss": float(losses.loss.mean())}
    if job.processes.first:
        write_json(job.work / STEP0, result)
    return result


def _summary(job: Job, rows: list[dict[str, Any]]) -> dict[str, Any]:
    totals = {name: sum(row[name] for row in rows) for name in ("pairs", "tokens", "seconds", "data_seconds")}
    return {
        "steps": rows[-1]["step"],
        **totals,
        "precision": job.precision,
        "processes": job.processes.count,
        "pairs_per_step": job.settings.pairs_per_step,
        "sharded": job.sharded,
    }
