"""Every policy at its own temperature and at those of `evaluation.temperatures`: one table, one figure."""

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from mallowspo.evaluation.kl import K1
from mallowspo.report.outcome_figures import marker_handles
from mallowspo.report.results import Results
from mallowspo.report.style import Look, Panel, draw_panel, legend_below, legend_height
from mallowspo.report.table import Table, rows_of
from mallowspo.report.words import count, interval, meaningful_decimals, number

NAME = "temperatures"
#: metric of variants.parquet -> heading.
HEADINGS = {
    "reward": "Reward",
    K1: "Log-ratio (nats)",
    "win_rate": "Wins by reward",
    "length": "Length (tokens)",
    "complete": "Complete",
}
#: Of these there is a panel each.
DRAWN = ("reward", K1, "win_rate")


def temperature_table(results: Results) -> Table:
    """One row a policy and temperature; the CSV has each metric with _low and _high."""
    table = results.variants
    own = {name: table[table["metric"] == name] for name in HEADINGS}
    decimals = {name: meaningful_decimals(rows["ci_high"] - rows["ci_low"]) for name, rows in own.items()}
    numbers, shown = [], []
    for label in results.labels:
        rows = table[table["method"] == label]
        for temperature in sorted(set(rows["temperature"])):
            found = {row.metric: row for row in rows_of(rows[rows["temperature"] == temperature])}
            values: dict[str, Any] = {"method": label, "temperature": temperature}
            texts = {"Method": label, "Temperature": f"{temperature:g}"}
            for name, heading in HEADINGS.items():
                row = found.get(name)  # nothing wins against itself
                value, low, high = (row.estimate, row.ci_low, row.ci_high) if row else (math.nan,) * 3
                values |= {name: value, f"{name}_low": low, f"{name}_high": high}
                texts[heading] = interval(value, low, high, decimals[name])
            some = found["reward"]
            numbers.append({**values, "n_prompts": some.n, "seeds": some.seeds})
            shown.append({**texts, "n": count(some.n), "Seeds": str(some.seeds)})
    return Table(NAME, pd.DataFrame(numbers), pd.DataFrame(shown), ("Method",))


def temperature_figure(results: Results, look: Look) -> list[Panel]:
    """Reward, log-ratio and wins by temperature; nothing where there is one."""
    table = results.variants
    drawn = DRAWN if len(table) else ()
    return [_panel(results, look, name, table[table["metric"] == name]) for name in drawn]


def _panel(results: Results, look: Look, name: str, data: pd.DataFrame) -> Panel:
    labels = [label for label in results.labels if label in set(data["method"])]
    title = HEADINGS[name]

    def draw(axes: Axes) -> None:
        for label in labels:
            own = data[data["method"] == label].sort_values("temperature")
            axes.vlines(own["temperature"], own["ci_low"], own["ci_high"], color=look.colour[label], linewidth=1.2)
            axes.plot(own["temperature"], own["estimate"], look.marker[label] + "-", color=look.colour[label])
        if name == "win_rate":
            axes.axhline(0.5, color="#444444", linewidth=1, linestyle="--")
        axes.set_xlabel("temperature")
        axes.set_ylabel(title.lower())
        axes.set_title(f"{title} by temperature")
        legend_below(axes, marker_handles(labels, look))

    spoken = "; ".join(f"{row.method} {number(row.estimate)} at {number(row.temperature)}" for row in rows_of(data))
    alt = f"{title} by temperature: {spoken}."
    return draw_panel(results.layout, f"temperature_{name}", alt, data, draw, 2.9 + legend_height(len(labels)))
