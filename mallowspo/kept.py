"""Policies on the way: as they are after those shares of a training's steps that `training.keep` names.

Each is written to RUN/kept/SHARE once its step is done, whole or not at all: a model folder like RUN/model, or where
adapters are trained these alone, which `load_policy` merges into the model that they belong to.
Nothing of the optimizer is kept. A killed training goes on from a checkpoint, and what was kept before it is there: the
checkpoint of a step is written after the step's policy.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from mallowspo.errors import InputError
from mallowspo.files import read_json, whole_directory, write_json
from mallowspo.models import load_model, load_tokenizer

#: PEFT's settings beside adapters, and their key for the model that the adapters belong to.
ADAPTERS, BASE = "adapter_config.json", "base_model_name_or_path"


def steps_kept(shares: Sequence[float], steps: int) -> dict[int, float]:
    """Optimizer step -> the share of all steps that is done after it.

    Raises:
        InputError: two shares end at the same step, or one with the training itself.
    """
    kept: dict[int, float] = {}
    for share in shares:
        step = max(1, round(share * steps))
        if step in kept or step >= steps:
            other = f"that of {kept[step]:g}" if step in kept else "the last"
            raise InputError(f"training.keep: {share:g} of {steps} steps ends at step {step}, {other}; remove it")
        kept[step] = share
    return kept


class KeepWeights(TrainerCallback):
    """Writes the policy after each of these steps to FOLDER/SHARE.

    Args:
        policy: gives the policy in the first process and None in the others; called in all of them.
        model_folder: of the initial policy.
    """

    def __init__(self, policy: Callable[[], Any], steps: dict[int, float], folder: Path, model_folder: Path):
        self.policy = policy
        self.steps = steps
        self.folder = folder
        self.model_folder = model_folder

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        for half_written in self.folder.glob(".*.partial"):  # by a job that was killed
            shutil.rmtree(half_written, ignore_errors=True)  # several processes may be at it

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        share = self.steps.get(state.global_step)
        policy = None if share is None else self.policy()
        if policy is None:
            return
        with whole_directory(self.folder / f"{share:g}") as temporary:
            policy.save_pretrained(temporary)
            load_tokenizer(self.model_folder).save_pretrained(temporary)
            if (temporary / ADAPTERS).exists():
                # As seen from there, so that results can be moved and read from anywhere.
                base = os.path.relpath(self.model_folder.resolve(), temporary.resolve())
                write_json(temporary / ADAPTERS, read_json(temporary / ADAPTERS) | {BASE: base})


def load_policy(folder: Path, device: str = "cpu", weights: torch.dtype = torch.float32) -> Any:
    """As `mallowspo.models.load_model`, and adapters merged in float32, as at the end of a training."""
    if not (folder / ADAPTERS).exists():
        return load_model(folder, device, weights)
    from peft import PeftModel

    base = load_model((folder / read_json(folder / ADAPTERS)[BASE]).resolve(), device)
    return PeftModel.from_pretrained(base, str(folder)).merge_and_unload().to(weights).eval()


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """For programs that read no adapters: the policy's folder, or a temporary one with its adapters merged."""
    if not (folder / ADAPTERS).exists():
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        load_policy(folder).save_pretrained(temporary)
        load_tokenizer(folder).save_pretrained(temporary)
        yield Path(temporary)
