"""`mallowspo paper`: results/paper/index.html, its tables and figures, from the files of the experiments alone."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mallowspo.files import write_text
from mallowspo.layout import Layout
from mallowspo.paper import FOLDER, figures, tables
from mallowspo.paper.controls import controls_table
from mallowspo.paper.differs import PAPER_SCALE, differences
from mallowspo.paper.evidence import Evidence, gather
from mallowspo.paper.finished import Place, read_places
from mallowspo.paper.published import TAGS, Figure, Published
from mallowspo.paper.settings import Claim, Paper
from mallowspo.paper.verdict import CANNOT_TELL, HELD, NOT_HELD, NOT_RUN, Word
from mallowspo.report.style import Look
from mallowspo.report.table import write_table
from mallowspo.report.template import environment

PAGE = "index.html"
KINDS = {HELD: "held", NOT_HELD: "not-held", CANNOT_TELL: "open", NOT_RUN: "not-run"}


@dataclass(frozen=True)
class Row:
    """One claim on the page."""

    name: str
    number: int
    claim: Claim
    word: Word
    kind: str
    published: list[Figure]
    tests: list[dict[str, Any]]
    places: list[Place]
    figures: list[int]


@dataclass(frozen=True)
class Panels:
    """Panels of the page's own under one caption."""

    panels: list[Any]
    caption: str


def run(paper: Paper, published: Published, scale: str, results: str) -> Path:
    """Write index.html, tables/*.{csv,md,tex} and figures/*.{svg,pdf,csv}; what an older page left there goes.

    Claims whose experiments are not finished are shown as not run, with the command that runs them.

    Raises:
        InputError: there is no such scale, or a result file is broken or lacks what config/paper.yaml asks for.
    """
    places = read_places(paper, scale, results)
    layout = Layout(results, FOLDER)
    tests = tables.numbered(paper, gather(paper, places))
    words = tables.words_of_claims(paper, list(tests.values()))
    differs, said = differences(paper, scale, places)
    controls = controls_table(paper, places, list(tests.values()))
    policies = tables.policy_tables(paper, places)
    shown = {
        "claims": tables.claims_table(paper, tests, words, published),
        "tests": tables.tests_table(paper, tests),
        "differs": differs,
        "experiments": tables.experiments_table(places),
        **policies,
    }
    shown |= {controls.name: controls} if controls else {}
    for table in shown.values():
        write_table(layout, table)
    groups = figures.copied_groups(paper, places, layout)
    deciding = [item for item in tests.values() if item.decides]
    own = {
        "overview": Panels(figures.overview(layout, tests), _overview_caption(paper, deciding)),
        "controls": Panels(
            figures.controls_forest(layout, controls) if controls else [], _controls_caption(paper, controls)
        ),
    }
    names = [panel.name for part in own.values() for panel in part.panels]
    names += [figure.name for group in groups for figure in group.figures]
    _remove_older(layout, shown, names)
    rows = _rows(paper, published, tests, words, places, groups)
    template = environment("mallowspo.paper").get_template("paper.html.jinja")
    page = template.render(
        scale=scale,
        scales=list(paper.scales),
        paper_scale=PAPER_SCALE,
        rows=rows,
        counts={word: sum(row.word == word for row in rows) for word in KINDS},
        kinds=KINDS,
        tables=shown,
        policies=policies,
        policy_titles=_policy_titles(paper, policies),
        own=own,
        groups=groups,
        said=said,
        deciding=len(deciding),
        known_before=[place.name for part in paper.known_before for place in places.get(part, [])],
        alpha=f"{1 - paper.confidence:.2g}",
        half_alpha=f"{(1 - paper.confidence) / 2:.2g}",
        confidence=f"{paper.confidence:.0%}",
        tags=TAGS,
        tracking=_tracking,
        look=Look([]),
        made_by=f"mallowspo paper --scale {scale}",
    )
    path = layout.root / PAGE
    write_text(path, page)
    return path


def _rows(
    paper: Paper,
    published: Published,
    tests: Mapping[str, Evidence],
    words: Mapping[str, Word],
    places: Mapping[str, list[Place]],
    groups: list[figures.Group],
) -> list[Row]:
    rows = []
    for number, (name, claim) in enumerate(paper.claims.items(), start=1):
        own = {at: item for at, item in tests.items() if item.claim == name}
        parts = list(dict.fromkeys(test.part for test in claim.tests))
        rows.append(
            Row(
                name=name,
                number=number,
                claim=claim,
                word=words[name],
                kind=KINDS[words[name]],
                published=published.of(name),
                tests=[_test(at, item) for at, item in own.items()],
                places=[place for part in parts for place in places[part]],
                figures=[at for at, group in enumerate(groups, start=1) if group.part in parts],
            )
        )
    return rows


def _test(at: str, item: Evidence) -> dict[str, Any]:
    """A test as its card tells it."""
    found = item.found
    return {
        "number": at,
        "title": item.title,
        "effect": tables.effect(item),
        "verdict": item.verdict,
        "kind": KINDS[item.verdict.word] if item.verdict else "shown",
        "found": found,
        "note": item.note,
        "place": item.place,
        "claimed": tables.number(found.claimed) if found else "",
        "detectable": tables.number(found.detectable) if found else "",
        "p_holm": tables.p_value(item.verdict.p_holm) if item.verdict else "",
        "n": tables.count(found.n) if found else "",
        "seeds": tables.count(found.seeds) if found and found.seeds == found.seeds else "",
    }


def _tracking(place: Place) -> dict[str, str]:
    """MLflow's experiment of a place by name, and its address where the store is a server."""
    store, experiment = (str(place.record.get(key, "")) for key in ("store", "experiment_id"))
    address = f"{store.rstrip('/')}/#/experiments/{experiment}" if store.startswith(("http://", "https://")) else ""
    return {"name": f"mallowspo/{place.name}", "address": address, "run": str(place.record.get("run_id", ""))}


def _policy_titles(paper: Paper, policies: Iterable[str]) -> dict[str, str]:
    longest = sorted(paper.tables, key=len, reverse=True)
    return {file: paper.tables[next(name for name in longest if file.startswith(name))].title for file in policies}


def _overview_caption(paper: Paper, deciding: list[Evidence]) -> str:
    return (
        f"{len(deciding)} deciding tests, those that ran are drawn. Bars: {paper.confidence:.0%} intervals, "
        "uncorrected; n, seeds and Holm's p in the tables. Numbers as in the claims below."
    )


def _controls_caption(paper: Paper, controls: Any) -> str:
    rows = len(controls.numbers) if controls else 0
    return (
        f"Bars: {paper.confidence:.0%} intervals; hollow: a control that need not be beaten. Grey: differences too "
        "small to be found with 80 % power at this n. Tests as in each comparison; Holm's correction over the "
        f"{rows} rows."
    )


def _remove_older(layout: Layout, shown: Iterable[str], names: Iterable[str]) -> None:
    """Tables and figures of an older page that this one does not have."""
    keep = {layout.tables / f"{name}{ending}" for name in shown for ending in (".csv", ".md", ".tex")}
    keep |= {layout.figures / f"{name}{ending}" for name in names for ending in figures.FORMATS}
    for folder in (layout.tables, layout.figures):
        folder.mkdir(parents=True, exist_ok=True)
    for file in figures.written(layout) - keep:
        file.unlink()
