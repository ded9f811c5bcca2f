"""The estimators under study, each as it would stand in an experiment's `dispersion` section."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mallowspo.dispersion import ESTIMATORS, Terms, neutral_index, resolve_convention

Array = NDArray[np.float64]
#: A table, or a dictionary of (N,) arrays, under the names of reference/{train,test}.parquet.
Columns = Mapping[str, Any] | pd.DataFrame

#: Label -> what differs from the defaults of `DispersionSettings`.
VARIANTS: dict[str, dict[str, Any]] = {
    "entropy": {"estimator": "entropy"},
    "entropy, first_token: false": {"estimator": "entropy", "first_token": False},
    "entropy, end_token: false": {"estimator": "entropy", "end_token": False},
    "entropy, convention: official": {"estimator": "entropy", "convention": "official"},
    "chosen": {"estimator": "chosen"},
    "rejected": {"estimator": "rejected"},
    "prompt": {"estimator": "prompt"},
    "paper_sum": {"estimator": "paper_sum"},
    "paper_sum, normaliser: vocabulary": {"estimator": "paper_sum", "normaliser": "vocabulary"},
    "bigram": {"estimator": "bigram"},
    "sampled": {"estimator": "sampled"},
}
SUMMED = "paper_sum, normaliser: vocabulary"
#: Columns without which a variant cannot be had.
_NEEDS = {"sampled": "sampled_entropy"}


def indices(columns: Columns, vocabulary: int) -> dict[str, Array]:
    """Each variant's index of every pair, (N,), neither cut nor raised; NaN where no token counts.

    A variant whose columns are missing is left out, as is the official convention where there is no header: it would
    be `entropy` again.
    """
    found = {}
    for label, changes in VARIANTS.items():
        estimator = changes["estimator"]
        if _NEEDS.get(estimator, "prompt_entropy") not in columns:
            continue
        if "convention" in changes and not np.any(columns["header_tokens"]):
            continue
        found[label] = _function(changes)(columns, vocabulary)
    return found


def _function(changes: dict[str, Any]) -> Callable[[Columns, int], Array]:
    convention = resolve_convention(
        changes["estimator"],
        changes.get("convention", "response_tokens"),
        changes.get("first_token"),
        changes.get("end_token"),
        changes.get("header"),
    )
    normaliser = changes.get("normaliser", "sequences")

    def index(columns: Columns, vocabulary: int) -> Array:
        return ESTIMATORS[changes["estimator"]](columns, Terms(vocabulary, convention, normaliser))

    return index


def filled(index: Array) -> Array:
    """Undefined indices at the neutral value, as the dispersion stage does; all undefined: all the same."""
    if np.isnan(index).all():
        return np.ones_like(index)
    return np.where(np.isnan(index), neutral_index(index), index)


def choice_entropy(difference: Array) -> Array:
    """Entropy (bits) of the choice that the model would make between two answers, from the log-odds (N,) of the first.

    Not an estimator of `mallowspo.dispersion`: it needs both answers' log-probabilities, and asks the model the
    question that the voters were asked.
    """
    share = 1 / (1 + np.exp(-np.clip(difference, -500, 500)))
    return binary_entropy(share)


def binary_entropy(share: Array) -> Array:
    """-p log2 p - (1 - p) log2 (1 - p) of shares (N,), in [0, 1] bits."""
    both = np.stack([share, 1 - share])
    value: Array = -(both * np.log2(np.where(both > 0, both, 1.0))).sum(axis=0) + 0.0
    return value
