"""Policies under other conditions (variants.parquet), by temperature or along their training: a table, panels."""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from mallowspo.evaluation.kl import K1
from mallowspo.layout import REFERENCE
from mallowspo.metric_names import SECOND_REWARD
from mallowspo.report.outcome_figures import marker_handles
from mallowspo.report.results import Results
from mallowspo.report.style import Look, Panel, draw_panel, legend_below, legend_height
from mallowspo.report.table import Table, rows_of
from mallowspo.report.words import count, interval, meaningful_decimals, number

#: metric of variants.parquet -> heading.
HEADINGS = {
    "reward": "Reward",
    SECOND_REWARD: "Second judge",
    "win_rate": "Wins by reward",
    "length": "Length (tokens)",
    "complete": "Complete",
}


@dataclass(frozen=True)
class Condition:
    """What differs between the policies of a table.

    Attributes:
        column: of variants.parquet.
        name: of the table's files, heading of its column, words in titles.
        headings: metric -> heading.
        drawn: metrics with a panel.
    """

    column: str
    name: str
    heading: str
    words: str
    headings: dict[str, str]
    drawn: tuple[str, ...]


TEMPERATURE = Condition(
    *("temperature", "temperatures", "Temperature", "temperature"),
    headings={"reward": HEADINGS["reward"], K1: "Log-ratio (nats)", **HEADINGS},
    drawn=("reward", SECOND_REWARD, K1, "win_rate"),
)
ALONG_TRAINING = Condition(
    *("training", "along_training", "Share of training", "share of the training"),
    headings={"reward": HEADINGS["reward"], K1: "KL, k1 (nats)", **HEADINGS},
    drawn=("reward", SECOND_REWARD, K1),
)


def rows_by(results: Results, condition: Condition) -> pd.DataFrame:
    """Rows of variants.parquet in which nothing differs but the condition; none where the experiment has one of it."""
    table = results.variants
    if condition is TEMPERATURE:
        rows = table[table["training"] == 1]
    else:
        compared = table["temperature"] == results.settings["generation"]["temperature"]
        rows = table[compared & (table["method"] != REFERENCE)]
    return rows if rows[condition.column].nunique() > 1 else rows.iloc[:0]


def variants_table(results: Results, condition: Condition) -> Table | None:
    """One row a policy and value of the condition; the CSV has each metric with _low and _high. None without others."""
    table = rows_by(results, condition)
    if table.empty:
        return None
    headings = _headings(table, condition)
    own = {name: table[table["metric"] == name] for name in headings}
    decimals = {name: meaningful_decimals(rows["ci_high"] - rows["ci_low"]) for name, rows in own.items()}
    numbers, shown = [], []
    for label in results.labels:
        for value, rows in table[table["method"] == label].groupby(condition.column):
            found = {row.metric: row for row in rows_of(rows)}
            values: dict[str, Any] = {"method": label, condition.column: value}
            texts = {"Method": label, condition.heading: f"{value:g}"}
            for name, heading in headings.items():
                row = found.get(name)  # nothing wins against itself
                mean, low, high = (row.estimate, row.ci_low, row.ci_high) if row else (math.nan,) * 3
                values |= {name: mean, f"{name}_low": low, f"{name}_high": high}
                texts[heading] = interval(mean, low, high, decimals[name])
            some = found["reward"]
            numbers.append({**values, "n_prompts": some.n, "seeds": some.seeds})
            shown.append({**texts, "n": count(some.n), "Seeds": str(some.seeds)})
    return Table(condition.name, pd.DataFrame(numbers), pd.DataFrame(shown), ("Method",))


def _headings(table: pd.DataFrame, condition: Condition) -> dict[str, str]:
    """Of what was measured: there may be no second judge."""
    measured = set(table["metric"])
    return {name: heading for name, heading in condition.headings.items() if name in measured}


def variants_figure(results: Results, look: Look, condition: Condition) -> list[Panel]:
    """A panel a metric, by the condition; nothing where the experiment has one of it."""
    table = rows_by(results, condition)
    drawn = [name for name in condition.drawn if name in _headings(table, condition)]
    return [_panel(results, look, condition, name, table[table["metric"] == name]) for name in drawn]


def _panel(results: Results, look: Look, condition: Condition, name: str, data: pd.DataFrame) -> Panel:
    column, heading = condition.column, condition.headings[name]
    title = f"{heading} by {condition.words}"
    labels = [label for label in results.labels if label in set(data["method"])]

    def draw(axes: Axes) -> None:
        for label in labels:
            own = data[data["method"] == label].sort_values(column)
            axes.vlines(own[column], own["ci_low"], own["ci_high"], color=look.colour[label], linewidth=1.2)
            axes.plot(own[column], own["estimate"], look.marker[label] + "-", color=look.colour[label])
        if name == "win_rate":
            axes.axhline(0.5, color="#444444", linewidth=1, linestyle="--")
        axes.set_xlabel(condition.words)
        axes.set_ylabel(heading[0].lower() + heading[1:] if name != K1 else heading)
        axes.set_title(title)
        legend_below(axes, marker_handles(labels, look))

    told = zip(data["method"], data["estimate"], data[column], strict=True)
    spoken = "; ".join(f"{method} {number(value)} at {number(at)}" for method, value, at in told)
    alt = f"{title}: {spoken}."
    return draw_panel(results.layout, f"{column}_{name}", alt, data, draw, 2.9 + legend_height(len(labels)))
