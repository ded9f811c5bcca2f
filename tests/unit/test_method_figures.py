"""The figures of docs/method.md: drawn from the training's own functions, the same bytes each time."""

import math

import pytest
import torch
from typer.testing import CliRunner

from mallowspo.cli import app
from mallowspo.mallows import pairwise_probability
from mallowspo.method_figures import PHI_DPO, SMOOTHINGS, push, smoothed
from mallowspo.objectives import LINKS


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_smoothings_pass_through_a_half_and_end_on_the_exact_link(smoothing):
    gap = torch.tensor([0.0, 3.0, -3.0], dtype=torch.float64)
    exact = pairwise_probability(gap, torch.tensor(PHI_DPO, dtype=torch.float64))
    assert smoothed(gap, 1.0, smoothing).tolist() == pytest.approx(exact.tolist(), abs=1e-12)
    assert exact[0] == 0.5


def test_push_is_the_slope_of_the_loss():
    """DPO at s = 0 and weight w: w sigmoid(0) = w / 2."""
    gap = torch.tensor([0.0, 2.0], dtype=torch.float64)
    expected = [0.75, 1.5 / (1 + math.exp(3))]
    assert push(gap, LINKS["logistic"], 1.5).tolist() == pytest.approx(expected, abs=1e-12)


def test_the_command_writes_the_figures(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        assert CliRunner().invoke(app, ["method-figures", "--folder", str(folder)]).exit_code == 0
    names = sorted(path.name for path in first.iterdir())
    assert names == ["method_jump_and_smoothings.svg", "method_links.svg", "method_weight_against_entropy.svg"]
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()
