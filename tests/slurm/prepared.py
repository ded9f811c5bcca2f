"""An experiment of eight equal trainings, with every stage before training done: each fault strikes one of them."""

import json
import random
import shutil
import subprocess
import sys

import yaml
from filelock import FileLock

from tests.slurm.cluster import ROOT, environment

#: Each is DPO with the same settings and seed, so that all must end with the same bits, whatever met them.
LABELS = ("undisturbed", "killed", "cancelled", "over_time", "drained", "over_memory", "abandoned", "disk_full")
STEPS, CHECKPOINT_EVERY = 120, 20
#: What a training asks for; the experiment may say another amount of memory.
MEMORY_MB, MINUTES = 2000, 10
WORDS = ["good", "bad", "film", "great", "awful", "plot", "actor", "scene", "long", "short", "tea"]
STAGES = ("model", "pairs", "tokens", "reference", "dispersion")


def prepare(folder):
    """Fill a folder with the experiment's file, its pairs, and the results of the stages before training; returns it.

    A second process that asks for the same folder waits for the first.
    """
    with FileLock(f"{folder}.lock"):
        if folder.exists():
            return folder
        shutil.copytree(ROOT / "config", folder / "config")
        write_settings(folder)
        write_pairs(folder / "pairs.jsonl")
        call = "from mallowspo.cli import app\nfor stage in {!r}: app([stage, 'faults'], standalone_mode=False)"
        subprocess.run([sys.executable, "-c", call.format(STAGES)], cwd=folder, env=environment(), check=True)
    return folder


def write_settings(folder, steps=STEPS, memory_mb=MEMORY_MB):
    """The smoke experiment with other pairs, equal methods, longer trainings, and a pretend GPU for each job."""
    values = yaml.safe_load((ROOT / "config/experiments/smoke.yaml").read_text())
    values["pairs"] = {"source": "path:pairs.jsonl", "split": {"column": "split"}}
    values["methods"] = {label: {"method": "dpo", "beta": 0.1} for label in LABELS}
    values["training"] |= {"max_steps": steps, "checkpoint_every": CHECKPOINT_EVERY}
    values["evaluation"]["comparison"]["baseline"] = LABELS[0]
    values["compute"] = {"device": "cpu", "gpus": 1, "threads": 1, "memory_mb": memory_mb, "minutes": MINUTES}
    (folder / "config/experiments/faults.yaml").write_text(yaml.safe_dump(values, sort_keys=False))


def shorten_smoke(folder):
    """Leave the smoke experiment one method: every rule runs, and most of them once."""
    file = folder / "config/experiments/smoke.yaml"
    values = yaml.safe_load(file.read_text())
    values["methods"] = {"mallows_theta": values["methods"]["mallows_theta"]}
    values["evaluation"]["temperatures"] = []
    values["evaluation"]["comparison"]["baseline"] = "mallows_theta"
    file.write_text(yaml.safe_dump(values, sort_keys=False))


def write_pairs(file, train=24, test=4):
    draw = random.Random(0)
    rows = []
    for number in range(train + test):
        chosen, rejected = (" " + " ".join(draw.choices(WORDS, k=5)) for _ in range(2))
        split = "train" if number < train else "test"
        rows.append({"prompt": f"Number {number} was", "chosen": chosen, "rejected": f"{rejected}!", "split": split})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
