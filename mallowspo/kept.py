"""Policies as they are written: at the end, and on the way, after the shares of the steps that `training.keep` names.

The last is RUN/model. Each of the others is written to RUN/kept/SHARE once its step is done, whole or not at all. They
are model folders, or where adapters are trained these alone: `load_model` adds them to the model that they belong to.
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

from transformers import TrainerCallback, TrainingArguments

from mallowspo.errors import InputError
from mallowspo.files import content_digest, read_json, whole_directory, write_json
from mallowspo.model_files import ADAPTERS, BASE, base_of_adapters
from mallowspo.models import load_model, load_tokenizer


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
            save_policy(policy, temporary, self.model_folder)


def save_policy(policy: Any, folder: Path, model_folder: Path) -> None:
    """Write a trained policy: a model folder, or its adapters and where the model that they belong to lies.

    Args:
        folder: an empty one beside the place where it will lie.
        model_folder: of the initial policy.
    """
    policy.save_pretrained(folder)
    load_tokenizer(model_folder).save_pretrained(folder)
    if (folder / ADAPTERS).exists():
        # As seen from there, so that results can be moved and read from anywhere.
        settings = read_json(folder / ADAPTERS)
        settings[BASE] = os.path.relpath(model_folder.resolve(), folder.resolve())
        if isinstance(settings["target_modules"], list):  # a set's order is another in every process
            settings["target_modules"].sort()
        write_json(folder / ADAPTERS, settings)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors makes files private; what a stage writes is for all who may read the folder


def policy_content(folder: Path) -> dict[str, Any]:
    """Digests of a policy's files as they are now, by name; of adapters also of the model that they belong to."""
    files = {file.name: content_digest(file) for file in sorted(folder.glob("*")) if file.is_file()}
    base = base_of_adapters(folder)
    return files | ({"base": policy_content(base)} if base else {})


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """For programs that read no adapters: the policy's folder, or a temporary one with its adapters merged."""
    if base_of_adapters(folder) is None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        load_model(folder).save_pretrained(temporary)
        load_tokenizer(folder).save_pretrained(temporary)
        yield Path(temporary)
