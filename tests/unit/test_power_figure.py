"""The figure of power: its curves are the package's formulas, and its bytes always the same."""

import pytest

from mallowspo.inference import power
from mallowspo.power_figure import GAIN, method_components, run


def test_the_same_code_gives_the_same_bytes(tmp_path):
    first, second = run(tmp_path / "a"), run(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()


def test_what_the_figure_says():
    """Two seeds: no number of prompts is enough; ten: a few thousand are."""
    of = method_components()
    assert of.prompt + of.noise == pytest.approx(0.3 - 0.0004)
    assert power(GAIN, of, 1_000_000, 2) < 0.35
    assert power(GAIN, of, 5000, 10) > 0.8
