"""Stage "lm-eval": tasks of lm-evaluation-harness on one model folder.

Which items a model gets right is kept one by one, so that methods are compared on the same items. Each task is a part
of its own, written whole to lm_eval_parts/TASK-KEY.json, where KEY is a digest of all that its numbers depend on: a
killed stage goes on with the next task, and one more task computes no other again.
"""

import importlib.metadata
import inspect
import os
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mallowspo import products
from mallowspo.errors import InputError
from mallowspo.evaluation.lm_groups import groups_of
from mallowspo.evaluation.lm_tasks import Tasks, load_tasks, set_fewshot
from mallowspo.files import digest, read_json, write_json, write_parquet
from mallowspo.judges.local_model import model_content
from mallowspo.layout import Layout
from mallowspo.models import load_model, load_tokenizer, resolve_device, resolve_precision
from mallowspo.provenance import code_digest
from mallowspo.shard import Shard, missing_of

#: Few-shot examples and whatever a task draws are the same for every run: only the model differs.
SEED = 0
#: Resamples behind the standard error of metrics without a closed form. With 0, lm-eval gives the string 'N/A'.
BOOTSTRAP = 1000
#: lm-eval shows few-shot examples as turns of a conversation, where there is a chat template.
MULTITURN = True
ITEM_COLUMNS = ["task", "doc_id", "metric", "value", "doc_hash", "prompt_hash"]


def run(
    view: Any,
    layout: Layout,
    model_folder: Path,
    method: str,
    seed: int,
    device: str,
    task_folder: Path | None = None,
    shard: Shard | None = None,
) -> None:
    """Evaluate one model; write lm_eval.json (metrics with standard errors) and lm_eval.parquet (item by item).

    Args:
        task_folder: folder of task files, in place of evaluation.lm_eval.include_path.
        shard: evaluate this share of the tasks that are missing, and leave putting them together to a call without.

    Raises:
        InputError: for an unknown task, a task whose data cannot be had, or settings that a task overrides.
    """
    settings = view.evaluation.lm_eval
    device = resolve_device(device)
    precision = resolve_precision(view.model.precision, device)
    include_path = str(task_folder or settings.include_path or "") or None
    template = _chat_template(model_folder) if settings.chat_template else None
    found = load_tasks(settings.tasks, include_path, settings.data)
    set_fewshot(found.tasks, settings.num_fewshot, SEED)
    arithmetic = {"precision": precision, "device": device}
    # What every task's numbers depend on besides the task.
    common = {
        "model": model_content(model_folder),
        "settings": [settings.limit, template, SEED, BOOTSTRAP, MULTITURN],
        **arithmetic,
        "versions": _versions(),
        "code": code_digest("lm-eval"),
    }
    folder = layout.scores(method, seed)
    files = {name: _part_file(folder, name, task, common) for name, task in found.tasks.items()}
    _, missing = missing_of(list(files), shard, lambda name: files[name].exists(), "tasks")
    if missing:
        model = _wrap(model_folder, settings, precision, device)
        for name in missing:
            write_json(files[name], _evaluate(model, name, found.tasks[name], settings))
    if shard:
        return
    parts = {name: read_json(file) for name, file in files.items()}
    summary = _summary(found, parts)
    summary["settings"] = {
        **settings.model_dump(),
        "include_path": include_path,
        "num_fewshot": {name: task.get_config("num_fewshot") for name, task in found.tasks.items()},
        "chat_template_digest": template and digest(template),
        "fewshot_as_multiturn": MULTITURN,
        **arithmetic,
        "seed": SEED,
        "bootstrap": BOOTSTRAP,
    }
    write_parquet(folder / "lm_eval.parquet", _items(parts))
    write_json(folder / "lm_eval.json", summary)


def _chat_template(folder: Path) -> str:
    template: str | None = load_tokenizer(folder).chat_template
    if template is None:
        raise InputError(f"{folder}: the tokenizer has no chat template; set evaluation.lm_eval.chat_template to false")
    return template


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("lm_eval", "transformers", "torch", "datasets")}


def _part_file(folder: Path, name: str, task: Any, common: Mapping[str, Any]) -> Path:
    """Named by all that the task's numbers depend on, its items included."""
    config = {key: value for key, value in task.dump_config().items() if key != "dataset_kwargs"}
    # Where the task's file and data lie is no part of what they are.
    config["metadata"] = {k: v for k, v in (config.get("metadata") or {}).items() if k != "config_source"}
    examples = list(task.fewshot_docs() or []) if task.get_config("num_fewshot") else []
    key = digest([name, _in_words(config), list(task.eval_docs), examples, common])
    return folder / "lm_eval_parts" / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}-{key}.json"


def _in_words(value: Any) -> Any:
    """Settings of a task with functions by their code: by default they would be told by their place in memory."""
    if isinstance(value, Mapping):
        return {str(key): _in_words(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_in_words(item) for item in value]
    if not callable(value):
        return value
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):
        return f"{type(value).__module__}.{type(value).__qualname__}"


def _wrap(folder: Path, settings: Any, precision: str, device: str) -> Any:
    """The model for lm-eval: float32 weights and log-probabilities, products in `precision`."""
    from lm_eval.models.huggingface import HFLM

    # A loaded model, not its path: lm-eval would ask the hub about a relative path that looks like a model's name.
    model = load_model(folder, device)
    products.use(model)
    return HFLM(
        pretrained=model,
        tokenizer=load_tokenizer(folder),
        batch_size=settings.batch_size,
        mixed_precision_dtype="bfloat16" if precision == "bfloat16" else None,
        softmax_dtype="float32",
    )


def _evaluate(model: Any, name: str, task: Any, settings: Any) -> dict[str, Any]:
    """One task's part: what lm-eval says of it, and of each item."""
    from lm_eval import evaluate

    # Otherwise the bootstrap starts one process for every core of the machine, whatever the job was given.
    os.environ["DISABLE_MULTIPROC"] = "1"
    # Before each task: what it draws does not depend on the tasks before it.
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    outcome = evaluate(
        lm=model,
        task_dict={"tasks": {name: task}, "groups": {}},
        limit=settings.limit,
        apply_chat_template=settings.chat_template,
        fewshot_as_multiturn=MULTITURN,
        log_samples=True,
        bootstrap_iters=BOOTSTRAP,
    )
    numbers = {key: _plain(value) for key, value in outcome["results"][name].items()}
    items, not_per_item = _item_values(name, outcome["samples"][name])
    return {
        "numbers": numbers,
        "version": outcome["versions"][name],
        "items": items,
        "not_per_item": not_per_item,
    }


def _plain(value: Any) -> Any:
    """Numbers as JSON can hold them."""
    return value.item() if isinstance(value, np.generic) else value


def _item_values(task: str, examples: list[dict[str, Any]]) -> tuple[list[list[Any]], list[str]]:
    """One row an item and metric, and the names of metrics that are no number for one item (perplexity, F1)."""
    rows, not_per_item = [], set()
    for example in examples:
        hashes = [example["doc_hash"][:16], example["prompt_hash"][:16]]
        for metric in example["metrics"]:
            value, name = _plain(example[metric]), _metric_name(metric, example["filter"])
            if isinstance(value, int | float):
                rows.append([task, example["doc_id"], name, float(value), *hashes])
            else:
                not_per_item.add(f"{task}/{name}")
    return rows, sorted(not_per_item)


def _items(parts: Mapping[str, dict[str, Any]]) -> pd.DataFrame:
    rows = [row for part in parts.values() for row in part["items"]]
    return pd.DataFrame(rows, columns=ITEM_COLUMNS)


def _summary(found: Tasks, parts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Metrics of every task, and of every group that says how its tasks are put together."""
    from lm_eval.evaluator_utils import EvalAcc, aggregate_groups

    numbers = {name: dict(part["numbers"]) for name, part in parts.items()}
    together = aggregate_groups(EvalAcc(metrics=numbers, groups=found.groups)).metrics
    metrics = {name: _metrics(values) for name, values in together.items()}
    return {
        "results": {name: values for name, values in metrics.items() if values},
        "items": {name: int(values["sample_len"]) for name, values in together.items() if metrics[name]},
        "groups": groups_of(found.groups),
        "not_per_item": sorted(name for part in parts.values() for name in part["not_per_item"]),
        "versions": {"tasks": {name: part["version"] for name, part in parts.items()}, **_versions()},
    }


def _metrics(numbers: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """{"acc": {"value", "stderr"}}; stderr is null where lm-eval has none for the metric."""
    metrics = {}
    for key, value in numbers.items():
        metric, comma, filtered = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            stderr = numbers.get(f"{metric}_stderr,{filtered}")
            known = isinstance(stderr, float)
            metrics[_metric_name(metric, filtered)] = {"value": float(value), "stderr": stderr if known else None}
    return metrics


def _metric_name(metric: str, filtered: str) -> str:
    """ "acc,none" is acc; "exact_match,strict-match" is exact_match.strict-match (MLflow takes no comma)."""
    return metric if filtered == "none" else f"{metric}.{filtered}"
