"""Policies under other conditions than the compared ones (`mallowspo.policies`), for variants.parquet; and methods at
equal KL along their trainings, for frontier.parquet.

At another temperature a policy's answers come from another law than the one whose log-probabilities are read, so that
their mean log-ratio is no KL; it still says how much likelier these answers are under the policy than under the
reference. Wins are by the reward, against the reference's answers at the same temperature: no judge is asked for them.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mallowspo.compare_values import Run, read_scores
from mallowspo.evaluation.frontier import paths_table
from mallowspo.evaluation.kl import K1
from mallowspo.files import read_parquet
from mallowspo.inference import estimate
from mallowspo.layout import REFERENCE, Layout
from mallowspo.metric_names import SECOND_REWARD
from mallowspo.policies import Policy

METRICS = ("reward", SECOND_REWARD, K1, "win_rate", "length", "complete")
SHARES = ("win_rate", "complete")
COLUMNS = ("method", "temperature", "training", "metric", "estimate", "standard_error", "ci_low", "ci_high", "n",
           "seeds", "covers")  # fmt: skip


class Condition(NamedTuple):
    """As in `Policy`; None: as compared."""

    temperature: float | None = None
    training: float | None = None


def variants_table(view: Any, layout: Layout) -> pd.DataFrame:
    """Rows of `COLUMNS`: every policy as it is compared and under each other condition; none without conditions.

    Args:
        view: .methods, .seeds, .generation.temperature, .training.keep; of .evaluation: .comparison,
            .second_judge, .selection, .temperatures.

    Returns:
        training is the share of the training's steps; 1 stands for the whole training, and for the reference.
    """
    others = [Condition(temperature=value) for value in view.evaluation.temperatures]
    others += [Condition(training=share) for share in view.training.keep]
    conditions = [Condition(), *others] if others else []
    rows = [row for condition in conditions for row in _rows(view, layout, condition)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def along_trainings(view: Any, layout: Layout, resampling: dict[str, Any]) -> pd.DataFrame:
    """Rows for frontier.parquet in which a curve is a method's training; none where nothing was kept along it."""
    shares = view.training.keep
    methods = view.methods if shares else []
    paths = {label: [*(Policy(label, training=share).name for share in shares), label] for label in methods}
    names = [name for path in paths.values() for name in path]
    runs = [(REFERENCE, 0), *((name, seed) for name in names for seed in view.seeds)]
    values = read_scores(layout, runs, view.evaluation)
    return paths_table(values, paths, view.evaluation.comparison.baseline, resampling)


def _rows(view: Any, layout: Layout, condition: Condition) -> Iterator[tuple[Any, ...]]:
    reference = Policy(REFERENCE, condition.temperature).name
    names = {REFERENCE: reference, **{label: Policy(label, *condition).name for label in view.methods}}
    trained = [(names[label], seed) for label in view.methods for seed in view.seeds]
    values = read_scores(layout, [(reference, 0), *trained], view.evaluation)
    prompts = values["reward"][reference].index
    values["win_rate"] = {name: wins.loc[prompts] for name, wins in _wins(layout, reference, trained).items()}
    temperature = view.generation.temperature if condition.temperature is None else condition.temperature
    share = 1.0 if condition.training is None else condition.training
    for metric in (name for name in METRICS if name in values):
        runs = np.stack([values[metric][names[label]].to_numpy() for label in view.methods])
        for label, name in names.items():
            if name not in values[metric] or (label == REFERENCE and condition.training is not None):
                continue  # nothing wins against itself, and the reference is not trained
            table = values[metric][name]
            found = estimate(table, view.evaluation.comparison.confidence, None if label == REFERENCE else runs)
            low, high = (max(found.low, 0), min(found.high, 1)) if metric in SHARES else (found.low, found.high)
            numbers = (found.mean, found.standard_error, low, high, found.n, table.shape[1])
            yield (label, temperature, share, metric, *numbers, found.covers)


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
