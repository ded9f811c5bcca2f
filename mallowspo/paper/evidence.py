"""What the results say of each test of a claim: effect, interval, p, size and power, from the files alone."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mallowspo.metric_names import bare
from mallowspo.paper import contests, study_tables
from mallowspo.paper.contests import Found
from mallowspo.paper.finished import Place, Places
from mallowspo.paper.settings import (
    Claim,
    ControlsTest,
    DifferenceTest,
    FactorialTest,
    FrontierTest,
    LengthControlledTest,
    Paper,
    TableTest,
    Test,
)
from mallowspo.paper.verdict import Measured, Verdict, verdicts

SETS = "accuracy on *"


@dataclass(frozen=True)
class Evidence:
    """One test of a claim on one experiment.

    Attributes:
        found: the numbers; None where the experiment is not finished or has nothing to measure, and `note` says why.
        verdict: of a deciding test, once all of the page are known.
    """

    claim: str
    title: str
    decides: bool
    place: Place
    found: Found | None
    note: str = ""
    verdict: Verdict | None = None

    @property
    def tested(self) -> Measured:
        """As the rule takes it."""
        if self.found is None:
            nothing = math.nan
            return Measured(nothing, nothing, nothing, nothing, nothing, ran=self.place.ran)
        return Measured(self.found.low, self.found.high, self.found.p, self.found.p_short, self.found.claimed)


def gather(paper: Paper, places: Places) -> list[Evidence]:
    """Every test of every claim, the deciding ones with their verdicts."""
    found = [item for name, claim in paper.claims.items() for item in _of_claim(name, claim, places, paper.confidence)]
    deciding = [position for position, item in enumerate(found) if item.decides]
    judged = verdicts([found[position].tested for position in deciding], paper.confidence)
    for position, verdict in zip(deciding, judged, strict=True):
        found[position] = replace(found[position], verdict=verdict)
    return found


def _of_claim(name: str, claim: Claim, places: Places, confidence: float) -> Iterator[Evidence]:
    for test in claim.tests:
        several = len(places[test.part]) > 1
        for place in places[test.part]:
            for title, decides, found, note in _rows(test, place, confidence):
                shown = f"{title} ({place.name})" if several else title
                yield Evidence(name, shown, decides, place, found, note)


Row = tuple[str, bool, Found | None, str]


def _rows(test: Test, place: Place, confidence: float) -> Iterator[Row]:
    """Title, whether it decides, numbers, and why there are none."""
    read: Mapping[type[Test], Callable[[Any, Place, float], Iterator[Row]]] = {
        DifferenceTest: _difference,
        FrontierTest: _frontier,
        TableTest: _table,
        LengthControlledTest: _length_controlled,
        ControlsTest: _controls,
        FactorialTest: _factorial,
    }
    yield from read[type(test)](test, place, confidence)


def _difference(test: DifferenceTest, place: Place, confidence: float) -> Iterator[Row]:
    metrics = {test.title: test.metric}
    if test.metric == SETS:
        sets = list(place.comparison.evaluation.other_pairs) if place.comparison else []
        metrics = {test.title.replace("{pair_set}", name): f"accuracy on {name}" for name in sets}
        if not sets:
            note = f"{place.name} has no evaluation.other_pairs" if place.settings else ""
            yield test.title.replace("{pair_set}", "other pairs"), test.decides, None, note
    for title, metric in metrics.items():
        yield title, test.decides, *_contest(place, test.method, test.against, metric)


def _contest(place: Place, method: str, against: str, metric: str) -> tuple[Found | None, str]:
    if not place.ran:
        return None, ""
    labels = [place.label(name) for name in (method, against)]
    for name, label in zip((method, against), labels, strict=True):
        if label is None:
            return None, f"{place.name} trains no {name}"
    found = contests.difference(place, str(labels[0]), str(labels[1]), metric)
    return found, "" if found else f"{place.name} has no {metric} of {method} and {against}"


def _frontier(test: FrontierTest, place: Place, confidence: float) -> Iterator[Row]:
    label = place.label(test.method)
    found = contests.hypervolume_gain(place, label, test.share, confidence) if place.ran and label else None
    lacks = f"{place.name} has neither several betas of {test.method} and its baseline nor training.keep"
    yield test.title, test.decides, found, "" if found or not place.ran else lacks


def _table(test: TableTest, place: Place, confidence: float) -> Iterator[Row]:
    if not place.ran:
        yield test.title, test.decides, None, ""
        return
    found = study_tables.rows(test, place, confidence)
    if not found:
        yield test.title, test.decides, None, f"{place.name} has no table {test.table}"
    for name, numbers in found.items():
        yield test.title if len(found) == 1 else f"{test.title} ({name})", test.decides, numbers, ""


def _length_controlled(test: LengthControlledTest, place: Place, confidence: float) -> Iterator[Row]:
    found, note = None, ""
    if place.ran:
        labels = place.label(test.method), place.label(test.against)
        missing = [name for name, label in zip((test.method, test.against), labels, strict=True) if label is None]
        note = f"{place.name} trains no {missing[0]}" if missing else ""
        if not missing:
            found, note = contests.length_controlled(place, str(labels[0]), str(labels[1]), test.claimed, confidence)
    yield test.title, test.decides, found, note


def _controls(test: ControlsTest, place: Place, confidence: float) -> Iterator[Row]:
    for against, label in control_labels(test, place).items():
        decides = test.decides and against in test.must_beat
        title = test.title.replace("{control}", against.replace("_", " "))
        if label is None:
            yield title, decides, None, f"{place.name} has no control {against}" if place.settings else ""
        else:
            yield title, decides, *_contest(place, test.method, label, test.metric)


def control_labels(test: ControlsTest, place: Place) -> dict[str, str | None]:
    """What theta is compared with -> its label; None where the experiment lacks one that must be beaten."""
    methods = place.comparison.methods if place.comparison else {}
    found: dict[str, str | None] = {test.against: place.label(test.against)}
    found |= {own.control: label for label, own in methods.items() if own.method == test.method
              and own.control != "none"}  # fmt: skip
    return {**found, **{name: None for name in test.must_beat if name not in found}}


def _factorial(test: FactorialTest, place: Place, confidence: float) -> Iterator[Row]:
    if not place.ran:
        yield test.title, test.decides, None, ""
        return
    names = (test.both, test.first, test.second, test.neither)
    labels = [place.label(name) for name in names]
    missing = [name for name, label in zip(names, labels, strict=True) if label is None]
    if missing or bare(test.metric) != test.metric:
        yield test.title, test.decides, None, f"{place.name} trains no {missing[0]}"
        return
    yield test.title, test.decides, contests.factorial(place, [str(label) for label in labels], test.metric), ""
