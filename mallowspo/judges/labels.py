"""A judge against people: `mallowspo judge --judge NAME --labels FILE`, and the stage "judge" of an experiment."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mallowspo.errors import InputError
from mallowspo.evaluation.outputs import read_rows
from mallowspo.files import write_json
from mallowspo.judges.judge import Judge, Question, judge_digest
from mallowspo.judges.judgements import Asking, ask_all
from mallowspo.judges.measure import DETERMINISTIC, Both, agreement, consistency, measure, pairs_of
from mallowspo.judges.open import open_judge
from mallowspo.judges.settings import JudgeSettings
from mallowspo.layout import Layout


def run(view: Any, layout: Layout) -> None:
    """Stage "judge": the judge of an experiment's win rates on its labels; writes judge.json and the judgements.

    Args:
        view: of .evaluation: .judge, .alpaca.judge, .alpaca.settings, .judge_labels.

    Raises:
        InputError: no labels are named, or see `judge_labels`.
    """
    evaluation = view.evaluation
    if not evaluation.judge_labels:
        raise InputError("evaluation.judge_labels names no file of pairs with human labels")
    name, out = evaluation.alpaca.judge or evaluation.judge, layout.judge_measured.parent
    judge_labels(name, evaluation.judge_labels, evaluation.alpaca.settings, out)


def judge_labels(
    name: str | Judge, labels: str, settings: JudgeSettings, out: Path | None = None, asked_again: int = 100
) -> dict[str, Any]:
    """Measure a judge on pairs with human labels; with `out`, judge.json and the judgements are kept there.

    Args:
        name: of the judge, or the judge where it is open already: its model may be large.
        labels: rows of input, output_1, output_2 and label (1 or 2, the better output), and subset if there are parts.
        asked_again: so many pairs are asked a second time, to see whether the judge agrees with itself; a judge that
            is deterministic is not asked again.

    Returns:
        agreement (over all, and `by_subset`), self_consistency, and what `measure` gives.
    """
    rows = read_rows(labels, ("input", "output_1", "output_2", "label"))
    for number, row in enumerate(rows):
        if row["label"] not in (1, 2):
            raise InputError(f"{labels}: row {number}: label {row['label']!r} is neither 1 nor 2")
    judge = open_judge(name, settings) if isinstance(name, str) else name
    folder = out and out / "judgements"
    questions = [Question(row["input"], row["output_1"], row["output_2"]) for row in rows]
    askings = [asking for pair in questions for asking in (Asking(pair), Asking(pair.swapped))]
    pairs = pairs_of(questions, ask_all(judge, askings, folder, settings))
    found = {
        "judge": judge.name,
        "judge_digest": judge_digest(judge),
        "labels": Path(labels).name,
        "agreement": agreement(pairs, [row["label"] for row in rows]),
        "by_subset": _by_subset(rows, pairs),
        "self_consistency": _self_consistency(judge, pairs[:asked_again], folder, settings),
        **measure(pairs),
    }
    if out is not None:
        write_json(out / "judge.json", found)
    return found


def told(found: dict[str, Any]) -> str:
    """The measures in lines."""
    titles = {
        "agreement": "agreement with the labels",
        "prefer_first": "prefers what is shown first",
        "flips": "flips with the order",
        "ties": "ties",
        "self_consistency": "agrees with itself",
    }
    lines = [f"{title:<28} {_percent(found[key])}" for key, title in titles.items()]
    lines += [f"  {subset:<26} {_percent(value)}" for subset, value in found["by_subset"].items()]
    slope = found["length_slope"]
    shown = f"{slope['value']:.2f} [{slope['low']:.2f}, {slope['high']:.2f}]" if slope["value"] is not None else "none"
    lines.append(f"{'length slope (log-odds)':<28} {shown}{': ' + slope['note'] if 'note' in slope else ''}")
    lines.append(f"{'failed replies':<28} {found['failed']} of {found['judgements']}")
    return "\n".join(lines)


def _by_subset(rows: Sequence[dict[str, Any]], pairs: Sequence[Both]) -> dict[str, Any]:
    subsets = dict.fromkeys(str(row["subset"]) for row in rows if row.get("subset"))
    found = {}
    for subset in subsets:
        part = [number for number, row in enumerate(rows) if str(row.get("subset")) == subset]
        found[subset] = agreement([pairs[number] for number in part], [rows[number]["label"] for number in part])
    return found


def _self_consistency(
    judge: Judge, pairs: Sequence[Both], folder: Path | None, settings: JudgeSettings
) -> dict[str, Any]:
    if judge.deterministic:
        return DETERMINISTIC
    again = ask_all(judge, [Asking(pair.question, repeat=1) for pair in pairs], folder, settings)
    return consistency([pair.given for pair in pairs], [again[Asking(pair.question, repeat=1)] for pair in pairs])


def _percent(value: dict[str, Any]) -> str:
    if value["value"] is None:
        return "–"
    bounds = f" [{value['low']:.1%}, {value['high']:.1%}]" if value["low"] is not None else f" ({value['note']})"
    return f"{value['value']:.1%}{bounds}, n = {value['n']}"
