"""The figures of the bandit's page. Bars and bands: t-intervals over seeds."""

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from scipy import stats

from mallowspo.bandits.compare import SAME_KL
from mallowspo.bandits.runs import Runs
from mallowspo.bandits.settings import BanditStudy
from mallowspo.bandits.tables import AGAINST, OUTCOME_TITLES, told
from mallowspo.layout import Layout
from mallowspo.report.style import PALETTE, Look, Panel, draw_panel, legend_below, legend_height
from mallowspo.report.table import rows_of
from mallowspo.report.words import number

#: The policies of the figures with lines; all others are in the CSVs and tables.
SHOWN = (
    "dpo",
    "mallows_theta",
    "mallows_theta estimated",
    "mallows_phi",
    "mallows_theta shuffled",
    "mallows_theta inverted",
    "ipo",
)
AXIS_TITLES = {
    "reward": "expected reward",
    "win_rate": "probability to beat the reference's arm",
    "accuracy": "share of arm pairs in the right order",
}


def frontier(runs: Runs, settings: BanditStudy, layout: Layout, outcome: str, comparisons: int) -> Panel:
    """An outcome against exact KL: one point a beta, each the mean over seeds with both intervals."""
    data = _points(runs, settings, outcome, comparisons)
    labels = [label for label in SHOWN if label in set(data["label"])]
    look = Look(labels)

    def draw(axes: Axes) -> None:
        for label in labels:
            rows = data[data["label"] == label]
            colour = look.colour[label]
            dashed = "--" if label.split()[-1] in ("shuffled", "inverted") else "-"
            axes.plot(
                rows["kl"], rows[outcome], dashed, marker=look.marker[label], color=colour, markersize=4.5, lw=1.3
            )
            axes.vlines(rows["kl"], rows[f"{outcome}_low"], rows[f"{outcome}_high"], color=colour, lw=1, alpha=0.4)
        axes.set_xlabel("KL to the reference (nats)")
        axes.set_ylabel(AXIS_TITLES[outcome])
        axes.set_title(f"{comparisons} comparisons a context")
        legend_below(axes, _handles(labels, look), columns=2)

    middle = settings.same_beta
    spoken = "; ".join(
        f"{row.label} {number(getattr(row, outcome))} at KL {number(row.kl)}"
        for row in rows_of(data[data["beta"] == middle])
    )
    name = f"{'frontier' if outcome == 'reward' else outcome}_{comparisons}"
    alt = f"{AXIS_TITLES[outcome]} against KL over beta, {comparisons} comparisons; at beta {middle:g}: {spoken}."
    return draw_panel(layout, name, alt, data, draw, 3.2 + legend_height(len(labels), 2))


def _points(runs: Runs, settings: BanditStudy, outcome: str, comparisons: int) -> pd.DataFrame:
    values = runs.values
    keep = (values["law"] == "mallows") & (values["comparisons"] == comparisons) & (values["stage"] == "end")
    rows = []
    for key, part in values[keep & values["label"].isin(SHOWN)].groupby(["label", "beta"], sort=False):
        row = dict(zip(("label", "beta"), key, strict=True))
        for column in (outcome, "kl"):
            mean, low, high = _t_interval(part[column], settings.confidence)
            row |= {column: mean, f"{column}_low": low, f"{column}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def collapse(runs: Runs, settings: BanditStudy, layout: Layout, comparisons: int) -> Panel:
    """Spread of the learned rewards in each context against its dispersion."""
    labels = ["dpo", "mallows_theta", "mallows_phi", "ipo"]
    spreads = runs.spreads
    keep = (spreads["law"] == "mallows") & (spreads["comparisons"] == comparisons) & spreads["label"].isin(labels)
    rows = []
    for (label, phi), part in spreads[keep].groupby(["label", "phi"], sort=False):
        mean, low, high = _t_interval(part["value"], settings.confidence)
        rows.append({"label": label, "phi": phi, "spread": mean, "ci_low": low, "ci_high": high})
    data = pd.DataFrame(rows)
    labels = [label for label in labels if label in set(data["label"])]
    look = Look(list(SHOWN))

    def draw(axes: Axes) -> None:
        for label in labels:
            part = data[data["label"] == label]
            colour = look.colour[label]
            axes.plot(part["phi"], part["spread"], marker=look.marker[label], color=colour, markersize=4.5)
            axes.fill_between(part["phi"], part["ci_low"], part["ci_high"], color=colour, alpha=0.15, lw=0)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("dispersion phi of the context")
        axes.set_ylabel("spread of learned rewards over arms")
        axes.set_title(f"{comparisons} comparisons, beta {settings.same_beta:g}")
        legend_below(axes, _handles(labels, look), columns=4)

    lowest, highest = data["phi"].min(), data["phi"].max()
    spoken = "; ".join(
        f"{label} from {number(_value(data, label, lowest))} to {number(_value(data, label, highest))}"
        for label in labels
    )
    alt = f"Spread of learned rewards from phi {lowest:g} to {highest:g}, {comparisons} comparisons: {spoken}."
    return draw_panel(layout, f"collapse_{comparisons}", alt, data, draw, 3.1 + legend_height(len(labels), 4))


def controls(table: pd.DataFrame, layout: Layout, outcome: str, comparisons: int, stage: str) -> Panel:
    """Forest plot: MallowsPO-theta minus each control at the same KL, for oracle and estimated weights."""
    keep = (table["outcome"] == outcome) & (table["where"] == SAME_KL) & (table["comparisons"] == comparisons)
    data = table[keep].reset_index(drop=True)

    def draw(axes: Axes) -> None:
        names = []
        for height, row in enumerate(rows_of(data)):
            colour, marker = (PALETTE[0], "o") if row.weights == "oracle" else (PALETTE[1], "s")
            _whisker(axes, row, height, colour, marker)
            names.append(AGAINST[str(row.control)])
        _rows(axes, names)
        axes.set_xlabel("theta minus control, same KL")
        axes.set_title(f"{OUTCOME_TITLES[outcome, SAME_KL].split(',')[0]}, {comparisons} comparisons")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        handles = [
            Line2D([], [], linestyle="none", marker=marker, color=colour, label=f"{source} weights")
            for source, marker, colour in (("oracle", "o", PALETTE[0]), ("estimated", "s", PALETTE[1]))
        ]
        legend_below(axes, handles)

    spoken = "; ".join(f"{row.weights}, {AGAINST[str(row.control)]}: {told(row)}" for row in rows_of(data))
    alt = (
        f"Forest plot of MallowsPO-theta minus controls, {outcome} at the same KL, {comparisons} comparisons: {spoken}."
    )
    name = f"controls_{outcome}_{comparisons}{'' if stage == 'end' else '_' + stage}"
    return draw_panel(layout, name, alt, data, draw, 1.2 + 0.24 * len(data))


def methods(table: pd.DataFrame, layout: Layout, comparisons: int) -> Panel:
    """Forest plot: every method's reward minus DPO's at the same KL."""
    data = table[table["comparisons"] == comparisons].reset_index(drop=True)

    def draw(axes: Axes) -> None:
        for height, row in enumerate(rows_of(data)):
            weighted = str(row.label).startswith("mallows") or row.label == "rcpo"
            _whisker(axes, row, height, PALETTE[0] if weighted else PALETTE[1], "o" if weighted else "s")
        _rows(axes, [str(label) for label in data["label"]])
        axes.set_xlabel("reward minus DPO's at the same KL")
        axes.set_title(f"{comparisons} comparisons a context")
        handles = [
            Line2D([], [], linestyle="none", marker="o", color=PALETTE[0], label="with dispersion weights"),
            Line2D([], [], linestyle="none", marker="s", color=PALETTE[1], label="without"),
        ]
        legend_below(axes, handles)

    spoken = "; ".join(f"{row.label} {told(row)}" for row in rows_of(data))
    alt = f"Forest plot of reward minus DPO's at the same KL, {comparisons} comparisons: {spoken}."
    return draw_panel(layout, f"methods_{comparisons}", alt, data, draw, 1.2 + 0.2 * len(data))


def estimates(runs: Runs, settings: BanditStudy, layout: Layout) -> Panel:
    """Estimated -log phi against the true one, mean and 5 to 95 % of the seeds."""
    table = runs.estimates[runs.estimates["law"] == "mallows"]
    rows = []
    for (count, phi), part in table.groupby(["comparisons", "phi"], sort=False):
        low, high = part["value"].quantile([0.05, 0.95])
        rows.append(
            {
                "comparisons": count,
                "phi": phi,
                "true": -math.log(part["phi"].iloc[0]),
                "estimated": part["value"].mean(),
            }
            | {"p05": low, "p95": high}
        )
    data = pd.DataFrame(rows)

    def draw(axes: Axes) -> None:
        top = float(data["true"].max())
        axes.plot([0, top], [0, top], color="#888888", lw=1, linestyle=":")
        for position, count in enumerate(settings.comparisons):
            part = data[data["comparisons"] == count]
            place = part["true"] + 0.03 * (position - (len(settings.comparisons) - 1) / 2)
            colour = PALETTE[position]
            axes.vlines(place, part["p05"], part["p95"], color=colour, lw=1.2)
            axes.plot(place, part["estimated"], "os^Dv"[position % 5], color=colour, markersize=5, label=str(count))
        axes.set_xlabel("true -log phi")
        axes.set_ylabel("estimated from the comparisons")
        axes.set_title("Estimated dispersion of a context")
        axes.legend(title="comparisons")

    spoken = "; ".join(f"{row.comparisons} comparisons, {number(row.true)}: {number(row.estimated)}" for row in
                       rows_of(data))  # fmt: skip
    return draw_panel(layout, "estimates", f"Estimated against true -log phi: {spoken}.", data, draw)


def _t_interval(values: pd.Series, confidence: float) -> tuple[float, float, float]:
    mean, spread = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * spread
    return mean, mean - half, mean + half


def _value(data: pd.DataFrame, label: str, phi: float) -> float:
    return float(data[(data["label"] == label) & (data["phi"] == phi)]["spread"].iloc[0])


def _whisker(axes: Axes, row: object, height: int, colour: str, marker: str) -> None:
    difference, low, high = (float(getattr(row, name)) for name in ("difference", "ci_low", "ci_high"))
    if math.isnan(difference):
        axes.text(0, height, "  no KL that both reach", va="center", fontsize=7, color="#666666")
        return
    axes.hlines(height, low, high, color=colour, lw=1.8, zorder=3)
    axes.plot(difference, height, marker, color=colour, markersize=5, zorder=4)


def _rows(axes: Axes, names: list[str]) -> None:
    axes.axvline(0, color="#444444", lw=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _handles(labels: list[str], look: Look) -> list[Line2D]:
    return [Line2D([], [], marker=look.marker[label], color=look.colour[label], label=label) for label in labels]
