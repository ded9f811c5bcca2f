"""transformers.Trainer with Bradley and Terry's loss of a pair."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.utils.data import Dataset
from transformers import Trainer

from mallowspo.checkpoints import MarkWhole
from mallowspo.errors import InputError
from mallowspo.judges.classifier import last_token_logits, read_texts


class PairTexts(Dataset[int]):
    """Pairs by position, and a step's pairs as token ids.

    Args:
        pairs: prompt, chosen and rejected of each pair.
        tokenizer: whose model_max_length is the most tokens that a text has.
        tokens_per_batch: tokens, padding included, that are in memory at a time.
    """

    def __init__(self, pairs: pd.DataFrame, tokenizer: Any, tokens_per_batch: int):
        self.pairs = pairs
        self.tokenizer = tokenizer
        self.tokens_per_batch = tokens_per_batch

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> int:
        return index

    def collate(self, indices: list[int]) -> dict[str, Any]:
        """A step's pairs in parts that fit: `parts`, each {tokens, mask} (2B, T), the chosen first; and `pairs`."""
        rows = self.pairs.iloc[indices]
        chosen, rejected = (self._read(rows, side) for side in ("chosen", "rejected"))
        lengths = [max(len(left), len(right)) for left, right in zip(chosen, rejected, strict=True)]
        parts = [
            padded([chosen[at] for at in part] + [rejected[at] for at in part])
            for part in within_padded_budget(lengths, self.tokens_per_batch // 2)
        ]
        return {"parts": parts, "pairs": len(indices)}

    def _read(self, rows: pd.DataFrame, side: str) -> list[list[int]]:
        texts = list(zip(rows["prompt"], rows[side], strict=True))
        ids: list[list[int]] = read_texts(self.tokenizer, texts, self.tokenizer.model_max_length)["input_ids"]
        return ids


def within_padded_budget(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Positions of items in batches, longest first: the longest's length times the number of items is at most
    `budget`; a longer item makes a batch of its own."""
    batches: list[list[int]] = []
    for at in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > budget:
            batches.append([])
        batches[-1].append(at)
    return batches


def padded(rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Token ids padded on the right; what is padding goes by length, never by an id."""
    longest = max(map(len, rows))
    tokens, mask = torch.zeros(2, len(rows), longest, dtype=torch.long)
    for at, row in enumerate(rows):
        tokens[at, : len(row)] = torch.tensor(row)
        mask[at, : len(row)] = 1
    return {"tokens": tokens, "mask": mask}


class RewardTrainer(Trainer):
    """Loss of a pair: minus log sigmoid of its margin, the chosen answer's reward less the rejected one's.

    `state.log_history` has of each step loss, accuracy (a tie counts half), margin, grad_norm and learning_rate; it is
    part of every checkpoint.
    """

    def __init__(self, *, precision: str, **kwargs: Any):
        super().__init__(**kwargs)
        self.precision = precision
        self.step_margins: list[Tensor] = []
        self.add_callback(MarkWhole())

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of one optimizer step, a part of its pairs at a time."""
        model.train()
        step: Any = self._prepare_inputs(inputs)
        total = torch.zeros((), device=self.args.device)
        for part in step["parts"]:
            margins = self.margins(part)
            loss = -logsigmoid(margins).sum() / step["pairs"]
            if not bool(loss.isfinite()):
                raise InputError(f"step {self.state.global_step + 1}: the loss is not finite; lower learning_rate")
            loss.backward()
            total += loss.detach()
            self.step_margins.append(margins.detach())
        return total

    def margins(self, part: dict[str, Tensor]) -> Tensor:
        """Reward of the chosen less that of the rejected answer: (B,)."""
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            rewards = last_token_logits(self.model, part["tokens"], part["mask"])[:, 0]
        chosen, rejected = rewards.chunk(2)
        return chosen - rejected

    def floating_point_ops(self, inputs: Any) -> int:
        """Not estimated: the Trainer's formula asks for its own kind of inputs."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "grad_norm" in logs:  # the closing summary is no step
            if not math.isfinite(logs["grad_norm"]):
                raise InputError(f"step {self.state.global_step}: the gradient is not finite; lower learning_rate")
            margins = torch.cat(self.step_margins)
            self.step_margins = []
            logs |= {"accuracy": float((0.5 + 0.5 * margins.sign()).mean()), "margin": float(margins.mean())}
        super().log(logs, start_time)
