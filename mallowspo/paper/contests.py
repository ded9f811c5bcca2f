"""One method against another in a finished comparison.

A pair of methods that the comparison itself tested is read from comparison.parquet. Any other (SimPO's twin against
SimPO, say) is computed from the scores of the same runs by the same inference, which a test holds to the file.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mallowspo.compare import SHARES, equivalence_margin
from mallowspo.evaluation.frontier import BETA, HYPERVOLUME, HYPERVOLUME_GAIN
from mallowspo.files import read_json
from mallowspo.inference import Difference, contrast, equivalence_p, paired_difference
from mallowspo.layout import REFERENCE
from mallowspo.metric_names import bare, is_benchmark
from mallowspo.paper.finished import Place
from mallowspo.paper.verdict import detectable_of_interval, p_of_interval, short_p
from mallowspo.report.table import rows_of


@dataclass(frozen=True)
class Found:
    """An effect, written so that above 0 speaks for the claim, and what it stands on.

    Attributes:
        p, p_short: see `mallowspo.paper.verdict`.
        claimed: smallest effect that bears the claim out.
        scale: of the effect in its own standard deviations (`effect / scale`); NaN where it has none.
        n, unit: of what n counts; seeds: trainings of each method.
        source: the file.
    """

    effect: float
    low: float
    high: float
    p: float
    p_short: float
    claimed: float
    detectable: float
    n: float
    unit: str
    seeds: float
    covers: str
    test: str
    source: str
    scale: float = math.nan


def difference(place: Place, label: str, against: str, metric: str) -> Found | None:
    """`label` minus `against`; None where one of them has no such metric."""
    table = place.table("comparison")
    of_metric = table[table["metric"] == metric]
    straight = rows_of(of_metric[(of_metric["method"] == label) & (of_metric["baseline"] == against)])
    turned = rows_of(of_metric[(of_metric["method"] == against) & (of_metric["baseline"] == label)])
    if straight:
        return _of_row(place, straight[0], 1)
    # A win rate against NAME turned round would be a win rate against another.
    if turned and bare(metric) == metric:
        return _of_row(place, turned[0], -1)
    return _computed(place, label, against, metric)


def _of_row(place: Place, row: Any, sign: int) -> Found:
    """A row of comparison.parquet, turned round where the sign is -1; its p and p_equivalence know no direction."""
    low, high = sorted((sign * row.ci_low, sign * row.ci_high))
    return Found(
        effect=sign * row.difference,
        low=low,
        high=high,
        p=row.p,
        p_short=short_p(sign * row.difference, row.p, row.p_equivalence),
        claimed=row.equivalence_margin,
        detectable=row.detectable,
        n=row.n,
        unit="prompts",
        seeds=row.seeds,
        covers=row.covers,
        test=row.test,
        source=place.layout.comparison.name,
        scale=_scale(place, row.metric, row.equivalence_margin),
    )


def _scale(place: Place, metric: str, margin: float) -> float:
    """Standard deviation over prompts of the comparison's baseline, from which the margin was made."""
    experiment = place.comparison
    if experiment is None or bare(metric) in SHARES or is_benchmark(metric):
        return math.nan
    return margin / experiment.evaluation.comparison.standard_margin


def _computed(place: Place, label: str, against: str, metric: str) -> Found | None:
    if not _measured(place, metric, label, against):
        return None
    by_label = place.values[metric]
    found, margin = _tested(place, by_label, label, by_label[against].to_numpy(), metric)
    return _of_difference(place, found, margin, metric)


def _measured(place: Place, metric: str, *labels: str) -> bool:
    """Whether each has that metric of its own; a win rate against NAME is none of NAME's."""
    table = place.table("estimates")
    has = set(table[(table["metric"] == metric) & table["ci_low"].notna()]["method"])
    return set(labels) <= has


def _tested(
    place: Place, by_label: dict[str, pd.DataFrame], label: str, standard: np.ndarray, metric: str
) -> tuple[Difference, float]:
    experiment = place.comparison
    assert experiment is not None
    settings = experiment.evaluation.comparison
    runs = np.stack([by_label[name].to_numpy() for name in experiment.methods if name in by_label])
    found = paired_difference(
        by_label[label].to_numpy(), standard, settings.confidence, settings.resamples, settings.seed, runs
    )
    return found, equivalence_margin(metric, by_label, standard, settings)


def _of_difference(place: Place, found: Difference, margin: float, metric: str) -> Found:
    equal = equivalence_p(found.difference, found.spread, margin)
    return Found(
        effect=found.difference,
        low=found.low,
        high=found.high,
        p=found.p,
        p_short=short_p(found.difference, found.p, equal),
        claimed=margin,
        detectable=found.detectable,
        n=found.n,
        unit="prompts",
        seeds=found.spread.seeds,
        covers=found.covers,
        test=found.test,
        source="scores/*/seed=*",
        scale=_scale(place, metric, margin),
    )


def factorial(place: Place, labels: list[str], metric: str) -> Found | None:
    """both - first - second + neither, by the inference of factorial.parquet: all methods tell how much runs differ."""
    experiment = place.comparison
    if experiment is None or not _measured(place, metric, *labels):
        return None
    by_label = place.values[metric]
    known = [name for name in experiment.methods if name in by_label]
    weights = dict(zip(labels, (1.0, -1.0, -1.0, 1.0), strict=True))
    settings = experiment.evaluation.comparison
    found = contrast(
        np.stack([by_label[name].to_numpy() for name in known]),
        [weights.get(name, 0.0) for name in known],
        *(settings.confidence, settings.resamples, settings.seed),
    )
    margin = equivalence_margin(metric, by_label, by_label[labels[-1]].to_numpy(), settings)
    return _of_difference(place, found, margin, metric)


def hypervolume_gain(place: Place, label: str, share: float, confidence: float) -> Found | None:
    """Of the curve that `label` belongs to, over the baseline's; over betas where there are several, else along the
    training. None where there are no curves."""
    table = place.table("frontier")
    experiment = place.comparison
    gains = [row for row in rows_of(table) if row.measure == HYPERVOLUME_GAIN and label in row.method.split(", ")]
    if experiment is None or not gains:
        return None
    row = next((row for row in gains if row.along == BETA), gains[0])
    own = table[(table["measure"] == HYPERVOLUME) & (table["method"] == row.against) & (table["along"] == row.along)]
    claimed = share * float(own["estimate"].iloc[0])
    used = experiment.evaluation.comparison.confidence
    p, short = p_of_interval(row.estimate, row.ci_low, row.ci_high, claimed, row.n - 1, used)
    return Found(
        effect=row.estimate,
        low=row.ci_low,
        high=row.ci_high,
        p=p,
        p_short=short,
        claimed=claimed,
        detectable=detectable_of_interval(row.ci_low, row.ci_high, row.n - 1, used),
        n=row.n,
        unit="prompts",
        seeds=row.seeds,
        covers="new prompts, new seeds" if row.seeds > 1 else "new prompts, these runs only",
        test=f"bootstrap interval over prompts and seeds, along {row.along}; p from its width",
        source=place.layout.frontier.name,
    )


def length_controlled(
    place: Place, label: str, against: str, claimed: float, confidence: float
) -> tuple[Found | None, str]:
    """Length-controlled win rate of `label` minus that of `against`, in points, both against the same opponent.

    A seed's two runs answered the same prompts, so seeds are paired; Student's interval over seeds speaks of new seeds
    on these prompts. The opponent is a published model's outputs where there are any, else the reference.
    """
    experiment = place.comparison
    if experiment is None:
        return None, f"{place.name} is no comparison"
    rates = {name: [_rates(place, name, seed) for seed in experiment.seeds] for name in (label, against)}
    kinds = ("lc_winrate_official", "lc_winrate_approximate")
    baseline = experiment.evaluation.comparison.baseline
    shared = set.intersection(*(set(run) for runs in rates.values() for run in runs))
    opponents = sorted((name for name, _ in shared if name != baseline), key=lambda name: name == REFERENCE)
    chosen = next(((name, kind) for name in opponents for kind in kinds if (name, kind) in shared), None)
    if chosen is None:
        return None, f"{place.name} has no length-controlled win rate of both against the same opponent"
    by_seed = np.array([[run[chosen][0] for run in rates[name]] for name in (label, against)])
    n = rates[label][0][chosen][1]
    change = by_seed[0] - by_seed[1]
    seeds = len(change)
    effect, half = float(change.mean()), math.nan
    if seeds > 1:
        half = float(stats.t.ppf((1 + confidence) / 2, seeds - 1) * change.std(ddof=1) / math.sqrt(seeds))
    low, high = effect - half, effect + half
    p, short = p_of_interval(effect, low, high, claimed, seeds - 1, confidence)
    kind = "official" if chosen[1] == kinds[0] else "approximate: lengths alone"
    found = Found(
        effect=effect,
        low=low,
        high=high,
        p=p,
        p_short=short,
        claimed=claimed,
        detectable=detectable_of_interval(low, high, seeds - 1, confidence),
        n=n,
        unit="prompts",
        seeds=seeds,
        covers="new seeds, these prompts",
        test=f"Student's t over seeds; LC against {chosen[0]}, {kind}",
        source="scores/*/seed=*/judge.json",
    )
    return found, "" if seeds > 1 else "one seed: no interval of a length-controlled win rate over seeds"


def _rates(place: Place, label: str, seed: int) -> dict[tuple[str, str], tuple[float, int]]:
    """(opponent, kind) -> mean over answers, and how many prompts."""
    path = place.layout.scores(label, seed) / "judge.json"
    comparisons = read_json(path)["comparisons"] if path.exists() else []
    found: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for comparison in comparisons:
        for kind in ("lc_winrate_official", "lc_winrate_approximate"):
            if comparison.get(kind) is not None:
                value = float(comparison[kind]), int(comparison["n_total"])
                found.setdefault((str(comparison["against"]), kind), []).append(value)
    return {key: (float(np.mean([v for v, _ in values])), values[0][1]) for key, values in found.items()}
