"""Experiments and the workflow's configuration from their YAML files, and what is wrong with them in one line."""

import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from mallowspo.errors import InputError
from mallowspo.sections import SECRET, nearest
from mallowspo.settings import Experiment
from mallowspo.studies.kinds import KINDS, settings_class
from mallowspo.studies.settings import Study
from mallowspo.workflow_settings import Workflow


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML that refuses a key written twice: PyYAML keeps the last one in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' appears twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file; what does not parse is an `InputError` with file, line and column."""
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{path}{place}: not YAML ({getattr(error, 'problem', error)})") from None


def _section_at(model: type[BaseModel], location: tuple[Any, ...]) -> type[BaseModel] | None:
    """The settings class that holds the key at `location`, for the nearest known key."""
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            annotation = model.model_fields[part].annotation
            candidates = [annotation, *get_args(annotation)]
            found = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
            if not found:
                return None
            model = found[0]
    return model


def _one_line(source: str, model: type[BaseModel], error: ValidationError) -> str:
    messages = []
    for problem in error.errors():
        location = problem["loc"]
        key = ".".join(str(part) for part in location) or "(whole file)"
        if problem["type"] == "extra_forbidden":
            section = _section_at(model, location[:-1])
            hint = nearest(str(location[-1]), section.model_fields) if section else ""
            messages.append(f"{key}: unknown key; {hint}")
        elif problem["type"] == SECRET:
            messages.append(f"{key}: {problem['msg']}")
        elif problem["type"] == "missing":
            messages.append(f"{key}: missing; add it")
        elif problem["type"] == "value_error" and not location:
            messages.append(problem["msg"].removeprefix("Value error, "))
        else:
            value = repr(problem["input"])
            shown = value if len(value) <= 60 else value[:57] + "..."
            messages.append(f"{key}: {shown}: {problem['msg'].removeprefix('Value error, ')}")
    return f"{source}: " + " | ".join(messages)


def validate(model: type[Any], values: Any, source: str) -> Any:
    """Values of a YAML file as a settings class; what is wrong with them is an `InputError` of one line."""
    if not isinstance(values, dict):
        raise InputError(f"{source}: expected keys and values, found {type(values).__name__}")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InputError(_one_line(source, model, error)) from None


EXPERIMENTS_FOLDER = Path("config/experiments")
#: Of an experiment: it names a folder below the results, and stands in command lines.
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
#: Folders below the results that all experiments share; paper: of the page about all of them.
SHARED = ("models", "references", "logs", "benchmarks", "mlartifacts", "paper")


def experiment_file(name: str) -> Path:
    """The file of an experiment, given by its name (in config/experiments) or as a path to a .yaml file."""
    given = name.endswith((".yaml", ".yml"))
    path = Path(name) if given else EXPERIMENTS_FOLDER / f"{name}.yaml"
    if not re.fullmatch(NAME, path.stem if given else name) or path.stem in SHARED or name.startswith("-"):
        raise InputError(
            f"experiment {name!r}: the name of its file names a folder of results; rename it: letters, digits, _ . - "
            f"after a letter or digit, and none of {', '.join(SHARED)}"
        )
    if not given and not path.exists():
        known = sorted(file.stem for file in EXPERIMENTS_FOLDER.glob("*.yaml"))
        raise InputError(f"{path}: no such experiment '{name}'; {nearest(name, known)}")
    return path


def load_experiment(name: str) -> Experiment | Study:
    """Read and validate one experiment by name or path: a comparison, or the study that its `kind` says."""
    path = experiment_file(name)
    values = read_yaml(path)
    experiment: Experiment | Study = validate(_class_of(values, str(path)), values, str(path))
    return experiment if isinstance(experiment, Study) else _without_absent_sets(experiment)


def _without_absent_sets(experiment: Experiment) -> Experiment:
    """The same without the sets of other pairs that may be left out and cannot be had; they are told in left_out."""
    from mallowspo.data_files import can_be_had  # which reads its list by `read_yaml` of this module

    sets = experiment.evaluation.other_pairs
    absent = {
        name: chosen.source
        for name, chosen in sets.items()
        if chosen.where_absent == "skip" and not can_be_had(chosen.source.removeprefix("path:"))
    }
    if not absent:
        return experiment
    left = {name: chosen for name, chosen in sets.items() if name not in absent}
    evaluation = experiment.evaluation.model_copy(
        update={"other_pairs": left, "left_out": {**experiment.evaluation.left_out, **absent}}
    )
    return experiment.model_copy(update={"evaluation": evaluation})


def load_comparison(name: str) -> Experiment:
    """The same where only a comparison will do."""
    experiment = load_experiment(name)
    if isinstance(experiment, Study):
        raise InputError(
            f"{experiment_file(name)}: a study (kind: {experiment.kind}), which has one stage; run `mallowspo study`"
        )
    return experiment


def load_study(name: str) -> Study:
    """The same where only a study will do."""
    experiment = load_experiment(name)
    if isinstance(experiment, Experiment):
        raise InputError(f"{experiment_file(name)}: a comparison, not a study; add kind: {' or '.join(KINDS)}")
    return experiment


def _class_of(values: Any, source: str) -> type[Experiment] | type[Study]:
    if not isinstance(values, dict) or "kind" not in values:
        return Experiment
    kind = values["kind"]
    if not isinstance(kind, str) or kind not in KINDS:
        hint = nearest(str(kind), KINDS)
        raise InputError(f"{source}: kind: {kind!r}: unknown kind; {hint} (a comparison has no key kind)")
    return settings_class(kind)


def settings_schema() -> dict[str, Any]:
    """The JSON schema of an experiment's file, whatever its kind."""
    kinds: Any = Experiment
    for kind in KINDS:
        kinds = kinds | settings_class(kind)
    return TypeAdapter(kinds).json_schema()


def load_workflow(values: dict[str, Any], source: str = "config/config.yaml") -> Workflow:
    """Validate the values of config/config.yaml (as Snakemake has merged them with --config)."""
    workflow: Workflow = validate(Workflow, values, source)
    return workflow


def dump_settings(experiment: Experiment | Study) -> str:
    """The resolved settings as YAML, every default written out."""
    return yaml.safe_dump(experiment.model_dump(), sort_keys=False, allow_unicode=True)
