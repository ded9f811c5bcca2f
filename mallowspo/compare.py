"""Stage "compare": every method against the baseline and against the reference, on the same prompts.

Reads the scores of all runs and the dispersion of the test pairs; writes estimates.parquet, comparison.parquet,
interaction.parquet, accuracy_by_group.parquet and frontier.parquet (`mallowspo.evaluation.frontier`). Values are joined
by id (`mallowspo.compare_values`).

By definition of what is measured against the reference, the reference's own win rate is 0.5, its implicit accuracy 0.5
and its margin 0, so these three are compared with that constant.

Holm's correction: the outcomes (reward, win rate, accuracy, benchmarks) of all methods against the same baseline are
one family, because a claim of "better" may point at any of them. What describes how a policy got there (KL, length,
margin, completeness) is a second family, so that it does not weaken the first. The columns family and family_size say
which tests an adjusted p was adjusted for. What `NOT_TESTED` names is estimated only.

Equivalence is tested with margins that were set here, before any result: two points for shares (win rate, accuracy,
completeness, benchmarks of zeros and ones), else a tenth of the standard deviation over prompts of the baseline.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mallowspo.compare_by_dispersion import prompt_dispersion, slope_row
from mallowspo.compare_values import Values, read_values
from mallowspo.evaluation.degeneration import SIGNS
from mallowspo.evaluation.displacement import CHANGES, CHOSEN_FELL
from mallowspo.evaluation.frontier import frontier_table
from mallowspo.evaluation.kl import K3, K3_BY_TOKEN
from mallowspo.evaluation.pair_accuracy import of_experiment
from mallowspo.files import write_parquet
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
SHARES = ("win_rate", "accuracy", "complete", CHOSEN_FELL, *SIGNS)

#: Estimated with intervals, and not tested: further views of what the tested descriptions say.
NOT_TESTED = (K3, K3_BY_TOKEN, *CHANGES, CHOSEN_FELL, *SIGNS)

#: The gain that the paper is about, for the sizes needed.
TWO_POINTS = 0.02
#: Differences below these do not matter: of shares, and in standard deviations over prompts of anything else.
SHARE_MARGIN, STANDARD_MARGIN = TWO_POINTS, 0.1

Array = NDArray[np.float64]


def run(view: Any, layout: Layout) -> None:
    """Write estimates, comparison, interaction, accuracy_by_group and frontier, each a .parquet.

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
    write_parquet(layout.frontier, frontier_table(values, view.methods, baseline, resampling))
    tested = {metric: by_label for metric, by_label in values.items() if metric not in NOT_TESTED}
    parts = [_against(tested, methods, against, resampling) for against in (baseline, REFERENCE)]
    write_parquet(layout.comparison, _together(parts))
    by_dispersion = [
        _slopes(layout, tested, methods, against, settings.confidence) for against in (baseline, REFERENCE)
    ]
    write_parquet(layout.interaction, _together(by_dispersion))
    betas = {label: method.beta for label, method in view.methods.items()}
    write_parquet(layout.accuracy_by_group, of_experiment(layout, betas, list(view.seeds), settings.confidence))


def is_outcome(metric: str) -> bool:
    """Whether a larger value means a better policy."""
    return metric in OUTCOMES or "/" in metric


def _estimates(values: Values, methods: list[str], confidence: float) -> pd.DataFrame:
    rows = []
    for metric, by_label in values.items():
        runs = _runs(by_label, methods)
        for label in [REFERENCE, *methods]:
            if label in by_label:
                found = estimate(by_label[label], confidence, runs if label != REFERENCE else None)
                low, high = (max(found.low, 0.0), min(found.high, 1.0)) if metric in SHARES else (found.low, found.high)
                numbers = (found.mean, found.standard_error, low, high, found.n)
                rows.append((label, metric, *numbers, by_label[label].shape[1], found.covers))
            elif metric == "win_rate":
                numbers = (BY_DEFINITION[metric], math.nan, math.nan, math.nan, runs.shape[1])
                rows.append((label, metric, *numbers, 1, "by definition"))
    columns = ["method", "metric", "estimate", "standard_error", "ci_low", "ci_high", "n", "seeds", "covers"]
    return pd.DataFrame(rows, columns=columns)


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
