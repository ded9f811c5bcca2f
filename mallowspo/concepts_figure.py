"""The figure of docs/concepts.md: from pairs to a report, in one picture. `python -m mallowspo.concepts_figure`."""

import io
import sys
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from mallowspo.files import write_text
from mallowspo.report.style import PALETTE, STYLE

#: Inches.
SIZE = (9.2, 5.0)
#: Of a box, as shares of the figure; rows from above.
WIDTH, HEIGHT = 0.205, 0.4
LEFT, BETWEEN = 0.02, 0.252
BOTTOMS = (0.55, 0.05)
FRAME, FILL, ARROW = "#8a8f98", "#f7f8fa", "#444444"


class Box(NamedTuple):
    """A step: its name, what it is in a few short lines, what to know of it, and the files that it leaves."""

    name: str
    text: str
    note: str
    file: str


BOXES = (
    Box(
        "1  Pairs",
        "a prompt, the answer\nthat people chose, and\nthe one they rejected",
        "Split by prompt:\ntrain, test",
        "pairs/",
    ),
    Box(
        "2  Reference",
        "the untrained model reads\neach pair once",
        "log-probability and\nentropy of each answer",
        "reference/",
    ),
    Box(
        "3  Dispersion",
        "how much people may\ndiffer over the prompt",
        "One right answer: small.\nA matter of taste: large.\nEstimated by the entropy",
        "dispersion.parquet",
    ),
    Box("4  Weight", "small dispersion,\nlarge weight; mean 1", "", "dispersion.parquet"),
    Box("5  Link", "loss of β x weight x margin", "", "mallowspo methods"),
    Box(
        "6  Training",
        "every method and seed,\non the same pairs in\nthe same order",
        "The same mean β",
        "runs/METHOD/seed=S/",
    ),
    Box(
        "7  Evaluation",
        "every policy answers the\nsame held-out prompts",
        "Reward, KL, win rate,\nheld-out accuracy",
        "samples/, scores/",
    ),
    Box("8  Report", "differences, intervals,\ntests corrected", "Higher, lower,\nor cannot tell", "report.html"),
)


def run(folder: Path) -> Path:
    """Write concepts.svg; the same code gives the same bytes."""
    path = folder / "concepts.svg"
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE)
        page = figure.add_axes((0, 0, 1, 1))
        page.set_axis_off()
        page.set(xlim=(0, 1), ylim=(0, 1))
        for place, box in enumerate(BOXES):
            _draw_box(page, place, box)
        for place in range(len(BOXES) - 1):
            _draw_arrow(page, place)
        _weights(_inset(figure, 3))
        _losses(_inset(figure, 4))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    write_text(path, buffer.getvalue())
    return path


def _corner(place: int) -> tuple[float, float]:
    """Lower left corner of a box; four in a row."""
    return LEFT + BETWEEN * (place % 4), BOTTOMS[place // 4]


def _draw_box(page: Axes, place: int, box: Box) -> None:
    x, y = _corner(place)
    shape = FancyBboxPatch(
        (x, y), WIDTH, HEIGHT, boxstyle="round,pad=0,rounding_size=0.015", facecolor=FILL, edgecolor=FRAME, linewidth=1
    )
    page.add_patch(shape)
    middle = x + WIDTH / 2
    page.text(middle, y + HEIGHT - 0.035, box.name, ha="center", va="top", fontsize=11, fontweight="bold")
    page.text(middle, y + HEIGHT - 0.1, box.text, ha="center", va="top", fontsize=8.5, linespacing=1.35)
    page.text(middle, y + 0.16, box.note, ha="center", va="center", fontsize=8.5, color=PALETTE[0], linespacing=1.35)
    page.text(middle, y + 0.018, box.file, ha="center", va="bottom", fontsize=7.5, color="#5f6368", style="italic")


def _draw_arrow(page: Axes, place: int) -> None:
    """To the next box; from the end of the first row around to the beginning of the second."""
    (x, y), (next_x, next_y) = _corner(place), _corner(place + 1)
    look: Any = {"arrowstyle": "-|>", "mutation_scale": 13, "color": ARROW, "linewidth": 1.3}
    if y == next_y:
        level = y + HEIGHT / 2
        page.add_patch(FancyArrowPatch((x + WIDTH, level), (next_x, level), shrinkA=2, shrinkB=2, **look))
        return
    start, end, level = x + WIDTH / 2, next_x + WIDTH / 2, (y + next_y + HEIGHT) / 2
    page.plot([start, start, end], [y, level, level], color=ARROW, linewidth=1.3, solid_capstyle="butt")
    page.add_patch(FancyArrowPatch((end, level), (end, next_y + HEIGHT), shrinkA=0, shrinkB=1, **look))


def _inset(figure: Figure, place: int) -> Axes:
    x, y = _corner(place)
    axes = figure.add_axes((x + 0.04, y + 0.1, WIDTH - 0.06, 0.12))
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    return axes


def _weights(axes: Axes) -> None:
    """-log of the index, up to the constant that makes the mean 1."""
    index = np.linspace(0.04, 1, 100)
    axes.plot(index, -np.log(index), color=PALETTE[0])
    axes.set_xlabel("dispersion", fontsize=7, labelpad=2)
    axes.set_ylabel("weight", fontsize=7, labelpad=2)


def _losses(axes: Axes) -> None:
    """-log sigmoid(weight * beta * margin) at weights of 2, 1 (DPO) and 0.5."""
    margin = np.linspace(-3, 3, 100)
    for weight, colour in zip((2, 1, 0.5), PALETTE, strict=False):
        axes.plot(margin, np.logaddexp(0, -weight * margin), color=colour, label=f"{weight:g}")
    axes.set_ylim(0, 4.2)
    axes.legend(title="weight", title_fontsize=6.5, fontsize=6.5, handlelength=1, loc="upper right", borderaxespad=0)
    axes.set_xlabel("β x margin", fontsize=7, labelpad=2)
    axes.set_ylabel("loss", fontsize=7, labelpad=2)


if __name__ == "__main__":
    print(run(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images")))
