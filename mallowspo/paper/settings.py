"""config/paper.yaml: which experiment plays which part at each scale, and what each claim of the paper is tested by."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from mallowspo.errors import InputError
from mallowspo.experiments import NAME, SHARED, read_yaml, validate
from mallowspo.sections import LABEL, Section, nearest

PAPER_FILE = Path("config/paper.yaml")
#: Of a scale and a part: they stand in file names and on command lines.
Name = Annotated[str, Field(pattern=rf"^{LABEL}$")]


class Test(Section):
    """One test behind a claim. Its effect is written so that a value above 0 speaks for the claim.

    `claimed` is the smallest effect that bears the claim out, in the effect's unit: set before any result is looked at.
    """

    part: Name
    title: str = Field(description="may hold {pair_set}, {count} or {control} where the kind fills it in")
    decides: bool = Field(default=True, description="false: shown beside the verdict, and no part of it")


class DifferenceTest(Test):
    """One method minus another in a metric of the comparison; claimed: the experiment's own margin of equivalence."""

    kind: Literal["difference"]
    method: str
    against: str = "dpo"
    metric: str = Field(description="reward, win_rate, accuracy, or with `against NAME`; `accuracy on *`: on every set")


class FrontierTest(Test):
    """Hypervolume of a method's reward-KL curve minus the baseline's."""

    kind: Literal["frontier"]
    method: str
    share: float = Field(gt=0, description="claimed: this share of the baseline's hypervolume")


class TableTest(Test):
    """A number of a study, with its interval, from one row of one of its tables."""

    kind: Literal["table"]
    table: str = Field(description="file of the study's tables without .csv; * stands for any letters")
    where: dict[str, str | int | float] = Field(description="column -> value that picks the row; max or min of numbers")
    value: str = "difference"
    low: str = "ci_low"
    high: str = "ci_high"
    p: str | None = Field(default="p", description="column of a two-sided p; null: from the interval")
    sign: Literal[1, -1] = Field(default=1, description="-1: smaller is better")
    unit: Literal["prompts", "pairs", "seeds"] = "seeds"
    claimed: float = Field(gt=0)


class LengthControlledTest(Test):
    """Length-controlled win rate of a method minus another's, in points, over seeds."""

    kind: Literal["length_controlled"]
    method: str
    against: str = "dpo"
    claimed: float = Field(gt=0, description="points")


class ControlsTest(Test):
    """MallowsPO-theta minus itself with its weights taken from their prompts, and minus DPO at the same beta."""

    kind: Literal["controls"]
    method: str = "mallows_theta"
    against: str = "dpo"
    metric: str = "reward"
    must_beat: list[str] = Field(description="`against`, and names under `control` of the experiment; others are shown")


class FactorialTest(Test):
    """Both - first - second + neither: is the gain of two things together more than the sum of theirs?"""

    kind: Literal["factorial"]
    metric: str = "reward"
    both: str
    first: str
    second: str
    neither: str = "dpo"


AnyTest = Annotated[
    DifferenceTest | FrontierTest | TableTest | LengthControlledTest | ControlsTest | FactorialTest,
    Field(discriminator="kind"),
]


class Claim(Section):
    """One row of the page."""

    title: str
    says: str = Field(description="what the claim is, in a sentence")
    ours: bool = Field(default=False, description="a question of this repository, and no claim of the paper")
    needs: Literal["every", "one"] = Field(default="every", description="of the tests that decide")
    tests: list[AnyTest] = Field(min_length=1)
    differs: str = Field(default="", description="how the test differs from the paper's, whatever the scale")

    @model_validator(mode="after")
    def _decided(self) -> "Claim":
        if not any(test.decides for test in self.tests):
            raise ValueError(f"claim '{self.title}': no test decides; set decides: true for one")
        return self


class FigureSettings(Section):
    """Figures of experiments under one heading, in the order of the paper."""

    title: str
    part: Name
    figures: list[str] = Field(description="names in the experiment's figures folder; * stands for any letters")
    caption: str


class TableSettings(Section):
    """A table of policies by metrics, from an experiment's estimates.parquet."""

    title: str
    part: Name
    metrics: list[str] = Field(description="columns; * stands for any letters")


class Paper(Section):
    """The whole file."""

    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    scales: dict[Name, dict[Name, list[str]]] = Field(min_length=1)
    claims: dict[Name, Claim] = Field(min_length=1)
    known_before: list[Name] = Field(default=[], description="parts whose results were known when this was written")
    figures: list[FigureSettings] = Field(default=[])
    tables: dict[Name, TableSettings] = Field(default={})

    @field_validator("scales", mode="before")
    @classmethod
    def _lists(cls, scales: object) -> object:
        """A single experiment may stand without brackets."""
        if not isinstance(scales, dict):
            return scales
        return {
            scale: {part: [name] if isinstance(name, str) else name for part, name in parts.items()}
            if isinstance(parts, dict)
            else parts
            for scale, parts in scales.items()
        }

    @model_validator(mode="after")
    def _parts_are_known(self) -> "Paper":
        for place, part in self._used():
            for scale, parts in self.scales.items():
                if part not in parts:
                    raise ValueError(f"{place}: scale '{scale}' has no part '{part}'; {nearest(part, parts)}")
        for scale, parts in self.scales.items():
            names = [name for of_part in parts.values() for name in of_part]
            wrong = [name for name in names if not re.fullmatch(NAME, name) or name in SHARED]
            if wrong:
                raise ValueError(f"scales.{scale}: '{wrong[0]}' is no name of a file in config/experiments")
        return self

    def _used(self) -> Iterator[tuple[str, str]]:
        yield from (("known_before", part) for part in self.known_before)
        for name, claim in self.claims.items():
            yield from ((f"claims.{name}", test.part) for test in claim.tests)
        yield from ((f"figures, '{figure.title}'", figure.part) for figure in self.figures)
        yield from ((f"tables.{name}", table.part) for name, table in self.tables.items())

    def parts(self, scale: str) -> dict[str, list[str]]:
        """Part -> experiments of a scale.

        Raises:
            InputError: there is no such scale.
        """
        if scale not in self.scales:
            raise InputError(f"scale '{scale}': no such scale in {PAPER_FILE}; {nearest(scale, self.scales)}")
        return self.scales[scale]

    def experiments(self, scale: str) -> list[str]:
        """Every experiment of a scale once."""
        return list(dict.fromkeys(name for names in self.parts(scale).values() for name in names))


def load_paper(path: str | Path = PAPER_FILE) -> Paper:
    """Read and validate the file; what is wrong is an `InputError` of one line."""
    paper: Paper = validate(Paper, read_yaml(path), str(path))
    return paper
