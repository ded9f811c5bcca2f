"""Of each held-out pair: a policy's implicit reward margin, and how far it moved both log-probabilities."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mallowspo.evaluation.displacement import changes
from mallowspo.evaluation.score_parts import Part, key_of, parts_of
from mallowspo.files import read_parquet, write_parquet
from mallowspo.layout import Layout
from mallowspo.pairs.prepared import open_tokens
from mallowspo.reference import look_up, score_pairs
from mallowspo.scoring import Scorer


class PairScores:
    """The scores of an experiment's held-out pairs, or of a further set, whose layout it then is; and their table.

    Args:
        folder: of the policy.
        arithmetic: precision and device.
    """

    def __init__(self, view: Any, layout: Layout, method: str, seed: int, folder: Path, arithmetic: tuple[str, str]):
        self.tokens_per_batch = view.reference.tokens_per_batch
        self.layout = layout
        self.table = layout.scores(method, seed) / "pairs.parquet"
        self.pairs = open_tokens(layout.tokens("test"))
        place = layout.score_parts(method, seed, key_of([self.pairs.digest], [folder], arithmetic))
        self.parts = parts_of(len(self.pairs), place, "pairs")

    def write(self, scorer: Scorer, missing: Collection[Part]) -> None:
        """Write the parts that are missing: log-probabilities and token counts of both responses."""
        for part in [part for part in self.parts if part in missing]:
            write_parquet(part.file, score_pairs(scorer, self.pairs[part.places], self.tokens_per_batch))

    def assemble(self) -> None:
        """Write the table, against the reference's."""
        scored = pd.concat([read_parquet(part.file) for part in self.parts], ignore_index=True)
        known = self.layout.reference("test")
        moved = changes(scored, look_up(read_parquet(known), scored["pair_id"].tolist(), str(known)))
        margin = moved["chosen_change"] - moved["rejected_change"]
        scored = scored.assign(margin=margin, correct=0.5 + 0.5 * np.sign(margin)).join(moved)
        prompts = read_parquet(self.layout.pairs("test"))[["pair_id", "prompt_id"]]
        result = prompts.merge(scored.drop(columns=["chosen_tokens", "rejected_tokens"]), on="pair_id")
        write_parquet(self.table, result)
