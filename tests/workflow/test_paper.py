"""The target `paper`: every experiment of the scale and then the page, nothing twice, and nothing where nobody asks."""

import os
import shutil
import subprocess
import sys

import pytest
import yaml

from mallowspo.paper.settings import load_paper
from tests.made_up_paper import write_study
from tests.workflow.conftest import ROOT, Checkout

SCALES = {
    "cpu": {"bandit": "bandit", "again": "bandit_again"},
    "paper": {"bandit": "bandit", "again": "smoke"},
}
TEST = {"kind": "table", "title": "Reward", "part": "bandit", "table": "controls", "claimed": 0.01,
        "where": {"comparisons": "max", "weights": "oracle", "control": "dpo", "outcome": "reward",
                  "where": "same KL"}}  # fmt: skip


class Paper(Checkout):
    """A checkout whose scales are small."""

    def __init__(self, folder):
        super().__init__(folder)
        claim = {"title": "A claim", "says": "It holds.", "tests": [TEST]}
        values = {"scales": SCALES, "claims": {"reward_kl": claim}}
        (folder / "config/paper.yaml").write_text(yaml.safe_dump(values))
        (folder / "config/published.yaml").write_text(yaml.safe_dump({"claims": {}}))
        again = folder / "config/experiments/bandit_again.yaml"
        shutil.copy(folder / "config/experiments/bandit.yaml", again)

    def snakemake(self, *arguments, experiments="smoke"):
        """Without --config: what is asked for are targets."""
        environment = {**os.environ, "PATH": f"{sys.executable.rpartition('/')[0]}:{os.environ['PATH']}"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        command = ["snakemake", "--cores", "all", *arguments]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)

    def paper(self, *arguments):
        """Rule -> number of jobs for the page."""
        done = self.snakemake("--dry-run", "paper", *arguments)
        assert done.returncode == 0, done.stderr
        assert "warning" not in (done.stdout + done.stderr).lower()
        text = done.stdout + done.stderr
        if "Job stats:" not in text:
            assert "Nothing to be done" in text, text
            return {}
        lines = text.split("Job stats:")[1].strip().splitlines()[2:]
        counts = dict(line.split() for line in lines[: lines.index("")])
        return {rule: int(count) for rule, count in counts.items() if rule not in ("paper", "total")}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Both experiments are there, and the page is made."""
    checkout = Paper(tmp_path_factory.mktemp("paper"))
    for name in ("bandit", "bandit_again"):
        write_study(checkout.folder / "results", name, "bandit")
    assert checkout.paper() == {"page_of_the_paper": 1}
    ran = checkout.snakemake("paper")
    logs = "".join(log.read_text()[-1500:] for log in checkout.folder.glob("results/*/logs/*.log"))
    assert ran.returncode == 0, ran.stderr[-2000:] + logs
    return checkout


def test_both_scales_are_planned(tmp_path):
    checkout = Paper(tmp_path)
    assert checkout.paper() == {"study": 2, "track_study": 2, "page_of_the_paper": 1}
    large = checkout.paper("--config", "scale=paper")
    assert large["study"] == large["track_study"] == large["page_of_the_paper"] == 1 and large["train"] == 3
    by_file = checkout.snakemake("--dry-run", "results/paper/index.html")
    assert by_file.returncode == 0 and "bandit_again" in by_file.stdout


@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_the_scales_of_the_repository(tmp_path, scale):
    """Each is planned whole; where one of its files is not there yet, one line names it."""
    checkout = Paper(tmp_path)
    for name in ("paper.yaml", "published.yaml"):
        shutil.copy(ROOT / "config" / name, tmp_path / "config" / name)
    names = load_paper(ROOT / "config/paper.yaml").experiments(scale)
    missing = [name for name in names if not (ROOT / f"config/experiments/{name}.yaml").exists()]
    if missing:
        ran = checkout.snakemake("--dry-run", "paper", "--config", f"scale={scale}")
        assert ran.returncode != 0 and f"no such experiment '{missing[0]}'" in ran.stderr
        return
    studies = [name for name in names if "\nkind:" in f"\n{(ROOT / f'config/experiments/{name}.yaml').read_text()}"]
    planned = checkout.paper("--config", f"scale={scale}")
    assert planned["page_of_the_paper"] == 1 and planned["study"] == len(studies)
    assert planned["compare"] == planned["report"] == len(names) - len(studies)


def test_a_scale_that_is_none_stops_with_one_line(tmp_path):
    ran = Paper(tmp_path).snakemake("--dry-run", "paper", "--config", "scale=cup")
    said = [line for line in ran.stderr.splitlines() if line.startswith("mallowspo:")]
    assert ran.returncode != 0
    assert said == ["mallowspo: scale 'cup': no such scale in config/paper.yaml; did you mean 'cpu'?"]
    assert not (tmp_path / "results").exists()


def test_other_targets_read_nothing_of_it(tmp_path):
    checkout = Paper(tmp_path)
    (tmp_path / "config/paper.yaml").write_text("not: [yaml")
    assert "study" not in Checkout.planned(_plain(checkout), "smoke")


def _plain(checkout):
    plain = Checkout.__new__(Checkout)
    plain.folder = checkout.folder
    return plain


def test_the_page_is_there_and_a_second_run_has_nothing_to_do(done):
    page = (done.folder / "results/paper/index.html").read_text()
    assert "1. A claim" in page and "../bandit/report.html" in page
    assert (done.folder / "results/paper/tables/claims.tex").exists()
    assert done.paper() == {}


def test_one_experiment_less_is_run_again_alone(done):
    kept = done.folder / "kept"
    shutil.move(done.folder / "results/bandit_again", kept)
    try:
        found = done.snakemake("--dry-run", "paper")
        assert done.paper() == {"study": 1, "track_study": 1, "page_of_the_paper": 1}
        assert "wildcards: experiment=bandit_again" in found.stdout
        assert "wildcards: experiment=bandit\n" not in found.stdout
    finally:
        shutil.move(kept, done.folder / "results/bandit_again")


def test_a_job_of_a_cluster_knows_the_scale(done):
    """It reads the Snakefile again with another command line; the environment tells it."""
    environment = {**os.environ, "PATH": f"{sys.executable.rpartition('/')[0]}:{os.environ['PATH']}"}
    command = ["snakemake", "--cores", "1", "--dry-run", "--forceall", "--target-jobs", "study:experiment=bandit_again",
               "--allowed-rules", "study"]  # fmt: skip
    runs = [
        subprocess.run(command, cwd=done.folder, env=env, capture_output=True, text=True, check=False)
        for env in (environment, {**environment, "MALLOWSPO_PAPER": "1"})
    ]
    assert [run.returncode == 0 for run in runs] == [False, True], runs[1].stderr


def test_what_is_published_makes_the_page_again_and_nothing_else(done):
    file = done.folder / "config/published.yaml"
    figure = {"what": "a thing", "value": 2.0, "source": "Table 1", "tag": "PDF"}
    file.write_text(yaml.safe_dump({"claims": {"reward_kl": [figure]}}))
    assert done.paper() == {"page_of_the_paper": 1}
