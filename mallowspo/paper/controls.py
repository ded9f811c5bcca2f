"""Is dispersion the cause? Theta against every control on every data set, in one table for one forest plot, with the
slope of its gain on the prompts' dispersion."""

import math
from typing import Any

import pandas as pd

from mallowspo.inference import holm
from mallowspo.paper.evidence import Evidence, control_labels
from mallowspo.paper.finished import Place, Places
from mallowspo.paper.settings import ControlsTest, Paper
from mallowspo.report.table import Table, rows_of
from mallowspo.report.words import ABSENT, count, fixed, interval, meaningful_decimals, p_value

SLOPE = ("slope", "slope_low", "slope_high", "slope_p")


def controls_table(paper: Paper, places: Places, evidence: list[Evidence]) -> Table | None:
    """One row an experiment and control; Holm's correction over all of them, and over all slopes. None without any.

    Effects are in standard deviations over prompts of the comparison's baseline where the metric is no share, so that
    data sets with rewards of different units can stand in one plot.
    """
    tests = [test for claim in paper.claims.values() for test in claim.tests if isinstance(test, ControlsTest)]
    rows = [row for test in tests for place in places[test.part] if place.ran
            for row in _rows(test, place, evidence)]  # fmt: skip
    if not rows:
        return None
    numbers = pd.DataFrame(rows)
    for p, adjusted in (("p", "p_holm"), ("slope_p", "slope_p_holm")):
        numbers[adjusted] = holm(numbers[p])
    return Table(
        "controls", numbers, pd.DataFrame(map(_shown, rows_of(numbers))), ("Experiment", "Theta minus", "Unit")
    )


def _rows(test: ControlsTest, place: Place, evidence: list[Evidence]) -> list[dict[str, Any]]:
    titles = {test.title.replace("{control}", name.replace("_", " ")): (name, label)
              for name, label in control_labels(test, place).items()}  # fmt: skip
    rows = []
    for item in evidence:
        title = item.title.removesuffix(f" ({place.name})")
        if item.place is not place or title not in titles or item.found is None:
            continue
        found, (name, label) = item.found, titles[title]
        scale = 1.0 if math.isnan(found.scale) else found.scale
        rows.append(
            {
                "experiment": place.name,
                "control": name,
                "metric": test.metric,
                "must_beat": item.decides,
                "effect": found.effect / scale,
                "ci_low": found.low / scale,
                "ci_high": found.high / scale,
                "claimed": found.claimed / scale,
                "detectable": found.detectable / scale,
                "unit": "share" if math.isnan(found.scale) else "standard deviations over prompts",
                "p": found.p,
                "n": found.n,
                "seeds": found.seeds,
                **_slope(test, place, str(label)),
            }
        )
    return rows


def _slope(test: ControlsTest, place: Place, label: str) -> dict[str, float]:
    """Of theta minus the control, on one standard deviation more dispersion; NaN where the comparison has none."""
    table, theta = place.table("interaction"), place.label(test.method)
    of_metric = table[table["metric"] == test.metric]
    for method, baseline, sign in ((theta, label, 1), (label, theta, -1)):
        for row in rows_of(of_metric[(of_metric["method"] == method) & (of_metric["baseline"] == baseline)]):
            low, high = sorted((sign * row.ci_low, sign * row.ci_high))
            return dict(zip(SLOPE, (sign * row.slope, low, high, row.p), strict=True))
    return dict.fromkeys(SLOPE, math.nan)


def _shown(row: Any) -> dict[str, str]:
    decimals = meaningful_decimals([row.ci_high - row.ci_low])
    slopes = meaningful_decimals([row.slope_high - row.slope_low])
    return {
        "Experiment": row.experiment,
        "Theta minus": row.control.replace("_", " ") + ("" if row.must_beat else " (shown only)"),
        "Difference": interval(row.effect, row.ci_low, row.ci_high, decimals, True),
        "Holm p": p_value(row.p_holm),
        "Counts from": fixed(row.claimed, 2),
        "Detectable": fixed(row.detectable, decimals),
        "Slope on dispersion": (
            ABSENT if math.isnan(row.slope) else interval(row.slope, row.slope_low, row.slope_high, slopes, True)
        ),
        "Holm p, slope": p_value(row.slope_p_holm),
        "Unit": row.unit,
        "n": count(row.n),
        "Seeds": count(row.seeds),
    }
