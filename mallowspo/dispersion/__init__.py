"""From the reference's entropies to a dispersion weight for every prompt.

The dispersion index of a pair is a normalised entropy in (0, 1] (MallowsPO, section "dispersion index"; official code,
mallowsPO_trainer.py:1309-1350):

    H(y)   = sum over response tokens of the next-token entropy / (|y| * log V)
    index  = (H(y_w) + H(y_l)) / 2                 estimator "entropy"; `ESTIMATORS` has the others
    weight = -constant * log(index) = -2 log(phi)

Near 0: the reference is certain what comes next, people are taken to agree, the weight is large. 1: uniform, weight 0.
The constant is chosen so that the mean weight on the training pairs is 1: then MallowsPO and DPO at the same beta
have the same mean effective beta, and differ only in how it is spread over the prompts. (The official code fixes
it to 0.29, which gives mean 1 for one model and data set only.)

Shapes: B pairs, K sampled answers, V vocabulary. Entropies are in nats. A table of columns is a data frame, or a
dictionary of (B,) arrays, under the names of reference/{train,test}.parquet.
"""

from mallowspo.dispersion.controls import CONTROLS, controls, length_strata
from mallowspo.dispersion.estimators import (
    CONVENTIONS,
    ESTIMATORS,
    Convention,
    ImpossibleValue,
    SampledTerms,
    Terms,
    normalised_entropy,
    resolve_convention,
    sampled_terms,
)
from mallowspo.dispersion.weighting import (
    OFFICIAL_CONSTANT,
    Index,
    bounded,
    calibration_constant,
    dispersion,
    neutral_index,
    weights,
)

__all__ = [
    "CONTROLS",
    "CONVENTIONS",
    "ESTIMATORS",
    "OFFICIAL_CONSTANT",
    "Convention",
    "ImpossibleValue",
    "Index",
    "SampledTerms",
    "Terms",
    "bounded",
    "calibration_constant",
    "controls",
    "dispersion",
    "length_strata",
    "neutral_index",
    "normalised_entropy",
    "resolve_convention",
    "sampled_terms",
    "weights",
]
