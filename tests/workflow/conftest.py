"""One run of the smoke experiment in a folder of its own, shared by the tests here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class Checkout:
    """A folder with the workflow and a copy of the settings, in which snakemake is run."""

    def __init__(self, folder: Path, of: "Checkout | None" = None):
        """With the settings and results `of` another one, if given."""
        self.folder = folder
        if of:
            shutil.copytree(of.folder, folder, symlinks=True)
            return
        for name in ("Snakefile", "workflow", "slurm"):
            (folder / name).symlink_to(ROOT / name)
        shutil.copytree(ROOT / "config", folder / "config")

    def snakemake(self, *arguments: str, experiments: str = "smoke") -> subprocess.CompletedProcess:
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        command = ["snakemake", "--cores", "all", *arguments, "--config", f"experiments={experiments}"]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)

    def planned(self, experiments: str = "smoke") -> dict[str, int]:
        """Rule -> number of jobs that a run would do now."""
        done = self.snakemake("--dry-run", experiments=experiments)
        assert done.returncode == 0, done.stderr
        text = done.stdout + done.stderr
        if "Job stats:" not in text:
            assert "Nothing to be done" in text, text
            return {}
        lines = text.split("Job stats:")[1].strip().splitlines()[2:]
        counts = {}
        for line in lines:
            if not line.strip():
                break
            rule, count = line.split()
            counts[rule] = int(count)
        return {rule: count for rule, count in counts.items() if rule not in {"all", "total"}}


@pytest.fixture(scope="session")
def smoke(tmp_path_factory) -> Checkout:
    checkout = Checkout(tmp_path_factory.mktemp("checkout"))
    done = checkout.snakemake()
    logs = "".join(
        f"\n--- {log.name}\n{log.read_text()[-1500:]}" for log in checkout.folder.glob("results/*/logs/*.log")
    )
    assert done.returncode == 0, done.stderr[-3000:] + logs
    return checkout
