"""Tasks of lm-evaluation-harness by name: a folder's own, lm-eval's own, and lm-eval's own on local data."""

import difflib
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mallowspo.errors import InputError
from mallowspo.evaluation.outputs import read_rows
from mallowspo.evaluation.settings import LocalTaskData

#: No connection, a data set or a split that is not there, a data set that is a script.
_OUT_OF_REACH = (OSError, RuntimeError, KeyError)


class Tasks(NamedTuple):
    """Every task by its name, and every group that was asked for, with its groups."""

    tasks: dict[str, Any]
    groups: dict[str, Any]


def load_tasks(names: list[str], include_path: str | None, data: Mapping[str, LocalTaskData]) -> Tasks:
    """Load tasks and groups with their data.

    Args:
        names: of tasks, groups or tags.
        include_path: a folder of task files, which are looked at first.
        data: files in place of the data sets of lm-eval's own tasks.

    Raises:
        InputError: for an unknown name, a task that two names contain, or data that cannot be had.
    """
    if include_path is not None and not Path(include_path).is_dir():
        raise InputError(f"evaluation.lm_eval.include_path: '{include_path}' is no folder; give a folder of task files")
    with tempfile.TemporaryDirectory() as scratch:
        for task, files in data.items():
            _write_task_on_local_data(task, files, Path(scratch))
        folders = [str(Path(include_path).resolve())] if include_path is not None else []
        found = _load(_manager(names, [*folders, *([scratch] if data else [])]), names)
    unread = sorted(set(data) - set(found.tasks))
    if unread:
        raise InputError(f"evaluation.lm_eval.data: no task of {names} is '{unread[0]}'; remove it")
    return found


def set_fewshot(tasks: Mapping[str, Any], wanted: int | None, seed: int) -> None:
    """Give every task its number of examples and the seed that they are drawn with, as lm-eval's own call does.

    Raises:
        InputError: a task fixes 0 in its own file: lm-eval keeps that whatever it is told, without saying so.
    """
    for name, task in tasks.items():
        own = task.get_config("num_fewshot")
        if own == 0 and wanted:
            raise InputError(
                f"evaluation.lm_eval.num_fewshot: task '{name}' fixes 0 in its own file and ignores {wanted}; "
                "leave the setting out"
            )
        task.set_config(key="num_fewshot", value=(own or 0) if wanted is None else wanted)
        task.set_fewshot_seed(seed=seed)


def read_local(files: Mapping[str, str], **_: Any) -> dict[str, Any]:
    """A task's data from JSON or JSONL files, plain or .gz, by split. lm-eval also hands over the task's metadata."""
    from datasets import Dataset

    return {split: Dataset.from_list(read_rows(file, ())) for split, file in files.items()}


def _manager(names: list[str], folders: list[str]) -> Any:
    """A task manager that knows every name; lm-eval's own tasks are looked through (half a minute) only if needed."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=folders, include_defaults=False)
    if all(name in manager.all_tasks for name in names):
        return manager
    manager = TaskManager(include_path=folders, include_defaults=True)
    for name in names:
        if name not in manager.all_tasks:
            nearest = difflib.get_close_matches(name, manager.all_tasks, n=1, cutoff=0.0)[0]
            raise InputError(f"evaluation.lm_eval.tasks: unknown task '{name}'; did you mean '{nearest}'?")
    return manager


def _load(manager: Any, names: list[str]) -> Tasks:
    found = Tasks({}, {})
    source: dict[str, str] = {}
    for name in names:
        try:
            loaded = manager.load([name])
        except ImportError as error:
            raise InputError(
                f"evaluation.lm_eval.tasks: '{name}' needs a package that is not there ({error}); install it"
            ) from error
        except _OUT_OF_REACH as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"evaluation.lm_eval.tasks: the data of ['{name}'] could not be read ({reason}); connect to the hub, "
                "or give its tasks local files (evaluation.lm_eval.data, docs/evaluation.md)"
            ) from error
        for task in loaded["tasks"]:
            if task in source:
                raise InputError(
                    f"evaluation.lm_eval.tasks: task '{task}' is in both '{source[task]}' and '{name}'; name one"
                )
            source[task] = name
        found.tasks.update(loaded["tasks"])
        found.groups.update(loaded["groups"])
    return found


def _write_task_on_local_data(task: str, files: LocalTaskData, folder: Path) -> None:
    """A task file that includes lm-eval's own and reads other data.

    The split that is evaluated is called test. Where no file of examples is given, examples come from that split too,
    and lm-eval leaves out the item that is asked; another name for the same items would give the answer away.
    """
    own = _own_file(task)
    if own is None:
        raise InputError(f"evaluation.lm_eval.data: lm-eval has no task '{task}'; a group's tasks are named one by one")
    splits = {"test": files.test, **({"train": files.fewshot} if files.fewshot else {})}
    for file in splits.values():
        read_rows(file, ())  # a missing file is told of before lm-eval wraps the error
    values = {
        "include": str(own),
        "task": task,
        "dataset_name": None,
        "dataset_kwargs": {"files": {split: str(Path(file).resolve()) for split, file in splits.items()}},
        "test_split": "test",
        "validation_split": None,
        "training_split": "train" if files.fewshot else None,
        "fewshot_split": "train" if files.fewshot else "test",
    }
    reader = f"custom_dataset: !function {read_local.__module__}.{read_local.__name__}\n"
    (folder / f"{task}.yaml").write_text(yaml.safe_dump(values) + reader, encoding="utf-8")


def _own_file(task: str) -> Path | None:
    """lm-eval's own file of a task; found by its text, because reading all of them takes half a minute."""
    from lm_eval import tasks

    line = re.compile(rb"^task:\s*[\"']?" + re.escape(task.encode()) + rb"[\"']?\s*(#.*)?$", re.MULTILINE)
    files = sorted(Path(str(tasks.__file__)).parent.rglob("*.yaml"))
    return next((file for file in files if line.search(file.read_bytes())), None)
