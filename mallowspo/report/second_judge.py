"""The first judge's gains against the second's (second_opinion.parquet): a table, a figure, and how to read them."""

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from mallowspo.compare_judges import AGREEMENT, EXCESS, FIRST, SECOND
from mallowspo.report.outcome_figures import marker_handles
from mallowspo.report.results import Results
from mallowspo.report.style import Look, Panel, draw_panel, legend_below, legend_height
from mallowspo.report.table import Table, rows_of
from mallowspo.report.words import ABSENT, count, interval, meaningful_decimals, number, p_value

NAME = "second_opinion"
HEADINGS = {FIRST: "Gain, first judge", SECOND: "Gain, second judge", EXCESS: "Excess"}


def second_judge_table(results: Results) -> Table | None:
    """One row a method: both gains over the reference and their difference. None without a second judge."""
    numbers = results.second_opinion
    if numbers.empty:
        return None
    gains = numbers[numbers["measure"] != AGREEMENT]
    decimals = meaningful_decimals(gains["ci_high"] - gains["ci_low"])
    shown = []
    for label in results.methods:
        found = {row.measure: row for row in rows_of(gains[gains["method"] == label])}
        texts = {"Method": label}
        for measure, heading in HEADINGS.items():
            row = found[measure]
            texts[heading] = ABSENT if math.isnan(row.estimate) else _told(row, decimals)
        texts |= {"p": p_value(found[EXCESS].p), "Holm p": p_value(found[EXCESS].p_holm)}
        shown.append({**texts, "n": count(found[EXCESS].n), "Seeds": str(found[EXCESS].seeds)})
    return Table(NAME, numbers, pd.DataFrame(shown), ("Method",))


def second_judge_words(results: Results) -> str:
    """Who the judges are, how alike they are, and what the numbers mean; empty without a second judge."""
    if results.second_opinion.empty:
        return ""
    table = results.second_opinion
    agreement = rows_of(table[table["measure"] == AGREEMENT])[0]
    evaluation = results.view.evaluation
    alike = f"unknown ({agreement.note or 'one of them gives all the same'})"
    if not math.isnan(agreement.estimate):
        alike = f"{interval(agreement.estimate, agreement.ci_low, agreement.ci_high, 2)} (n = {agreement.n})"
    notes = [note for note in dict.fromkeys(table.loc[table["measure"] == EXCESS, "note"]) if note]
    return (
        f"First judge: {evaluation.judge}. Second: {evaluation.second_judge}. Gains over the reference, in standard "
        "deviations of the reference's rewards over the prompts by the same judge. Excess: the first gain minus the "
        f"second, paired by prompt and seed; {results.confidence} intervals, Holm's correction over the methods. Above "
        "0 the policy pleases the first judge more than the second bears out. Rank correlation of both judges over the "
        f"prompts, on the reference's answers: {alike}. The lower it is, the less a small second gain says. "
        + " ".join(f"No numbers: {note}." for note in notes)
    ).strip()


def second_judge_figure(results: Results, look: Look) -> list[Panel]:
    """Both gains of every method with their intervals, and the line on which they are equal."""
    table = results.second_opinion
    gains = table[table["measure"].isin([FIRST, SECOND])]
    if gains.empty or bool(gains["estimate"].isna().any()):
        return []
    columns = ["estimate", "ci_low", "ci_high"]
    wide = gains.pivot(index="method", columns="measure", values=columns).loc[results.methods]
    data = pd.DataFrame(
        {f"{measure}_{column}": wide[column, measure] for measure in (FIRST, SECOND) for column in columns}
    ).reset_index()
    lowest, highest = (float(found) for found in (gains["ci_low"].min(), gains["ci_high"].max()))
    ends = [min(0.0, lowest), max(0.0, highest)]

    def draw(axes: Axes) -> None:
        axes.axvline(0, color="#bbbbbb", linewidth=0.8)
        axes.axhline(0, color="#bbbbbb", linewidth=0.8)
        axes.plot(ends, ends, color="#444444", linewidth=0.8, linestyle=":")
        for row in rows_of(data):
            colour, x, y = look.colour[row.method], row.first_estimate, row.second_estimate
            axes.hlines(y, row.first_ci_low, row.first_ci_high, color=colour, linewidth=1.2)
            axes.vlines(x, row.second_ci_low, row.second_ci_high, color=colour, linewidth=1.2)
            axes.plot(x, y, marker=look.marker[row.method], color=colour, markersize=7, markeredgecolor="white")
        axes.set_xlabel("gain by the first judge (standard deviations)")
        axes.set_ylabel("gain by the second judge")
        axes.set_title("What the second judge sees of the gain")
        legend_below(axes, marker_handles(results.methods, look))

    spoken = "; ".join(f"{row.method} {number(row.first_estimate)} and {number(row.second_estimate)}"
                       for row in rows_of(data))  # fmt: skip
    alt = f"Gain over the reference by the first judge and by the second, in standard deviations: {spoken}."
    return [draw_panel(results.layout, NAME, alt, data, draw, 3.3 + legend_height(len(results.methods)))]


def _told(row: Any, decimals: int) -> str:
    return interval(row.estimate, row.ci_low, row.ci_high, decimals, True)
