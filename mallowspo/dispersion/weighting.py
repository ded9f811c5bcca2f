"""From indices to weights: bounds that are counted, calibration, and the phi that belongs to a weight."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: The multiplier of the official code (`neg_log_dispersion_mean`), printed beside ours for comparison.
OFFICIAL_CONSTANT = 0.29
#: Indices this near to 1 are 1: the entropy of a uniform law in float32 is log V to seven digits, and a weight that is
#: rounding alone must not be calibrated to mean 1.
UNIFORM = 1e-6


@dataclass(frozen=True)
class Index:
    """Dispersion indices of pairs, (B,) in (0, 1] or NaN, and how many were brought there."""

    values: Array
    clamped: int  # raised to the floor: an index of 0 would weigh infinitely
    above_one: int  # cut to 1
    zero_weight: int  # at 1, as above_one or because the next-token laws are uniform: the pair weighs nothing
    undefined: int  # no token counts: NaN


def bounded(values: Array, floor: float) -> Index:
    """Indices raised to `floor` and cut to 1, every such case counted."""
    uniform = values > 1 - UNIFORM
    return Index(
        values=np.where(uniform, 1.0, np.maximum(values, floor)),
        clamped=int(np.sum(values < floor)),
        above_one=int(np.sum(values > 1)),
        zero_weight=int(np.sum(uniform)),
        undefined=int(np.sum(np.isnan(values))),
    )


def calibration_constant(index: Array) -> float:
    """The constant that makes the mean weight of these pairs 1; undefined indices are left out.

    Raises:
        ValueError: when every index is undefined, or is 1 (uniform next-token laws): no constant gives mean 1.
    """
    defined = index[~np.isnan(index)]
    if not len(defined):
        raise ValueError("no pair has a token that counts, so there is nothing to calibrate by")
    mean = float(np.mean(-np.log(defined)))
    if mean <= 0:
        raise ValueError("every dispersion index is 1 (uniform next-token laws): the weights would all be 0")
    return 1.0 / mean


def neutral_index(index: Array) -> float:
    """What stands in for an undefined index: the geometric mean, which has the mean weight (1 when calibrated)."""
    return float(np.exp(np.nanmean(np.log(index))))


def weights(index: Array, constant: float) -> Array:
    """w = -constant * log(index) = -2 log(phi), (B,), at least 0."""
    return -constant * np.log(index) + 0.0  # not -0.0


def dispersion(weight: Array) -> Array:
    """phi = exp(-w / 2) in (0, 1]: the dispersion of Mallows' model that belongs to a weight."""
    return np.exp(-weight / 2)
