"""What a training step measures, and metrics.jsonl, which holds it on disk before anything else hears of it."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mallowspo.files import read_json, read_jsonl, write_json, write_jsonl
from mallowspo.objectives import PairLosses, PairScores


class StepMetrics:
    """Gathers the pairs of one optimizer step, over all its batches."""

    def __init__(self) -> None:
        self.columns: dict[str, list[Tensor]] = {}
        self.started = time.perf_counter()
        self.waited = 0.0

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the seconds inside as time that the data took."""
        started = time.perf_counter()
        yield
        self.waited += time.perf_counter() - started

    def add(self, losses: PairLosses, pairs: PairScores) -> None:
        """Add one batch of B pairs."""
        chosen, rejected = pairs.chosen_logp, pairs.rejected_logp
        chosen_tokens, rejected_tokens = pairs.need("chosen_tokens"), pairs.need("rejected_tokens")
        values = {
            "loss": losses.loss,
            "margin": losses.margin,
            "scaled_margin": losses.scaled_margin,
            # The accuracy of what is optimised: a tie counts half.
            "accuracy": 0.5 + 0.5 * torch.sign(losses.scaled_margin),
            "logp_chosen": chosen,
            "logp_rejected": rejected,
            "logp_chosen_per_token": chosen / chosen_tokens,
            "logp_rejected_per_token": rejected / rejected_tokens,
            "effective_beta": losses.effective_beta,
            # A pair that the method drops (beta-DPO) has weight 0.
            "pairs_dropped": (losses.loss_weight == 0).double(),
            "tokens": chosen_tokens + rejected_tokens,
        }
        for name, value in values.items():
            self.columns.setdefault(name, []).append(value.detach().double().cpu())

    def row(self, step: int, epoch: float, logs: dict[str, float]) -> dict[str, Any]:
        """Means over the step's pairs."""
        columns = {name: torch.cat(parts) for name, parts in self.columns.items()}
        seconds = time.perf_counter() - self.started
        tokens = int(columns.pop("tokens").sum())
        row: dict[str, Any] = {"step": step, "epoch": epoch}
        dropped = int(columns.pop("pairs_dropped").sum())
        row |= {name: float(values.mean()) for name, values in columns.items()}
        row |= {
            "effective_beta_min": float(columns["effective_beta"].min()),
            "effective_beta_max": float(columns["effective_beta"].max()),
            "gradient_norm": float(logs["grad_norm"]),
            "learning_rate": float(logs["learning_rate"]),
            "pairs": len(columns["loss"]),
            "pairs_dropped": dropped,
            "tokens": tokens,
            "seconds": seconds,
            "data_seconds": self.waited,
            "tokens_per_second": tokens / seconds,
        }
        return row


#: Columns of metrics.jsonl that measure the machine, not the training: they differ between equal runs.
TIMING = ("seconds", "data_seconds", "tokens_per_second")


class MetricsFile:
    """metrics.jsonl of a training under way: a line a step, on disk before the next step begins."""

    def __init__(self, path: Path):
        self.path = path
        self._resumes = path.with_name("resumes.json")

    def append(self, row: dict[str, Any]) -> None:
        """Write one row through to the disk."""
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row, allow_nan=False) + "\n")
            handle.flush()
            os.fsync(handle.fileno())

    def rows(self) -> list[dict[str, Any]]:
        """All rows so far."""
        return read_jsonl(self.path)

    def keep_up_to(self, step: int) -> None:
        """Before going on from `step`: drop later rows (they will be made again), and a line that a kill cut short."""
        if not self.path.exists():
            return
        whole = [
            line for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")
        ]
        rows = [json.loads(line) for line in whole]
        write_jsonl(self.path, [row for row in rows if row["step"] <= step])
        write_json(self._resumes, [*self.resumed_from, step])

    @property
    def resumed_from(self) -> list[int]:
        """Steps from which a killed training was taken up again."""
        found: list[int] = read_json(self._resumes) if self._resumes.exists() else []
        return found
