"""The command line: stages in the order of the data, one line and a status for bad input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAGES = ["model", "sample", "pairs", "reference", "dispersion", "train", "generate", "score", "alpaca", "lm-eval",
          "compare", "report", "track"]  # fmt: skip


def mallowspo(*arguments):
    command = [sys.executable, "-m", "mallowspo.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_help_lists_the_stages_in_the_order_of_the_data():
    listed = mallowspo("--help").stdout
    commands = [line.strip("│ ").split()[0] for line in listed.split("Commands")[1].splitlines() if line.strip("│ ╰╯─")]
    assert [command for command in commands if command in STAGES] == STAGES


def test_methods():
    rows = json.loads(mallowspo("methods", "--json").stdout)
    promised = "dpo cdpo robust_dpo ipo slic simpo cpo orpo rdpo rainbowpo beta_dpo epsilon_dpo alpha_dpo wpo lb_dpo"
    promised += " mallows_theta mallows_phi mallows_ipo mallows_simpo mallows_slic mallows_rainbowpo mallows_lb rcpo"
    assert set(promised.split()) <= {row["name"] for row in rows}
    assert all(set(row) == {"name", "formula", "needs", "source"} for row in rows)
    assert "reference, dispersion" in mallowspo("methods").stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "smoke", "--method", "dop", "--seed", "1"], "--method dop: the experiment has dpo"),
        (["pairs", "smke"], "no such experiment 'smke'; did you mean 'smoke'?"),
        (["dispersion", "smoke", "--results", "nowhere"], "nowhere/smoke/reference/reference.json: no such file"),
    ],
)
def test_bad_input_ends_with_one_line_and_a_status(arguments, says):
    done = mallowspo(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_help_and_settings_need_no_torch():
    code = (
        "import sys; from mallowspo.cli import app; from mallowspo.experiments import load_experiment; "
        "load_experiment('smoke'); assert not {'torch', 'transformers', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
