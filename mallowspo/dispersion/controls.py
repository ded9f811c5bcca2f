"""Controls: the same weights where they do not belong, to see whether they are the cause of an effect."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: What `controls` makes of the weights, to see whether they are the cause.
CONTROLS = ("shuffled", "inverted", "length_matched")
#: Strata of length, and pairs in each, that the control "length_matched" permutes within.
STRATA, LEAST_IN_STRATUM = 10, 5


def controls(weight: Array, lengths: Array, seed: int) -> dict[str, Array]:
    """The same weights, given to other pairs of the same split: each is a permutation of `weight`, so of the same mean.

    shuffled: at random. inverted: the largest to the pair with the smallest, and so on. length_matched: at random
    within strata of response length, which keeps what a weight owes to length and destroys the rest.

    Args:
        weight: (B,) of one split.
        lengths: (B,) mean number of tokens of both responses.
        seed: of the permutations.
    """
    generator = np.random.default_rng(seed)
    inverted = np.empty_like(weight)
    inverted[np.argsort(weight, kind="stable")] = np.sort(weight)[::-1]
    matched = np.empty_like(weight)
    for stratum in length_strata(lengths):
        matched[stratum] = weight[generator.permutation(stratum)]
    return {"shuffled": generator.permutation(weight), "inverted": inverted, "length_matched": matched}


def length_strata(lengths: Array) -> list[NDArray[np.intp]]:
    """Positions of the pairs, from short to long, in up to `STRATA` parts of at least `LEAST_IN_STRATUM` pairs."""
    parts = max(1, min(STRATA, len(lengths) // LEAST_IN_STRATUM))
    return np.array_split(np.argsort(lengths, kind="stable"), parts)
