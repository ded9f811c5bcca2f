"""Stage "study": run a study; write its tables, its page, its settings and its numbers."""

import math
from pathlib import Path
from typing import Any

from mallowspo.files import write_json, write_text
from mallowspo.layout import Layout
from mallowspo.provenance import environment as machine
from mallowspo.report.style import Look
from mallowspo.report.table import write_table
from mallowspo.report.template import environment
from mallowspo.studies.kinds import study_module
from mallowspo.studies.result import StudyResult
from mallowspo.studies.settings import Study


def run(settings: Study, layout: Layout, model_folder: Path | None, settings_text: str) -> None:
    """Write tables/*, figures/*, report.html, settings.yaml and study.json.

    Args:
        settings: of the study.
        layout: of the experiment.
        model_folder: of the model that the settings name; None if they name none.
        settings_text: the resolved settings as YAML.

    Raises:
        InputError: what the study reads is missing or broken.
        ValueError: a number of the result is not finite, or two tables share a name.
    """
    result: StudyResult = study_module(settings.kind).run(settings, layout, model_folder)
    _check(result)
    tables = [section.table for section in result.sections if section.table is not None]
    for table in tables:
        write_table(layout, table)
    versions = machine("cpu" if settings.compute.device == "auto" else settings.compute.device)
    page = environment("mallowspo.studies").get_template("study.html.jinja")
    write_text(
        layout.report,
        page.render(
            settings=settings,
            settings_text=settings_text,
            result=result,
            versions=_flat(versions),
            look=Look([]),
            made_by=f"mallowspo study {layout.experiment}",
        ),
    )
    # A folder of figures must be there for the workflow, also where a study draws none.
    layout.figures.mkdir(parents=True, exist_ok=True)
    layout.tables.mkdir(parents=True, exist_ok=True)
    write_text(layout.settings, settings_text)
    write_json(
        layout.study,
        {
            "kind": settings.kind,
            "settings": settings.identity,
            "findings": result.findings,
            "numbers": result.numbers,
            "environment": versions,
        },
    )


def _check(result: StudyResult) -> None:
    wrong = [name for name, value in result.numbers.items() if not math.isfinite(value)]
    if wrong:
        raise ValueError(f"numbers of the study are not finite: {', '.join(wrong)}; leave them out or mend them")
    names = [section.table.name for section in result.sections if section.table is not None]
    if len(set(names)) != len(names):
        raise ValueError(f"two tables of the study share a name: {', '.join(names)}")


def _flat(versions: dict[str, Any]) -> dict[str, str]:
    values = {**versions, **versions["versions"]}
    return {name: str(value) for name, value in values.items() if name != "versions" and value is not None}
