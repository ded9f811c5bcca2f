"""One training in several processes, which share the pairs of every optimizer step.

Each process is a whole training: it holds the policy and its optimizer (its part of them, where `mallowspo.sharding`
shares them out), and takes the same steps in the same order.
They differ in which pairs of a step they score. Two things pass between them: what was scored, a few numbers a pair,
so that every process computes the losses and metrics of the whole step; and, once a step, the gradients, which are
added up. So all of them move alike, and the first alone writes files.

torch's DistributedDataParallel is not used: it adds gradients up in the backward of its own forward, which the kernel
(`mallowspo.scoring`) goes around; it averages over processes, where a step's loss is a mean over pairs; and it holds a
second copy of the gradients.
"""

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mallowspo.shard import Shard

Value = TypeVar("Value")

#: What torch's launcher tells a process. transformers and accelerate read it too, and would deal out the steps and
#: wrap the policy as they see fit.
_TOLD = ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "LOCAL_RANK")

#: How long the others wait for the first, which takes minutes to write a checkpoint of a large policy. Who waits for a
#: process that has died is ended by the launcher.
PATIENCE = timedelta(hours=3)


@dataclass(frozen=True)
class Processes:
    """This process among those of one training."""

    rank: int = 0
    count: int = 1

    @classmethod
    def of_environment(cls) -> "Processes":
        """What the launcher told, which is then taken out of the environment. Alone where there is no launcher."""
        if not was_launched():
            return cls()
        told = {name: os.environ.pop(name) for name in _TOLD}
        return cls(int(told["RANK"]), int(told["WORLD_SIZE"]))

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    @property
    def share(self) -> Shard:
        """This process's share of anything that is dealt out."""
        return Shard(self.rank + 1, self.count)

    def connect(self, device: str) -> None:
        """Meet the others. To be called once the Trainer's arguments are made, which warn of a group not their own.

        Args:
            device: "cpu" or "cuda".
        """
        if self.count == 1:
            return
        _end_with_the_launcher()
        if not self.first:
            logging.getLogger().setLevel(logging.ERROR)  # the first says what there is to say
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, rank=self.rank, world_size=self.count, timeout=PATIENCE)

    def leave(self) -> None:
        """To be called when nothing more passes between the processes."""
        if self.count > 1:
            dist.destroy_process_group()

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What `make` gives in the first process, where alone it is called."""
        held = [make() if self.first else None]
        if self.count > 1:
            dist.broadcast_object_list(held, src=0)
        return held[0]  # type: ignore[return-value]

    def gather(self, rows: Tensor) -> Tensor:
        """Rows (n, ...) of all processes, one process after the other; n may differ. Without gradient."""
        rows = rows.detach()
        if self.count == 1:
            return rows
        counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(self.count)]
        dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
        padded = rows.new_zeros(int(max(counts)), *rows.shape[1:])
        padded[: len(rows)] = rows
        found = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(found, padded)
        return torch.cat([part[: int(count)] for part, count in zip(found, counts, strict=True)])

    def add_up_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give each parameter the sum of its gradients in all processes; none where it has none anywhere."""
        if self.count == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        used = torch.tensor([float(parameter.grad is not None) for parameter in trained], device=trained[0].device)
        dist.all_reduce(used)
        waiting = []
        for at in used.nonzero()[:, 0].tolist():
            if trained[at].grad is None:
                trained[at].grad = torch.zeros_like(trained[at])
            waiting.append(dist.all_reduce(trained[at].grad, async_op=True))
        for work in waiting:
            work.wait()


def was_launched() -> bool:
    """Whether `mallowspo.launch` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _end_with_the_launcher() -> None:
    """A launcher that is killed outright stops nobody, and a training that ran on would write beside its successor.

    Linux alone has this: prctl's PR_SET_PDEATHSIG.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
