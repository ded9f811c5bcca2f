"""What judging costs: told before, and never more than the budget.

Tokens that an endpoint reports count as reported. Before a reply is there, a request counts as one token for every
two bytes of its prompt and all that it may write, which is about twice what a text in English takes: so the judging
stops before the budget is exceeded, not after.
"""

import logging
from collections.abc import Iterable, Sequence

from mallowspo.errors import InputError
from mallowspo.judges.judge import Judge, Judgement, Question
from mallowspo.judges.settings import JudgeSettings

logger = logging.getLogger(__name__)

#: A token is about four bytes of English; twice that is put aside for a request under way.
CAUTION = 2


class Budget:
    """Tokens read and written by one judge into one file of judgements, resumptions included.

    Args:
        known: judgements that are on file: they were paid for.
    """

    def __init__(self, judge: Judge, settings: JudgeSettings, known: Iterable[Judgement]):
        self.judge, self.settings = judge, settings
        self.spent = (0, 0)
        self.reserved = (0, 0)
        self.spend(list(known))

    def announce(self, questions: Sequence[Question], total: int) -> None:
        """Say what the questions will cost.

        Raises:
            InputError: they would cost more than the budget leaves.
        """
        read, written = self._sum(questions)
        if not read:
            return
        logger.info(
            "%s: %d of %d judgements are to be made, about %s; %s is spent",
            self.judge.name, len(questions), total, self._told((read, written)), self._told(self.spent),
        )  # fmt: skip
        over = self._over((self.spent[0] + read, self.spent[1] + written))
        if over:
            raise InputError(
                f"judge '{self.judge.name}': {len(questions)} judgements would cost about "
                f"{self._told((read, written))} beside {self._told(self.spent)} spent, more than {over}; nothing was "
                "asked: raise the budget, or judge fewer pairs"
            )

    def reserve(self, questions: Sequence[Question]) -> InputError | None:
        """Put aside what asking may cost at most; or say that the budget has no room for it."""
        read, written = self._cautious(questions)
        if not read:
            return None
        together = (self.spent[0] + self.reserved[0] + read, self.spent[1] + self.reserved[1] + written)
        over = self._over(together)
        if over:
            return InputError(
                f"judge '{self.judge.name}': the next judgement could exceed {over} ({self._told(self.spent)} is "
                "spent); raise the budget"
            )
        self.reserved = (self.reserved[0] + read, self.reserved[1] + written)
        return None

    def release(self, questions: Sequence[Question]) -> None:
        read, written = self._cautious(questions)
        self.reserved = (self.reserved[0] - read, self.reserved[1] - written)

    def spend(self, judgements: Sequence[Judgement]) -> None:
        """Count what replies took."""
        read, written = (sum(getattr(j, name) for j in judgements) for name in ("tokens_in", "tokens_out"))
        self.spent = (self.spent[0] + read, self.spent[1] + written)

    def spend_unseen(self, questions: Sequence[Question]) -> None:
        """Count questions whose replies never came: they may have been charged."""
        read, written = self._sum(questions)
        self.spent = (self.spent[0] + read, self.spent[1] + written)

    def _sum(self, questions: Sequence[Question]) -> tuple[int, int]:
        costs = [self.judge.cost(question) for question in questions]
        return sum(read for read, _ in costs), sum(written for _, written in costs)

    def _cautious(self, questions: Sequence[Question]) -> tuple[int, int]:
        read, written = self._sum(questions)
        return CAUTION * read, written

    def _money(self, tokens: tuple[int, int]) -> float | None:
        if self.settings.price_in is None or self.settings.price_out is None:
            return None
        return (tokens[0] * self.settings.price_in + tokens[1] * self.settings.price_out) / 1e6

    def _told(self, tokens: tuple[int, int]) -> str:
        money = self._money(tokens)
        return f"{sum(tokens):,} tokens" + ("" if money is None else f" ({money:,.4g} in the prices' money)")

    def _over(self, tokens: tuple[int, int]) -> str:
        """Which budget so many tokens exceed, if any."""
        settings, money = self.settings, self._money(tokens)
        if settings.budget_tokens is not None and sum(tokens) > settings.budget_tokens:
            return f"budget_tokens {settings.budget_tokens:,}"
        if settings.budget_money is not None and money is not None and money > settings.budget_money:
            return f"budget_money {settings.budget_money:g}"
        return ""
