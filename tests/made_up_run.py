"""Everything that a training reads, made up in a moment: model, pairs, reference table and weights."""

import json
import random
import sys
from pathlib import Path

import pandas as pd
import yaml

from mallowspo import reference_pass, weights
from mallowspo.experiments import load_experiment
from mallowspo.files import digest, write_parquet
from mallowspo.layout import Layout
from mallowspo.models import fetch
from mallowspo.pairs import prepared
from mallowspo.settings import Experiment

ROOT = Path(__file__).parents[1]
WORDS = ["good", "bad", "film", "great", "awful", "plot", "actor", "scene", "long", "short", "tea"]


def write_pairs(layout: Layout, train: int, test: int = 4) -> None:
    """Pairs of random words under random prompts; every other response is not complete."""
    draw = random.Random(0)
    for split, count in (("train", train), ("test", test)):
        rows = []
        for number in range(count):
            prompt = f"The {draw.choice(WORDS)} {split} {number} was"
            chosen, rejected = (" " + " ".join(draw.choices(WORDS, k=draw.randint(2, 6))) for _ in range(2))
            rows.append(
                {
                    "pair_id": digest([prompt, chosen, rejected + "!"]),
                    "prompt_id": digest(prompt),
                    "prompt": prompt,
                    "messages": json.dumps([{"role": "user", "content": prompt}]),
                    "chosen": chosen,
                    "rejected": rejected + "!",
                    "source": "made up",
                    "meta": json.dumps({"chosen_complete": True, "rejected_complete": number % 2 == 0}),
                }
            )
        table = pd.DataFrame(rows)
        write_parquet(layout.pairs(split), table)
        if split == "test":
            write_parquet(layout.prompts, table[["prompt_id", "prompt", "messages"]])


def experiment_file(
    folder: Path,
    methods: dict[str, object] | None = None,
    model: str | None = None,
    quantized: str | None = None,
    **training: object,
) -> Path:
    """The smoke experiment with other training settings, and another model (its source) and methods if given."""
    values = yaml.safe_load((ROOT / "config/experiments/smoke.yaml").read_text())
    values["model"]["quantized"] = quantized
    if model:
        values["model"]["source"] = model
    if methods:
        values["methods"] = methods
        values["evaluation"]["comparison"]["baseline"] = next(iter(methods))
    values["training"] |= training
    file = folder / "made_up.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def prepare(folder: Path, pairs: int = 12, **settings: object) -> tuple[Experiment, Layout, Path]:
    """Settings, layout and model folder, with every stage before training done."""
    experiment = load_experiment(str(experiment_file(folder, **settings)))
    layout = Layout(str(folder / "results"), "made_up")
    model_folder = layout.model(experiment.model.key)
    fetch(experiment.model.source, None, model_folder, four_bits=experiment.model.quantized)
    write_pairs(layout, pairs)
    prepared.run(experiment.stage_view("tokens"), layout, model_folder)
    reference_pass.run(experiment.stage_view("reference"), layout, model_folder, "cpu")
    weights.run(experiment.stage_view("dispersion"), layout, model_folder, "cpu")
    return experiment, layout, model_folder


def training_command(folder: Path, label: str, processes: int, sharded: bool = False) -> list[str]:
    """`mallowspo train` of what `prepare` made in the folder: seed 1, in so many processes."""
    file = folder / "made_up.yaml"
    compute = {"device": "cpu", "processes": processes, "sharded": sharded, "memory_mb": 2000 * processes}
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"compute": compute}))
    command = [sys.executable, "-m", "mallowspo.cli", "train", str(file), "--results", str(folder / "results")]
    return [*command, "--method", label, "--seed", "1", "--threads", str(processes)]
