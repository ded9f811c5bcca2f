"""Studies in the workflow: planned beside comparisons, run once, and run again only for their own sake."""

import json

import pandas as pd
import pytest
import yaml

from tests.workflow.conftest import Checkout

SMALL = {
    "arms": 3,
    "phis": [0.2, 0.8],
    "comparisons": [4],
    "seeds": 2,
    "methods": ["dpo", "mallows_theta", "mallows_phi"],
    "betas": [0.1, 0.4, 1.6],
    "training": {"steps": 4, "early_steps": 2},
    "resamples": 99,
}


def edit(checkout, **values):
    file = checkout.folder / "config/experiments/bandit.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **values}))


def test_studies_are_planned_alone_and_beside_comparisons(tmp_path):
    checkout = Checkout(tmp_path)
    assert checkout.planned("bandit") == {"study": 1, "track_study": 1}
    smoke, both = checkout.planned("smoke"), checkout.planned("bandit,smoke")
    assert "study" not in smoke and "train" in smoke
    assert both == {**smoke, "study": 1, "track_study": 1}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    checkout = Checkout(tmp_path_factory.mktemp("study"))
    edit(checkout, **SMALL)
    ran = checkout.snakemake(experiments="bandit")
    log = checkout.folder / "results/bandit/logs/study.log"
    assert ran.returncode == 0, ran.stderr[-2000:] + (log.read_text()[-2000:] if log.exists() else "")
    return checkout


def test_a_study_leaves_its_files_and_a_run(done):
    root = done.folder / "results/bandit"
    assert (root / "report.html").read_text().count("<svg") >= 5
    assert {"controls.csv", "methods.csv", "settings.csv"} <= {file.name for file in (root / "tables").iterdir()}
    assert len(pd.read_parquet(root / "tables/runs.parquet"))
    from mlflow import MlflowClient

    record = json.loads((root / "tracked.json").read_text())
    run = MlflowClient(tracking_uri=f"sqlite:///{done.folder}/results/mlflow.db").get_run(record["run_id"])
    assert run.data.metrics == json.loads((root / "study.json").read_text())["numbers"]
    assert {"study.tsv", "track.tsv"} == {file.name for file in (root / "benchmarks").iterdir()}


def test_a_second_run_has_nothing_to_do(done):
    assert done.planned("bandit") == {}


def test_a_setting_runs_the_study_again_and_a_time_limit_does_not(done):
    edit(done, compute={"minutes": 7})
    assert done.planned("bandit") == {}
    edit(done, seeds=3)
    assert done.planned("bandit") == {"study": 1, "track_study": 1}
    edit(done, **SMALL)
    assert done.planned("bandit") == {}


def test_a_wrong_kind_stops_the_workflow_before_any_job(tmp_path):
    checkout = Checkout(tmp_path)
    edit(checkout, kind="bandti")
    ran = checkout.snakemake(experiments="bandit")
    assert ran.returncode != 0 and "did you mean 'bandit'?" in ran.stderr
    assert not (tmp_path / "results").exists()
