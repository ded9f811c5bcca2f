"""Reward against KL along the training of each method: how far a policy had come, and for what reward, on its way."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from mallowspo.evaluation.kl import K1
from mallowspo.layout import REFERENCE
from mallowspo.report.outcome_figures import marker_handles
from mallowspo.report.results import Results
from mallowspo.report.style import Look, Panel, draw_panel, legend_below, legend_height
from mallowspo.report.table import rows_of
from mallowspo.report.variants import ALONG_TRAINING, rows_by, variants_figure
from mallowspo.report.words import number


def training_figure(results: Results, look: Look) -> list[Panel]:
    """Reward against KL along the training, then each of them by share of it; nothing where no policy was kept."""
    points = _points(rows_by(results, ALONG_TRAINING))
    if points.empty:
        return []
    return [_path(results, look, points), *variants_figure(results, look, ALONG_TRAINING)]


def _points(table: pd.DataFrame) -> pd.DataFrame:
    """A row a method and share: reward and kl, each with _ci_low and _ci_high."""
    names = {"estimate": "", "ci_low": "_ci_low", "ci_high": "_ci_high"}
    parts = []
    for metric, name in ((K1, "kl"), ("reward", "reward")):
        own = table[table["metric"] == metric].set_index(["method", "training"])[list(names)]
        parts.append(own.rename(columns={column: f"{name}{end}" for column, end in names.items()}))
    return pd.concat(parts, axis=1).reset_index()


def _path(results: Results, look: Look, points: pd.DataFrame) -> Panel:
    start = float(results.values["reward"][REFERENCE].to_numpy().mean())
    paths = {label: points[points["method"] == label].sort_values("training") for label in results.methods}

    def draw(axes: Axes) -> None:
        for label, path in paths.items():
            colour, marker = look.colour[label], look.marker[label]
            first, last = path.iloc[0], path.iloc[-1]
            # Every training starts at the reference; nothing was measured on the way to the first policy that was kept.
            axes.plot([0, first["kl"]], [start, first["reward"]], color=colour, linewidth=0.8, linestyle=":", zorder=1)
            axes.plot(path["kl"], path["reward"], marker + "-", color=colour, markersize=4, linewidth=1.2)
            thin: dict[str, Any] = {"color": colour, "linewidth": 0.6, "alpha": 0.6}
            axes.hlines(path["reward"], path["kl_ci_low"], path["kl_ci_high"], **thin)
            axes.vlines(path["kl"], path["reward_ci_low"], path["reward_ci_high"], **thin)
            axes.plot(last["kl"], last["reward"], marker=marker, color=colour, markersize=9, markeredgecolor="white")
        axes.plot(0, start, marker="o", color=look.colour[REFERENCE], markersize=6)
        axes.set_xlabel("KL to the reference (nats an answer)")
        axes.set_ylabel("mean reward")
        axes.set_title("Reward against KL along the training")
        legend_below(axes, marker_handles(results.labels, look))

    spoken = "; ".join(
        f"{row.method} after {row.training:g} of its training reward {number(row.reward)} at KL {number(row.kl)}"
        for row in rows_of(points)
    )
    alt = f"Mean reward against KL along the training, from the reference's {number(start)} at KL 0: {spoken}."
    height = 3.4 + legend_height(len(results.labels))
    return draw_panel(results.layout, "training_path", alt, points, draw, height)
