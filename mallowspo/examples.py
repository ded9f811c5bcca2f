"""Training pairs joined with the reference table and the weights, and batches of them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mallowspo.files import read_parquet
from mallowspo.layout import Layout
from mallowspo.methods import METHODS
from mallowspo.packing import Batch, within_budget
from mallowspo.pairs.prepared import PreparedPairs, open_tokens
from mallowspo.perplexity import prompt_perplexity
from mallowspo.reference import look_up, pair_batch
from mallowspo.shard import Shard

#: The share of a process that is alone.
ALONE = Shard(1, 1)


class Examples(Dataset[int]):
    """Training pairs by position, which an error can name.

    Args:
        pairs: the prepared pairs; a row is read from the disk when a batch holds it.
        tables: what the tables say of each pair, (n,) each.
        tokens_per_batch: tokens of prompts and responses that are in memory at a time.
        share: which of the processes that share a step's pairs this one is.
    """

    def __init__(self, pairs: PreparedPairs, tables: dict[str, Tensor], tokens_per_batch: int, share: Shard):
        self.pairs = pairs
        self.tables = tables
        self.tokens_per_batch = tokens_per_batch
        self.share = share
        self.tokens = pairs.lengths.sum(axis=1)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> int:
        return index

    @property
    def over_budget(self) -> list[str]:
        """Ids of pairs that are longer than the budget by themselves."""
        return [self.pairs.pair_ids[index] for index in np.flatnonzero(self.tokens > self.tokens_per_batch)]

    def collate(self, indices: list[int]) -> dict[str, Any]:
        """The pairs of one optimizer step that this process scores, in parts that fit the budget, longest last.

        Every process gets as many parts, and at least one: what it lacks is filled up with parts of one pair that
        counts for nothing, so that all stay in step.

        Returns:
            parts: see `_part`; pairs: number of pairs of the step, in all processes.
        """
        step = sorted(indices, key=self.tokens.__getitem__)
        cut = [self._cut(step, Shard(number, self.share.count)) for number in range(1, self.share.count + 1)]
        own = cut[self.share.number - 1]
        parts = [self._part([step[place] for place in places], places) for places in own]
        parts += [self._part(step[:1], []) for _ in range(max(map(len, cut)) - len(own))]
        return {"parts": parts, "pairs": len(step)}

    def _cut(self, step: list[int], share: Shard) -> list[list[int]]:
        """Places in a step, sorted by length, of the pairs that one process scores, part by part."""
        places = share.of(range(len(step)))
        parts = within_budget([int(self.tokens[step[place]]) for place in places], self.tokens_per_batch)
        return [[places[at] for at in part] for part in parts]

    def _part(self, indices: list[int], places: list[int]) -> dict[str, Tensor]:
        """B pairs as tensors: rows (2B, T), chosen first; tables, index, and place in the step (B,), or (0,) where
        the pairs count for nothing."""
        batch: Batch = pair_batch([self.pairs[index] for index in indices])
        index = torch.tensor(indices[: len(places)], dtype=torch.long)
        return {
            "input_ids": batch.tokens,
            "attention_mask": batch.mask,
            "response": batch.response,
            "prompt": batch.prompt,
            "index": index,
            "place": torch.tensor(places, dtype=torch.long),
            **{name: values[index] for name, values in self.tables.items()},
        }


def load_examples(view: Any, method: Any, layout: Layout, share: Shard = ALONE) -> Examples:
    """Training pairs joined with the reference table and, where the method needs it, the weights; by pair_id."""
    pairs = open_tokens(layout.tokens("train"))
    ids = pairs.pair_ids
    reference = look_up(read_parquet(layout.reference("train")), ids, str(layout.reference("train")))
    perplexed = "prompt_perplexity" in METHODS[method.method].needs
    columns = {
        "reference_chosen": reference["chosen_logp"],
        "reference_rejected": reference["rejected_logp"],
        "weight": _weights(ids, method, layout),
        "prompt_perplexity": prompt_perplexity(reference) if perplexed else np.ones(len(ids)),
    }
    tables = {name: torch.tensor(np.asarray(values), dtype=torch.float32) for name, values in columns.items()}
    return Examples(pairs, tables, view.training.tokens_per_batch, share)


def _weights(ids: list[str], method: Any, layout: Layout) -> list[float]:
    if "dispersion" not in METHODS[method.method].needs or method.control == "constant":
        return [1.0] * len(ids)
    column = {"none": "weight", "outside": "weight"}.get(method.control, f"weight_{method.control}")
    weights: list[float] = look_up(read_parquet(layout.dispersion), ids, str(layout.dispersion))[column].tolist()
    return weights
