"""Experiments of a scale, and how far each is: read from its file in config/experiments and from its results."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from mallowspo.compare_values import Values, read_values
from mallowspo.errors import InputError
from mallowspo.experiments import EXPERIMENTS_FOLDER, load_experiment
from mallowspo.files import read_json, read_parquet
from mallowspo.layout import Layout
from mallowspo.paper.settings import Paper
from mallowspo.settings import Experiment
from mallowspo.studies.settings import Study

FINISHED, OTHER_SETTINGS, NOT_RUN, NO_FILE = "finished", "finished with other settings", "not run", "no file yet"


@dataclass(frozen=True)
class Place:
    """One experiment in its part.

    Attributes:
        settings: of the results where there are any, else of its file; None where there is neither.
        state: FINISHED, OTHER_SETTINGS (than its file has now), NOT_RUN, or NO_FILE (in config/experiments either).
    """

    part: str
    name: str
    layout: Layout
    settings: Experiment | Study | None
    state: str

    @property
    def ran(self) -> bool:
        return self.state in (FINISHED, OTHER_SETTINGS)

    @property
    def command(self) -> str:
        """What runs it."""
        return f"snakemake --cores all --config experiments={self.name}"

    @property
    def comparison(self) -> Experiment | None:
        """The settings where it is a comparison."""
        return self.settings if isinstance(self.settings, Experiment) else None

    def table(self, name: str) -> pd.DataFrame:
        """comparison, interaction, estimates or frontier."""
        cached: dict[str, pd.DataFrame] = self.__dict__.setdefault("_read", {})
        if name not in cached:
            cached[name] = read_parquet(getattr(self.layout, name))
        return cached[name]

    @cached_property
    def values(self) -> Values:
        """Every metric of every run, as the comparison read them."""
        experiment = self.comparison
        if experiment is None:
            raise InputError(f"{self.layout.root}: a study, and no comparison; another experiment belongs in its part")
        return read_values(experiment.stage_view("compare"), self.layout)

    @cached_property
    def record(self) -> dict[str, Any]:
        """What the tracking stage wrote; empty where it did not run."""
        return dict(read_json(self.layout.tracked)) if self.layout.tracked.exists() else {}

    def label(self, name: str) -> str | None:
        """The label of a method: its own name, else the first of that method without a control."""
        methods = self.comparison.methods if self.comparison else {}
        if name in methods:
            return name
        found = [label for label, own in methods.items() if own.method == name and own.control == "none"]
        return found[0] if found else None


Places = Mapping[str, list[Place]]


def read_places(paper: Paper, scale: str, results: str) -> dict[str, list[Place]]:
    """Part -> its experiments, in the order of the file."""
    parts = paper.parts(scale)
    return {part: [_place(part, name, results) for name in names] for part, names in parts.items()}


def _place(part: str, name: str, results: str) -> Place:
    layout = Layout(results, name)
    file = EXPERIMENTS_FOLDER / f"{name}.yaml"
    planned = load_experiment(name) if file.exists() else None
    if not _finished(layout):
        return Place(part, name, layout, planned, NOT_RUN if planned else NO_FILE)
    made = load_experiment(str(layout.settings))
    same = planned is None or identity(planned) == identity(made)
    return Place(part, name, layout, made, FINISHED if same else OTHER_SETTINGS)


def identity(settings: Experiment | Study | None) -> str:
    """Digest of the settings; empty where they go by the content of files that are not there."""
    try:
        return settings.identity if settings else ""
    except FileNotFoundError:
        return ""


def _finished(layout: Layout) -> bool:
    """Whether its page and what the page is made of are there."""
    numbers = layout.study if layout.study.exists() else layout.comparison
    return all(file.exists() for file in (layout.settings, layout.report, numbers))
