"""What differs from the paper's scale, from the settings of both: nothing here is remembered."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import yaml

from mallowspo.experiments import EXPERIMENTS_FOLDER, load_experiment
from mallowspo.methods import METHODS
from mallowspo.paper.finished import Place
from mallowspo.paper.settings import Paper
from mallowspo.report.table import Table
from mallowspo.report.words import ABSENT
from mallowspo.settings import Experiment
from mallowspo.studies.settings import Study

#: What the page shows of a comparison, in this order; the CSV has every setting that differs.
SHOWN = {
    "model.source": "Model",
    "pairs.source": "Pairs",
    "pairs.hub_split": "Split of the data set",
    "pairs.max_train": "Training pairs, at most",
    "pairs.max_test": "Test prompts, at most",
    "pairs.on_policy.judge": "Judge of the pairs",
    "pairs.on_policy.sampling.answers": "Answers a prompt behind the pairs",
    "dispersion.estimator": "Dispersion",
    "dispersion.convention": "Tokens behind the dispersion",
    "methods": "Methods (beta)",
    "seeds": "Seeds",
    "training.epochs": "Epochs",
    "training.max_steps": "Steps, at most",
    "training.learning_rate": "Learning rate",
    "training.schedule": "Schedule",
    "training.warmup_ratio": "Warm-up",
    "training.optimizer": "Optimizer",
    "training.pairs_per_step": "Pairs a step",
    "training.lora": "Adapters",
    "tokens.template": "Template",
    "tokens.max_prompt": "Prompt tokens, at most",
    "tokens.max_response": "Response tokens, at most",
    "generation.answers": "Answers a test prompt",
    "generation.temperature": "Temperature",
    "evaluation.temperatures": "Further temperatures",
    "generation.top_p": "Top-p",
    "generation.max_new_tokens": "Answer tokens, at most",
    "evaluation.judge": "Judge (reward)",
    "evaluation.alpaca.judge": "Judge of win rates",
    "evaluation.alpaca.against": "Opponents",
    "evaluation.other_pairs": "Other pairs",
    "evaluation.lm_eval": "Benchmarks",
}
#: Change no result, or only its words.
LEFT_OUT = ("title", "question", "compute", "expected", "report", "reference")
#: The scale that stands for the paper's, where the file has one of that name.
PAPER_SCALE = "paper"


def differences(paper: Paper, scale: str, places: Mapping[str, list[Place]]) -> tuple[Table, list[str]]:
    """The table, and sentences about experiments that have no counterpart.

    Left: the settings of the chosen scale's results, or of its file where it did not run. Right: the paper scale's.
    """
    other = PAPER_SCALE if PAPER_SCALE in paper.scales else scale
    rows: list[dict[str, Any]] = []
    said = []
    for part, own in places.items():
        names = paper.scales[other].get(part, [])
        for position, place in enumerate(own):
            name = names[position] if position < len(names) else None
            counterpart = _load(name)
            if name is None:
                said.append(f"{place.name} ({part}) has no counterpart at scale '{other}'.")
            elif place.name == name:
                said.append(f"{place.name} ({part}) is the same file at both scales.")
            elif place.settings is None or counterpart is None:
                lacking = place.name if place.settings is None else name
                said.append(f"{place.name} and {name} ({part}): config/experiments/{lacking}.yaml is not there yet.")
            else:
                rows += _rows(part, place, place.settings, name, counterpart)
        said += [f"{name} ({part}) has no counterpart at scale '{scale}'." for name in names[len(own) :]]
    said += [
        f"{', '.join(names)} ({part}) is a part of scale '{other}' alone."
        for part, names in paper.scales[other].items()
        if part not in places
    ]
    return _table(rows, scale, other), said


def _load(name: str | None) -> Experiment | Study | None:
    return load_experiment(name) if name and (EXPERIMENTS_FOLDER / f"{name}.yaml").exists() else None


def _rows(
    part: str, place: Place, here: Experiment | Study, name: str, there: Experiment | Study
) -> Iterator[dict[str, Any]]:
    mine, other = (dict(_settings(settings)) for settings in (here, there))
    for key in dict.fromkeys([*SHOWN, *mine, *other]):
        left, right = mine.get(key), other.get(key)
        if left != right:
            yield {"part": part, "experiment": place.name, "counterpart": name, "setting": key, "here": left or ABSENT,
                   "there": right or ABSENT, "shown": key in SHOWN}  # fmt: skip


def _settings(settings: Experiment | Study) -> Iterator[tuple[str, str]]:
    """Dotted key -> value as text; sections that are shown whole stay together, what is empty is left out."""
    yield from _leaves(settings.model_dump(mode="json", exclude=set(LEFT_OUT)), "")


def _leaves(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if value in (None, "", [], {}):
            continue
        if name == "methods" and isinstance(value, dict):
            yield name, ", ".join(f"{label} ({_told(label, own)})" for label, own in sorted(value.items()))
        elif name == "evaluation.other_pairs":
            yield name, ", ".join(f"{label}: {own['source']}" for label, own in value.items())
        elif name == "evaluation.lm_eval":
            yield name, ", ".join(value["tasks"])
        elif isinstance(value, dict) and name not in SHOWN:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, _plain(value)


def _told(label: str, method: dict[str, Any]) -> str:
    """Beta, the method where the label is another, its control, and the options that are not its own."""
    own = METHODS[method["method"]].options
    parts = [f"{method['beta']:g}"]
    parts += [method["method"]] if method["method"] != label else []
    parts += [method["control"]] if method["control"] != "none" else []
    parts += [f"{key} {_plain(value)}" for key, value in method["options"].items() if value != own.get(key)]
    return ", ".join(parts)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    if isinstance(value, dict):
        return str(yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000)).strip()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(rows: list[dict[str, Any]], scale: str, other: str) -> Table:
    columns = ["part", "experiment", "counterpart", "setting", "here", "there", "shown"]
    numbers = pd.DataFrame(rows, columns=columns)
    shown = numbers[numbers["shown"].astype(bool)]
    ours, theirs = f"Here ({scale})", f"There ({other})"
    view = pd.DataFrame(
        {
            "Experiment": shown["experiment"] + " / " + shown["counterpart"],
            "Setting": shown["setting"].map(SHOWN),
            ours: shown["here"],
            theirs: shown["there"],
        },
        dtype=str,
    )
    return Table("differs", numbers.drop(columns="shown"), view, tuple(view.columns))
