"""Stage "reward-model": a sequence-classification model with one output, trained on preference pairs.

By Bradley and Terry's law the chosen answer is preferred with probability sigmoid(r(prompt, chosen) - r(prompt,
rejected)), and the loss of a pair is minus its logarithm (Ouyang et al. 2022, arXiv 2203.02155, equation 1, with two
answers to a prompt). The reward is a linear function of the model's last hidden state at the last token of the text.

The folder that it leaves is a judge as it is: `reward:path:FOLDER`. What the judge must know lies in it: the tokenizer
has the most tokens of a text as its model_max_length, and its chat template only where texts are written in it; the
configuration names no pad token, so that the last token goes by length. Everything lies in training/work until the
training has ended, so that a killed job goes on from its last whole checkpoint.
"""

import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from filelock import FileLock, Timeout
from transformers import AutoConfig, AutoModelForSequenceClassification, TrainingArguments, set_seed

from mallowspo.checkpoints import last_checkpoint
from mallowspo.errors import InputError
from mallowspo.files import read_json, read_parquet, sha256_file, whole_directory, write_json, write_jsonl
from mallowspo.layout import Layout
from mallowspo.models import load_tokenizer, resolve_device, resolve_precision
from mallowspo.pairs import build
from mallowspo.provenance import code_digest
from mallowspo.reward_model.settings import RewardModelStudy, RewardTokens
from mallowspo.reward_model.trainer import PairTexts, RewardTrainer
from mallowspo.settings import TokenSettings

#: Seconds to wait for another job at the same training: one that was told to end takes a while.
PATIENCE = 60.0


def run(settings: RewardModelStudy, layout: Layout, model_folder: Path) -> None:
    """Write pairs/*, model/ and training/{metrics.jsonl,summary.json}; nothing where they are there already.

    Raises:
        InputError: the pairs or the model cannot be read, the training does not stay finite, or another job is at it.
    """
    identity = _identity(settings, model_folder)
    lock = FileLock(layout.training_lock("reward_model", settings.seed), timeout=PATIENCE)
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        with lock:
            if not _is_done(layout, identity):
                view = SimpleNamespace(pairs=settings.pairs, tokens=_limits(settings.tokens))
                build.run(view, layout, model_folder)
                _train(settings, layout, model_folder, identity)
    except Timeout:
        raise InputError(
            f"{layout.reward_model_training}: another job is at this training; wait for it, or end it first"
        ) from None


def _identity(settings: RewardModelStudy, model_folder: Path) -> dict[str, Any]:
    """What the model is made of: settings, code, pairs and initial weights."""
    files = [*map(Path, settings.input_files()), model_folder / "source.json"]
    parts = [settings.stage_digest("reward-model"), code_digest("reward-model"), *map(sha256_file, files)]
    return {"made_of": parts}


def _is_done(layout: Layout, identity: dict[str, Any]) -> bool:
    summary = layout.reward_model_training / "summary.json"
    there = all(path.exists() for path in (summary, layout.reward_model, layout.pairs("test")))
    return there and bool(read_json(summary)["made_of"] == identity["made_of"])


def _limits(tokens: RewardTokens) -> TokenSettings:
    """By which the stage "pairs" tells what a text would lose."""
    return TokenSettings(template=tokens.template, max_prompt=tokens.max_tokens, max_response=tokens.max_tokens)


def _train(settings: RewardModelStudy, layout: Layout, model_folder: Path, identity: dict[str, Any]) -> None:
    folder = layout.reward_model_training
    work = folder / "work"
    if not (work / "identity.json").exists() or read_json(work / "identity.json") != identity:
        shutil.rmtree(work, ignore_errors=True)
        write_json(work / "identity.json", identity)
    trainer = make_trainer(settings, layout, model_folder, work)
    checkpoint = last_checkpoint(work)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    model, texts = cast(Any, trainer.model), cast(PairTexts, trainer.train_dataset)
    if not all(bool(values.isfinite().all()) for values in model.parameters()):
        raise InputError(f"{work}: weights are not finite after the training; lower training.learning_rate")
    with whole_directory(layout.reward_model) as temporary:
        model.save_pretrained(temporary)
        texts.tokenizer.save_pretrained(temporary)
    rows = [row for row in trainer.state.log_history if "grad_norm" in row]
    write_jsonl(folder / "metrics.jsonl", rows)
    resumed = int(checkpoint.name.split("-")[1]) if checkpoint else None
    summary = {"steps": len(rows), "pairs": len(texts), "precision": trainer.precision}
    write_json(folder / "summary.json", {**summary, "resumed_from_step": resumed, **identity})
    shutil.rmtree(work)


def make_trainer(settings: RewardModelStudy, layout: Layout, model_folder: Path, work: Path) -> RewardTrainer:
    """The trainer before its first step."""
    device = resolve_device(settings.compute.device)
    set_seed(settings.seed)
    model = initial_model(model_folder)
    tokenizer = reward_tokenizer(model_folder, settings.tokens, model.config)
    texts = PairTexts(read_parquet(layout.pairs("train")), tokenizer, settings.training.tokens_per_batch)
    return RewardTrainer(
        model=model.to(device),
        args=_arguments(settings, work, device, len(texts)),
        train_dataset=texts,
        data_collator=texts.collate,
        precision=resolve_precision(settings.model.precision, device),
    )


def initial_model(folder: Path) -> Any:
    """The initial policy with a score head of one output in place of its language-model head, in float32."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config.num_labels = 1
        # Its forward looks for the last token that is not this one, and texts may end in it (SmolLM2's do).
        config.get_text_config().pad_token_id = None
        model = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{folder}: no reward model can be made of it ({reason})") from None
    if not hasattr(model, "score"):
        raise InputError(f"{folder}: {model.config.model_type} has no score head at its last token; take another model")
    return model


def reward_tokenizer(folder: Path, tokens: RewardTokens, config: Any) -> Any:
    """The tokenizer as it is saved with the reward model, so that a judge reads texts as the training did."""
    tokenizer = load_tokenizer(folder)
    window = getattr(config.get_text_config(), "max_position_embeddings", None) or math.inf
    tokenizer.model_max_length = int(min(tokens.max_tokens, window))
    tokenizer.truncation_side, tokenizer.padding_side = "left", "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokens.template == "plain":
        tokenizer.chat_template = None
    return tokenizer


def _arguments(settings: RewardModelStudy, work: Path, device: str, pairs: int) -> TrainingArguments:
    training = settings.training
    steps = math.ceil(pairs / training.pairs_per_step) * training.epochs
    return TrainingArguments(
        output_dir=str(work),
        num_train_epochs=training.epochs,
        per_device_train_batch_size=training.pairs_per_step,  # the trainer takes them in parts
        learning_rate=training.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=round(training.warmup_ratio * steps),
        optim="adamw_torch_fused",
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_gradient_norm,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=training.checkpoint_every,
        save_total_limit=1,
        seed=settings.seed,
        data_seed=settings.seed,
        use_cpu=device == "cpu",
        remove_unused_columns=False,
        report_to="none",
    )
