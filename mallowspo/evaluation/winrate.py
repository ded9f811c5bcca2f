"""Win rate of any outputs against any others, by any judge: AlpacaEval's code counts, every judgement is kept."""

import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mallowspo.errors import InputError
from mallowspo.evaluation.alpaca_eval_code import (
    HeadToHead,
    Prefer,
    head_to_head,
    length_controlled,
    plain,
    read_annotations,
    win_rate,
)
from mallowspo.evaluation.outputs import generator_of, read_outputs
from mallowspo.files import write_json
from mallowspo.judges.judge import NO_PREFERENCE, Judge, Judgement, Question, judge_digest
from mallowspo.judges.judgements import Asking, ask_all
from mallowspo.judges.measure import DETERMINISTIC, consistency, first_better, measure, pairs_of
from mallowspo.judges.open import open_judge
from mallowspo.judges.settings import JudgeSettings

LENGTH_CONTROLLED = ("lc_winrate_official", "lc_winrate_approximate")


class Side(NamedTuple):
    """Who answers, and one answer to each instruction (`instruction` and `output`)."""

    name: str
    rows: Sequence[dict[str, Any]]


class Compared(NamedTuple):
    """One side against another."""

    found: HeadToHead
    length_control: dict[str, Any]
    judged: dict[str, Any]  # what the judge was like here; see `judges.measure.measure`

    def summary(self) -> dict[str, Any]:
        """Numbers that JSON can hold."""
        return {**self.found.numbers, "length_control": self.length_control}

    def beside_the_judge(self) -> dict[str, Any]:
        """What the judge was like, beside the win rate that it produced; the two kinds of LC have keys of their own."""
        numbers = {name: self.found.numbers[name] for name in ("win_rate", "standard_error", "n_total")}
        control = {name: self.length_control.get(name) for name in LENGTH_CONTROLLED}
        return {**numbers, **control, **self.judged}


def compare(
    ours: Side,
    theirs: Side,
    judge: Judge,
    settings: JudgeSettings,
    folder: Path | None = None,
    difficulty: str | None = None,
) -> Compared:
    """Judge every pair of answers and have AlpacaEval count.

    A pair is judged in both orders and its preference is their mean, so that an answer wins only what the judge would
    say of it in either place: a judge that flips gives a tie, and exchanging the order of all pairs changes nothing. A
    judgement that failed counts as no preference; too many stop the judging. Equal answers are ties, and not judged.

    Args:
        folder: where judgements are kept, so that none is made twice; None keeps none.
        difficulty: AlpacaEval's df_gamed.csv.

    Raises:
        InputError: the two sides do not answer the same instructions, each once; or see `judgements.ask_all`.
    """
    _same_instructions(ours, theirs)
    against = {row["instruction"]: row["output"] for row in theirs.rows}
    questions = [
        Question(row["instruction"], against[row["instruction"]], row["output"])
        for row in ours.rows
        if against[row["instruction"]] != row["output"]
    ]
    if settings.orders == "one":
        questions = _shown(questions, ours, theirs)
    askings = [Asking(question) for question in questions]
    if settings.orders == "both":
        askings = [asking for pair in questions for asking in (Asking(pair), Asking(pair.swapped))]
    again = [] if judge.deterministic else asked_again(questions, settings.asked_again_share)
    # In one call: the costs that are told, and the budget, are of both.
    judgements = ask_all(judge, [*askings, *again], folder, settings)
    found = head_to_head(ours.rows, theirs.rows, _prefer(judgements), judge.name, ours.name, _other_name(ours, theirs))
    judged = {
        "equal_answers": len(ours.rows) - len(questions),
        **measure(pairs_of(questions, judgements)),
        "self_consistency": _self_consistency(judge, again, judgements),
    }
    return Compared(found, length_controlled(found.annotations, difficulty), judged)


def asked_again(questions: Sequence[Question], share: float) -> list[Asking]:
    """A share of the questions, a second time: those whose digests come first, the same after a resumption."""
    drawn = sorted(questions, key=lambda question: question.key())[: math.ceil(share * len(questions))]
    return [Asking(question, repeat=1) for question in drawn]


def _self_consistency(judge: Judge, again: list[Asking], judgements: Mapping[Asking, Judgement]) -> dict[str, Any]:
    """Over the pairs that were asked twice; `judges.measure.consistency`."""
    if judge.deterministic:
        return DETERMINISTIC
    first = [judgements[Asking(asking.question)] for asking in again]
    return consistency(first, [judgements[asking] for asking in again])


def of_annotations(path: str | Path, difficulty: str | None = None) -> dict[str, Any]:
    """AlpacaEval's numbers of a file of annotations."""
    annotations = read_annotations(path)
    numbers = win_rate(annotations)
    if numbers["n_total"] != len(annotations):
        raise InputError(f"{path}: AlpacaEval counted {numbers['n_total']} of {len(annotations)} annotations")
    return {**numbers, "length_control": length_controlled(annotations, difficulty)}


def of_outputs(
    outputs: str, against: str, name: str, settings: JudgeSettings, out: Path | None, difficulty: str | None = None
) -> dict[str, Any]:
    """The same of two files of outputs, judged by `name`; writes annotations.json, winrate.json and judge.json."""
    rows, others = read_outputs(outputs), read_outputs(against)
    ours, theirs = Side(generator_of(rows, "outputs"), rows), Side(generator_of(others, "against"), others)
    judge = open_judge(name, settings)
    found = compare(ours, theirs, judge, settings, out and out / "judgements", difficulty)
    summary = {"generator": ours.name, "against": theirs.name, **found.summary(), **provenance(judge, settings)}
    if out is not None:
        write_json(out / "annotations.json", [_writable(row) for row in found.found.annotations])
        write_json(out / "winrate.json", summary)
        comparison = {"generator": ours.name, "against": theirs.name, **found.beside_the_judge()}
        write_json(out / "judge.json", {**provenance(judge, settings), "comparisons": [comparison]})
    return {**summary, "judged": found.judged}


def provenance(judge: Judge, settings: JudgeSettings) -> dict[str, Any]:
    """Which judge, how it was asked, and by which versions it was counted (scikit-learn's moves length control)."""
    return {
        "judge": judge.name,
        "judge_digest": judge_digest(judge),
        "orders": settings.orders,
        "versions": {name: importlib.metadata.version(name) for name in ("alpaca_eval", "scikit-learn")},
    }


def printed(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What `mallowspo winrate --json` prints: the length-controlled win rate stands beside its kind."""
    control = summary["length_control"]
    numbers = {key: value for key, value in summary.items() if key not in ("length_control", "mode")}
    if control["kind"] is None:
        return {**numbers, "length_controlled_kind": None, "length_controlled_why": control["why"]}
    value = control[f"lc_winrate_{control['kind']}"]
    beside = {key: item for key, item in control.items() if key not in ("kind", f"lc_winrate_{control['kind']}")}
    return {**numbers, "length_controlled_winrate": value, "length_controlled_kind": control["kind"], **beside}


def told(summary: Mapping[str, Any]) -> str:
    """The same in lines."""
    error = summary["standard_error"]
    lines = [
        f"win rate       {summary['win_rate']:.2f} %"
        + (f" ± {error:.2f}" if error is not None else "")
        + f" (n = {summary['n_total']})"
    ]
    control = summary["length_control"]
    if control["kind"] == "official":
        lines.append(f"LC             {control['lc_winrate_official']:.2f} %")
    elif control["kind"] == "approximate":
        lines.append(f"LC (approx.)   {control['lc_winrate_approximate']:.2f} %: {control['why']}")
    else:
        lines.append(f"LC             none: {control['why']}")
    return "\n".join(lines)


def _prefer(judgements: Mapping[Asking, Judgement]) -> Prefer:
    """What AlpacaEval is told of a pair, in the order in which it shows it."""

    def prefer(instruction: str, first: str, second: str) -> float:
        shown = Question(instruction, first, second)
        return 2 - first_better(judgements[Asking(shown)], judgements.get(Asking(shown.swapped)))

    return prefer


def _shown(questions: Sequence[Question], ours: Side, theirs: Side) -> list[Question]:
    """The questions in the order in which AlpacaEval shows them, which it draws by the instruction."""
    orders: dict[str, Question] = {}

    def remember(instruction: str, first: str, second: str) -> float:
        orders[instruction] = Question(instruction, first, second)
        return NO_PREFERENCE

    head_to_head(ours.rows, theirs.rows, remember, "nobody", ours.name, _other_name(ours, theirs))
    return [orders[question.instruction] for question in questions]


def _other_name(ours: Side, theirs: Side) -> str:
    """AlpacaEval would take two sides of one name for the same model, and say 50 without looking."""
    return theirs.name if theirs.name != ours.name else f"{theirs.name} (other)"


def _same_instructions(ours: Side, theirs: Side) -> None:
    lists = [[row["instruction"] for row in side.rows] for side in (ours, theirs)]
    for side, instructions in zip((ours, theirs), lists, strict=True):
        if len(set(instructions)) < len(instructions):
            twice = next(text for text in instructions if instructions.count(text) > 1)
            raise InputError(f"outputs of '{side.name}': instruction {twice[:60]!r} appears twice; keep one")
    for side, other, missing in (
        (ours, theirs, set(lists[1]) - set(lists[0])),
        (theirs, ours, set(lists[0]) - set(lists[1])),
    ):
        if missing:
            raise InputError(
                f"outputs of '{side.name}' lack {len(missing)} instructions that '{other.name}' answers, first "
                f"{min(missing)[:60]!r}; both must answer the same instructions"
            )


def _writable(row: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key): plain(value) for key, value in row.items()}
