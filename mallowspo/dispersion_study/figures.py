"""Figures of the study; each writes its SVG, PDF and CSV."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from mallowspo.dispersion_study.association import RankCorrelation
from mallowspo.dispersion_study.people import Votes
from mallowspo.dispersion_study.rankings import CHOICE, ESTIMATORS, LIKELIHOOD, RANKING, exact_index
from mallowspo.dispersion_study.settings import RankingSettings
from mallowspo.dispersion_study.tokens import BIGRAM_BY_PROMPT, DIFFER, EQUAL, Condition
from mallowspo.layout import Layout
from mallowspo.report.style import MARKERS, PALETTE, Panel, draw_panel, legend_below, legend_height

COLOUR = dict(zip((LIKELIHOOD, CHOICE, RANKING), PALETTE, strict=False))
MARKER = dict(zip((LIKELIHOOD, CHOICE, RANKING), MARKERS, strict=False))
TRUE_LABEL = "true −log φ"
GUIDE: Any = {"color": "#888888", "linewidth": 1, "linestyle": ":"}
#: Fifths of the pairs by their estimate, where a scatter alone shows too little.
FIFTHS = 5


def rankings(
    layout: Layout, settings: RankingSettings, table: pd.DataFrame, summary: pd.DataFrame, confidence: float
) -> list[Panel]:
    """The law itself; rank correlation by annotators; the estimates with most annotators, and with fewest."""
    most, fewest = table["annotators"].max(), table["annotators"].min()
    return [
        _exact(layout, settings),
        _by_annotators(layout, summary),
        _recovery(layout, table, summary, confidence, most, calibrated=True),
        _recovery(layout, table, summary, confidence, fewest, calibrated=False),
    ]


def _exact(layout: Layout, settings: RankingSettings) -> Panel:
    grid = np.exp(-np.linspace(1e-3, -np.log(min(settings.phis)), 60))
    rows = [
        {"items": items, "phi": phi, "truth": -np.log(phi), "form": form, "estimate": -np.log(index)}
        for items in settings.items
        for phi in grid
        for form, index in exact_index(float(phi), items, settings.exponent).items()
    ]
    data = pd.DataFrame(rows)
    colours = dict(zip(settings.items, PALETTE, strict=False))
    dashes: dict[str, Any] = {CHOICE: "-", RANKING: "--"}

    def draw(axes: Axes) -> None:
        for items, colour in colours.items():
            for form, dash in dashes.items():
                part = data[(data["items"] == items) & (data["form"] == form)]
                axes.plot(part["truth"], part["estimate"], dash, color=colour)
        axes.axline((0, 0), slope=1, **GUIDE)
        axes.set(xlabel=TRUE_LABEL, ylabel="−log of the normalised entropy", title="The law itself, uncalibrated")
        handles = [Line2D([], [], color=colour, label=f"{items} items") for items, colour in colours.items()]
        handles += [Line2D([], [], color="#444444", ls=dash, label=form) for form, dash in dashes.items()]
        legend_below(axes, handles, 2)

    entries = len(settings.items) + 2
    alt = "Minus log normalised entropy against true minus log phi: curves that start flat at 0, then rise."
    return draw_panel(layout, "rankings_law", alt, data, draw, 3.1 + legend_height(entries, 2))


def _recovery(
    layout: Layout, table: pd.DataFrame, summary: pd.DataFrame, confidence: float, annotators: int, calibrated: bool
) -> Panel:
    items = table["items"].max()
    cell = table[(table["items"] == items) & (table["annotators"] == annotators)]
    constants = summary[(summary["items"] == items) & (summary["annotators"] == annotators)].set_index("estimator")
    tails = (1 - confidence) / 2
    scale = "calibrated" if calibrated else "uncalibrated"
    rows = []
    for (estimator, truth), part in cell.groupby(["estimator", "truth"]):
        values = part["estimate"] * (constants.loc[estimator, "constant"] if calibrated else 1)
        low, high = values.quantile([tails, 1 - tails])
        rows.append({"estimator": estimator, "truth": truth, "mean": values.mean(), "low": low, "high": high})
    data = pd.DataFrame(rows)

    def draw(axes: Axes) -> None:
        axes.axline((0, 0), slope=1, **GUIDE)
        for shift, estimator in zip((-1, 0, 1), ESTIMATORS, strict=True):
            part = data[data["estimator"] == estimator]
            x = part["truth"] + shift * 0.012
            axes.vlines(x, part["low"], part["high"], color=COLOUR[estimator], linewidth=1)
            axes.plot(x, part["mean"], MARKER[estimator], color=COLOUR[estimator], markersize=4.5, label=estimator)
        axes.set(xlabel=TRUE_LABEL, ylabel=f"estimate of −log φ, {scale}")
        axes.set_title(f"{items} items, {annotators} annotators")
        legend_below(axes, axes.get_legend_handles_labels()[0], 2)

    alt = f"Estimates ({scale}) against true minus log phi, {items} items, {annotators} annotators."
    return draw_panel(layout, f"rankings_{annotators}_annotators", alt, data, draw, 3.1 + legend_height(3, 2))


def _by_annotators(layout: Layout, summary: pd.DataFrame) -> Panel:
    shown = [summary["items"].min(), summary["items"].max()]
    data = summary[summary["items"].isin(shown)][["items", "annotators", "estimator", "rho", "rho_low", "rho_high"]]

    def draw(axes: Axes) -> None:
        for items, estimator in itertools.product(dict.fromkeys(shown), ESTIMATORS):
            # With two items all three are functions of one share of votes, so their ranks are the same.
            if items == 2 and estimator != LIKELIHOOD:
                continue
            part = data[(data["items"] == items) & (data["estimator"] == estimator)]
            dash, colour = "--" if items == shown[0] else "-", "#5f6368" if items == 2 else COLOUR[estimator]
            axes.fill_between(part["annotators"], part["rho_low"], part["rho_high"], color=colour, alpha=0.15, lw=0)
            label = "2 items, any" if items == 2 else f"{items} items, {estimator}"
            axes.plot(part["annotators"], part["rho"], dash, color=colour, marker=MARKER[estimator], ms=4, label=label)
        axes.set_xscale("log")
        ticks = sorted(data["annotators"].unique())
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set(xlabel="annotators of each prompt", ylabel="Spearman's ρ with −log φ", title="How many annotators")
        legend_below(axes, axes.get_legend_handles_labels()[0], 1)

    alt = "Rank correlation of each estimate with the true dispersion, by number of annotators."
    return draw_panel(layout, "rankings_annotators", alt, data, draw, 3.1 + legend_height(4, 1))


def tokens(layout: Layout, condition: Condition, summary: pd.DataFrame) -> list[Panel]:
    """The default against the sequence entropy; the bigram against the rate; all estimators against both truths."""
    return [
        _against_sequence(layout, condition),
        _bigrams(layout, condition),
        *(_two_truths(layout, summary[summary["condition"] == name], name) for name in (EQUAL, DIFFER)),
    ]


def _two_truths(layout: Layout, rows: pd.DataFrame, name: str) -> Panel:
    series = {"rate": ("entropy a token", PALETTE[0]), "sequence": ("entropy of the whole answer", PALETTE[1])}
    data = rows[["estimator", *(f"rho_{key}{end}" for key in series for end in ("", "_low", "_high"))]]
    labels = [label.replace(", ", ",\n", 1) for label in data["estimator"]]

    def draw(axes: Axes) -> None:
        places = np.arange(len(data))[::-1]
        for shift, (key, (label, colour)) in zip((0.13, -0.13), series.items(), strict=True):
            _bars(axes, places + shift, data, f"rho_{key}", colour, label)
        _named(axes, places, labels)
        axes.set_xlabel("Spearman's ρ")
        axes.set_title(name.capitalize())
        legend_below(axes, axes.get_legend_handles_labels()[0], 2)

    alt = (
        "Rank correlation of each estimator with the entropy a token and with the entropy of the whole answer, " + name
    )
    return draw_panel(
        layout, f"tokens_{name.replace(' ', '_')}", alt, data, draw, 0.9 + 0.34 * len(data) + legend_height(2, 2)
    )


def _bars(axes: Axes, places: Any, data: pd.DataFrame, column: str, colour: str, label: str, marker: str = "o") -> None:
    axes.hlines(places, data[f"{column}_low"], data[f"{column}_high"], color=colour, linewidth=1.6)
    axes.plot(data[column], places, marker, color=colour, markersize=4.5, label=label)


def _named(axes: Axes, places: Any, labels: Sequence[str]) -> None:
    axes.axvline(0, color="#444444", linewidth=0.8)
    axes.set_yticks(places, labels)
    axes.tick_params(axis="y", labelsize=7.5)
    axes.grid(visible=False, axis="y")


def _against_sequence(layout: Layout, condition: Condition) -> Panel:
    data = pd.DataFrame(
        {
            "sequence_entropy": condition.sequence_entropy,
            "entropy": condition.indices["entropy"],
            "mean_length": condition.mean_length,
        }
    )

    def draw(axes: Axes) -> None:
        dots = axes.scatter(
            data["sequence_entropy"], data["entropy"], c=data["mean_length"], s=11, cmap="viridis", linewidths=0
        )
        bar = axes.figure.colorbar(dots, ax=axes, label="expected tokens")
        bar.outline.set_visible(False)
        axes.set(xlabel="true entropy of the answer (nats)", ylabel="index, estimator entropy")
        axes.set_title("The length is averaged away")

    alt = "The index of estimator entropy against the true sequence entropy: one fan for each length of answers."
    return draw_panel(layout, "tokens_length", alt, data, draw)


def _bigrams(layout: Layout, condition: Condition) -> Panel:
    shown = {"entropy": PALETTE[0], "bigram": PALETTE[1], BIGRAM_BY_PROMPT: PALETTE[2]}
    data = pd.DataFrame({"rate": condition.rate, **{label: condition.indices[label] for label in shown}})

    def draw(axes: Axes) -> None:
        for marker, (label, colour) in zip(MARKERS, shown.items(), strict=False):
            axes.scatter(
                data["rate"], data[label], s=9, marker=marker, color=colour, alpha=0.55, linewidths=0, label=label
            )
        axes.axline((float(data["rate"].mean()),) * 2, slope=1, **GUIDE)
        axes.set(xlabel="true entropy a token / log V", ylabel="index", title="What the bigram sees")
        legend_below(axes, axes.get_legend_handles_labels()[0])

    alt = "Indices against the true entropy a token: the bigram's stay at one height whatever the prompt."
    return draw_panel(layout, "tokens_bigram", alt, data, draw, 3.1 + legend_height(3))


def people(layout: Layout, votes: Votes, found: dict[str, RankCorrelation], effect: float) -> list[Panel]:
    """Each estimator's correlation with the voters' entropy; the voters' entropy in fifths of the default estimate."""
    return [_voters_forest(layout, votes, found, effect), _voters_fifths(layout, votes)]


def _voters_forest(layout: Layout, votes: Votes, found: dict[str, RankCorrelation], effect: float) -> Panel:
    data = pd.DataFrame([{"estimator": label, **vars(result)} for label, result in found.items()])
    data = data.rename(columns={"low": "rho_low", "high": "rho_high"})
    labels = [label.replace(", ", ",\n", 1) for label in data["estimator"]]

    def draw(axes: Axes) -> None:
        places = np.arange(len(data))[::-1]
        axes.axvspan(-effect, effect, color="#eeeeee", linewidth=0)
        _bars(axes, places + 0.13, data, "rho", PALETTE[0], "alone")
        _bars(axes, places - 0.13, data, "partial", PALETTE[1], "given the answers' length", "s")
        _named(axes, places, labels)
        axes.set_xlabel("Spearman's ρ with the voters' entropy")
        axes.set_title(votes.name)
        legend_below(axes, axes.get_legend_handles_labels()[0], 2)

    alt = f"Rank correlation of each estimator with the voters' entropy, {votes.name}."
    height = 0.9 + 0.34 * len(data) + legend_height(2, 2)
    return draw_panel(layout, f"people_{votes.name}", alt, data, draw, height)


def _voters_fifths(layout: Layout, votes: Votes) -> Panel:
    data = votes.table[["row", "voted_entropy", "entropy"]]
    fifth = pd.Series(np.array_split(np.argsort(data["entropy"].to_numpy(), kind="stable"), FIFTHS))
    parts = [data.iloc[positions] for positions in fifth if len(positions)]

    def draw(axes: Axes) -> None:
        axes.scatter(data["entropy"], data["voted_entropy"], s=5, color=PALETTE[0], alpha=0.25, linewidths=0)
        x = [part["entropy"].median() for part in parts]
        for share, style in ((0.25, ":"), (0.5, "-"), (0.75, ":")):
            y = [part["voted_entropy"].quantile(share) for part in parts]
            axes.plot(x, y, style, marker="o", markersize=4, color=PALETTE[1])
        axes.set(xlabel="index, estimator entropy", ylabel="entropy of the votes (bits)")
        axes.set_title(f"{len(data):,} pairs")

    alt = (
        f"Entropy of the votes against the index of estimator entropy, quartiles in fifths of the pairs, {votes.name}."
    )
    return draw_panel(layout, f"people_{votes.name}_fifths", alt, data, draw, 3.4)
