"""How many pairs of a file an experiment takes, so that it ends in the minutes that are given on this machine."""

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from mallowspo.errors import InputError
from mallowspo.experiments import validate
from mallowspo.memory_formula import MEBIBYTE
from mallowspo.new.look import FEWEST_TEST, FEWEST_TRAIN, Look
from mallowspo.plan.data import Data, Pairs
from mallowspo.plan.hardware import Device
from mallowspo.plan.requests import MEMORY_MARGIN
from mallowspo.plan.shapes import Shape
from mallowspo.plan.stages import Case, Stage, stages
from mallowspo.plan.table import total
from mallowspo.settings import Experiment

#: Share of the prompts, and of the responses, that are not cut.
WHOLE = 0.98
#: Tokens of a sampled answer, at most: seven policies answer every test prompt.
LONGEST_ANSWER = 128
#: Limits of tokens are multiples of it.
ROUNDED = 8
#: Seconds of the jobs that a plan does not count: model, pairs, dispersion, comparison, report, tracking; of Snakemake.
BESIDE = 60
#: Pairs behind one optimizer step, and the learning rate of adapters: large where there are few steps.
PAIRS_PER_STEP = 8
FEW_STEPS, RATE_OF_FEW, RATE = 100, "5e-4", "1e-4"
#: Share of the machine's memory that jobs side by side may take.
FOR_JOBS = 0.8


@dataclass(frozen=True)
class Request:
    """What a person asked for, with the model's facts."""

    name: str
    pairs: str
    model: str
    sha256: str | None
    template: str
    judge: str
    minutes: float
    max_unusable_share: float
    test_fraction: float
    shape: Shape
    window: int | None
    device: Device
    cores: int
    memory: int = field(default_factory=lambda: machine_memory())  # bytes of this machine

    @property
    def machine(self) -> str:
        return f"one {self.device.name}" if self.device.is_gpu else f"{self.cores} cores"


@dataclass(frozen=True)
class Sized:
    """An experiment that fits, as text and as planned."""

    text: str
    experiment: Experiment
    planned: list[Stage]
    minutes: float
    train: int  # prompts
    test: int


def sized(asked: Request, found: Look) -> Sized:
    """The largest experiment that takes `asked.minutes` at most.

    Raises:
        InputError: the smallest one takes longer.
    """
    low, high = FEWEST_TRAIN, found.train
    best = _with(asked, found, low)
    if best.minutes > asked.minutes:
        raise InputError(
            f"--minutes {asked.minutes:g}: the smallest comparison of these pairs, {best.train} prompts to train on, "
            f"takes about {math.ceil(best.minutes)} minutes; give at least so many, or a smaller model"
        )
    while low < high:
        middle = (low + high + 1) // 2
        tried = _with(asked, found, middle)
        if tried.minutes <= asked.minutes:
            best, low = tried, middle
        else:
            high = middle - 1
    return best


def machine_memory() -> int:
    """Bytes of this machine, or of the container that this runs in."""
    own = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.exists() else ""
    return min(own, int(text)) if text.isdigit() else own


def _with(asked: Request, found: Look, train: int) -> Sized:
    """With so many training prompts, and half as many test prompts where there are so many."""
    test = min(found.test, max(FEWEST_TEST, train // 2))
    limits = _limits(found, asked.window)
    lengths = np.minimum(found.lengths, [limits[0], limits[1], limits[1]])
    data = _data(lengths, found.pairs_a_prompt, train, test)
    values = _values(asked, found, limits, data, train, test)
    text, experiment = _written(values)
    planned = stages(Case(experiment, asked.shape, data, asked.device, asked.cores))
    memory_mb = _memory_mb(asked, experiment, planned)
    if memory_mb:
        text, experiment = _written({**values, "memory_mb": memory_mb})
        planned = stages(Case(experiment, asked.shape, data, asked.device, asked.cores))
    lanes = 1 if asked.device.is_gpu else asked.cores
    minutes = (3600 * total(planned) / lanes + BESIDE) / 60
    text, experiment = _written({**values, "memory_mb": memory_mb, "planned": math.ceil(minutes)})
    return Sized(text, experiment, planned, minutes, train, test)


def _limits(found: Look, window: int | None) -> tuple[int, int]:
    """max_prompt and max_response: what `WHOLE` of them need, within the model's window."""
    prompt, response = (
        math.ceil(float(np.quantile(tokens, WHOLE)) / ROUNDED) * ROUNDED
        for tokens in (found.lengths[:, 0], found.lengths[:, 1:])
    )
    if window is None:
        return prompt, response
    response = min(response, window // 2)
    return min(prompt, window - response), response


def _data(lengths: Any, pairs_a_prompt: float, train: int, test: int) -> Data:
    longest = int(lengths.sum(axis=1).max())
    both = [Pairs(max(1, round(prompts * pairs_a_prompt)), lengths, longest) for prompts in (train, test)]
    return Data(both[0], both[1], told="pairs and lengths: counted in the file")


def _values(asked: Request, found: Look, limits: tuple[int, int], data: Data, train: int, test: int) -> dict[str, Any]:
    """What the template reads."""
    return {
        "asked": asked,
        "found": found,
        "prompts_whole": _share(found.lengths[:, 0] <= limits[0]),
        "responses_whole": _share(found.lengths[:, 1:] <= limits[1]),
        "max_prompt": limits[0],
        "max_response": limits[1],
        "max_new_tokens": min(limits[1], LONGEST_ANSWER),
        "train": train,
        "test": test,
        "pairs_per_step": PAIRS_PER_STEP,
        "learning_rate": RATE_OF_FEW if data.train.count < FEW_STEPS * PAIRS_PER_STEP else RATE,
        "steps": math.ceil(data.train.count / PAIRS_PER_STEP),
        "train_pairs": data.train.count,
        "test_pairs": data.test.count,
        "prompt_tokens": round(float(data.train.lengths[:, 0].mean())),
        "response_tokens": round(float(data.train.lengths[:, 1:].mean())),
        "machine": asked.machine,
        "gpus": int(asked.device.is_gpu),
        "memory_mb": None,
        "planned": None,
    }


def _share(fits: Any) -> str:
    return f"{100 * float(fits.mean()):.0f} %"


def _written(values: dict[str, Any]) -> tuple[str, Experiment]:
    """The file, and what the workflow will read in it."""
    templates = Environment(
        loader=PackageLoader("mallowspo.new", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # YAML: texts pass the filter `quoted`
    )
    templates.filters["quoted"] = lambda text: json.dumps(text, ensure_ascii=False)
    text = templates.get_template("experiment.yaml.jinja").render(values)
    experiment: Experiment = validate(Experiment, yaml.safe_load(text), f"{values['asked'].name}.yaml")
    return text, experiment


def _memory_mb(asked: Request, experiment: Experiment, planned: list[Stage]) -> int | None:
    """What a job may take, where as many as the machine's cores would together take more than it has."""
    side_by_side = 1 if asked.device.is_gpu else min(asked.cores, len(experiment.runs()))
    room = FOR_JOBS * asked.memory / side_by_side
    most = MEMORY_MARGIN * max(stage.memory for stage in planned)
    return None if most <= room else max(300, int(room / MEBIBYTE / 100) * 100)
