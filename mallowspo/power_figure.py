"""The figure of docs/statistics.md: what a gain of two points of win rate needs. `python -m mallowspo.power_figure`."""

import io
import sys
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from mallowspo.files import write_text
from mallowspo.inference import POWER, Components, discordant_power, power
from mallowspo.report.style import PALETTE, STYLE, WIDTH

GAIN = 0.02
DISCORDANCES = (0.1, 0.2, 0.3, 0.4, 0.5)
#: AlpacaEval's instructions.
ALPACA_EVAL = 805
#: Of the right panel: share of prompts on which two runs disagree, and how far runs of one method differ by seed.
DISCORDANCE, SEED_DEVIATION = 0.3, 0.01
SEEDS = (2, 3, 5, 10)
#: Methods of the experiment, over which the spread between seeds is pooled.
METHODS = 4


def run(folder: Path) -> Path:
    """Write power_win_rate.svg; the same code gives the same bytes."""
    path = folder / "power_win_rate.svg"
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2 * WIDTH, 3.5), layout=ConstrainedLayoutEngine(w_pad=0.08, wspace=0.06))
        runs, methods = figure.subplots(1, 2)
        _two_runs(runs)
        _two_methods(methods)
        for axes in (runs, methods):
            _frame(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    write_text(path, buffer.getvalue())
    return path


def method_components() -> Components:
    """Of the difference of two methods' win rates: a third of what two runs disagree on is the prompt's own."""
    of_runs = DISCORDANCE - GAIN**2
    return Components(of_runs / 3, 2 * SEED_DEVIATION**2, 2 * of_runs / 3, pooled=METHODS - 1)


def _two_runs(axes: Axes) -> None:
    prompts = np.geomspace(100, 30_000, 200)
    for discordance, colour in zip(DISCORDANCES, PALETTE, strict=False):
        axes.plot(prompts, discordant_power(GAIN, discordance, prompts), color=colour, label=f"{discordance:.0%}")
    axes.set_title("Two runs that disagree on so many prompts")


def _two_methods(axes: Axes) -> None:
    prompts = np.unique(np.geomspace(100, 30_000, 60).astype(int))
    for seeds, colour in zip(SEEDS, PALETTE, strict=False):
        found = [power(GAIN, method_components(), int(count), seeds) for count in prompts]
        axes.plot(prompts, found, color=colour, label=f"{seeds} seeds")
    axes.set_title(f"Two of {METHODS} methods; runs differ by {100 * SEED_DEVIATION:g} point (sd)")


def _frame(axes: Axes) -> None:
    axes.axhline(POWER, color="#444444", linewidth=0.8, linestyle="--")
    axes.axvline(ALPACA_EVAL, color="#bbbbbb", linewidth=0.8)
    axes.text(ALPACA_EVAL, 1.0, " 805", va="top", fontsize=8, color="#666666")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("prompts")
    axes.set_ylabel("power to find two points")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0.78))


if __name__ == "__main__":
    print(run(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images")))
