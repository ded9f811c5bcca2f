"""Settings of the study of dispersion estimates."""

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator

from mallowspo.files import digest, sha256_file
from mallowspo.settings import ModelSettings, Section, TokenSettings
from mallowspo.studies.settings import Study

#: A file, named directly or below a folder that an environment variable names.
Source = Annotated[str, StringConstraints(pattern=r"^path:.+$")]
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def variable(source: str) -> str:
    """The first environment variable in a source that names one."""
    return str(_VARIABLE.findall(source)[0])


def find(source: str) -> Path | str:
    """The file behind `path:FILE`, or in words why a file below a variable is not there.

    A file that is named without a variable is given whether it is there or not; the settings demand that it is.
    """
    place = source.removeprefix("path:")
    names = _VARIABLE.findall(place)
    unset = [name for name in names if not os.environ.get(name)]
    if unset:
        return f"the environment variable {unset[0]} is not set"
    path = Path(_VARIABLE.sub(lambda match: os.environ[match[1]], place))
    if names and not path.is_file():
        return f"{names[0]} is set, but holds no file {path.name}"
    return path


class RankingSettings(Section):
    """(a) Rankings from Mallows models whose dispersion is known."""

    phis: list[float] = Field(default=[0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95], min_length=3)
    items: list[int] = Field(default=[2, 4, 6], min_length=1, description="items that are ranked")
    annotators: list[int] = Field(default=[5, 20, 100], min_length=1, description="rankings a prompt")
    exponent: Literal[1, 2] = Field(default=2, description="P ~ phi^(exponent d), d = Kendall's tau")
    cap: float = Field(
        default=4.0,
        gt=0,
        description="estimates of -log phi above it (all annotators agree) are set to it, and counted",
    )

    @field_validator("phis")
    @classmethod
    def _inside(cls, phis: list[float]) -> list[float]:
        if not all(0 < phi < 1 for phi in phis):
            raise ValueError("every phi must lie between 0 and 1")
        return phis

    @field_validator("items")
    @classmethod
    def _rankable(cls, items: list[int]) -> list[int]:
        if not all(2 <= count <= 12 for count in items):
            raise ValueError("from 2 to 12 items: the centre is searched among all rankings")
        return items


class ChainSettings(Section):
    """(b) Answers from a language model small enough for its entropies to be known exactly."""

    prompts: int = Field(default=400, ge=10)
    words: int = Field(default=8, ge=2, description="words besides the end token")
    max_tokens: int = Field(default=24, ge=2, description="an answer is cut off there")
    temperatures: tuple[float, float] = Field(default=(0.25, 2.0), description="range over prompts, log-uniform")
    mean_lengths: tuple[float, float] = Field(default=(4.0, 20.0), description="range where answers differ in length")
    prompt_tokens: int = Field(default=12, ge=2)
    prompt_correlation: float = Field(
        default=0.5, ge=-1, le=1, description="of the log-temperatures of a prompt's own words and of its answers"
    )
    header_tokens: int = Field(default=4, ge=1, description="certain tokens that a chat template puts before an answer")
    off_policy: float = Field(default=1.5, gt=0, description="factor on the temperature of answers by another policy")
    samples: int = Field(default=8, ge=2, description="answers behind the estimator 'sampled'")

    @field_validator("temperatures", "mean_lengths")
    @classmethod
    def _range(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if not 0 < bounds[0] < bounds[1]:
            raise ValueError("must be two rising numbers above 0")
        return bounds


class PeopleSettings(Section):
    """(c) Pairs on which many people voted."""

    files: list[Source] = Field(
        default=[],
        description="path:FILE or path:${VARIABLE}/FILE, JSONL, gzipped or not: {prompt, a, b, votes_a, votes_b} a "
        "row, or ChaosNLI's alpha-NLI; with a variable that is unset, or a file that is not there, the file is left "
        "out and the page says so",
    )
    wording: str = Field(
        default="Beginning: {obs1}\nEnd: {obs2}\nWhat happened in between:",
        description="alpha-NLI only: the prompt, from both observations",
    )
    tokens: TokenSettings = TokenSettings(template="plain")
    max_pairs: int | None = Field(default=None, ge=20, description="a seeded draw of that many pairs a file")
    tokens_per_batch: int = Field(
        default=8192, ge=1, description="tokens of one forward: prompt and both answers of each pair"
    )
    effect: float = Field(default=0.1, gt=0, lt=1, description="correlation whose detection the power is given for")

    @field_validator("files")
    @classmethod
    def _named_files_exist(cls, files: list[str]) -> list[str]:
        # Here, and not when the study runs: the workflow takes a missing input for a finished study as up to date.
        for place in map(find, files):
            if isinstance(place, Path) and not place.is_file():
                raise ValueError(f"{place}: no such file (relative paths start at {Path.cwd()}); mend the path")
        return files

    @field_validator("wording")
    @classmethod
    def _both_observations(cls, wording: str) -> str:
        if not ("{obs1}" in wording and "{obs2}" in wording):
            raise ValueError("must hold {obs1} and {obs2}")
        return wording


class StatisticsSettings(Section):
    """How correlations are tested."""

    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    resamples: int = Field(default=2000, ge=99)
    permutations: int = Field(default=9999, ge=99)


class DispersionStudy(Study):
    """Each dispersion estimate against a truth: rankings, exact entropies, people's votes."""

    kind: Literal["dispersion_study"] = "dispersion_study"
    seeds: int = Field(default=40, ge=2, description="prompts in each cell of the grid of rankings")
    seed: int = Field(default=0, description="of every random draw")
    model: ModelSettings
    rankings: RankingSettings = RankingSettings()
    chain: ChainSettings = ChainSettings()
    people: PeopleSettings = PeopleSettings()
    statistics: StatisticsSettings = StatisticsSettings()

    def input_files(self) -> list[str]:
        """Files of votes that are there."""
        return [str(place) for place in map(find, self.people.files) if isinstance(place, Path)]

    def warnings(self) -> list[str]:
        """What is left out, and how it would be run."""
        return [
            f"people.files: {source} is not run: {reason}; set {variable(source)} to the folder that holds it"
            for source, reason in self.left_out().items()
        ]

    def left_out(self) -> dict[str, str]:
        """Sources of votes that are not there, with the reason."""
        found = {source: find(source) for source in self.people.files}
        return {source: place for source, place in found.items() if isinstance(place, str)}

    @property
    def identity(self) -> str:
        """Digest of the settings, and of the votes: where the variables point, and what lies there."""
        return digest([super().identity, self._votes()])

    def stage_digest(self, stage: str) -> str:
        """As every study's; "study" depends on the votes too."""
        own = super().stage_digest(stage)
        return own if stage == "model" else digest([own, self._votes()])

    def _votes(self) -> list[tuple[str, str | None]]:
        places = [find(source) for source in self.people.files]
        return [(str(place), sha256_file(place) if isinstance(place, Path) else None) for place in places]
