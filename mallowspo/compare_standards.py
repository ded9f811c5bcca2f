"""What a method is compared with, by metric, and the values of all methods beside each other."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mallowspo.evaluation.degeneration import SIGNS
from mallowspo.evaluation.displacement import CHOSEN_FELL
from mallowspo.metric_names import bare, opponent

Array = NDArray[np.float64]
#: What the reference gets, by definition, where it is itself the standard of comparison.
BY_DEFINITION = {"win_rate": 0.5, "accuracy": 0.5, "margin": 0.0}

#: Metrics that lie between 0 and 1; a benchmark is one of them where all its values do.
SHARES = ("win_rate", "accuracy", "complete", CHOSEN_FELL, *SIGNS)


def bounded(metric: str, low: float, high: float) -> tuple[float, float]:
    """An interval of a mean, cut to what the metric can be."""
    return (max(low, 0.0), min(high, 1.0)) if bare(metric) in SHARES else (low, high)


def standard_of(by_label: dict[str, pd.DataFrame], metric: str, baseline: str) -> Array | None:
    """(P, S) or (P, 1), the baseline's values of a metric; None where it has none."""
    if baseline in by_label:
        return by_label[baseline].to_numpy()
    if opponent(metric) != baseline:
        return None
    return np.full((len(next(iter(by_label.values()))), 1), BY_DEFINITION[bare(metric)])


def runs_of(by_label: dict[str, pd.DataFrame], methods: list[str]) -> Array:
    """(M, P, S), all methods' values of a metric: together they tell how much runs differ from seed to seed."""
    return np.stack([by_label[label].to_numpy() for label in methods if label in by_label])
