"""config/published.yaml: what the paper prints, with its source; blank where nobody has read it."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from mallowspo.errors import InputError
from mallowspo.experiments import read_yaml, validate
from mallowspo.sections import Section, nearest

PUBLISHED_FILE = Path("config/published.yaml")
#: What a tag says about a figure, as the page prints it.
TAGS = {
    "PDF": "read in the paper's own text, by whoever filled the file; the source says where",
    "V1": "seen in a primary source: the official code, the abstract, or a survey that the authors co-wrote",
    "V2": "seen in a note or review about the paper by others, which may hold their mistakes",
    "R": "from memory only, seen in no source: a hypothesis to check, never printed as the paper's",
}


class Figure(Section):
    """One published figure of a claim."""

    what: str = Field(description="what is measured, on which data, by whom judged")
    value: float | None = Field(default=None, description="as the paper prints it; blank: not known here")
    unit: str = ""
    words: str = Field(default="", description="where the source has words instead of a number")
    source: str = Field(default="", description="where it was read: table or page, version, address")
    tag: Literal["PDF", "V1", "V2", "R"] | None = None

    @model_validator(mode="after")
    def _has_a_source(self) -> "Figure":
        if (self.known or self.tag) and not (self.source and self.tag and self.known):
            raise ValueError(
                f"'{self.what}': a figure needs value or words, source and tag; leave all three blank else"
            )
        return self

    @property
    def known(self) -> bool:
        return self.value is not None or bool(self.words)

    @property
    def printable(self) -> bool:
        """Whether it may stand on the page as the paper's."""
        return self.known and self.tag != "R"


class Published(Section):
    """The whole file."""

    claims: dict[str, list[Figure]]

    def of(self, claim: str) -> list[Figure]:
        return self.claims.get(claim, [])


def load_published(claims: list[str], path: str | Path = PUBLISHED_FILE) -> Published:
    """Read and validate the file.

    Raises:
        InputError: a key is unknown, a figure has no source, or a claim is none of `claims`.
    """
    published: Published = validate(Published, read_yaml(path), str(path))
    unknown = [name for name in published.claims if name not in claims]
    if unknown:
        raise InputError(
            f"{path}: claims.{unknown[0]}: no such claim in config/paper.yaml; {nearest(unknown[0], claims)}"
        )
    return published
