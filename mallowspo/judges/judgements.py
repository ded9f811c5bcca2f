"""Asking a judge: what is on file is not asked again, and what comes is on file before the next question."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from tqdm import tqdm

from mallowspo.errors import InputError
from mallowspo.files import write_json
from mallowspo.judges.budget import Budget
from mallowspo.judges.judge import Judge, Judgement, Question, judge_digest
from mallowspo.judges.settings import JudgeSettings

_FIELDS = [field.name for field in fields(Judgement)]
#: Below so many failures a share says nothing.
FEWEST_FAILURES = 3


class Asking(NamedTuple):
    """One question, the `repeat`-th time; a judge that is not deterministic can be asked again."""

    question: Question
    repeat: int = 0

    @property
    def key(self) -> str:
        return self.question.key(self.repeat)


class Judgements:
    """The judgements of one judge, kept in an append-only file of one JSON object a line.

    A last line that a kill has torn is cut off. The rows are a table that `pairwise-table:FILE` reads.

    Args:
        folder: where the file lies; None keeps judgements in memory alone.
    """

    def __init__(self, folder: Path | None, judge: Judge):
        self.found: dict[str, Judgement] = {}
        self.path: Path | None = None
        if folder is not None:
            stem = re.sub(r"[^A-Za-z0-9.]+", "-", judge.name)[-60:].strip("-")
            self.path = folder / f"{stem}-{judge_digest(judge)}.jsonl"
            folder.mkdir(parents=True, exist_ok=True)
            write_json(self.path.with_suffix(".json"), {"judge": judge.name, "depends_on": judge.content})
            self._read(self.path)

    def keep(self, answered: Iterable[tuple[Asking, Judgement]]) -> None:
        """Remember judgements, and have them on disk when this returns."""
        rows = []
        for (question, repeat), judgement in answered:
            key = question.key(repeat)
            self.found[key] = judgement
            shown = {"instruction": question.instruction, "output_1": question.first, "output_2": question.second}
            again = {"repeat": repeat} if repeat else {}
            rows.append({"key": key, **again, **shown, **judgement.row()})
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
                file.flush()
                os.fsync(file.fileno())

    def _read(self, path: Path) -> None:
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
        for number, line in enumerate(content[:whole].decode("utf-8").split("\n")[:-1], start=1):
            try:
                row: dict[str, Any] = json.loads(line)
                values = {name: row[name] for name in _FIELDS if name in row}
                self.found[row["key"]] = Judgement(**values)
            except (json.JSONDecodeError, KeyError, TypeError):
                raise InputError(f"{path}: line {number} is no judgement; remove the line to have it judged") from None


def ask_all(
    judge: Judge, askings: Sequence[Asking], folder: Path | None, settings: JudgeSettings
) -> dict[Asking, Judgement]:
    """A judgement of every asking; only what `folder` does not hold yet is asked.

    Raises:
        InputError: the judge cannot be asked, the budget would not do or is used up, too many replies are refusals or
            unreadable, or another process is judging into the same file. What was judged by then is kept.
    """
    if folder is None:
        return _ask_missing(judge, askings, Judgements(None, judge), settings)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / f".{judge_digest(judge)}.lock", timeout=0):
            return _ask_missing(judge, askings, Judgements(folder, judge), settings)
    except Timeout:
        raise InputError(f"{folder}: another process is judging there with '{judge.name}'; wait for it") from None


def _ask_missing(
    judge: Judge, askings: Sequence[Asking], known: Judgements, settings: JudgeSettings
) -> dict[Asking, Judgement]:
    unique = list(dict.fromkeys(askings))
    missing = [asking for asking in unique if asking.key not in known.found]
    budget = Budget(judge, settings, known.found.values())
    budget.announce([asking.question for asking in missing], len(unique))
    _run(judge, missing, known, budget, unique, settings.max_failed_share)
    answered = {asking: known.found[asking.key] for asking in unique}
    _check_failures(judge, answered, settings.max_failed_share)
    return answered


def _run(
    judge: Judge, missing: list[Asking], known: Judgements, budget: Budget, asked: list[Asking], max_failed_share: float
) -> None:
    """Ask, `concurrency` calls at a time. After a failure nothing new is asked; what is under way is kept."""
    waiting = [missing[start : start + judge.batch] for start in range(0, len(missing), judge.batch)][::-1]
    stopped: InputError | None = None
    failures = _failures(known, asked)
    with (
        tqdm(total=len(missing), desc=f"judging by {judge.name}", mininterval=2, disable=not missing) as bar,
        ThreadPoolExecutor(judge.concurrency) as pool,
    ):
        running: dict[Future[list[Judgement]], list[Asking]] = {}
        try:
            while running or (waiting and stopped is None):
                while waiting and stopped is None and len(running) < judge.concurrency:
                    questions = [asking.question for asking in waiting[-1]]
                    stopped = budget.reserve(questions)
                    if stopped is None:
                        running[pool.submit(judge.ask, questions)] = waiting.pop()
                for done in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                    part = running.pop(done)
                    stopped = _keep(done, part, known, budget) or stopped
                    failures += _failures(known, part)
                    bar.update(len(part))
                if stopped is None and failures > max(FEWEST_FAILURES, max_failed_share * len(asked)):
                    stopped = InputError("")
        finally:  # an interruption too keeps what was asked and paid for
            for done, part in running.items():
                _keep(done, part, known, budget)
    if stopped is not None and str(stopped):
        left = sum(asking.key not in known.found for asking in missing)
        raise InputError(f"{stopped} ({len(missing) - left} judgements of {len(missing)} are kept; run again to go on)")
    if stopped is not None:
        answered = {asking: known.found[asking.key] for asking in asked if asking.key in known.found}
        _raise_failures(judge, answered, max_failed_share)


def _failures(known: Judgements, askings: Sequence[Asking]) -> int:
    """How many of these were answered by a refusal, or unreadably."""
    return sum(known.found[asking.key].preference is None for asking in askings if asking.key in known.found)


def _keep(done: Future[list[Judgement]], part: list[Asking], known: Judgements, budget: Budget) -> InputError | None:
    """Put the judgements of one call on file; or say why there are none."""
    budget.release([asking.question for asking in part])
    try:
        judgements = done.result()
    except InputError as error:
        budget.spend_unseen([asking.question for asking in part])
        return error
    if len(judgements) != len(part):
        return InputError(f"the judge gave {len(judgements)} judgements for {len(part)} questions; mend it")
    known.keep(zip(part, judgements, strict=True))
    budget.spend(judgements)
    return None


def _check_failures(judge: Judge, answered: dict[Asking, Judgement], max_failed_share: float) -> None:
    failed = sum(judgement.preference is None for judgement in answered.values())
    if failed > max_failed_share * len(answered):
        _raise_failures(judge, answered, max_failed_share)


def _raise_failures(judge: Judge, answered: dict[Asking, Judgement], max_failed_share: float) -> None:
    failed = [(asking, judgement) for asking, judgement in answered.items() if judgement.preference is None]
    first, reply = failed[0]
    raise InputError(
        f"judge '{judge.name}': {len(failed)} of {len(answered)} replies are refusals or cannot be read, more than "
        f"max_failed_share {max_failed_share:g}; first {first.question.instruction[:60]!r}: {reply.problem}, reply "
        f"{reply.raw[:80]!r}; all replies are kept"
    )
