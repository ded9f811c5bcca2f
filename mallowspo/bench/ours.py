"""This package's side: its own stages, called as the workflow calls them, on an experiment made for the bench."""

import importlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from mallowspo.bench.data import Data, pair_row, token_settings
from mallowspo.bench.options import Options
from mallowspo.files import read_json, read_jsonl, write_parquet
from mallowspo.layout import Layout
from mallowspo.provenance import STAGE_MODULES
from mallowspo.settings import Experiment

EXPERIMENT = "bench"
BETA = 0.1


def experiment(options: Options, methods: tuple[str, ...] = ("dpo",)) -> dict[str, Any]:
    """The settings of every training, in the form of an experiment's file."""
    return {
        "title": "Bench",
        "model": {"source": f"path:{options.model}", "precision": options.dtype},
        "tokens": token_settings(options.template_of_pairs, options.max_length).model_dump(),
        "pairs": {"source": "path:bench.jsonl"},
        "methods": {name: {"beta": BETA} for name in methods},
        "seeds": list(options.seeds),
        "training": {
            "epochs": options.epochs,
            "max_steps": options.steps,
            "learning_rate": options.learning_rate,
            "schedule": "constant",
            "warmup_ratio": 0.0,
            "optimizer": "adamw",
            "weight_decay": 0.0,
            "max_gradient_norm": 1.0,
            "pairs_per_step": options.batch,
            "tokens_per_batch": options.tokens_per_batch,
            "checkpoint_every": 1 << 30,
            "lora": {"rank": 16, "alpha": 32, "target_modules": "all-linear"} if options.lora else None,
        },
        "compute": {"memory_mb": options.memory_mb},
        "generation": {},
        "evaluation": {"judge": "reward:vowels", "comparison": {"baseline": methods[0]}},
    }


def prepare(results: Path, data: Data) -> None:
    """What the stage "pairs" would have written: the training pairs, and one test pair of a few words."""
    layout = Layout(str(results), EXPERIMENT)
    write_parquet(layout.pairs("train"), data.table)
    test = pd.DataFrame([pair_row("Why?", " Yes.", " No.")])
    write_parquet(layout.pairs("test"), test)
    write_parquet(layout.prompts, test[["prompt_id", "prompt", "messages"]])


def task(
    kind: str,
    options: Options,
    results: Path,
    method: str = "dpo",
    seed: int | None = None,
    methods: tuple[str, ...] = ("dpo",),
    count: bool = False,
) -> dict[str, Any]:
    """What a process of `worker` is told to do of our side.

    Args:
        kind: reference, dispersion or training.
        count: count operations, which costs time.
    """
    return {
        "kind": kind,
        "experiment": experiment(options, methods),
        "results": str(results),
        "model_folder": options.model,
        "method": method,
        "seed": options.seeds[0] if seed is None else seed,
        "count": count,
        **options.where,
    }


def measure_reference(spec: dict[str, Any]) -> dict[str, Any]:
    """The stage "reference", without the time that loading the model took; the stage "tokens" comes before it, untimed.

    Args:
        spec: experiment, results, model_folder, device, count.
    """
    from mallowspo.bench.clock import Moment, timed_loading
    from mallowspo.bench.operations import counting

    settings, layout, model_folder = _open(spec)
    _stage("tokens").run(settings.stage_view("tokens"), layout, model_folder)
    counter = counting()
    with timed_loading() as loading:
        if spec["count"]:
            counter.__enter__()
        started = Moment.now()
        _stage("reference").run(settings.stage_view("reference"), layout, model_folder, spec["device"])
        took = Moment.now().since(started)
        if spec["count"]:
            counter.__exit__(None, None, None)
    return {
        "wall_seconds": took["wall_seconds"] - loading.wall,
        "processor_seconds": took["processor_seconds"] - loading.processor,
        "loading_seconds": loading.wall,
        "operations": counter.get_total_flops() if spec["count"] else None,
        "summary": read_json(layout.reference_summary),
    }


def measure_dispersion(spec: dict[str, Any]) -> dict[str, Any]:
    """The stage "dispersion"."""
    from mallowspo.bench.clock import Moment

    settings, layout, model_folder = _open(spec)
    started = Moment.now()
    _stage("dispersion").run(settings.stage_view("dispersion"), layout, model_folder, spec["device"])
    return Moment.now().since(started)


def measure_training(spec: dict[str, Any]) -> dict[str, Any]:
    """The stage "train", its steps alone (`clock`); the reference table must stand.

    Args:
        spec: as `measure_reference`, with method and seed.

    Returns:
        what `Clock.result` says; losses and step_seconds_of_metrics as metrics.jsonl has them; stage_seconds, all of
        the stage, with loading and saving.
    """
    from mallowspo.bench.clock import Clock, Moment, every_trainer, timed_loading
    from mallowspo.bench.operations import counting

    settings, layout, model_folder = _open(spec)
    label, seed = spec["method"], spec["seed"]
    clock = Clock(counting() if spec["count"] else None)
    started = Moment.now()
    with timed_loading() as loading, every_trainer(clock), _pairs_told(clock):
        view, method = settings.stage_view("train"), settings.methods[label]
        _stage("train").run(view, method, label, seed, layout, model_folder, spec["device"], settings.compute.memory_mb)
    stage = Moment.now().since(started)["wall_seconds"]
    rows = read_jsonl(layout.run(label, seed) / "metrics.jsonl")
    shutil.rmtree(layout.run(label, seed) / "model")
    return {
        **clock.result(),
        "loading_seconds": loading.wall,
        "stage_seconds": stage,
        "losses": [row["loss"] for row in rows],
        "step_seconds_of_metrics": [row["seconds"] for row in rows],
        "operations": clock.counter.get_total_flops() if spec["count"] else None,
        "memory_plan": read_json(layout.run(label, seed) / "summary.json")["memory"],
    }


def _open(spec: dict[str, Any]) -> tuple[Experiment, Layout, Path]:
    layout = Layout(spec["results"], EXPERIMENT)
    return Experiment.model_validate(spec["experiment"]), layout, Path(spec["model_folder"])


def _stage(name: str) -> Any:
    return importlib.import_module(STAGE_MODULES[name])


@contextmanager
def _pairs_told(clock: Any) -> Iterator[None]:
    """The clock hears which pairs each step takes."""
    from mallowspo.trainer import PreferenceTrainer

    original = PreferenceTrainer.training_step

    def training_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        clock.saw([index for part in inputs["parts"] for index in part["index"].tolist()])
        return original(self, model, inputs, *args, **kwargs)

    PreferenceTrainer.training_step = training_step  # type: ignore[method-assign]
    try:
        yield
    finally:
        PreferenceTrainer.training_step = original  # type: ignore[method-assign]
