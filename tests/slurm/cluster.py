"""The real parts that the tests strike: snakemake on Slurm, trainings as processes, PostgreSQL, the MLflow server."""

import contextlib
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

from mallowspo.files import read_jsonl
from mallowspo.tracking.contents import TIMING, curve_values
from tests.workflow.conftest import Checkout

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SHARED_STORE_PORT = 15434


def run_script(name, *words):
    """Run one of the scripts in this folder; its output goes to pytest's."""
    subprocess.run([HERE / name, *words], check=True)


def exported(name):
    """The variables that a script's `env` prints."""
    said = subprocess.run([HERE / name, "env"], check=True, capture_output=True, text=True).stdout
    return dict(word.split("=", 1) for word in shlex.split(said) if "=" in word)


def environment(**more):
    """What a user of the tested checkout has in the shell: its programs first, no store of their own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "SLURM_", "PG"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def wait_until(true, seconds, what, every=0.2):
    """Call `true` until it says so; returns what it said."""
    end = time.monotonic() + seconds
    while True:
        answer = true()
        if answer:
            return answer
        assert time.monotonic() < end, f"waited {seconds} s, and still not: {what}"
        time.sleep(every)


def ask(*words, seconds=60):
    """What a Slurm command prints; asked again for so long where another test has stopped the controller."""
    end = time.monotonic() + seconds
    while True:
        done = subprocess.run(words, check=False, capture_output=True, text=True, env=environment())
        if done.returncode == 0:
            return done.stdout.strip()
        assert "Unable to contact slurm controller" in done.stderr and time.monotonic() < end, done.stderr


def pretend_cluster_runs():
    """Whether slurm_loopback.sh has started its Slurm, and it answers. A site's own Slurm does not count."""
    ours, used = Path(exported("slurm_loopback.sh")["SLURM_CONF"]), Path("/etc/slurm/slurm.conf")
    return (
        used.is_symlink()
        and used.readlink() == ours
        and subprocess.run(["scontrol", "ping"], check=False, capture_output=True, env=environment()).returncode == 0
    )


def cancel_jobs_below(folder):
    """Every job that was sent from a folder below this one."""
    lines = ask("squeue", "--noheader", "--format=%i %Z").splitlines()
    for job, place in (line.split(maxsplit=1) for line in lines):
        if Path(place).is_relative_to(folder):
            ask("scancel", job)


def end_processes_below(folder):
    """What is still at work below this folder: Slurm's pretend nodes end a struck job's step, and leave the snakemake
    that had started it."""
    for process in psutil.process_iter(["cwd"]):
        place = process.info["cwd"]
        if place and Path(place).is_relative_to(folder):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def job_state(job):
    """Slurm's word for a job's state: RUNNING, COMPLETED, FAILED, CANCELLED, TIMEOUT, OUT_OF_MEMORY, ..."""
    return ask("squeue", "--noheader", "--states=all", "--jobs", job, "--format=%T")


class Asked(NamedTuple):
    """What one attempt at a stage asked Slurm for."""

    memory_mb: int
    minutes: int


@dataclass(frozen=True)
class Process:
    """A training under way."""

    pid: int
    job: str
    node: str
    gpu: str

    def send(self, number):
        os.kill(self.pid, number)

    @property
    def alive(self):
        return Path(f"/proc/{self.pid}").exists()


class Workflow(Checkout):
    """A checkout in which snakemake sends the jobs of the experiment "faults" to Slurm."""

    def __init__(self, folder, prepared=None):
        folder.mkdir(exist_ok=True)
        super().__init__(folder)
        self.said = folder / "snakemake.said"
        if prepared:
            shutil.copytree(prepared, folder, dirs_exist_ok=True)

    def start(self, *arguments, experiments="faults", config=()):
        """`snakemake --cores all --profile slurm ...`; what it says goes to the file `said`."""
        command = ["snakemake", "--cores", "all", "--profile", "slurm", *arguments]
        command += ["--config", f"experiments={experiments}", *config]
        with self.said.open("a") as said:
            return subprocess.Popen(command, cwd=self.folder, env=environment(), stdout=said, stderr=said)

    def run(self, label):
        return self.folder / f"results/faults/runs/{label}/seed=1"

    def target(self, label):
        return str((self.run(label) / "summary.json").relative_to(self.folder))

    def process(self, label):
        """The training of a label, found among all processes by its arguments and folder."""
        for place in Path("/proc").glob("[0-9]*"):
            try:
                words = (place / "cmdline").read_bytes().decode().split("\0")
                if {"train", "--method", label} <= set(words) and (place / "cwd").readlink() == self.folder:
                    lines = (place / "environ").read_bytes().decode().split("\0")
                    found = dict(line.split("=", 1) for line in lines if "=" in line)
                    names = ("SLURM_JOB_ID", "SLURMD_NODENAME", "CUDA_VISIBLE_DEVICES")
                    return Process(int(place.name), *(found.get(name, "") for name in names))
            except (FileNotFoundError, ProcessLookupError):
                continue
        return None

    def steps(self, label):
        """Optimizer steps that a training under way has written down."""
        file = self.run(label) / "work/metrics.jsonl"
        return file.read_text().count("\n") if file.exists() else 0

    def caught(self, label, steps):
        """The training, frozen, once it has a whole checkpoint and so many steps; None before."""
        if self.steps(label) < steps or not list(self.run(label).glob("work/checkpoint-*/whole")):
            return None
        process = self.process(label)
        if process:
            process.send(signal.SIGSTOP)
        return process

    def result(self, label):
        """What a training gave, without the speed of the machine: metrics, and the digest of the model's weights."""
        rows = read_jsonl(self.run(label) / "metrics.jsonl")
        weights = (self.run(label) / "model/model.safetensors").read_bytes()
        metrics = [{key: value for key, value in curve_values(row)[0].items() if key not in TIMING} for row in rows]
        return metrics, hashlib.sha256(weights).hexdigest()

    def asked(self, label):
        """Of each attempt at a training, the first one first."""
        lines = ask("squeue", "--noheader", "--states=all", "--sort=i", "--format=%m|%l|%Z|%k").splitlines()
        found = [line.split("|") for line in lines]
        return [
            Asked(int(memory.removesuffix("M")), int(limit.removesuffix(":00")))
            for memory, limit, place, comment in found
            if Path(place) == self.folder and comment.startswith("rule_train") and label in comment
        ]

    def lines(self, *words):
        """What snakemake said: the lines that hold all of these words."""
        text = self.said.read_text() if self.said.exists() else ""
        return [line.strip() for line in text.splitlines() if all(word in line for word in words)]

    def tail(self):
        """For the message of a test that fails."""
        logs = sorted((self.folder / "results").glob("*/logs/*.log"))
        parts = [f"--- {file.name}\n{file.read_text()[-1500:]}" for file in [self.said, *logs]]
        return "\n".join(parts)


class Database:
    """The PostgreSQL of postgres_loopback.sh, asked directly."""

    def __init__(self):
        self.variables = exported("postgres_loopback.sh")

    @property
    def password(self):
        return self.variables["PGPASSWORD"]

    def stop(self):
        run_script("postgres_loopback.sh", "stop")

    def start(self):
        run_script("postgres_loopback.sh", "start")

    def rows(self, query, *values):
        import psycopg2

        connection = psycopg2.connect(self.variables["MLFLOW_BACKEND_STORE_URI"], password=self.password)
        try:
            with connection.cursor() as cursor:
                cursor.execute(query, values)
                return cursor.fetchall()
        finally:
            connection.close()

    def curves(self, experiment):
        """Every stored step of every curve, in order: (method, seed) -> metric -> list of (step, value)."""
        found = {}
        for method, seed, key, step, value in self.rows(
            """
            SELECT method.value, seed.value, metrics.key, metrics.step, metrics.value
            FROM metrics JOIN runs USING (run_uuid) JOIN experiments USING (experiment_id)
            JOIN tags method ON method.run_uuid = runs.run_uuid AND method.key = 'mallowspo.method'
            JOIN tags seed ON seed.run_uuid = runs.run_uuid AND seed.key = 'mallowspo.seed'
            WHERE experiments.name = %s AND metrics.key LIKE 'train/%%' ORDER BY metrics.step
            """,
            f"mallowspo/{experiment}",
        ):
            found.setdefault((method, int(seed)), {}).setdefault(key, []).append((step, value))
        return found


class Server:
    """`mallowspo server`, as a user starts it: the store and its password in the environment."""

    def __init__(self, folder, database, port):
        self.folder, self.database, self.port = folder, database, port
        self.process = None

    @property
    def uri(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                ["mallowspo", "server", "--port", str(self.port)],
                cwd=self.folder, env=environment(**self.database.variables), stdout=log, stderr=log,
            )  # fmt: skip

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=30)

    def answers(self):
        assert self.process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False
