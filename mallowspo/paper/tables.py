"""The page's tables: claims with their tests, policies in the paper's arrangement, and the experiments behind them."""

import math
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import pandas as pd

from mallowspo.layout import REFERENCE
from mallowspo.paper.evidence import Evidence
from mallowspo.paper.finished import Place, identity
from mallowspo.paper.published import Published
from mallowspo.paper.settings import Paper, TableSettings
from mallowspo.paper.verdict import Word, claim_verdict
from mallowspo.report.table import Table, rows_of
from mallowspo.report.words import ABSENT, count, interval, meaningful_decimals, metric_title, number, p_value


def numbered(paper: Paper, evidence: list[Evidence]) -> dict[str, Evidence]:
    """1a, 1b, 2a, ... -> test: what the figure and the tables call it."""
    found: dict[str, Evidence] = {}
    for position, claim in enumerate(paper.claims, start=1):
        own = [item for item in evidence if item.claim == claim]
        found |= {f"{position}{_letter(place)}": item for place, item in enumerate(own)}
    return found


def _letter(place: int) -> str:
    return chr(ord("a") + place) if place < 26 else f"z{place - 25}"


def words_of_claims(paper: Paper, evidence: list[Evidence]) -> dict[str, Word]:
    """Claim -> its verdict."""
    found: dict[str, Word] = {}
    for name, claim in paper.claims.items():
        words = [item.verdict.word for item in evidence if item.claim == name and item.verdict]
        found[name] = claim_verdict(words, claim.needs)
    return found


def effect(item: Evidence) -> str:
    """The effect with its interval; a dash where there is none."""
    found = item.found
    if found is None or math.isnan(found.effect):
        return ABSENT
    width = found.high - found.low
    return interval(found.effect, found.low, found.high, meaningful_decimals([width]), True)


def tests_table(paper: Paper, tests: Mapping[str, Evidence]) -> Table:
    """One row a test."""
    numbers = pd.DataFrame([_test_numbers(name, item) for name, item in tests.items()])
    shown = pd.DataFrame([_test_shown(paper, name, item) for name, item in tests.items()])
    return Table("tests", numbers, shown, ("Test", "What", "Experiment", "Verdict", "Unit"))


def _test_numbers(name: str, item: Evidence) -> dict[str, Any]:
    found, verdict = item.found, item.verdict
    columns = ("effect", "low", "high", "claimed", "detectable", "p", "p_short", "n", "seeds")
    texts = ("unit", "covers", "test", "source")
    return {
        "number": name,
        "claim": item.claim,
        "what": item.title,
        "experiment": item.place.name,
        "decides": item.decides,
        "verdict": verdict.word if verdict else "",
        "why": verdict.why if verdict else "",
        **{column: getattr(found, column) if found else math.nan for column in columns},
        "p_holm": verdict.p_holm if verdict else math.nan,
        "p_short_holm": verdict.short_holm if verdict else math.nan,
        **{column: getattr(found, column) if found else "" for column in texts},
        "note": item.note,
    }


def _test_shown(paper: Paper, name: str, item: Evidence) -> dict[str, str]:
    found, verdict = item.found, item.verdict
    return {
        "Test": name,
        "What": item.title,
        "Experiment": item.place.name,
        "Ours": effect(item),
        "Counts from": number(found.claimed) if found else ABSENT,
        "Detectable": number(found.detectable) if found else ABSENT,
        "Holm p": p_value(verdict.p_holm) if verdict else ABSENT,
        "Holm p, short": p_value(verdict.short_holm) if verdict else ABSENT,
        "n": count(found.n) if found else ABSENT,
        "Unit": found.unit if found else "",
        "Seeds": count(found.seeds) if found else ABSENT,
        "Verdict": verdict.word if verdict else "shown only",
    }


def claims_table(paper: Paper, tests: Mapping[str, Evidence], words: Mapping[str, Word], published: Published) -> Table:
    """One row a claim: published, ours (the deciding tests), and whether it held."""
    rows = []
    for name, claim in paper.claims.items():
        own = {at: item for at, item in tests.items() if item.claim == name and item.decides}
        figures = [f"{figure_words(figure)} [{figure.tag}]" for figure in published.of(name) if figure.printable]
        rows.append(
            {
                "Claim": claim.title + (" (ours)" if claim.ours else ""),
                "Verdict": words[name],
                "Ours": "; ".join(f"{at}: {effect(item)}" for at, item in own.items()),
                "Published": "; ".join(figures) or ABSENT,
                "n": _range(own, "n"),
                "Seeds": _range(own, "seeds"),
            }
        )
    table = pd.DataFrame(rows)
    return Table("claims", table, table, ("Claim", "Published", "Ours", "Verdict"))


def figure_words(figure: Any) -> str:
    """Value with unit, or the source's words."""
    return f"{figure.value:g} {figure.unit}".strip() if figure.value is not None else str(figure.words)


def _range(tests: Mapping[str, Evidence], name: str) -> str:
    values = sorted({getattr(item.found, name) for item in tests.values() if item.found} - {math.nan})
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return ABSENT
    return count(values[0]) if values[0] == values[-1] else f"{count(values[0])} to {count(values[-1])}"


def policy_tables(paper: Paper, places: Mapping[str, list[Place]]) -> dict[str, Table]:
    """File name -> table, of every finished experiment that config/paper.yaml asks for."""
    found = {}
    for name, settings in paper.tables.items():
        for place in places[settings.part]:
            if place.ran and place.comparison:
                file = name if len(places[settings.part]) == 1 else f"{name}_{file_part(place.name)}"
                found[file] = _policies(file, settings, place)
    return found


def file_part(name: str) -> str:
    """An experiment's name inside a file's."""
    return re.sub(r"\W+", "_", name)


def _policies(file: str, settings: TableSettings, place: Place) -> Table:
    experiment = place.comparison
    assert experiment is not None
    estimates = place.table("estimates")
    known = list(dict.fromkeys(estimates["metric"]))
    metrics = list(dict.fromkeys(own for wanted in settings.metrics for own in known if fnmatchcase(own, wanted)))
    keep = estimates[estimates["metric"].isin(metrics)]
    cells = {(row.method, row.metric): row for row in rows_of(keep)}
    decimals = {
        metric: meaningful_decimals([row.ci_high - row.ci_low for row in rows_of(keep[keep["metric"] == metric])])
        for metric in metrics
    }

    def told(label: str, metric: str) -> str:
        row = cells.get((label, metric))
        return interval(row.estimate, row.ci_low, row.ci_high, decimals[metric]) if row else ABSENT

    shown = pd.DataFrame(
        {
            "Method": label,
            **{metric_title(metric): told(label, metric) for metric in metrics},
            "Seeds": "–" if label == REFERENCE else str(len(experiment.seeds)),
            "n": _most(cells, label, metrics),
        }
        for label in [REFERENCE, *experiment.methods]
    )
    return Table(file, keep, shown, ("Method",))


def _most(cells: Mapping[tuple[str, str], Any], label: str, metrics: list[str]) -> str:
    sizes = [cells[label, metric].n for metric in metrics if (label, metric) in cells]
    return count(max(sizes)) if sizes else ABSENT


def experiments_table(places: Mapping[str, list[Place]]) -> Table:
    """Every experiment of the scale: its part, how far it is, size, settings, and where its runs are tracked."""
    table = pd.DataFrame([_experiment(place) for of_part in places.values() for place in of_part])
    shown = table.drop(columns="Command")
    return Table("experiments", table, shown, tuple(shown.columns))


def _experiment(place: Place) -> dict[str, str]:
    seeds = place.comparison.seeds if place.comparison else None
    return {
        "Part": place.part,
        "Experiment": place.name,
        "State": place.state,
        "Seeds": str(len(seeds)) if seeds else ABSENT,
        "Settings digest": identity(place.settings) or ABSENT,
        "MLflow": f"experiment mallowspo/{place.name}" if place.record else ABSENT,
        "Command": place.command,
    }
