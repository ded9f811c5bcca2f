"""What a study hands back: the parts of its page, and the numbers that go to the tracking store.

A study's module has `run(settings, layout, model_folder) -> StudyResult`. It draws its panels with
`mallowspo.report.style.draw_panel`, which writes figures/NAME.{svg,pdf,csv}; the shell writes its tables
(tables/NAME.{csv,md,tex}), report.html, settings.yaml and study.json.
"""

from dataclasses import dataclass, field

from mallowspo.report.style import Panel
from mallowspo.report.table import Table


@dataclass(frozen=True)
class Section:
    """A part of the page under one heading: text first, then the panels under one caption, then the table."""

    title: str
    paragraphs: list[str] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    caption: str = ""
    table: Table | None = None


@dataclass(frozen=True)
class StudyResult:
    """The whole of a study.

    `findings` are whole sentences with their numbers, the first of them the answer to the study's question;
    `cautions` say what a reader must know before quoting one; `numbers` (finite, by names like
    "theta_minus_dpo/reward") are what the tracking store compares between runs.
    """

    findings: list[str]
    cautions: list[str]
    sections: list[Section]
    numbers: dict[str, float]
