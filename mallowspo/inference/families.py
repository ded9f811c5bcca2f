"""Several tests at once: adjusted p-values of one family, which is the whole of what was tested for one claim."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from statsmodels.stats.multitest import multipletests


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's step-down adjustment (Holm 1979): below 0.05, one false claim in the whole family in at most 1 of 20."""
    return _adjusted(p_values, "holm")


def benjamini_hochberg(p_values: ArrayLike) -> NDArray[np.float64]:
    """Benjamini and Hochberg's adjustment (1995): of all claims with a value below 0.05, 1 in 20 is false on average.

    For independent or positively dependent tests, which metrics of the same policies mostly are.
    """
    return _adjusted(p_values, "fdr_bh")


def _adjusted(p_values: ArrayLike, method: str) -> NDArray[np.float64]:
    """NaN stays NaN and is no member of the family."""
    family = np.array(p_values, dtype=float)
    tested = np.isfinite(family)
    if tested.any():
        family[tested] = multipletests(family[tested], method=method)[1]
    return family
