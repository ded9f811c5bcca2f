"""DPOTrainer with token ids as they are given, an order of its own, and figures of what it did. Needs TRL."""

import uuid
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset
from torch.utils.data import Sampler
from trl import DPOTrainer

from mallowspo.bench.clock import Clock, Moment
from mallowspo.bench.operations import counting


class InOrder(Sampler[int]):
    """Positions in a given order."""

    def __init__(self, order: list[int]):
        self.order = order

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)

    def __len__(self) -> int:
        return len(self.order)


def dataset(rows: list[dict[str, list[int]]]) -> Dataset:
    """Token ids as a data set, under a fingerprint that no cache knows: TRL keeps reference passes by it."""
    return Dataset(pa.Table.from_pylist(rows), fingerprint=uuid.uuid4().hex)


class Measured(DPOTrainer):
    """Computes just what DPOTrainer does, on pairs that are tokens already.

    Args:
        clock: hears of each step's pairs.
        order: positions in the data set, of all steps.
    """

    def __init__(self, *, clock: Clock, order: list[int], **kwargs: Any):
        self.clock, self.order = clock, order
        self.reference = {"wall_seconds": 0.0, "processor_seconds": 0.0}
        self.reference_operations = 0
        self.losses: list[list[torch.Tensor]] = []
        self.tokens = {"real": 0, "padded": 0}
        super().__init__(**kwargs)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> InOrder:
        return InOrder(self.order)

    def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
        if not self.clock.counter:
            started = Moment.now()
            found = super()._precompute_ref_logps(*args, **kwargs)
            self.reference = Moment.now().since(started)
            return found
        with counting() as counter:
            found = super()._precompute_ref_logps(*args, **kwargs)
        self.reference_operations = counter.get_total_flops()
        return found

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        loss = super()._compute_loss(model, inputs, return_outputs)
        while len(self.losses) < len(self.clock.pairs):
            self.losses.append([])
        self.losses[-1].append(loss.detach())
        self.tokens["real"] += int(inputs["attention_mask"].sum())
        self.tokens["padded"] += inputs["attention_mask"].numel()
        return loss

    def result(self) -> dict[str, Any]:
        """Losses of each step, tokens, the reference pass, operations."""
        counter = self.clock.counter
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        starts = range(0, len(self.order), size)
        return {
            "pairs": [self.order[start : start + size] for start in starts],
            "losses": [float(torch.stack(parts).mean()) for parts in self.losses],
            "real_tokens": self.tokens["real"],
            "padded_tokens": self.tokens["padded"],
            **{f"reference_{name}": value for name, value in self.reference.items()},
            "reference_operations": self.reference_operations,
            "operations": counter.get_total_flops() if counter else None,
        }
