"""What every judge is: something that is shown two answers to an instruction, in an order, and prefers one."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from mallowspo.files import digest

NO_PREFERENCE = 1.5


@dataclass(frozen=True)
class Question:
    """An instruction with two answers, in the order in which they are shown."""

    instruction: str
    first: str
    second: str

    @property
    def swapped(self) -> "Question":
        return Question(self.instruction, self.second, self.first)

    def key(self, repeat: int = 0) -> str:
        """Digest of what is shown; `repeat` counts askings of the same question."""
        return digest([self.instruction, self.first, self.second, *([repeat] if repeat else [])], 24)


@dataclass(frozen=True)
class Judgement:
    """A reply. `preference` is 2 - P(the answer shown first is better), as in AlpacaEval: 1 the first, 2 the second.

    It is None where the reply is a refusal or cannot be read; `problem` then says why, and `raw` keeps the reply.
    """

    preference: float | None
    raw: str = ""
    problem: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    note: str = ""

    def row(self) -> dict[str, Any]:
        """For a file, without what is empty."""
        return {key: value for key, value in asdict(self).items() if value or key == "preference"}


class Judge(Protocol):
    """One kind of judge.

    Attributes:
        name: as in the settings.
        content: all that its judgements depend on, such as model and prompt; never a key.
        deterministic: whether the same question always has the same answer.
        batch: questions in one call of `ask`; at most `concurrency` calls run at a time.
    """

    name: str
    content: dict[str, Any]
    deterministic: bool
    batch: int
    concurrency: int

    def ask(self, questions: Sequence[Question]) -> list[Judgement]:
        """One judgement a question, in order.

        Raises:
            InputError: the judge cannot be asked at all; nothing of this call counts as judged.
        """

    def cost(self, question: Question) -> tuple[int, int]:
        """About how many tokens a question makes the judge read and write; zeros where asking costs nothing."""


def judge_digest(judge: Judge) -> str:
    """Under which its judgements are kept: another model, prompt or setting is another judge."""
    return digest([judge.name, judge.content], 12)
