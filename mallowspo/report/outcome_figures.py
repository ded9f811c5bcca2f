"""Figures of what the policies achieve: differences, reward against KL, win rates."""

import math
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from mallowspo.evaluation.frontier import curves
from mallowspo.files import digest
from mallowspo.metric_names import bare, is_outcome, opponent
from mallowspo.report.results import Results
from mallowspo.report.style import Look, Panel, draw_panel, legend_below, legend_height
from mallowspo.report.table import rows_of
from mallowspo.report.words import metric_title, number


def forest(results: Results, look: Look, baseline: str) -> list[Panel]:
    """One panel an outcome: every method's difference to `baseline` with its interval."""
    against = results.comparison[results.comparison["baseline"] == baseline]
    return [
        _forest_panel(results, look, baseline, metric, against[against["metric"] == metric])
        for metric in results.metrics()
        if is_outcome(metric) and (against["metric"] == metric).any()
    ]


def _forest_panel(results: Results, look: Look, baseline: str, metric: str, data: pd.DataFrame) -> Panel:
    def draw(axes: Axes) -> None:
        for height, row in enumerate(rows_of(data)):
            colour = look.colour[row.method]
            if math.isfinite(row.detectable):
                axes.barh(height, 2 * row.detectable, left=-row.detectable, height=0.55, color="#ececec", zorder=1)
            _whisker(axes, row.difference, height, row.ci_low, row.ci_high, colour, look.marker[row.method])
        axes.axvline(0, color="#444444", linewidth=1)
        _name_rows(axes, list(data["method"]))
        axes.set_xlabel(f"difference to {baseline}")
        axes.set_title(metric_title(metric))

    spoken = "; ".join(f"{row.method} {results.told(row, signed=True)}" for row in rows_of(data))
    alt = f"Forest plot of the difference in {metric_title(metric)} to {baseline}: {spoken}."
    name = f"forest_{baseline}_{_file_name(metric)}"
    return draw_panel(results.layout, name, alt, data, draw, height=1.1 + 0.27 * len(data))


def _file_name(metric: str) -> str:
    """Of a metric; what others named (an opponent, a task) is told apart though its own characters are no file name."""
    name = re.sub(r"\W+", "_", metric)
    return name if re.fullmatch(r"[\w /.>-]{1,80}", metric) else f"{name[:60]}_{digest(metric, 8)}"


def _whisker(axes: Axes, x: float, y: float, low: float, high: float, colour: str, marker: str) -> None:
    if math.isfinite(low) and math.isfinite(high):
        axes.hlines(y, low, high, color=colour, linewidth=1.8, zorder=3)
    axes.plot(x, y, marker=marker, color=colour, markersize=6, zorder=4)


def _name_rows(axes: Axes, labels: list[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.use_sticky_edges = False
    axes.margins(x=0.06)


def frontier(results: Results, look: Look) -> list[Panel]:
    """Reward against KL: runs as small points, each method's mean with both intervals, the reference at KL 0.

    Labels that differ in beta alone have one colour, and a line joins their means.
    """
    runs = pd.DataFrame(
        {
            "method": label,
            "seed": seed,
            "kl": results.values["kl"][label][seed].mean(),
            "reward": results.values["reward"][label][seed].mean(),
        }
        for label in results.labels
        for seed in results.values["reward"][label]
    )
    means = {label: _point(results, label) for label in results.labels}
    joined = curves(results.view.methods)
    colours = _curve_colours(results.methods, joined, look)
    data = pd.concat([runs, pd.DataFrame(means.values())], ignore_index=True)

    def draw(axes: Axes) -> None:
        axes.axvline(0, color="#bbbbbb", linewidth=0.8)
        for labels in joined:
            along = sorted((means[label]["kl"], means[label]["reward"]) for label in labels)
            axes.plot(*zip(*along, strict=True), color=colours[labels[0]], linewidth=1.4, zorder=2)
        for label in results.labels:
            colour, marker = colours[label], look.marker[label]
            own = runs[runs["method"] == label]
            if len(own) > 1:
                axes.scatter(own["kl"], own["reward"], s=14, marker=marker, color=colour, alpha=0.45, linewidths=0)
            mean = means[label]
            thin: dict[str, Any] = {"color": colour, "linewidth": 0.8, "alpha": 0.5, "zorder": 1}
            axes.hlines(mean["reward"], mean["kl_ci_low"], mean["kl_ci_high"], **thin)
            axes.vlines(mean["kl"], mean["reward_ci_low"], mean["reward_ci_high"], **thin)
            edge: dict[str, Any] = {"markeredgecolor": "white", "zorder": 3}
            axes.plot(mean["kl"], mean["reward"], marker=marker, color=colour, markersize=7, **edge)
        axes.set_xlabel("KL to the reference (nats an answer)")
        axes.set_ylabel("mean reward")
        axes.set_title("Reward against KL")
        legend_below(axes, marker_handles(results.labels, look, colours))

    spoken = "; ".join(
        f"{label} reward {number(mean['reward'])} at KL {number(mean['kl'])}" for label, mean in means.items()
    )
    height = 3.1 + legend_height(len(results.labels))
    return [draw_panel(results.layout, "frontier", f"Mean reward against KL: {spoken}.", data, draw, height)]


def _curve_colours(methods: Sequence[str], joined: Sequence[Sequence[str]], look: Look) -> dict[str, str]:
    """Labels of a curve have the colour of its first; where two curves would have the same, the palette is dealt anew
    to curves in place of labels."""
    first = {method: method for method in methods} | {label: labels[0] for labels in joined for label in labels}
    curves_first = list(dict.fromkeys(first.values()))
    dealt = {label: look.colour[label] for label in curves_first}
    if len(set(dealt.values())) < len(dealt):
        dealt = Look(curves_first).colour
    return look.colour | {label: dealt[of] for label, of in first.items()}


def _point(results: Results, label: str) -> dict[str, Any]:
    point: dict[str, Any] = {"method": label, "seed": "mean"}
    for row in rows_of(results.estimates):
        if row.method == label and row.metric in ("kl", "reward"):
            bounds = {f"{row.metric}_ci_low": row.ci_low, f"{row.metric}_ci_high": row.ci_high}
            point |= {row.metric: row.estimate, **bounds}
    return point


def marker_handles(labels: list[str], look: Look, colours: dict[str, str] | None = None) -> list[Line2D]:
    """Legend entries: a marker for every label, in its own colour or another."""
    colours = colours or look.colour
    return [
        Line2D([], [], linestyle="none", marker=look.marker[label], color=colours[label], label=label)
        for label in labels
    ]


def win_rates(results: Results, look: Look) -> list[Panel]:
    """A panel an opponent, the reference first: every method's win rate with its interval and the 50 % line."""
    metrics = [metric for metric in results.metrics() if bare(metric) == "win_rate"]
    return [_win_rate_panel(results, look, metric) for metric in metrics]


def _win_rate_panel(results: Results, look: Look, metric: str) -> Panel:
    against = opponent(metric)
    table = results.estimates
    data = table[(table["metric"] == metric) & (table["method"] != against)]

    def draw(axes: Axes) -> None:
        for height, row in enumerate(rows_of(data)):
            colour = look.colour[row.method]
            _whisker(
                axes, 100 * row.estimate, height, 100 * row.ci_low, 100 * row.ci_high, colour, look.marker[row.method]
            )
        axes.axvline(50, color="#444444", linewidth=1, linestyle="--")
        _name_rows(axes, list(data["method"]))
        axes.set_xlabel("answers preferred (%)")
        axes.set_title(metric_title(metric))

    spoken = "; ".join(f"{row.method} {results.told(row)}" for row in rows_of(data))
    alt = f"Win rates against {against}, with a line at one half: {spoken}."
    return draw_panel(results.layout, _file_name(metric), alt, data, draw, height=1.1 + 0.27 * len(data))
