"""The page's figures: all deciding tests at one glance, the controls of all data sets, and the experiments' own."""

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from mallowspo.files import write_bytes
from mallowspo.layout import Layout
from mallowspo.paper.evidence import Evidence
from mallowspo.paper.finished import Place
from mallowspo.paper.settings import FigureSettings, Paper
from mallowspo.paper.tables import file_part
from mallowspo.paper.verdict import CANNOT_TELL, HELD, NOT_HELD
from mallowspo.report.style import PALETTE, Panel, draw_panel
from mallowspo.report.table import Table, rows_of
from mallowspo.report.words import number, plural

COLOURS = {HELD: PALETTE[2], NOT_HELD: PALETTE[1], CANNOT_TELL: "#6b7280"}
#: Effects further out than so many claimed ones are drawn at the edge.
EDGE = 4.0
FORMATS = (".svg", ".pdf", ".csv")


@dataclass(frozen=True)
class Copied:
    """A figure of an experiment, beside the page and in it: as an image, so that nothing in it can run."""

    name: str
    alt: str
    image: str


@dataclass(frozen=True)
class Group:
    """Figures under one heading."""

    title: str
    part: str
    place: Place
    figures: list[Copied]
    caption: str


def overview(layout: Layout, tests: Mapping[str, Evidence]) -> list[Panel]:
    """Every deciding test as a multiple of its claimed effect: 0 is nothing, 1 what the claim needs."""
    rows = [_relative(name, item) for name, item in tests.items() if item.decides and item.found]
    data = pd.DataFrame([row for row in rows if row])
    if data.empty:
        return []

    def draw(axes: Axes) -> None:
        for height, row in enumerate(rows_of(data)):
            colour = COLOURS.get(row.verdict, "#6b7280")
            low, high = max(row.low, -EDGE), min(row.high, EDGE)
            if low < high:
                axes.hlines(height, low, high, color=colour, linewidth=2, zorder=3)
            for end, beyond, sign in ((-EDGE, row.low < -EDGE, "<"), (EDGE, row.high > EDGE, ">")):
                if beyond:
                    axes.plot(end, height, sign, color=colour, markersize=6, zorder=4)
            if abs(row.effect) <= EDGE:
                axes.plot(row.effect, height, "o", color=colour, markersize=6, zorder=4)
        axes.axvline(0, color="#444444", linewidth=1)
        axes.axvline(1, color="#444444", linewidth=1, linestyle="--")
        _names(axes, list(data["number"]))
        axes.set_xlim(-EDGE - 0.3, EDGE + 0.3)
        axes.set_xlabel("effect as a multiple of the claimed one (dashed: 1)")
        axes.set_title("Every deciding test")

    spoken = "; ".join(f"{row.number} {number(row.effect)} ({row.verdict})" for row in rows_of(data))
    alt = f"Effects as multiples of the claimed ones: {spoken}."
    return [draw_panel(layout, "overview", alt, data, draw, height=1.1 + 0.25 * len(data))]


def _relative(name: str, item: Evidence) -> dict[str, Any] | None:
    found, verdict = item.found, item.verdict
    if found is None or verdict is None or not found.claimed > 0 or math.isnan(found.effect):
        return None
    low, high = (found.effect if math.isnan(bound) else bound for bound in (found.low, found.high))
    scaled = {key: value / found.claimed for key, value in (("effect", found.effect), ("low", low), ("high", high))}
    return {"number": name, "claim": item.claim, "what": item.title, **scaled, "verdict": verdict.word}


def controls_forest(layout: Layout, table: Table) -> list[Panel]:
    """A panel for each unit: every control of every data set, grey where effects are too small to be found."""
    panels = []
    for unit, data in table.numbers.groupby("unit", sort=False):
        panels.append(_controls_panel(layout, str(unit), data))
    return panels


def _controls_panel(layout: Layout, unit: str, data: pd.DataFrame) -> Panel:
    experiments = list(dict.fromkeys(data["experiment"]))
    colours = dict(zip(experiments, PALETTE * (1 + len(experiments) // len(PALETTE)), strict=False))

    def draw(axes: Axes) -> None:
        for height, row in enumerate(rows_of(data)):
            if math.isfinite(row.detectable):
                axes.barh(height, 2 * row.detectable, left=-row.detectable, height=0.55, color="#ececec", zorder=1)
            axes.hlines(height, row.ci_low, row.ci_high, color=colours[row.experiment], linewidth=1.8, zorder=3)
            face = colours[row.experiment] if row.must_beat else "white"
            axes.plot(
                row.effect, height, "o", color=colours[row.experiment], markerfacecolor=face, markersize=6, zorder=4
            )
        axes.axvline(0, color="#444444", linewidth=1)
        _names(axes, [str(row.control).replace("_", " ") for row in rows_of(data)])
        for colour, name in ((colour, name) for name, colour in colours.items()):
            axes.plot([], [], "o", color=colour, label=name)
        axes.set_xlabel(f"theta minus the control\n({unit})")
        axes.set_title("Is dispersion the cause?")
        axes.figure.legend(loc="outside lower center", ncols=1)

    spoken = "; ".join(
        f"{row.experiment}, {row.control}: {number(row.effect)} [{number(row.ci_low)}, {number(row.ci_high)}]"
        for row in rows_of(data)
    )
    alt = f"Forest plot of theta minus each control: {spoken}."
    name = "controls" if unit != "share" else "controls_share"
    return draw_panel(layout, name, alt, data, draw, height=1.45 + 0.27 * len(data) + 0.2 * len(experiments))


def _names(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def copied_groups(paper: Paper, places: Mapping[str, list[Place]], layout: Layout) -> list[Group]:
    """The experiments' figures in the paper's order; those that are not there are left out."""
    groups = []
    for settings in paper.figures:
        for place in places[settings.part]:
            figures = _copied(settings, place, layout) if place.ran else []
            if figures:
                groups.append(Group(settings.title, settings.part, place, figures, _caption(settings, place)))
    return groups


def _caption(settings: FigureSettings, place: Place) -> str:
    """With n, seeds and interval where the experiment is a comparison; a study's figures differ in theirs."""
    experiment = place.comparison
    if experiment is None:
        return f"{settings.caption} n, intervals and tests stand under the same figure in its report."
    estimates = place.table("estimates")
    prompts = int(estimates[estimates["metric"] == "reward"]["n"].max())
    confidence = f"{experiment.evaluation.comparison.confidence:.0%}"
    size = f"n = {plural(prompts, 'test prompt')}, {plural(len(experiment.seeds), 'seed')} a method"
    return f"{settings.caption} {size}; bars: {confidence} intervals. Tests stand in the claims."


def _copied(settings: FigureSettings, place: Place, layout: Layout) -> list[Copied]:
    folder = place.layout.figures
    files = dict.fromkeys(file for wanted in settings.figures for file in sorted(folder.glob(f"{wanted}.svg")))
    found = []
    for file in files:
        name = f"{file_part(place.name)}_{file_part(file.stem)}"
        for ending in FORMATS:
            own = file.with_suffix(ending)
            if own.exists():
                write_bytes(layout.figures / f"{name}{ending}", own.read_bytes())
        image = base64.b64encode(file.read_bytes()).decode()
        alt = f"{settings.title}: figure {file.stem} of {place.name}; its numbers are in the CSV file below."
        found.append(Copied(name, alt, f"data:image/svg+xml;base64,{image}"))
    return found


def written(layout: Layout) -> set[Path]:
    """Files of tables and figures that are there."""
    return {file for folder in (layout.tables, layout.figures) for file in folder.glob("*") if file.is_file()}
