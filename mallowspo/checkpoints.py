"""Checkpoints of transformers.Trainer of which one knows whether they are whole."""

import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from mallowspo.files import write_text


class MarkWhole(TrainerCallback):
    """Leaves a mark in each checkpoint once it is whole: one that a kill cut short has none and is not resumed from."""

    NAME = "whole"

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = False  # the end needs no checkpoint: the model itself is saved

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        write_text(Path(args.output_dir or "") / f"checkpoint-{state.global_step}" / self.NAME, "")


def last_checkpoint(work: Path) -> Path | None:
    """The newest whole checkpoint; those without the mark are removed."""
    whole = []
    for folder in work.glob("checkpoint-*"):
        if (folder / MarkWhole.NAME).exists():
            whole.append(folder)
        else:
            shutil.rmtree(folder)
    return max(whole, key=lambda folder: int(folder.name.split("-")[1]), default=None)
