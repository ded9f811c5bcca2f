"""The report's table of win rates and their judge."""

import math
from pathlib import Path
from typing import Any

import pytest

from mallowspo.files import write_json
from mallowspo.layout import Layout
from mallowspo.report.judge_table import judge_table, judge_words, label_words


def share(value: float | None, half: float = 0.1, n: int = 100) -> dict[str, Any]:
    if value is None:
        return {"value": None, "low": None, "high": None, "n": n}
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def comparison(against: str, **changes: Any) -> dict[str, Any]:
    values = {
        "against": against,
        "win_rate": 60.0,
        "n_total": 100,
        "lc_winrate_official": None,
        "failed": 1,
        "equal_answers": 5,
        "lc_winrate_approximate": None,
        "prefer_first": share(0.6),
        "flips": share(0.2),
        "ties": share(0.0),
        "length_slope": share(1.0),
        "self_consistency": {"value": 1.0, "low": None, "high": None, "n": 0, "note": "deterministic"},
    }
    return {**values, **changes}


def write(layout: Layout, method: str, seed: int, *comparisons: dict[str, Any]) -> None:
    content: dict[str, Any] = {"judge": "openai:m", "judge_digest": "abc", "orders": "both", "comparisons": comparisons}
    content["versions"] = {"alpaca_eval": "1"}
    write_json(layout.scores(method, seed) / "judge.json", content)


def test_seeds_are_put_together_and_opponents_kept_apart(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path), "experiment")
    other = {"win_rate": 40.0, "n_total": 300, "prefer_first": share(0.8, n=300), "length_slope": share(0.0, 0.2)}
    write(layout, "dpo", 1, comparison("reference"), comparison("gpt4", lc_winrate_official=30.0))
    write(layout, "dpo", 2, comparison("reference", **other), comparison("gpt4", lc_winrate_official=32.0))
    table = judge_table(layout, [("dpo", 1), ("dpo", 2), ("ipo", 1)])
    rows = {row.against: row for row in table.numbers.itertuples()}
    reference = rows["reference"]
    assert (reference.win_rate, reference.comparisons, reference.failed) == (45.0, 400, 2)
    assert reference.equal_answers == 10 and reference.flips_low == pytest.approx(0.2 - math.hypot(0.1, 0.1) / 2)
    assert reference.ties_low == 0.0, "a share ends at 0"
    assert reference.prefer_first == pytest.approx(0.75)
    assert reference.prefer_first_low == pytest.approx(0.75 - math.hypot(100 * 0.1, 300 * 0.1) / 400)
    # By precision: an interval of half the width has four times the weight.
    assert reference.length_slope == pytest.approx(0.8)
    assert rows["gpt4"].lc_winrate_official == 31.0 and math.isnan(reference.lc_winrate_official)
    assert table.numbers["lc_winrate_approximate"].isna().all()
    assert "LC %" in table.shown.columns and "LC (approx.) %" not in table.shown.columns
    assert list(table.shown["Against"]) == ["reference", "gpt4"]
    assert judge_words(layout, [("dpo", 1)]) == "Judge openai:m, both orders of each pair; counted by alpaca_eval 1."


def test_a_slope_that_one_seed_lacks_is_absent(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path), "experiment")
    write(
        layout, "dpo", 1, comparison("reference"), comparison("reference", length_slope=share(None), flips=share(None))
    )
    table = judge_table(layout, [("dpo", 1)])
    assert math.isnan(table.numbers["length_slope"][0]) and table.shown["Length slope"][0] == "–"
    assert table.shown["Flips"][0] == "–", "one order says nothing about flips"


def test_what_is_known_of_the_judge_alone_stands_in_every_row(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path), "experiment")
    write(layout, "dpo", 1, comparison("reference"), comparison("gpt4", self_consistency=share(0.8, n=40)))
    write(layout, "dpo", 2, comparison("reference"), comparison("gpt4", self_consistency=share(0.9, n=120)))
    runs = [("dpo", 1), ("dpo", 2)]
    table = judge_table(layout, runs)
    assert list(table.shown["Agrees with itself"]) == ["always", "0.88 [0.80, 0.95]"]
    assert "Agrees with people" not in table.shown.columns and table.numbers["agreement"].isna().all()
    assert (
        label_words(layout, runs) == "How far the judge agrees with people was not measured (evaluation.judge_labels)."
    )
    measured = {"judge_digest": "abc", "labels": "llmbar.jsonl", "agreement": share(0.7, n=419), "by_subset": {}}
    write_json(layout.judge_measured, {**measured, "by_subset": {"Natural": share(0.9, 0.05)}})
    table = judge_table(layout, runs)
    assert list(table.shown["Agrees with people"]) == ["0.70 [0.60, 0.80]"] * 2
    words = label_words(layout, runs)
    assert "the 419 pairs of llmbar.jsonl" in words and "(Natural 90 [85, 95] %)" in words
    write_json(layout.judge_measured, {**measured, "judge_digest": "of another judge"})
    assert judge_table(layout, runs).numbers["agreement"].isna().all() and "not measured" in label_words(layout, runs)


def test_without_judges_there_is_no_table(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path), "experiment")
    assert judge_table(layout, [("dpo", 1)]).numbers.empty and judge_words(layout, [("dpo", 1)]) == ""
