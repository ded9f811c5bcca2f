"""How the workflow grows with the number of trainings: prints the numbers of docs/growth.md.

python -m tests.growth graph 10 100 1000        Snakemake's graph of jobs: how many, how long, how much memory
python -m tests.growth store 10 100             the MLflow store after `mallowspo track`: rows, bytes, seconds
python -m tests.growth files results/demo       files and bytes that an experiment left, and each of its trainings
"""

import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import yaml

from mallowspo.files import write_text
from tests import made_up_results
from tests.workflow.conftest import ROOT, Checkout

METHODS = ("dpo", "ipo", "simpo", "mallows_theta", "mallows_phi")
#: Trainings -> experiments, betas of each method, seeds.
SHAPES = {10: (1, 1, 2), 100: (2, 2, 5), 200: (2, 4, 5), 1000: (4, 5, 10)}
STEPS = 200


class Graph(NamedTuple):
    """What a dry run told."""

    jobs: int
    seconds: float
    processor_seconds: float
    mebibytes: float


def labels(betas: int) -> dict[str, dict[str, object]]:
    """Each method with so many betas, as `methods` of an experiment."""
    return {f"{name}_{n}": {"method": name, "beta": 0.05 * (n + 1)} for name in METHODS for n in range(betas)}


def write_experiments(folder: Path, trainings: int) -> list[str]:
    """Experiments like the smoke one, without its further measurements, with so many trainings in all; their names."""
    experiments, betas, seeds = SHAPES[trainings]
    values = yaml.safe_load((ROOT / "config/experiments/smoke.yaml").read_text())
    values |= {"methods": labels(betas), "seeds": list(range(1, seeds + 1))}
    kept = ("judge", "kl_answers", "lm_eval", "comparison")
    values["evaluation"] = {name: values["evaluation"][name] for name in kept}
    values["evaluation"]["comparison"]["baseline"] = "dpo_0"
    names = [f"grown_{number}" for number in range(experiments)]
    for name in names:
        (folder / f"config/experiments/{name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return names


def graph(trainings: int, *arguments: str) -> Graph:
    """A dry run of so many trainings, as they would go to Slurm."""
    with tempfile.TemporaryDirectory() as scratch:
        checkout = Checkout(Path(scratch))
        names = write_experiments(checkout.folder, trainings)
        command = ["snakemake", "--dry-run", "--cores", "all", "--profile", "slurm", *arguments]
        command += ["--config", f"experiments={','.join(names)}"]
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        file = checkout.folder / "said"
        with file.open("w") as said:
            began = time.monotonic()
            process = subprocess.Popen(command, cwd=scratch, env=environment, stdout=said, stderr=said)
            _, status, used = os.wait4(process.pid, 0)
            seconds = time.monotonic() - began
        process.returncode = status  # waited for above, to learn its memory
        text = file.read_text()
    assert status == 0, text[-2000:]
    total = int(re.findall(r"^total +(\d+)$", text, re.MULTILINE)[-1])
    return Graph(total - 1, seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def store(trainings: int) -> str:
    """What `mallowspo track` makes of so many trainings of one experiment, each with STEPS steps."""
    from mallowspo import tracking

    betas = max(1, trainings // 50)
    seeds = tuple(range(trainings // betas // len(METHODS)))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        made = made_up_results.write(
            folder / "results", tuple(labels(betas)), seeds, lm_eval=False, prompts=4, steps=STEPS
        )
        for file in (made.layout.report, made.layout.tables / "main.csv", made.layout.figures / "curves.svg"):
            write_text(file, "made up")
        database = folder / "mlflow.db"
        view, seconds = made.experiment.stage_view("track"), []
        for _ in range(2):
            began = time.process_time()
            tracking.run(view, made.layout, f"sqlite:///{database}")
            seconds.append(time.process_time() - began)
        rows = {table: _count(database, table) for table in ("runs", "metrics", "params", "tags")}
        files = [file for file in (folder / "mlartifacts").rglob("*") if file.is_file()]
        counted = ", ".join(f"{number:,} {table}" for table, number in rows.items())
        return (
            f"{trainings} trainings x {STEPS} steps: {counted}; database {database.stat().st_size / 1e6:.0f} MB, "
            f"{len(files):,} artifacts; "
            f"tracking took {seconds[0]:.0f} s of a processor, and again {seconds[1]:.0f} s"
        )


def _count(database: Path, table: str) -> int:
    with closing(sqlite3.connect(database)) as connection:
        return int(connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])


def files(experiment: Path) -> str:
    """Of a finished experiment: what there is for each policy (reference and trainings), and what for all together."""
    every = [file for file in experiment.rglob("*") if file.is_file()]
    own = [file for file in every if re.search(r"/seed=|-\d+(-\w+)?\.(log|tsv)$", str(file))]
    policies = len({file.parent for file in own if "samples" in file.parts and file.name == "answers.jsonl"})
    size, all_sizes = (sum(file.stat().st_size for file in group) / 1e6 for group in (own, every))
    return (
        f"{experiment}: {len(every)} files, {all_sizes:.1f} MB; of each of {policies} policies "
        f"{len(own) / policies:.0f} files, {size / policies:.2f} MB"
    )


def main(what: str, *of: str) -> None:
    if what == "graph":
        print("| trainings | jobs | dry run | of it the processor's | memory |\n| --- | --- | --- | --- | --- |")
        for number in map(int, of):
            found = graph(number)
            times = f"{found.seconds:.0f} s | {found.processor_seconds:.0f} s"
            print(f"| {number:,} | {found.jobs:,} | {times} | {found.mebibytes:.0f} MiB |", flush=True)
    elif what == "store":
        for number in of:
            print(store(int(number)))
    else:
        for folder in of:
            print(files(Path(folder)))


if __name__ == "__main__":
    main(*sys.argv[1:])
