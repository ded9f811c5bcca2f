"""A finished experiment, opened by its folder: its settings, and what its runs measured."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mallowspo.compare_values import AGAINST, Values, read_values
from mallowspo.errors import InputError
from mallowspo.experiments import load_experiment
from mallowspo.layout import REFERENCE, Layout
from mallowspo.settings import Experiment

#: Folders by which an experiment's folder is known before it has settings.
STAGES = ("pairs", "reference", "runs", "samples", "scores")
#: File below scores/METHOD/seed=S -> the stage that makes it.
MADE_BY = {
    "score.parquet": "score",
    "pairs.parquet": "score",
    "alpaca.parquet": "alpaca",
    AGAINST: "alpaca",
    "lm_eval.parquet": "lm-eval",
}


@dataclass(frozen=True)
class Finished:
    """Attributes:
    layout: of the experiment.
    settings: resolved.
    values: as `mallowspo.compare_values.read_values` gives them.
    """

    layout: Layout
    settings: Experiment
    values: Values

    @property
    def labels(self) -> list[str]:
        """The reference and all methods."""
        return [REFERENCE, *self.settings.methods]

    @property
    def prompts(self) -> Any:
        """Ids of the test prompts."""
        return self.values["reward"][REFERENCE].index


def open_finished(folder: str, results: str) -> Finished:
    """Read an experiment.

    Args:
        folder: the experiment's folder; or its name, for the one below `results`.
        results: folder of all results.

    Raises:
        InputError: the folder is no experiment's, is a study's, or lacks a file; the line names the command that makes
            it.
    """
    root = Path(folder)
    if not root.is_dir() and root.name == folder:
        root = Path(results) / folder
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the folder of a finished experiment, such as {results}/demo")
    root = root.resolve() if root.name in ("", "..") else root
    layout = Layout(str(root.parent), root.name)
    settings = _settings(layout)
    for label, seed in [(REFERENCE, 0), *settings.runs()]:
        _complete(layout, settings, label, seed)
    return Finished(layout, settings, read_values(settings, layout))


def _settings(layout: Layout) -> Experiment:
    if not layout.settings.exists():
        if any((layout.root / name).is_dir() for name in STAGES):
            raise _unfinished(layout, layout.settings, f"mallowspo report {layout.experiment}")
        raise InputError(f"{layout.root}: no experiment's folder: it has no settings.yaml")
    settings = load_experiment(str(layout.settings))
    if not isinstance(settings, Experiment):
        raise InputError(f"{layout.root}: a study (kind: {settings.kind}); only comparisons of trainings have policies")
    return settings


def _complete(layout: Layout, settings: Experiment, label: str, seed: int) -> None:
    """Every file that the comparison reads of one run is there."""
    wanted = ["score.parquet"]
    if label != REFERENCE:
        wanted += ["pairs.parquet", "alpaca.parquet", *([AGAINST] if settings.evaluation.alpaca.against else [])]
    if settings.evaluation.lm_eval is not None:
        wanted.append("lm_eval.parquet")
    run = f"{layout.experiment} --method {label} --seed {seed}"
    for name in wanted:
        path = layout.scores(label, seed) / name
        if not path.exists():
            raise _unfinished(layout, path, f"mallowspo {MADE_BY[name]} {run}")
    for other in list(settings.evaluation.other_pairs) if label != REFERENCE else []:
        path = layout.other_pairs(other).scores(label, seed) / "pairs.parquet"
        if not path.exists():
            raise _unfinished(layout, path, f"mallowspo score {run} --pairs {other}")


def _unfinished(layout: Layout, path: Path, command: str) -> InputError:
    return InputError(
        f"{layout.root}: not finished: {path.relative_to(layout.root)} is missing; `{command} --results "
        f"{layout.results}` makes it, or `snakemake --cores all --config experiments={layout.experiment}` all of it"
    )
