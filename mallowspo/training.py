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
from mallowspo.files import (
    digest,
    read_json,
    sha256_file,
    whole_directory,
    write_json,
    write_jsonl,
    write_text,
)
from mallowspo.kept import KeepWeights, steps_kept
from mallowspo.layout import Layout
from mallowspo.memory import MemoryPlan
from mallowspo.methods import METHODS
from mallowspo.metrics import MetricsFile, StepMetrics
from mallowspo.models import load_model, load_tokenizer, resolve_device, resolve_precision
from mallowspo.pair_betas import OBJECTIVE
from mallowspo.pairs.prepared import open_tokens
from mallowspo.processes import Processes
from mallowspo.provenance import code_digest, environment
from mallowspo.quantized import count
from mallowspo.scoring import Scorer
from mallowspo.sharding import ShardedTrainer, bytes_held, trained_weights
from mallowspo.tracking import track_live
from mallowspo.trainer import ObjectiveState, PreferenceTrainer

logger = logging.getLogger(__name__)

#: Largest |margin| allowed before the first step, nats: the policy still is the reference, so only rounding is left.
#: None is left on a CPU; products on a GPU, above all in bfloat16, are rounded otherwise in another batch.
STEP0_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5}

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
    processes = Processes.of_environment()
    with _alone(layout, label, seed) if processes.first else nullcontext():
        _run(view, method, label, seed, layout, model_folder, device, memory_mb, live_store, processes, sharded)


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


def _run(
    view: Any,
    method: Any,
    label: str,
    seed: int,
    layout: Layout,
    model_folder: Path,
    device: str,
    memory_mb: int,
    live_store: str | None,
    processes: Processes,
    sharded: bool,
) -> None:
    device = resolve_device(device)
    precision = resolve_precision(view.model.precision, device)
    folder = layout.run(label, seed)
    work = folder / "work"
    identity = _identity(view, method, seed, layout, model_folder, precision)
    examples = load_examples(view, method, layout, processes.share)
    kept, kept_folder = steps_kept(view.training.keep, _steps(view.training, len(examples))), layout.kept(label, seed)
    arguments = _arguments(view.training, work, seed, device, len(examples), processes)
    processes.connect(device)
    checkpoint = processes.from_first(lambda: last_checkpoint(_open_work(work, kept_folder, identity)))
    set_seed(seed)
    initial_policy = partial(_policy, model_folder, training=view.training, seed=seed)
    model = initial_policy(device=device, four_bits=precision if view.model.quantized else None)
    sizes = _sizes(model)
    scorer = Scorer(model, precision)
    budget = memory.available(device, memory_mb) // (processes.count if device == "cpu" else 1)
    fitted = _fit(scorer, examples, view.training, budget, processes.count if sharded else 1)
    metrics = MetricsFile(work / "metrics.jsonl")
    live = live_store if processes.first else None
    trainer = _trainer(sharded, partial(initial_policy, device="cpu"))(
        model=model,
        args=arguments,
        train_dataset=examples,
        data_collator=examples.collate,
        method=method,
        seed=seed,
        model_folder=model_folder,
        scorer=scorer,
        metrics=metrics,
        processes=processes,
        live=track_live(layout, label, seed, identity["digest"], live) if live else None,
    )
    trainer.add_callback(KeepWeights(trainer.whole_policy, kept, kept_folder, model_folder))
    step0 = _step0(trainer, precision, work) if checkpoint is None else read_json(work / "step0.json")
    _train(trainer, checkpoint)
    held, policy = bytes_held(trainer), trainer.whole_policy()
    processes.leave()
    if not processes.first:
        return
    with whole_directory(folder / "model") as temporary:
        if view.model.quantized:  # merged in float32: four bits would not hold the sum
            trained, policy = trained_weights(policy), initial_policy(device="cpu")
            policy.load_state_dict(trained, strict=False)
        final = policy.merge_and_unload() if view.training.lora else policy
        final.save_pretrained(temporary)
        load_tokenizer(model_folder).save_pretrained(temporary)
        if trainer.objective.adaptation is not None:
            save_file(trainer.objective.state_dict(), temporary / OBJECTIVE)
    rows = metrics.rows()
    write_text(folder / "settings.yaml", yaml.safe_dump(_run_settings(view, method, label, seed), sort_keys=False))
    write_json(folder / "environment.json", environment(device))
    summary = _summary(identity, rows, step0, sizes, precision, metrics.resumed_from)
    summary |= {"pairs_over_budget": len(examples.over_budget), "memory": fitted._asdict()}
    summary |= {"processes": processes.count, "pairs_per_step": view.training.pairs_per_step}
    summary |= {"sharded": sharded, "bytes_held": held}
    write_json(folder / "summary.json", summary)
    write_jsonl(folder / "metrics.jsonl", rows)
    shutil.rmtree(work)


def _trainer(sharded: bool, initial_policy: Callable[[], Any]) -> Callable[..., PreferenceTrainer]:
    return partial(ShardedTrainer, initial_policy=initial_policy) if sharded else PreferenceTrainer


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


def _open_work(work: Path, kept: Path, identity: dict[str, str]) -> Path:
    """The folder of the training under way; what another run left there or kept (other settings, code or data) goes."""
    if not (work / "identity.json").exists() or read_json(work / "identity.json") != identity:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(kept, ignore_errors=True)
        write_json(work / "identity.json", identity)
    return work


def _fit(scorer: Scorer, examples: Examples, training: Any, budget: int, processes: int) -> MemoryPlan:
    """Fit the largest batch into the memory; tell of pairs that are longer than a batch may be.

    Args:
        processes: that will share the policy out.
    """
    if examples.over_budget:
        logger.warning(
            "%d of %d pairs are longer than training.tokens_per_batch (%d) and run alone: %s",
            *(len(examples.over_budget), len(examples), training.tokens_per_batch, ", ".join(examples.over_budget[:5])),
        )
    tokens = np.sort(examples.tokens)[::-1]
    largest = max(int(tokens[0]), min(training.tokens_per_batch, int(tokens[: training.pairs_per_step].sum())))
    chosen = memory.plan(scorer, largest, budget, processes)
    memory.apply(scorer, chosen)
    return chosen


def _sizes(model: nn.Module) -> dict[str, int]:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return {
        "parameters": sum(count(parameter) for parameter in model.parameters()),
        "trainable_parameters": sum(parameter.numel() for parameter in trainable),
    }


def _policy(model_folder: Path, device: str, training: Any, seed: int, four_bits: str | None = None) -> Any:
    model = load_model(model_folder, device, four_bits=four_bits)
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


def _arguments(
    training: Any, work: Path, seed: int, device: str, pairs: int, processes: Processes
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(work),
        num_train_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        per_device_train_batch_size=training.pairs_per_step,  # the trainer takes them in parts
        learning_rate=training.learning_rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(training.schedule, training.schedule),
        warmup_steps=round(training.warmup_ratio * _steps(training, pairs)),
        optim={"adamw": "adamw_torch_fused", "rmsprop": "rmsprop"}[training.optimizer],
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_gradient_norm,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps" if processes.first else "no",
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
    examples: Examples = trainer.train_dataset  # type: ignore[assignment]
    pairs = range(min(trainer.args.per_device_train_batch_size, len(examples)))
    parts = trainer.on_device(examples.collate(list(pairs)))
    with _no_gradient_in_training_mode(trainer.scorer.model):
        scores, index, _ = trainer.of_all_processes(parts, [trainer.pair_scores(part) for part in parts])
        losses = trainer.losses(scores, index)
    trainer.step_metrics = StepMetrics()
    largest = float(losses.margin.abs().max())
    if not largest <= STEP0_TOLERANCE[precision]:
        raise InputError(
            f"before the first step the margin is {largest:.3g} nats where policy and reference are the same model "
            f"(allowed: {STEP0_TOLERANCE[precision]}): the reference table belongs to another model, tokenizer or "
            "template; delete the reference folder and run again"
        )
    result = {"step0_max_abs_margin": largest, "step0_loss": float(losses.loss.mean())}
    if trainer.processes.first:
        write_json(work / "step0.json", result)
    return result


def _identity(view: Any, method: Any, seed: int, layout: Layout, model_folder: Path, precision: str) -> dict[str, str]:
    """What a run is: settings, seed, code and the content of what it reads. Its digest is the MLflow run's key."""
    inputs = [layout.reference("train"), model_folder / "source.json"]
    if "dispersion" in METHODS[method.method].needs:
        inputs.append(layout.dispersion)
    parts = {
        "settings": digest([view.model.precision, precision, view.tokens.model_dump(), view.training.model_dump()]),
        "method": digest([method.model_dump(), seed]),
        "code": code_digest("train"),
        "inputs": digest([open_tokens(layout.tokens("train")).digest, *(sha256_file(file) for file in inputs)]),
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
        "data_seconds": sum(row["data_seconds"] for row in rows),
        "resumed_from_step": resumed,
        **step0,
        **sizes,
        "precision": precision,
    }
