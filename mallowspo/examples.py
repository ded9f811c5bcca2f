"""Training pairs joined with the reference table and the weights, and batches of them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mallowspo.files import read_parquet
from mallowspo.layout import Layout
from mallowspo.methods import METHODS
from mallowspo.packing import Batch
from mallowspo.pairs.tokens import TokenizedPair, tokenize_pairs
from mallowspo.reference import look_up, pair_batch


@dataclass(frozen=True)
class Example:
    """One training pair with what the tables say about it."""

    pair: TokenizedPair
    reference_chosen: float
    reference_rejected: float
    weight: float
    prompt_perplexity: float


class Examples(Dataset[dict[str, Any]]):
    """Training pairs by position; the position travels with the batch, so that an error can name the pair."""

    def __init__(self, examples: list[Example]):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"index": index, "example": self.examples[index]}


def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    """B examples to tensors: rows (2B, T), chosen first; tables (B,)."""
    examples: list[Example] = [item["example"] for item in items]
    batch: Batch = pair_batch([example.pair for example in examples])
    return {
        "input_ids": batch.tokens,
        "attention_mask": batch.mask,
        "response": batch.response,
        "prompt": batch.prompt,
        "reference_chosen": torch.tensor([example.reference_chosen for example in examples]),
        "reference_rejected": torch.tensor([example.reference_rejected for example in examples]),
        "weight": torch.tensor([example.weight for example in examples]),
        "prompt_perplexity": torch.tensor([example.prompt_perplexity for example in examples]),
        "index": torch.tensor([item["index"] for item in items]),
    }


def load_examples(tokenizer: Any, view: Any, method: Any, layout: Layout) -> list[Example]:
    """Training pairs joined with the reference table and, where the method needs it, the weights; by pair_id."""
    pairs = tokenize_pairs(tokenizer, read_parquet(layout.pairs("train")), view.tokens)
    ids = [pair.pair_id for pair in pairs]
    reference = look_up(read_parquet(layout.reference("train")), ids, str(layout.reference("train")))
    columns = (
        *(pairs, reference["chosen_logp"], reference["rejected_logp"]),
        *(_weights(ids, method, layout), _prompt_perplexity(ids, method, reference)),
    )
    return [Example(*values) for values in zip(*columns, strict=True)]


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
