"""Figures of the data: the dispersion of the prompts, with example prompts."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from mallowspo.report.results import Results
from mallowspo.report.style import PALETTE, Panel, draw_panel
from mallowspo.report.words import number, shown_text

PERCENTILES = (5, 50, 95)
EXAMPLE_CHARACTERS = 600


@dataclass(frozen=True)
class DispersionExample:
    """The pair at one percentile of the dispersion index."""

    percentile: int
    index: str
    weight: str
    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Histogram:
    """What one histogram shows: a column of dispersion.parquet, under its title, in its colour."""

    column: str
    title: str
    label: str
    colour: str

    def draw(self, axes: Axes, values: pd.Series) -> None:
        axes.hist(values, bins=min(40, max(8, round(len(values) ** 0.5))), color=self.colour, alpha=0.75)
        for percentile, value in _marks(values).items():
            axes.axvline(value, color="#333333", linewidth=1, linestyle="--")
            axes.annotate(f"{percentile}th", (value, 1.0), xycoords=("data", "axes fraction"), ha="center", va="bottom",
                          fontsize=7.5, color="#333333")  # fmt: skip
        axes.grid(visible=False, axis="x")
        axes.set_xlabel(self.label)
        axes.set_ylabel("pairs")
        axes.set_title(self.title, pad=14)

    def spoken(self, values: pd.Series) -> str:
        marks = ", ".join(f"{percentile}th percentile {number(value)}" for percentile, value in _marks(values).items())
        return f"Histogram of the {self.title.lower()} over {len(values)} pairs: {marks}."


HISTOGRAMS = (
    Histogram("dispersion_index", "Dispersion index", "normalised entropy of the pair", PALETTE[0]),
    Histogram("weight", "Weight", "weight of the pair, −2 log φ", PALETTE[1]),
)


def _marks(values: pd.Series) -> dict[int, float]:
    return {percentile: float(values.quantile(percentile / 100)) for percentile in PERCENTILES}


def dispersion_histograms(results: Results) -> list[Panel]:
    """Histograms of dispersion index and weight over all pairs, with the 5th, 50th and 95th percentile."""
    return [_histogram(results, shown) for shown in HISTOGRAMS]


def _histogram(results: Results, shown: Histogram) -> Panel:
    data = results.dispersion[["pair_id", "split", shown.column]]
    values = data[shown.column]
    draw = partial(shown.draw, values=values)
    return draw_panel(results.layout, shown.column, shown.spoken(values), data, draw)


def dispersion_words(summary: dict[str, Any]) -> list[str]:
    """dispersion.json in sentences, every counted case among them."""
    told = "calibrated to mean weight 1 on the training pairs" if summary["calibrated"] else "given, not calibrated"
    weight = summary["weight"]
    words = [
        f"Estimator {summary['estimator']}, convention {summary['convention']}.",
        f"Constant {number(summary['constant'])} ({told}; the official code's is {summary['official_constant']}).",
        f"Weight of a training pair: median {number(weight['p50'])}, 5th to 95th percentile {number(weight['p05'])} to "
        f"{number(weight['p95'])}.",
        f"Raised to the floor: {summary['clamped']}; cut to 1: {summary['above_one']}; weight 0: "
        f"{summary['zero_weight']}; no token that counts: {summary['undefined']}.",
    ]
    if summary["length_correlation"] is not None:
        words.append(f"Rank correlation of weight and length: {number(summary['length_correlation'], signed=True)}.")
    if "tokenizer_vocabulary" in summary:
        words.append(
            f"The model's output is {summary['vocabulary']} wide, which normalises the entropy; its tokenizer knows "
            f"{summary['tokenizer_vocabulary']} tokens."
        )
    return words


def dispersion_examples(results: Results) -> list[DispersionExample]:
    """The pairs nearest to the 5th, 50th and 95th percentile of the dispersion index."""
    ordered = results.dispersion.sort_values(["dispersion_index", "pair_id"])
    examples = []
    for percentile in PERCENTILES:
        row = ordered.iloc[round(percentile / 100 * (len(ordered) - 1))]
        texts = {side: shown_text(str(row[side]), EXAMPLE_CHARACTERS) for side in ("prompt", "chosen", "rejected")}
        examples.append(DispersionExample(percentile, number(row["dispersion_index"]), number(row["weight"]), **texts))
    return examples
