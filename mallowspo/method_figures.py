"""The figures of docs/method.md, computed by the functions that training uses: `mallowspo method-figures`."""

import io
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from mallowspo.dispersion import OFFICIAL_CONSTANT, dispersion, weights
from mallowspo.files import write_text
from mallowspo.mallows import pairwise_probability
from mallowspo.objectives import LINKS
from mallowspo.report.style import PALETTE, STYLE, WIDTH

#: phi = exp(-1/2), at which MallowsPO-theta is DPO (weight 1).
PHI_DPO = math.exp(-0.5)
DISTANCES: dict[Literal["kendall", "spearman"], str] = {"kendall": "-", "spearman": "--"}
SMOOTHINGS = ("none", "cubic", "polynomial", "tanh", "sigmoid")
#: Weight 1 falls on the index exp(-1 / constant).
CONSTANTS = (OFFICIAL_CONSTANT, 0.5, 1.0)
_LEAST_INDEX = 0.01


def smoothed(gap: Tensor, weight: float, smoothing: str) -> Tensor:
    """g_phi at a real gap, as the link `mallows_phi` smooths it, with the default width and steepness."""
    return torch.exp(-LINKS["mallows_phi"](gap, torch.full_like(gap, weight), smoothing=smoothing))


def push(gap: Tensor, link: Callable[..., Tensor], weight: float) -> Tensor:
    """-d loss / d s: how hard a pair at this gap is pushed apart."""
    gap = gap.clone().requires_grad_()
    (found,) = torch.autograd.grad(link(gap, torch.full_like(gap, weight)).sum(), gap)
    return -found


def run(folder: Path) -> list[Path]:
    """Write every figure as method_NAME.svg; the same code gives the same bytes."""
    figures = {"links": _links, "jump_and_smoothings": _jump, "weight_against_entropy": _weight}
    return [_write(folder / f"method_{name}.svg", draw) for name, draw in figures.items()]


def _write(path: Path, draw: Callable[[Axes, Axes], None]) -> Path:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2 * WIDTH, 3.5), layout=ConstrainedLayoutEngine(w_pad=0.08, wspace=0.06))
        draw(*figure.subplots(1, 2))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    write_text(path, buffer.getvalue())
    return path


def _links(left: Axes, right: Axes) -> None:
    side = torch.linspace(1e-9, 6, 400, dtype=torch.float64)
    for colour, phi in zip(PALETTE, (0.2, PHI_DPO, 0.8, 0.95), strict=False):
        name = f"φ = {phi:.2f}" + (" (dashed: DPO)" if phi == PHI_DPO else "")
        for distance, line in DISTANCES.items():
            # Two pieces: a line across the jump would look like a slope.
            for piece in (-side.flip(0), side):
                law = pairwise_probability(piece, torch.tensor(phi, dtype=torch.float64), distance=distance)
                label = name if distance == "kendall" and piece[0] > 0 else None
                left.plot(piece, law, line, color=colour, label=label)
                right.plot(piece, -law.log(), line, color=colour)
    left.plot([], [], "-", color="#555555", label="Kendall (Mallows-φ)")
    left.plot([], [], "--", color="#555555", label="Spearman (Mallows-θ)")
    left.set(title="Link: probability of the chosen", xlabel="reward gap s", ylabel="g(s)", ylim=(0, 1))
    right.set(title="Loss", xlabel="reward gap s", ylabel="-log g(s), nats", ylim=(0, 6))
    left.figure.legend(loc="outside lower center", ncols=3)


def _jump(left: Axes, right: Axes) -> None:
    weight = 1.0  # phi = exp(-1/2)
    side = torch.linspace(1e-6, 2, 600, dtype=torch.float64)
    for colour, smoothing in zip(("#222222", *PALETTE), SMOOTHINGS, strict=False):
        label = "none (exact)" if smoothing == "none" else smoothing
        style: dict[str, Any] = {"color": colour, "linewidth": 1.2 if smoothing == "none" else 1.6}
        link = partial(LINKS["mallows_phi"], smoothing=smoothing)
        for piece in (-side.flip(0), side):
            left.plot(piece, smoothed(piece, weight, smoothing), label=label if piece[0] > 0 else None, **style)
            right.plot(piece, push(piece, link, weight), **style)
    left.plot([0], [0.5], "o", color="#222222", markersize=4)
    gap = torch.cat([-side.flip(0), side])
    left.plot(gap, torch.sigmoid(gap), ":", color="#888888", label="DPO: sigmoid(s)")
    right.plot(gap, push(gap, LINKS["logistic"], weight), ":", color="#888888")
    left.set(title=f"The jump at 0, and its smoothings (φ = {PHI_DPO:.2f})", xlabel="reward gap s", ylabel="g(s)")
    right.set(title="Push on the pair: -d loss / d s", xlabel="reward gap s", ylabel="g'(s) / g(s)", ylim=(0, None))
    left.figure.legend(loc="outside lower center", ncols=3)


def _weight(left: Axes, right: Axes) -> None:
    index = np.geomspace(_LEAST_INDEX, 1, 400)
    for colour, constant in zip(PALETTE, CONSTANTS, strict=False):
        even = math.exp(-1 / constant)
        label = f"constant {constant:g}" + (" (official)" if constant == OFFICIAL_CONSTANT else "")
        label += f": weight 1 at entropy {even:.3f}"
        weight = weights(index, constant)
        left.plot(index, weight, color=colour, label=label)
        left.plot([even], [1], "o", color=colour, markersize=5)
        right.plot(index, dispersion(weight), color=colour)
        right.plot([even], [PHI_DPO], "o", color=colour, markersize=5)
    for axes in (left, right):
        axes.set(xscale="log", xlabel="normalised entropy of the pair (log scale)", xlim=(_LEAST_INDEX, 1))
        axes.set_xticks((0.01, 0.03, 0.1, 0.3, 1), labels=("0.01", "0.03", "0.1", "0.3", "1"))
        axes.minorticks_off()
    left.set(title="Weight w = -constant · log(entropy)", ylabel="w = effective beta / beta", ylim=(0, None))
    right.set(title="Dispersion φ = exp(-w / 2)", ylabel="φ", ylim=(0, 1))
    left.figure.legend(loc="outside lower center", ncols=1)
