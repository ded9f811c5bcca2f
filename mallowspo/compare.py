"""Stage "compare": every method against the baseline and against the reference, on the same prompts.

Reads the scores of all runs and the dispersion of the test pairs; writes estimates.parquet, comparison.parquet and
interaction.parquet. Values are joined by id: each run must hold the same answers, pairs and benchmark items as every
other, and a missing one stops the stage.

By definition of what is measured against the reference, the reference's own win rate is 0.5, its implicit accuracy 0.5
and its margin 0, so these three are compared with that constant.

Holm's correction: the outcomes (reward, win rate, accuracy, benchmarks) of all methods against the same baseline are
one family, because a claim of "better" may point at any of them. What describes how a policy got there (KL, length,
margin, completeness) is a second family, so that it does not weaken the first. The columns family and family_size say
which tests an adjusted p was adjusted for.

Equivalence is tested with margins that were set here, before any result: two points for shares (win rate, accuracy,
completeness, benchmarks of zeros and ones), else a tenth of the standard deviation over prompts of the baseline.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mallowspo.compare_by_dispersion import prompt_dispersion, slope_row
from mallowspo.errors import InputError
from mallowspo.files import read_parquet, write_parquet
from mallowspo.inference import (
    benjamini_hochberg,
    equivalence_p,
    estimate,
    holm,
    paired_difference,
    prompts_needed,
    seeds_needed,
    two_level_bootstrap,
)
from mallowspo.layout import REFERENCE, Layout

#: What the reference gets, by definition, where it is itself the standard of comparison.
BY_DEFINITION = {"win_rate": 0.5, "accuracy": 0.5, "margin": 0.0}

#: Metrics that say whether a policy is better; a benchmark's "TASK/METRIC" does, too.
OUTCOMES = ("reward", "win_rate", "accuracy")

#: Metrics that lie between 0 and 1; a benchmark is one of them where all its values do.
SHARES = ("win_rate", "accuracy", "complete")

#: The gain that the paper is about, for the sizes needed.
TWO_POINTS = 0.02
#: Differences below these do not matter: of shares, and in standard deviations over prompts of anything else.
SHARE_MARGIN, STANDARD_MARGIN = TWO_POINTS, 0.1

Array = NDArray[np.float64]
#: metric -> label -> table with one row a unit (prompt or benchmark item) and one column a seed.
Values = dict[str, dict[str, pd.DataFrame]]


def run(view: Any, layout: Layout) -> None:
    """Write estimates.parquet, comparison.parquet and interaction.parquet.

    Args:
        view: .methods (label -> settings), .seeds, .evaluation.comparison, .evaluation.lm_eval.
        layout: of the experiment.

    Raises:
        InputError: a scores file is missing, holds a value that is not finite, or lacks an answer, pair or item that
            other runs have.
    """
    settings = view.evaluation.comparison
    methods, baseline = list(view.methods), settings.baseline
    values = read_values(layout, methods, list(view.seeds), with_tasks=view.evaluation.lm_eval is not None)
    resampling = {"confidence": settings.confidence, "resamples": settings.resamples, "seed": settings.seed}
    write_parquet(layout.estimates, _estimates(values, methods, settings.confidence))
    parts = [_against(values, methods, against, resampling) for against in (baseline, REFERENCE)]
    write_parquet(layout.comparison, _together(parts))
    by_dispersion = [
        _slopes(layout, values, methods, against, settings.confidence) for against in (baseline, REFERENCE)
    ]
    write_parquet(layout.interaction, _together(by_dispersion))


def read_values(layout: Layout, methods: list[str], seeds: list[int], with_tasks: bool) -> Values:
    """Every metric of every run, averaged over the answers (or pairs) to a prompt.

    Returns:
        metric -> label -> table: index prompt_id (doc_id for a benchmark), one column a seed, all tables of a metric
        with the same index in the same order.
    """
    runs = [(label, seed) for label in methods for seed in seeds]
    everyone = [(REFERENCE, 0), *runs]
    values = _read(layout, everyone, "score.parquet", _score)
    values |= _read(layout, runs, "pairs.parquet", _pairs)
    values |= _read(layout, runs, "alpaca.parquet", _alpaca)
    if with_tasks:
        values |= _read(layout, everyone, "lm_eval.parquet", _lm_eval)
    return values


def is_outcome(metric: str) -> bool:
    """Whether a larger value means a better policy."""
    return metric in OUTCOMES or "/" in metric


# Each reader gives rows of: metric, key (one measurement), unit (what is resampled), value.


def _score(table: pd.DataFrame) -> pd.DataFrame:
    key = table["prompt_id"] + " answer " + table["answer_index"].astype(str)
    return _rows(table["metric"].replace("tokens", "length"), key, table["prompt_id"], table["value"])


def _alpaca(table: pd.DataFrame) -> pd.DataFrame:
    key = table["prompt_id"] + " answer " + table["answer_index"].astype(str)
    return _rows(table["metric"].replace("win", "win_rate"), key, table["prompt_id"], table["value"])


def _pairs(table: pd.DataFrame) -> pd.DataFrame:
    parts = [
        _rows(pd.Series(metric, index=table.index), table["pair_id"], table["prompt_id"], table[column])
        for metric, column in (("accuracy", "correct"), ("margin", "margin"))
    ]
    return pd.concat(parts)


def _lm_eval(table: pd.DataFrame) -> pd.DataFrame:
    item = table["doc_id"].astype(str)
    return _rows(table["task"] + "/" + table["metric"], item, item, table["value"])


def _rows(metric: pd.Series, key: pd.Series, unit: pd.Series, value: pd.Series) -> pd.DataFrame:
    return pd.DataFrame({"metric": metric, "key": key, "unit": unit, "value": value.astype(float)})


def _read(
    layout: Layout,
    runs: list[tuple[str, int]],
    file: str,
    reader: Callable[[pd.DataFrame], pd.DataFrame],
) -> Values:
    paths = {run: layout.scores(*run) / file for run in runs}
    collected: dict[str, dict[str, dict[int, pd.Series]]] = {}
    first: tuple[Path, set[tuple[str, str]]] | None = None
    for (label, seed), path in paths.items():
        rows = reader(read_parquet(path))
        measured = _checked_keys(rows, path)
        first = first or (path, measured)
        _same_keys(first, (path, measured))
        for metric, table in rows.groupby("metric"):
            by_seed = collected.setdefault(str(metric), {}).setdefault(label, {})
            by_seed[seed] = table.groupby("unit")["value"].mean()
    # By id, whatever order the files had: groupby sorts.
    return {m: {label: pd.DataFrame(seeds) for label, seeds in by.items()} for m, by in collected.items()}


def _checked_keys(rows: pd.DataFrame, path: Path) -> set[tuple[str, str]]:
    if rows.empty:
        raise InputError(f"{path}: holds no rows; run its stage again")
    broken = rows[~np.isfinite(rows["value"])]
    if len(broken):
        worst = broken.iloc[0]
        raise InputError(f"{path}: {worst['metric']} of {worst['key']} is not finite ({len(broken)} such rows)")
    twice = rows[rows.duplicated(["metric", "key"])]
    if len(twice):
        raise InputError(
            f"{path}: {twice.iloc[0]['metric']} of {twice.iloc[0]['key']} is there twice; run its stage again"
        )
    return set(zip(rows["metric"], rows["key"], strict=True))


def _same_keys(first: tuple[Path, set[tuple[str, str]]], other: tuple[Path, set[tuple[str, str]]]) -> None:
    """Both files hold the same measurements, or an error that names the first missing one and where it is missing."""
    for (here, measured), (there, expected) in ((other, first), (first, other)):
        missing = sorted(expected - measured)
        if missing:
            metric, key = missing[0]
            raise InputError(
                f"{here}: {metric} of {key} is missing ({len(missing)} such), but {there} has it; run its stage again"
            )


def _estimates(values: Values, methods: list[str], confidence: float) -> pd.DataFrame:
    rows = []
    for metric, by_label in values.items():
        runs = _runs(by_label, methods)
        for label in [REFERENCE, *methods]:
            if label in by_label:
                found = estimate(by_label[label], confidence, runs if label != REFERENCE else None)
                low, high = (max(found.low, 0.0), min(found.high, 1.0)) if metric in SHARES else (found.low, found.high)
                numbers = (found.mean, low, high, found.n, by_label[label].shape[1], found.covers)
            elif metric == "win_rate":
                numbers = (BY_DEFINITION[metric], math.nan, math.nan, runs.shape[1], 1, "by definition")
            else:
                continue
            rows.append((label, metric, *numbers))
    return pd.DataFrame(rows, columns=["method", "metric", "estimate", "ci_low", "ci_high", "n", "seeds", "covers"])


def _against(values: Values, methods: list[str], baseline: str, resampling: dict[str, Any]) -> pd.DataFrame:
    """All differences against one baseline."""
    alpha = 1 - resampling["confidence"]
    rows = []
    for metric, by_label in values.items():
        standard, runs = _standard(by_label, metric, baseline), _runs(by_label, methods)
        margin = _margin(metric, by_label, standard)
        two_points = TWO_POINTS if metric == "win_rate" else math.nan
        for label in methods:
            if label == baseline:
                continue
            mine = by_label[label].to_numpy()
            found = paired_difference(mine, standard, **resampling, runs=runs)
            low, high = two_level_bootstrap(mine - standard, **resampling)
            rows.append(
                {
                    "method": label,
                    "baseline": baseline,
                    "metric": metric,
                    "difference": found.difference,
                    "ci_low": found.low,
                    "ci_high": found.high,
                    "covers": found.covers,
                    "bootstrap_low": low,
                    "bootstrap_high": high,
                    "p": found.p,
                    "p_policies": found.p_policies,
                    "p_equivalence": equivalence_p(found.difference, found.spread, margin),
                    "equivalence_margin": margin,
                    "n": found.n,
                    "seeds": mine.shape[1],
                    "detectable": found.detectable,
                    "n_needed": prompts_needed(found.difference, found.spread, alpha),
                    "seeds_needed": seeds_needed(found.difference, found.spread, alpha),
                    "n_needed_two_points": prompts_needed(two_points, found.spread, alpha),
                    "seeds_needed_two_points": seeds_needed(two_points, found.spread, alpha),
                    "test": found.test,
                }
            )
    return _with_families(pd.DataFrame(rows), baseline)


def _slopes(layout: Layout, values: Values, methods: list[str], baseline: str, confidence: float) -> pd.DataFrame:
    """Slopes of all differences against one baseline on the dispersion of the test prompts; benchmarks have none."""
    dispersion, missing = prompt_dispersion(layout)
    rows = []
    for metric, by_label in values.items():
        if "/" in metric:
            continue
        prompts = next(iter(by_label.values())).index
        standard, runs = _standard(by_label, metric, baseline), _runs(by_label, methods)
        for position, label in enumerate(methods):
            if label != baseline:
                found = slope_row(prompts, (runs[position], standard, runs), dispersion, missing, confidence)
                rows.append({"method": label, "baseline": baseline, "metric": metric, **found})
    return _with_families(pd.DataFrame(rows), baseline)


def _standard(by_label: dict[str, pd.DataFrame], metric: str, baseline: str) -> Array:
    """(P, S) or (P, 1), the baseline's values of a metric."""
    prompts = len(next(iter(by_label.values())))
    return by_label[baseline].to_numpy() if baseline in by_label else np.full((prompts, 1), BY_DEFINITION[metric])


def _runs(by_label: dict[str, pd.DataFrame], methods: list[str]) -> Array:
    """(M, P, S), all methods' values of a metric: together they tell how much runs differ from seed to seed."""
    return np.stack([by_label[label].to_numpy() for label in methods])


def _with_families(table: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """With p corrected over the outcomes, and over the rest: two families."""
    if table.empty:
        return table
    outcome = table["metric"].map(is_outcome).astype(bool)
    table = table.assign(family=np.where(outcome, "outcomes", "descriptions") + f" against {baseline}")
    family = table.groupby("family")["p"]
    adjusted = {"p_holm": family.transform(holm), "p_bh": family.transform(benjamini_hochberg)}
    return table.assign(**adjusted, family_size=family.transform("count"))


def _margin(metric: str, by_label: dict[str, pd.DataFrame], standard: Array) -> float:
    """Of the equivalence test; NaN where the baseline is the same on every prompt, and no margin follows from it."""
    lowest = min(table.to_numpy().min() for table in by_label.values())
    highest = max(table.to_numpy().max() for table in by_label.values())
    if metric in SHARES or ("/" in metric and lowest >= 0 and highest <= 1):
        return SHARE_MARGIN
    by_prompt = standard.mean(axis=1)
    return STANDARD_MARGIN * float(by_prompt.std(ddof=1)) if np.ptp(by_prompt) > 0 else math.nan


def _together(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """One table; the baseline alone leaves nothing against itself."""
    return pd.concat([part for part in parts if len(part)], ignore_index=True)
