"""Judgements on file as a judge: AlpacaEval's annotations, or those that this package kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mallowspo.errors import InputError
from mallowspo.evaluation.outputs import read_rows
from mallowspo.files import sha256_file
from mallowspo.judges.judge import NO_PREFERENCE, Judgement, Question

MIRRORED = "stored for the other order only"


class TableJudge:
    """`pairwise-table:FILE`: rows of instruction, output_1, output_2 and preference (1 the first, 2 the second).

    Where a pair is stored in one order alone, the other order has the mirrored preference and says so: such a pair
    shows nothing about the judge's taste for a position.

    Raises:
        InputError: rows that lack a key, or that contradict each other.
    """

    deterministic = True
    batch = 1024
    concurrency = 1

    def __init__(self, name: str):
        self.name = name
        self.file = Path(name.partition(":")[2])
        self.judgements: dict[Question, Judgement] = {}
        for number, row in enumerate(read_rows(self.file, ("instruction", "output_1", "output_2"))):
            self._add(number, row)
        self.content: dict[str, Any] = {"file": sha256_file(self.file)}

    def ask(self, questions: Sequence[Question]) -> list[Judgement]:
        missing = [question for question in questions if not self._has(question)]
        if missing:
            raise InputError(
                f"{self.file}: {len(missing)} of {len(questions)} pairs are not in the table, first "
                f"{missing[0].instruction[:60]!r}; judge them with the judge that made the table"
            )
        return [self._look_up(question) for question in questions]

    def cost(self, question: Question) -> tuple[int, int]:
        return 0, 0

    def _add(self, number: int, row: dict[str, Any]) -> None:
        if row.get("repeat"):  # asked again, to see whether the judge repeats itself: the first reply counts
            return
        preference = row.get("preference")
        if row.get("problem"):
            judgement = Judgement(None, problem=str(row["problem"]))
        elif isinstance(preference, int | float) and (preference == 0 or 1 <= preference <= 2):
            judgement = Judgement(float(preference) or NO_PREFERENCE)  # AlpacaEval's older files write a tie as 0
        else:
            raise InputError(f"{self.file}: row {number}: preference {preference!r} is not from 1 to 2")
        question = Question(row["instruction"], row["output_1"], row["output_2"])
        if self.judgements.setdefault(question, judgement) != judgement:
            raise InputError(f"{self.file}: row {number}: judged before, and otherwise; keep one of the two rows")

    def _has(self, question: Question) -> bool:
        return question in self.judgements or question.swapped in self.judgements

    def _look_up(self, question: Question) -> Judgement:
        if question in self.judgements:
            return self.judgements[question]
        other = self.judgements[question.swapped]
        return Judgement(other.preference and 3 - other.preference, problem=other.problem, note=MIRRORED)
