"""Figures of a reward model's page."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy.special import expit

from mallowspo.layout import Layout
from mallowspo.report.style import PALETTE, Panel, draw_panel

#: Points of the learning curve, each the mean of as many steps; groups of pairs in the picture of calibration.
POINTS, GROUPS = 40, 10
BLUE, ORANGE = PALETTE[:2]


def learning(layout: Layout, steps: pd.DataFrame) -> Panel:
    """Accuracy on the training pairs of each step, before the step."""
    each = max(1, len(steps) // POINTS)
    data = steps.groupby((steps["step"] - 1) // each)[["step", "loss", "accuracy"]].mean()

    def draw(axes: Axes) -> None:
        axes.plot(data["step"], data["accuracy"], color=BLUE)
        axes.axhline(0.5, color="#888888", linewidth=1, linestyle=":")
        axes.set(xlabel="optimizer step", ylabel="share", title="Right on the step's own pairs", ylim=(0, 1))

    return draw_panel(layout, "learning", "Accuracy on training pairs by step.", data.reset_index(drop=True), draw)


def calibration(layout: Layout, margins: pd.Series) -> Panel:
    """How often the model is right, by how sure it is: groups of equal counts."""
    sure = expit(margins.abs())
    group = np.minimum(sure.rank(method="first").sub(1) * GROUPS // len(sure), GROUPS - 1)
    table = pd.DataFrame({"sure": sure, "right": 0.5 + 0.5 * np.sign(margins), "pairs": 1})
    data = table.groupby(group.astype(int)).agg({"sure": "mean", "right": "mean", "pairs": "sum"})

    def draw(axes: Axes) -> None:
        axes.axline((0.5, 0.5), slope=1, color="#888888", linewidth=1, linestyle=":")
        axes.plot(data["sure"], data["right"], "o-", color=BLUE)
        axes.set(xlabel="how sure: sigmoid of |margin|", ylabel="how often right", title="Calibration")
        axes.set(xlim=(0.49, 1.01), ylim=(0, 1.02))

    alt = "How often the reward model is right, by how sure it is."
    return draw_panel(layout, "calibration", alt, data.reset_index(drop=True), draw)


def margins_by_length(layout: Layout, table: pd.DataFrame) -> Panel:
    """Margin of each pair against the ratio of its lengths."""
    data = table[["pair_id", "length_ratio", "margin"]]

    def draw(axes: Axes) -> None:
        axes.scatter(data["length_ratio"], data["margin"], s=8, alpha=0.4, color=ORANGE, linewidths=0)
        axes.axhline(0, color="#888888", linewidth=1, linestyle=":")
        axes.axvline(0, color="#888888", linewidth=1, linestyle=":")
        axes.set(xlabel="log(length of chosen / of rejected)", ylabel="margin", title="Margin and length")

    return draw_panel(layout, "margin_and_length", "Margin of each test pair by its log length ratio.", data, draw)
