"""Stage "compare": every method against the baseline and against the reference, on the same prompts.

Reads the scores of all runs and the dispersion of the test pairs; writes estimates.parquet, comparison.parquet,
interaction.parquet, accuracy_by_group.parquet; frontier.parquet (`mallowspo.evaluation.frontier`), variants.parquet
(`mallowspo.compare_variants`), second_opinion.parquet (`mallowspo.compare_judges`), factorial.parquet
(`mallowspo.compare_factorial`), tuning.parquet and selection.parquet (`mallowspo.compare_selection`), and
signals.parquet (`mallowspo.compare_signals`), which have no rows where the settings do not ask for them. Values are
joined by id (`mallowspo.compare_values`).

By definition of what is measured against the reference, the reference's own win rate is 0.5, its implicit accuracy 0.5
and its margin 0, so these three are compared with that constant; so is a win rate against the baseline. A win rate
against published outputs is compared with the baseline's; the reference has none.

Holm's correction: the outcomes (reward, win rates, accuracies, benchmarks) of all methods against the same baseline are
one family, because a claim of "better" may point at any of them. What describes how a policy got there (KL, length,
margin, completeness) is a second family, so that it does not weaken the first. The columns family and family_size say
which tests an adjusted p was adjusted for. Parts of a benchmark's group are tested without: they are in no family. What
`NOT_TESTED` names is estimated only.

Equivalence is tested with margins that are set before any result: `share_margin` for shares (win rate, accuracy,
completeness, benchmarks of zeros and ones), else `standard_margin` standard deviations over prompts of the baseline.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mallowspo.compare_by_dispersion import prompt_dispersion, slope_row
from mallowspo.compare_factorial import factorial_table
from mallowspo.compare_judges import second_opinion_table
from mallowspo.compare_selection import selection_tables
from mallowspo.compare_signals import signals_table
from mallowspo.compare_standards import BY_DEFINITION, SHARES, bounded, runs_of, standard_of
from mallowspo.compare_values import Values, read_values
from mallowspo.compare_variants import along_trainings, variants_table
from mallowspo.evaluation.degeneration import SIGNS
from mallowspo.evaluation.displacement import CHANGES, CHOSEN_FELL
from mallowspo.evaluation.frontier import frontier_table
from mallowspo.evaluation.kl import K3, K3_BY_TOKEN
from mallowspo.evaluation.pair_accuracy import of_experiment
from mallowspo.evaluation.settings import ComparisonSettings
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
from mallowspo.metric_names import bare, is_benchmark, is_on_other_pairs, is_outcome, is_part, opponent

#: Estimated with intervals, and not tested: further views of what the tested descriptions say.
NOT_TESTED = (K3, K3_BY_TOKEN, *CHANGES, CHOSEN_FELL, *SIGNS)

#: The gain that the paper is about, for the sizes needed.
TWO_POINTS = 0.02

Array = NDArray[np.float64]


def run(view: Any, layout: Layout) -> None:
    """Write the tables that the module's docstring names.

    Args:
        view: .methods (label -> settings), .seeds, .generation.temperature, .training.keep; of .evaluation:
            .comparison, .second_judge, .factorial, .selection, .signals, .lm_eval, .alpaca.against, .other_pairs,
            .temperatures.
        layout: of the experiment.

    Raises:
        InputError: a scores file is missing, holds a value that is not finite, or lacks an answer, pair or item that
            other runs have.
    """
    settings = view.evaluation.comparison
    methods, baseline = list(view.methods), settings.baseline
    values = read_values(view, layout)
    resampling = {"confidence": settings.confidence, "resamples": settings.resamples, "seed": settings.seed}
    write_parquet(layout.estimates, _estimates(values, methods, settings.confidence))
    by_beta = frontier_table(values, view.methods, baseline, resampling)
    along = along_trainings(view, layout, resampling)
    write_parquet(layout.frontier, _together([by_beta, along]) if len(by_beta) or len(along) else by_beta)
    tested = {metric: by_label for metric, by_label in values.items() if metric not in NOT_TESTED}
    parts = [_against(tested, methods, against, settings) for against in (baseline, REFERENCE)]
    write_parquet(layout.comparison, _together(parts))
    by_dispersion = [
        _slopes(layout, tested, methods, against, settings.confidence) for against in (baseline, REFERENCE)
    ]
    write_parquet(layout.interaction, _together(by_dispersion))
    write_parquet(layout.accuracy_by_group, of_experiment(view, layout))
    write_parquet(layout.variants, variants_table(view, layout))
    tuning, selected = selection_tables(view, layout, values, resampling)
    write_parquet(layout.tuning, tuning)
    write_parquet(layout.selection, selected)
    write_parquet(layout.signals, signals_table(view, layout, resampling))
    write_parquet(layout.second_opinion, second_opinion_table(values, methods, resampling))
    write_parquet(layout.factorial, factorial_table(tested, view.evaluation.factorial, methods, resampling))


def _estimates(values: Values, methods: list[str], confidence: float) -> pd.DataFrame:
    rows = []
    for metric, by_label in values.items():
        runs = runs_of(by_label, methods)
        for label in [REFERENCE, *methods]:
            if label in by_label:
                found = estimate(by_label[label], confidence, runs if label != REFERENCE else None)
                low, high = bounded(metric, found.low, found.high)
                numbers = (found.mean, found.standard_error, low, high, found.n)
                rows.append((label, metric, *numbers, by_label[label].shape[1], found.covers))
            elif bare(metric) == "win_rate" and opponent(metric) == label:
                numbers = (BY_DEFINITION["win_rate"], math.nan, math.nan, math.nan, runs.shape[1])
                rows.append((label, metric, *numbers, 1, "by definition"))
    columns = ["method", "metric", "estimate", "standard_error", "ci_low", "ci_high", "n", "seeds", "covers"]
    return pd.DataFrame(rows, columns=columns)


def _against(values: Values, methods: list[str], baseline: str, settings: ComparisonSettings) -> pd.DataFrame:
    """All differences against one baseline."""
    alpha = 1 - settings.confidence
    resampling: dict[str, Any] = {name: getattr(settings, name) for name in ("confidence", "resamples", "seed")}
    rows = []
    for metric, by_label in values.items():
        standard, runs = standard_of(by_label, metric, baseline), runs_of(by_label, methods)
        if standard is None:
            continue
        margin = equivalence_margin(metric, by_label, standard, settings)
        two_points = TWO_POINTS if bare(metric) == "win_rate" else math.nan
        for label in methods:
            if label == baseline or label not in by_label:
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
    """Slopes of all differences against one baseline on the test prompts' dispersion, of what these prompts gave."""
    dispersion, missing = prompt_dispersion(layout)
    rows = []
    for metric, by_label in values.items():
        standard = standard_of(by_label, metric, baseline)
        if standard is None or is_benchmark(metric) or is_on_other_pairs(metric):
            continue
        prompts = next(iter(by_label.values())).index
        runs = runs_of(by_label, methods)
        for position, label in enumerate(label for label in methods if label in by_label):
            if label != baseline:
                found = slope_row(prompts, (runs[position], standard, runs), dispersion, missing, confidence)
                rows.append({"method": label, "baseline": baseline, "metric": metric, **found})
    return _with_families(pd.DataFrame(rows), baseline)


def _with_families(table: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """With p corrected over the outcomes, and over the rest: two families. Parts of a group are in neither."""
    if table.empty:
        return table
    table = table.assign(family=table["metric"].map(lambda metric: _family(metric, baseline)))
    # Not grouped by its missing family, a part's adjusted p is missing, too.
    family = table.groupby("family")["p"]
    adjusted = {"p_holm": family.transform(holm), "p_bh": family.transform(benjamini_hochberg)}
    return table.assign(**adjusted, family_size=family.transform("count"))


def _family(metric: str, baseline: str) -> str | None:
    if is_part(metric):
        return None
    return f"{'outcomes' if is_outcome(metric) else 'descriptions'} against {baseline}"


def equivalence_margin(
    metric: str, by_label: dict[str, pd.DataFrame], standard: Array, settings: ComparisonSettings
) -> float:
    """Of the equivalence test, in the metric's unit; NaN where `standard` (P, S), the baseline's values, is the same on
    every prompt, and no margin follows from it."""
    lowest = min(table.to_numpy().min() for table in by_label.values())
    highest = max(table.to_numpy().max() for table in by_label.values())
    if bare(metric) in SHARES or (is_benchmark(metric) and lowest >= 0 and highest <= 1):
        return settings.share_margin
    by_prompt = standard.mean(axis=1)
    return settings.standard_margin * float(by_prompt.std(ddof=1)) if np.ptp(by_prompt) > 0 else math.nan


def _together(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """One table; the baseline alone leaves nothing against itself."""
    return pd.concat([part for part in parts if len(part)], ignore_index=True)
