"""The same clock for every trainer: wall and processor time of each step, and what was in it.

Both sides train on transformers.Trainer, whose callbacks say when a step begins and ends. Times run from the first
step's beginning to the training's end, so loading, the optimizer's making and saving the model are outside.
"""

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, TrainerCallback
from transformers import trainer as trainer_module


class Moment(NamedTuple):
    """Now: wall and processor time, seconds, of all threads of this process."""

    wall: float
    processor: float

    @classmethod
    def now(cls) -> "Moment":
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return cls(time.perf_counter(), time.process_time())

    def since(self, earlier: "Moment") -> dict[str, float]:
        return {
            "wall_seconds": self.wall - earlier.wall,
            "processor_seconds": self.processor - earlier.processor,
        }


class Clock(TrainerCallback):
    """Times one training.

    Args:
        counter: counts operations (`operations.counting`) from the first step to the last.
    """

    def __init__(self, counter: Any = None):
        self.counter = counter
        self.moments: list[Moment] = []
        self.pairs: list[list[int]] = []  # of each step, positions in the table
        self.ended: Moment | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.counter:
            self.counter.__enter__()
        self.moments = [Moment.now()]

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.pairs.append([])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.moments.append(Moment.now())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ended = Moment.now()
        if self.counter:
            self.counter.__exit__(None, None, None)

    def saw(self, pairs: list[int]) -> None:
        """These pairs are part of the step under way."""
        self.pairs[-1] += pairs

    def result(self) -> dict[str, Any]:
        """Seconds of the whole training and of each step, and each step's pairs."""
        if self.ended is None:
            raise RuntimeError("the training did not end")
        walls = [moment.wall for moment in self.moments]
        return {
            **self.ended.since(self.moments[0]),
            "step_seconds": [after - before for before, after in itertools.pairwise(walls)],
            "pairs": self.pairs,
        }


@contextmanager
def every_trainer(clock: Clock) -> Iterator[None]:
    """Trainers made within have this clock."""
    trainer_module.DEFAULT_CALLBACKS.append(clock)  # type: ignore[arg-type]
    try:
        yield
    finally:
        trainer_module.DEFAULT_CALLBACKS.remove(clock)  # type: ignore[arg-type]


class Loading:
    """Time that went into reading models from disk, seconds."""

    def __init__(self) -> None:
        self.wall = self.processor = 0.0


@contextmanager
def timed_loading() -> Iterator[Loading]:
    """Adds up what `from_pretrained` of any model takes within."""
    loading = Loading()
    original = PreTrainedModel.__dict__["from_pretrained"]

    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        started = Moment.now()
        model = original.__func__(cls, *args, **kwargs)
        took = Moment.now().since(started)
        loading.wall += took["wall_seconds"]
        loading.processor += took["processor_seconds"]
        return model

    type.__setattr__(PreTrainedModel, "from_pretrained", classmethod(from_pretrained))
    try:
        yield loading
    finally:
        type.__setattr__(PreTrainedModel, "from_pretrained", original)


def peak_memory(device: str) -> int:
    """Most bytes that this process held at once: on the GPU, or in main memory.

    On Linux this process's own high-water mark: `ru_maxrss` begins at that of the process which started it.
    """
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
