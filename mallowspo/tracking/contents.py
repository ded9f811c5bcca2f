"""What one training run looks like in the store, read from its result files. Needs no MLflow."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mallowspo import __version__
from mallowspo.errors import InputError
from mallowspo.files import digest, read_json, read_jsonl, read_parquet
from mallowspo.layout import Layout
from mallowspo.methods import METHODS
from mallowspo.metric_names import against, on
from mallowspo.settings import Experiment

if TYPE_CHECKING:
    import pandas as pd

#: metric in scores/METHOD/seed=S/*.parquet -> its name in the store.
SCORES = {"reward": "reward", "kl": "kl", "tokens": "length", "complete": "complete", "win": "win_rate"}
#: Curves that measure the machine: steps made again after a resume have other values.
TIMING = {"train/seconds", "train/data_seconds", "train/tokens_per_second"}


#: Characters of a metric's name in MLflow.
LONGEST_NAME = 250


@dataclass(frozen=True)
class RunContents:
    """One child run.

    Attributes:
        digest: identity of the training run (summary.json).
        params: what was trained, as text; nothing that can change while the digest stays.
        tags: what describes it and may change.
        curves: metric -> optimizer step -> value.
        evaluation: metric -> mean over test prompts or pairs; also seconds and tokens of the training.
        not_finite: count of values that are no finite number, which a store cannot hold.
        steps: the last optimizer step; the evaluation is logged at it.
        started, ended: of the training, in milliseconds since 1970.
        files: kept with the run as artifacts.
    """

    method: str
    seed: int
    digest: str
    params: dict[str, str]
    tags: dict[str, str]
    curves: dict[str, dict[int, float]]
    evaluation: dict[str, float]
    not_finite: int
    steps: int
    started: int
    ended: int
    files: list[Path]


def metric_name(*parts: str) -> str:
    """A name that MLflow accepts: letters, digits and `_-. :/`, a path without empty or dotted steps, at most 250
    characters; lm-eval's `acc,none` becomes `acc/none`."""
    steps = re.sub(r"[^\w\-. :/]", "_", "/".join(parts).replace(",", "/")).split("/")
    name = "/".join(step for step in steps if step.strip("."))
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 9]}_{digest(name, 8)}"


def read_run(layout: Layout, experiment: Experiment, method: str, seed: int) -> RunContents:
    """Everything that the store shall hold of one training run.

    Raises:
        InputError: a file that the run should have is missing; it is named.
    """
    folder = layout.run(method, seed)
    files = [folder / name for name in ("settings.yaml", "summary.json", "environment.json")]
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: no such file; run the stage train for {method}, seed {seed} first")
    judge = layout.scores(method, seed) / "judge.json"
    if not judge.is_file():
        raise InputError(f"{judge}: no such file; run the stage alpaca for {method}, seed {seed} first")
    summary, environment = read_json(files[1]), read_json(files[2])
    curves, not_finite = read_curves(folder / "metrics.jsonl")
    values = {f"training/{name}": float(summary[name]) for name in ("seconds", "tokens")}
    values |= _evaluation(layout, experiment, method, seed)
    evaluation = {name: value for name, value in values.items() if math.isfinite(value)}
    not_finite += len(values) - len(evaluation)
    ended = int(files[1].stat().st_mtime * 1000)
    return RunContents(
        method=method,
        seed=seed,
        digest=summary["digest"],
        params=_params(layout, experiment, method, seed, summary),
        tags=_tags(experiment, environment, not_finite),
        curves=curves,
        evaluation=evaluation,
        not_finite=not_finite,
        steps=int(summary["steps"]),
        started=ended - int(float(summary["seconds"]) * 1000),
        ended=ended,
        files=[*files, judge],
    )


def curve_values(row: dict[str, Any]) -> tuple[dict[str, float], int]:
    """One row of metrics.jsonl as {metric: value}, and how many of its values are not finite."""
    values = {f"train/{key}": row[key] for key in row if key != "step"}
    finite = {key: float(value) for key, value in values.items() if value is not None and math.isfinite(value)}
    return finite, len(values) - len(finite)


def read_curves(path: Path) -> tuple[dict[str, dict[int, float]], int]:
    """metrics.jsonl as metric -> step -> value, and the count of values that are not finite."""
    curves: dict[str, dict[int, float]] = {}
    not_finite = 0
    for row in read_jsonl(path):
        values, skipped = curve_values(row)
        not_finite += skipped
        for key, value in values.items():
            curves.setdefault(key, {})[int(row["step"])] = value
    return curves, not_finite


def _prompt_means(scores: "pd.DataFrame") -> dict[str, float]:
    """Long scores as {metric: mean over prompts of the prompt's mean over its answers}."""
    means = scores.groupby(["metric", "prompt_id"])["value"].mean().groupby("metric").mean()
    return {f"eval/{SCORES.get(name, name)}": float(means[name]) for name in map(str, means.index)}


def _evaluation(layout: Layout, experiment: Experiment, method: str, seed: int) -> dict[str, float]:
    folder = layout.scores(method, seed)
    pairs = read_parquet(folder / "pairs.parquet")
    values = {
        **_prompt_means(read_parquet(folder / "score.parquet")),
        **(_prompt_means(read_parquet(folder / "second.parquet")) if experiment.evaluation.second_judge else {}),
        **_prompt_means(read_parquet(folder / "alpaca.parquet")),
        "eval/accuracy": float(pairs["correct"].mean()),
        "eval/margin": float(pairs["margin"].mean()),
    }
    for name, wins in read_parquet(folder / "alpaca_against.parquet").groupby("against"):
        values |= {metric_name(against(key, str(name))): v for key, v in _prompt_means(wins).items()}
    for name in experiment.evaluation.other_pairs:
        others = read_parquet(layout.other_pairs(name).scores(method, seed) / "pairs.parquet")
        values[on("eval/accuracy", name)] = float(others["correct"].mean())
        values[on("eval/margin", name)] = float(others["margin"].mean())
    if experiment.evaluation.lm_eval is not None:
        for task, metrics in read_json(folder / "lm_eval.json")["results"].items():
            for metric, number in metrics.items():
                values[metric_name("lm_eval", task, metric)] = float(number["value"])
    return values


def _params(layout: Layout, experiment: Experiment, label: str, seed: int, summary: dict[str, Any]) -> dict[str, str]:
    """About thirty values that a reader filters and compares by. The whole settings are an artifact."""
    method = experiment.methods[label]
    kind = METHODS[method.method or label]
    training, tokens = experiment.training, experiment.tokens
    lora = training.lora
    params: dict[str, Any] = {
        "method": label,
        "objective": method.method,
        "link": kind.link,
        "weight": kind.weight,
        "margin": kind.margin,
        "beta": method.beta,
        **{f"option.{name}": value for name, value in method.options.items()},
        "seed": seed,
        "model": experiment.model.source,
        "precision": summary["precision"],
        "parameters": summary["parameters"],
        "trainable_parameters": summary["trainable_parameters"],
        "lora_rank": lora.rank if lora else "none",
        "pairs_source": experiment.pairs.source,
        "pairs": summary["pairs"],
        "steps": summary["steps"],
        "template": tokens.template,
        "max_prompt": tokens.max_prompt,
        "max_response": tokens.max_response,
        **training.model_dump(exclude={"lora", "checkpoint_every", "tokens_per_batch"}),
    }
    if kind.weight == "dispersion":
        dispersion = read_json(layout.dispersion_summary)
        params["dispersion_estimator"] = experiment.dispersion.estimator
        params["dispersion_constant"] = dispersion["constant"]
    # A value that is too long ends an MLflow call; 500 characters are what every store takes.
    return {name: str(value)[:500] for name, value in params.items()}


def _tags(experiment: Experiment, environment: dict[str, Any], not_finite: int) -> dict[str, str]:
    return {
        "mallowspo.version": __version__,
        "mallowspo.git_commit": str(environment.get("git_commit")),
        "mallowspo.judge": experiment.evaluation.judge,
        **({"mallowspo.second_judge": second} if (second := experiment.evaluation.second_judge) else {}),
        "mallowspo.not_finite": str(not_finite),
    }
