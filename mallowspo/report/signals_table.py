"""Dispersion weight against the betas of adaptive methods, by prompt: rank correlations and a scatter of each."""

import math

import pandas as pd
from matplotlib.axes import Axes

from mallowspo.compare_signals import signal_values
from mallowspo.report.results import Results
from mallowspo.report.style import Look, Panel, draw_panel
from mallowspo.report.table import Table, rows_of
from mallowspo.report.words import ABSENT, count, interval, number, p_value

NAME = "signals"
#: Points of a scatter; the CSV has all.
DRAWN = 400


def signals_table(results: Results) -> Table | None:
    """One row a signal; None where the settings ask for none."""
    if results.signals.empty:
        return None
    shown = pd.DataFrame(
        {
            "Signal": row.signal,
            "Method": row.method,
            "Rank correlation": ABSENT if math.isnan(row.rho) else interval(row.rho, row.ci_low, row.ci_high, 2, True),
            "p": p_value(row.p),
            "Holm p": p_value(row.p_holm),
            "Prompts": row.prompts,
            "n": count(row.n),
            "Seeds": str(row.seeds),
            "Note": row.note,
        }
        for row in rows_of(results.signals)
    )
    return Table(NAME, results.signals, shown, ("Signal", "Method", "Prompts", "Note"))


def signals_figure(results: Results, look: Look) -> list[Panel]:
    """A panel a signal that has a correlation: weight to the right, signal upwards, a point a prompt."""
    values = signal_values(results.view, results.layout)
    return [
        _panel(results, look, row.method, row.signal, values[row.method, row.signal], row.rho)
        for row in rows_of(results.signals)
        if not math.isnan(row.rho)
    ]


def _panel(results: Results, look: Look, method: str, signal: str, table: pd.DataFrame, rho: float) -> Panel:
    data = table.reset_index().assign(method=method)
    # Ids are digests: the first of them are a draw that nobody made.
    drawn = data.sort_values("prompt_id").head(DRAWN)

    def draw(axes: Axes) -> None:
        axes.scatter(drawn["weight"], drawn["signal"], s=12, color=look.colour[method], alpha=0.5, linewidths=0)
        axes.set_xlabel("dispersion weight of the prompt")
        axes.set_ylabel(signal)
        axes.set_title(f"{signal[0].upper()}{signal[1:]} of {method}")

    alt = (
        f"Scatter of the {signal} of {method} against the dispersion weight, a point a prompt: {number(rho)} by ranks."
    )
    name = f"{NAME}_{method}_{signal.replace(' ', '_').replace('-', '_')}"
    return draw_panel(results.layout, name, alt, data, draw)
