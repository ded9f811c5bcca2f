"""One look for all figures: colours that colour-blind readers tell apart, small panels that a telephone can show."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mallowspo.files import write_bytes, write_text
from mallowspo.layout import REFERENCE, Layout
from mallowspo.report.fonts import families

#: Okabe and Ito's palette without black and yellow, then Tol's darker ones.
PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    *("#332288", "#882255", "#999933", "#661100", "#44AA99", "#6F6F9F"),
)
MARKERS = "os^DvPX<>hp*"
REFERENCE_COLOUR = "#5f6368"
#: Inches. Narrow, so that nine-point text stays readable where a telephone shows the panel.
WIDTH = 4.2
STYLE: Any = {
    "svg.hashsalt": "mallowspo",
    # A name with two dollar signs is a name, and no formula.
    "text.parse_math": False,
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


@dataclass(frozen=True)
class Panel:
    """One figure on the page: files NAME.svg, NAME.pdf and NAME.csv lie in figures/."""

    name: str
    alt: str
    svg: str


class Look:
    """Colour and marker of every method, the same in all figures and tables."""

    def __init__(self, methods: Sequence[str]) -> None:
        self.colour = {method: PALETTE[i % len(PALETTE)] for i, method in enumerate(methods)}
        self.colour[REFERENCE] = REFERENCE_COLOUR
        # One marker further in each round of the palette: more methods than colours still differ in one of the two.
        rounds = [(i, i // len(PALETTE)) for i in range(len(methods))]
        self.marker = {
            method: MARKERS[(i + turn) % len(MARKERS)] for method, (i, turn) in zip(methods, rounds, strict=True)
        }
        self.marker[REFERENCE] = "o"


def draw_panel(
    layout: Layout,
    name: str,
    alt: str,
    data: pd.DataFrame,
    draw: Callable[[Axes], None],
    height: float = 3.1,
) -> Panel:
    """Draw one panel and write its SVG, PDF and CSV; the same data gives the same bytes."""
    return draw_files(layout.figures, name, alt, data, [draw], height)


def draw_files(
    folder: Path, name: str, alt: str, data: pd.DataFrame, draws: Sequence[Callable[[Axes], None]], height: float = 3.1
) -> Panel:
    """The same into any folder, with one set of axes below the other."""
    with matplotlib.rc_context({**STYLE, "font.family": families()}):
        figure = Figure(figsize=(WIDTH, height * len(draws)), layout="constrained")
        for draw, axes in zip(draws, figure.subplots(len(draws), squeeze=False).flat, strict=True):
            draw(axes)
        svg = _render(figure, "svg", {"Date": None}).decode("utf-8")
        # The layout found for the SVG holds for the PDF; finding it again would take as long as drawing.
        figure.set_layout_engine("none")
        pdf = _render(figure, "pdf", {"CreationDate": None})
    write_text(folder / f"{name}.svg", svg)
    write_bytes(folder / f"{name}.pdf", pdf)
    write_text(folder / f"{name}.csv", csv(data))
    return Panel(name, alt, _inline(svg, name))


def csv(table: pd.DataFrame) -> str:
    """A table as CSV, numbers with ten significant digits, so that equal inputs give equal bytes.

    A text that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    return str(table.map(_no_formula).to_csv(index=False, float_format="%.10g", lineterminator="\n"))


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def legend_below(axes: Axes, handles: Sequence[Any], columns: int = 3) -> None:
    """A legend under the axes, where it can hide no data."""
    if handles:
        axes.figure.legend(handles=list(handles), loc="outside lower center", ncols=min(columns, len(handles)))


def legend_height(entries: int, columns: int = 3) -> float:
    """Inches that `legend_below` takes."""
    return 0.19 * -(-entries // columns)


def _render(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


def _inline(svg: str, name: str) -> str:
    """The <svg> element alone, sized by the page, its ids made its own: many figures share one document."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, count=1, flags=re.DOTALL)
    element = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", element, count=1)
    element = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1 aria-hidden="true"', element, count=1)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", element)
