"""TRL's side: its DPOTrainer on the same token ids, in the same order."""

from typing import Any

from mallowspo.files import read_json

#: Settings of DPOConfig that TRL's best is looked for among, against its defaults (gradient checkpointing, a live
#: reference). `rows` is the number of pairs in one forward: all of the step's, or one with the rest accumulated.
CANDIDATES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no checkpointing": {"gradient_checkpointing": False},
    "no checkpointing, precomputed reference": {"gradient_checkpointing": False, "precompute_ref_log_probs": True},
    "no checkpointing, one pair at a time": {"gradient_checkpointing": False, "pairs_at_a_time": 1},
    "no checkpointing, precomputed reference, one pair at a time": {
        "gradient_checkpointing": False,
        "precompute_ref_log_probs": True,
        "pairs_at_a_time": 1,
    },
    "no checkpointing, padding-free": {"gradient_checkpointing": False, "padding_free": True},
}


def measure_trl(spec: dict[str, Any]) -> dict[str, Any]:
    """One training of DPOTrainer, its steps alone (`clock`), and its reference pass where it makes one beforehand.

    Args:
        spec: model_folder, ids (JSON file of token ids, a row a pair), order (positions in it, of each step), batch,
            learning_rate, beta, dtype, lora, device, seed, candidate, count, scratch.

    Returns:
        what `Clock.result` says; reference_wall_seconds and reference_processor_seconds, 0 where it is live; losses;
        tokens of the rows, real and padded; or refused, a reason, alone.
    """
    import trl

    from mallowspo.bench.clock import Clock, Moment, every_trainer, timed_loading
    from mallowspo.bench.operations import counting
    from mallowspo.bench.trl_trainer import Measured, dataset

    clock = Clock(counting() if spec["count"] else None)
    args: Any = trl.DPOConfig(**config(spec))
    started = Moment.now()
    with timed_loading() as loading, every_trainer(clock):
        trainer = Measured(
            clock=clock,
            order=[pair for step in spec["order"] for pair in step],
            model=spec["model_folder"],
            args=args,
            train_dataset=dataset(read_json(spec["ids"])),
            peft_config=_adapter() if spec["lora"] else None,
        )
        if args.padding_free and not trainer.padding_free:
            return {"refused": f"TRL {trl.__version__} sets padding_free back to False and pads"}
        trainer.train()
    return {
        **clock.result(),
        **trainer.result(),
        "loading_seconds": loading.wall,
        "stage_seconds": Moment.now().since(started)["wall_seconds"],
    }


def config(spec: dict[str, Any]) -> dict[str, Any]:
    """Of DPOConfig: its defaults, but for what makes both sides do the same, and the candidate's own."""
    chosen = dict(CANDIDATES[spec["candidate"]])
    at_a_time = chosen.pop("pairs_at_a_time", spec["batch"])
    return {
        "output_dir": spec["scratch"],
        "max_steps": len(spec["order"]),
        "per_device_train_batch_size": at_a_time,
        "gradient_accumulation_steps": spec["batch"] // at_a_time,
        "learning_rate": spec["learning_rate"],
        "beta": spec["beta"],
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "optim": "adamw_torch_fused",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": spec["dtype"] == "bfloat16",
        "use_cpu": spec["device"] == "cpu",
        "seed": spec["seed"],
        "max_length": None,  # the pairs fit; its own limit would cut what the other side keeps
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **chosen,
    }


def _adapter() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM")
