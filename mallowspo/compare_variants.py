"""Policies at other temperatures than the compared one (`mallowspo.policies`), for variants.parquet.

At another temperature a policy's answers come from another law than the one whose log-probabilities are read, so that
their mean log-ratio is no KL; it still says how much likelier these answers are under the policy than under the
reference. Wins are by the reward, against the reference's answers at the same temperature: no judge is asked for them.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from mallowspo.compare_values import Run, read_scores
from mallowspo.evaluation.kl import K1
from mallowspo.files import read_parquet
from mallowspo.inference import estimate
from mallowspo.layout import REFERENCE, Layout
from mallowspo.policies import Policy

METRICS = ("reward", K1, "win_rate", "length", "complete")
SHARES = ("win_rate", "complete")
COLUMNS = ("method", "temperature", "metric", "estimate", "standard_error", "ci_low", "ci_high", "n",
           "seeds", "covers")  # fmt: skip


def variants_table(view: Any, layout: Layout) -> pd.DataFrame:
    """Rows of `COLUMNS`: every policy at its own and each other temperature; none without others.

    Args:
        view: .methods, .seeds, .generation.temperature; of .evaluation: .comparison, .temperatures.
    """
    others = view.evaluation.temperatures
    rows = [row for temperature in ([None, *others] if others else []) for row in _rows(view, layout, temperature)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _rows(view: Any, layout: Layout, other: float | None) -> Iterator[tuple[Any, ...]]:
    """At another temperature; None: the policies as they are compared."""
    names = {label: Policy(label, other).name for label in (REFERENCE, *view.methods)}
    reference = names[REFERENCE]
    trained = [(names[label], seed) for label in view.methods for seed in view.seeds]
    values = read_scores(layout, [(reference, 0), *trained])
    values["win_rate"] = _wins(layout, reference, trained)
    temperature = view.generation.temperature if other is None else other
    for metric in METRICS:
        runs = np.stack([values[metric][names[label]].to_numpy() for label in view.methods])
        for label, name in names.items():
            if name not in values[metric]:  # nothing wins against itself
                continue
            table = values[metric][name]
            found = estimate(table, view.evaluation.comparison.confidence, None if label == REFERENCE else runs)
            low, high = (max(found.low, 0), min(found.high, 1)) if metric in SHARES else (found.low, found.high)
            numbers = (found.mean, found.standard_error, low, high, found.n, table.shape[1])
            yield (label, temperature, metric, *numbers, found.covers)


def _wins(layout: Layout, reference: str, runs: list[Run]) -> dict[str, pd.DataFrame]:
    """Of each run and prompt the share of answers with a larger reward than the reference's, ties half."""
    standard = _rewards(layout, (reference, 0))
    wins: dict[str, dict[int, pd.Series]] = {}
    for name, seed in runs:
        win = 0.5 + 0.5 * (_rewards(layout, (name, seed)) - standard).apply(np.sign)
        wins.setdefault(name, {})[seed] = win.groupby("prompt_id").mean()
    return {name: pd.DataFrame(seeds) for name, seeds in wins.items()}


def _rewards(layout: Layout, run: Run) -> pd.Series:
    """By prompt_id and answer_index; `read_scores` has seen to it that all runs have the same."""
    scores = read_parquet(layout.scores(*run) / "score.parquet")
    return scores[scores["metric"] == "reward"].set_index(["prompt_id", "answer_index"])["value"]
