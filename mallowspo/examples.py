"""Training pairs joined with the reference table and the weights, and batches of them."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mallowspo.files import read_parquet
from mallowspo.layout import Layout
from mallowspo.methods import METHODS
from mallowspo.packing import Batch, within_budget
from mallowspo.pairs.prepared import PreparedPairs, open_tokens
from mallowspo.reference import look_up, pair_batch


class Examples(Dataset[int]):
    """Training pairs by position, which an error can name.

    Args:
        pairs: the prepared pairs; a row is read from the disk when a batch holds it.
        tables: what the tables say of each pair, (n,) each.
        tokens_per_batch: tokens of prompts and responses that are in memory at a time.
    """

    def __init__(self, pairs: PreparedPairs, tables: dict[str, Tensor], tokens_per_batch: int):
        self.pairs = pairs
        self.tables = tables
        self.tokens_per_batch = tokens_per_batch
        self.tokens = pairs.lengths.sum(axis=1)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> int:
        return index

    @property
    def over_budget(self) -> list[str]:
        """Ids of pairs that are longer than the budget by themselves."""
        return [self.pairs.pair_ids[index] for index in np.flatnonzero(self.tokens > self.tokens_per_batch)]

    def collate(self, indices: list[int]) -> dict[str, list[dict[str, Tensor]]]:
        """The pairs of one optimizer step in parts that fit the budget, longest last."""
        batches = within_budget([int(self.tokens[index]) for index in indices], self.tokens_per_batch)
        return {"parts": [self._part([indices[at] for at in batch]) for batch in batches]}

    def _part(self, indices: list[int]) -> dict[str, Tensor]:
        """B pairs as tensors: rows (2B, T), chosen first; tables (B,)."""
        batch: Batch = pair_batch([self.pairs[index] for index in indices])
        return {
            "input_ids": batch.tokens,
            "attention_mask": batch.mask,
            "response": batch.response,
            "prompt": batch.prompt,
            "index": torch.tensor(indices),
            **{name: values[indices] for name, values in self.tables.items()},
        }


def load_examples(view: Any, method: Any, layout: Layout) -> Examples:
    """Training pairs joined with the reference table and, where the method needs it, the weights; by pair_id."""
    pairs = open_tokens(layout.tokens("train"))
    ids = pairs.pair_ids
    reference = look_up(read_parquet(layout.reference("train")), ids, str(layout.reference("train")))
    columns = {
        "reference_chosen": reference["chosen_logp"],
        "reference_rejected": reference["rejected_logp"],
        "weight": _weights(ids, method, layout),
        "prompt_perplexity": _prompt_perplexity(ids, method, reference),
    }
    tables = {name: torch.tensor(np.asarray(values), dtype=torch.float32) for name, values in columns.items()}
    return Examples(pairs, tables, view.training.tokens_per_batch)


def _weights(ids: list[str], method: Any, layout: Layout) -> list[float]:
    if "dispersion" not in METHODS[method.method].needs or method.control == "constant":
        return [1.0] * len(ids)
    column = {"none": "weight", "outside": "weight"}.get(method.control, f"weight_{method.control}")
    weights: list[float] = look_up(read_parquet(layout.dispersion), ids, str(layout.dispersion))[column].tolist()
    return weights


def _prompt_perplexity(ids: list[str], method: Any, reference: pd.DataFrame) -> list[float]:
    """Log-perplexity of each prompt under the reference, scaled to mean 1; 1 where a prompt has one token only."""
    if "prompt_perplexity" not in METHODS[method.method].needs:
        return [1.0] * len(ids)
    tokens = reference["prompt_tokens"].to_numpy()
    known = tokens > 0
    perplexity = -reference["prompt_logp"].to_numpy() / np.maximum(tokens, 1)
    mean = perplexity[known].mean() if known.any() else 1.0
    scaled: list[float] = np.where(known, perplexity / mean, 1.0).tolist()
    return scaled
