"""Equivalence: that a difference is too small to matter is a finding, too, and needs its own test."""

import math

from mallowspo.inference.crossed import Spread, p_value


def equivalence_p(difference: float, spread: Spread, margin: float) -> float:
    """p of TOST, two one-sided tests (Schuirmann 1987): small where the true mean lies within -margin and +margin.

    The larger of the p-values against a mean of -margin or below and of +margin or above, each from the same spread as
    the interval. p below 0.05 is the same as a 90 % interval inside the margins.

    Args:
        difference: the mean difference, and the `spread` of it, from `paired_difference`.
        margin: above 0, in the unit of the difference. To be set before looking at the result.

    Returns:
        NaN for one prompt or a margin that is not above 0.
    """
    if spread.prompts < 2 or not margin > 0:
        return math.nan
    # One-sided: half the two-sided p where the mean is on the margin's inner side, else the rest of it.
    sides = [(p_value(distance, spread) / 2, distance > 0) for distance in (difference + margin, margin - difference)]
    return max(half if inside else 1 - half for half, inside in sides)
