"""Several tests at once: adjusted p-values of one family, which is the whole of what was tested for one claim."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from statsmodels.stats.multitest import multipletests


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's step-down adjustment (Holm 1979): below 0.05, one false claim in the whole family in at most 1 of 20.

    NaN stays NaN and is no member of the family. Not statsmodels': it has Python collect its garbage in each call,
    which took two thirds of a comparison's time.
    """
    family = np.array(p_values, dtype=float)
    tested = np.flatnonzero(np.isfinite(family))
    order = tested[np.argsort(family[tested])]
    steps = family[order] * np.arange(len(order), 0, -1)
    family[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return family


def benjamini_hochberg(p_values: ArrayLike) -> NDArray[np.float64]:
    """Benjamini and Hochberg's adjustment (1995): of all claims with a value below 0.05, 1 in 20 is false on average.

    For independent or positively dependent tests, which metrics of the same policies mostly are. NaN stays NaN and is
    no member of the family.
    """
    family = np.array(p_values, dtype=float)
    tested = np.isfinite(family)
    if tested.any():
        family[tested] = multipletests(family[tested], method="fdr_bh")[1]
    return family
