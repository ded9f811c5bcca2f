"""The entropy of the next token given one token alone, which the estimator "bigram" reads."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from tqdm import tqdm

from mallowspo.packing import Row
from mallowspo.reference import Pairs, score_rows
from mallowspo.scoring import Scorer

#: Contexts of one token that are scored at a time.
ROWS_PER_BATCH = 256


def bigram_columns(scorer: Scorer, start_token: int | None, pairs: Mapping[str, Pairs]) -> dict[str, pd.DataFrame]:
    """For every pair of every split: pair_id, chosen_bigram_entropy and rejected_bigram_entropy.

    These are sums, in nats, over all tokens of a response but its last, of the entropy given that token alone; after
    `start_token`, where the prompts begin with it.
    """
    first = next(pair.prompt[0] for part in pairs.values() for pair in part)
    before = [first] if first == start_token else []
    given = sorted(
        {token for part in pairs.values() for pair in part for side in (pair.chosen, pair.rejected)
         for token in side[:-1]}
    )  # fmt: skip
    entropies = np.zeros(max(given, default=0) + 1)
    for start in tqdm(range(0, len(given), ROWS_PER_BATCH), desc="scoring single tokens", mininterval=2):
        tokens = given[start : start + ROWS_PER_BATCH]
        # The law after a token is read where some next token is predicted; which one does not matter.
        scored = score_rows(scorer, [Row([*before, token], [token]) for token in tokens])
        entropies[tokens] = [float(entropy[0]) for _, entropy in scored]
    return {split: _of_split(part, entropies) for split, part in pairs.items()}


def _of_split(pairs: Pairs, entropies: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "pair_id": pair.pair_id,
            "chosen_bigram_entropy": float(entropies[pair.chosen[:-1]].sum()),
            "rejected_bigram_entropy": float(entropies[pair.rejected[:-1]].sum()),
        }
        for pair in pairs
    )
