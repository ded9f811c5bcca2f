"""Where the effect is: the difference in reward by the dispersion of the prompt.

The paper's claim is that dispersion says which prompts gain, so a mean over all prompts does not test it.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mallowspo.inference import association, paired_difference
from mallowspo.report.results import Results
from mallowspo.report.style import Look, Panel, draw_panel
from mallowspo.report.table import rows_of
from mallowspo.report.words import number, p_value

PARTS = 5
#: With fewer prompts a fifth holds too little to look at.
LEAST_PROMPTS = 10


def effect_by_dispersion(results: Results, look: Look) -> list[Panel]:
    """A panel a method: reward minus the baseline's in five parts of the test prompts, from low to high dispersion."""
    dispersion = prompt_dispersion(results)
    if len(dispersion) < LEAST_PROMPTS:
        return []
    return [_panel(results, look, method, dispersion) for method in results.methods if method != results.baseline]


def prompt_dispersion(results: Results) -> pd.Series:
    """Mean dispersion index of every test prompt that has test pairs, from low to high."""
    found = results.dispersion.merge(results.test_pairs, on="pair_id").groupby("prompt_id")["dispersion_index"].mean()
    shared = found.index.intersection(results.values["reward"][results.baseline].index)
    return found.loc[shared].sort_values(kind="stable")


def _panel(results: Results, look: Look, method: str, dispersion: pd.Series) -> Panel:
    rewards = results.values["reward"]
    difference = (rewards[method] - rewards[results.baseline]).loc[dispersion.index]
    settings = results.view.evaluation.comparison
    resampling: dict[str, Any] = {"resamples": settings.resamples, "seed": settings.seed}
    r, p = association(difference.mean(axis=1), dispersion, **resampling)
    data = _parts(results, method, dispersion)
    told = f"r = {number(r)}, p {'' if p < 0.001 else '= '}{p_value(p)}"

    def draw(axes: Axes) -> None:
        colour = look.colour[method]
        axes.axhline(0, color="#444444", linewidth=1)
        axes.vlines(data["mean_dispersion"], data["ci_low"], data["ci_high"], color=colour, linewidth=1.8)
        axes.plot(data["mean_dispersion"], data["difference"], look.marker[method], color=colour, markersize=6)
        axes.set_xlabel("mean dispersion index of a fifth of the prompts")
        axes.set_ylabel(f"reward minus {results.baseline}")
        axes.set_title(f"{method}: {told}")

    spoken = ", ".join(f"{number(row.difference)} at {number(row.mean_dispersion)}" for row in rows_of(data))
    alt = (
        f"Reward of {method} minus {results.baseline} by dispersion: {spoken}; correlation {number(r)}, p {p_value(p)}."
    )
    return draw_panel(results.layout, f"effect_by_dispersion_{method}", alt, data, draw, height=2.9)


def _parts(results: Results, method: str, dispersion: pd.Series) -> pd.DataFrame:
    rewards = results.values["reward"]
    runs = np.stack([rewards[label].loc[dispersion.index].to_numpy() for label in results.methods])
    mine, baseline = (runs[results.methods.index(label)] for label in (method, results.baseline))
    confidence = results.view.evaluation.comparison.confidence
    rows = []
    for part, positions in enumerate(np.array_split(np.arange(len(dispersion)), PARTS), start=1):
        # Only the interval is shown: a few sign flips are enough.
        found = paired_difference(
            mine[positions], baseline[positions], confidence, resamples=99, runs=runs[:, positions]
        )
        rows.append(
            {
                "method": method,
                "fifth": part,
                "mean_dispersion": dispersion.iloc[positions].mean(),
                "difference": found.difference,
                "ci_low": found.low,
                "ci_high": found.high,
                "n": found.n,
            }
        )
    return pd.DataFrame(rows)
