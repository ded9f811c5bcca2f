"""The user's own command on a real Slurm: every stage of the smoke experiment as a job."""

import time

import pandas as pd

from tests.slurm.cluster import Workflow
from tests.slurm.table import NOTES

METHODS = ["reference", "dpo", "mallows_theta", "mallows_phi"]
#: Rules whose jobs share a Slurm job: `groups` of the profile.
GROUPS = (("pairs", "tokens"), ("compare", "report", "track"))


def test_the_smoke_experiment_as_typed(slurm, tmp_path):
    flow = Workflow(tmp_path / "checkout")
    began = time.monotonic()
    assert flow.start(experiments="smoke").wait(600) == 0, flow.tail()
    seconds = time.monotonic() - began
    table = pd.read_csv(flow.folder / "results/smoke/tables/main.csv")
    assert table["method"].tolist() == METHODS
    assert (flow.folder / "results/smoke/report.html").exists()
    assert (flow.folder / "results/smoke/tracked.json").exists()
    jobs = len(flow.lines("has been submitted with SLURM jobid"))
    benchmarks = len(list((flow.folder / "results").glob("**/benchmarks/*.tsv"))) + 1  # the model's lies elsewhere
    assert jobs == benchmarks - sum(len(group) - 1 for group in GROUPS)
    assert flow.start("--dry-run", experiments="smoke").wait(60) == 0
    assert flow.lines("Nothing to be done")
    NOTES.append(f"`snakemake --cores all --profile slurm`, experiment smoke: {jobs} Slurm jobs in {seconds:.0f} s")
