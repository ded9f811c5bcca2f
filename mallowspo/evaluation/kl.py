"""Estimators of KL(policy || reference), in nats an answer, from answers that the policy itself sampled.

Of an answer y to a prompt x, with the log-ratio r = log pi(y|x) - log pi_ref(y|x) of the whole answer, and r_t that of
its token t:

- k1 = r. Its mean over answers is the KL without bias. One answer's may be negative.
- k3 = exp(-r) - 1 + r, of John Schulman's note "Approximating KL divergence" (2020). Never negative, and without bias
  too, because E[exp(-r)] = 1 over the policy's answers. Near the reference it varies far less than k1.
- k3 by token: the sum of exp(-r_t) - 1 + r_t over the answer's tokens. Without bias for the same KL, which is the
  expected sum of the KLs of the next-token laws.

k3 of whole answers has a heavy tail: exp(-r) is large on the rare answers that the reference finds more likely than
the policy does. Far from the reference (some nats) such answers are seldom sampled at all; exp(-r) is then nearly 0 on
every answer at hand, and the mean of k3 reads one nat less than k1's. By token the tail is there too, but short, as one
token's ratio seldom is far from 1.

Answers must be sampled at temperature 1 and top_p 1; all three then speak of answers as they are, cut off at
max_new_tokens.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
#: Names in score.parquet and estimates.parquet.
K1, K3, K3_BY_TOKEN = "kl", "kl_k3", "kl_k3_by_token"
ESTIMATORS = (K1, K3, K3_BY_TOKEN)


def low_variance_kl(log_ratio: ArrayLike) -> Array:
    """k3 of log-ratios of any shape, nats."""
    ratio = np.asarray(log_ratio, dtype=float)
    # exp(-r) - 1 + r cancels near r = 0, where k3 is r^2 / 2.
    return np.asarray(np.expm1(-ratio) + ratio)


def kl_columns(policy: Sequence[Array], reference: Sequence[Array]) -> pd.DataFrame:
    """`ESTIMATORS` of answers, from the log-probabilities of their tokens under both."""
    ratios = [ours - theirs for ours, theirs in zip(policy, reference, strict=True)]
    log_ratio = np.array([ratio.sum() for ratio in ratios])
    by_token = [float(low_variance_kl(ratio).sum()) for ratio in ratios]
    return pd.DataFrame({K1: log_ratio, K3: low_variance_kl(log_ratio), K3_BY_TOKEN: by_token})
