"""What a judge is like: its taste for a position and for length, how often it changes its mind, whom it agrees with.

Each pair has one number p, the probability that its first answer is better, averaged over both orders. A rate of
numbers from 0 to 1 has Wilson's interval with n pairs, which is exact for yes and no and wide enough for the rest.
"""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import statsmodels.api as sm
from statsmodels.stats.proportion import proportion_confint
from statsmodels.tools.sm_exceptions import PerfectSeparationWarning

from mallowspo.judges.judge import NO_PREFERENCE, Judgement, Question
from mallowspo.judges.judgements import Asking
from mallowspo.judges.stored import MIRRORED

CONFIDENCE = 0.95
#: Fewer pairs give no slope.
FEWEST_FOR_SLOPE = 10
#: A slope above has no end: the fit separates the preferences by length.
STEEPEST = 50


#: Of a judge that is not asked again, because it would say the same.
DETERMINISTIC: dict[str, Any] = {"value": 1.0, "low": None, "high": None, "n": 0, "note": "deterministic"}


class Both(NamedTuple):
    """Judgements of one pair, shown as given and swapped; `swapped` is None where one order was judged."""

    question: Question
    given: Judgement
    swapped: Judgement | None

    @property
    def first_better(self) -> float:
        """P(the first answer is better), over both orders; a failed judgement counts as no preference."""
        return first_better(self.given, self.swapped)


def first_better(given: Judgement, swapped: Judgement | None) -> float:
    """The same of two judgements."""
    shown_first = 2 - _preference(given)
    return shown_first if swapped is None else (shown_first + _preference(swapped) - 1) / 2


def pairs_of(questions: Iterable[Question], judgements: Mapping[Asking, Judgement]) -> list[Both]:
    """Each question with its judgements, by what was asked."""
    return [
        Both(question, judgements[Asking(question)], judgements.get(Asking(question.swapped))) for question in questions
    ]


def measure(pairs: Sequence[Both]) -> dict[str, Any]:
    """Prefer-first rate, flip rate, ties, failed replies and length slope, each with a 95 % interval where it has one.

    prefer_first: share of judgements for the answer shown first; 0.5 is fair.
    flips: share of pairs whose preferred answer changes with the order.
    ties: share of pairs without a preferred answer after both orders (a flip of a yes-or-no judge is one).
    length_slope: of a logistic regression of p on log(length of the first / length of the second), with an intercept;
        0 is fair, 1 means that an answer of twice the length has twice the odds. Standard errors are robust (HC1).
    """
    both = [pair for pair in pairs if pair.swapped is not None and not _mirrored(pair)]
    shown_first = [
        [2 - _preference(judgement) for judgement in (pair.given, pair.swapped) if judgement is not None]
        for pair in (both or [pair for pair in pairs if not _mirrored(pair)])
    ]
    replies = [judgement for pair in pairs for judgement in (pair.given, pair.swapped) if judgement is not None]
    return {
        "pairs": len(pairs),
        "judgements": len(replies),
        "orders": 2 if both else 1,
        "prefer_first": rate([sum(values) / len(values) for values in shown_first]),
        "flips": rate([_flips(pair) for pair in both]),
        "ties": rate([pair.first_better == 0.5 for pair in pairs]),
        "failed": sum(judgement.preference is None for judgement in replies),
        "length_slope": length_slope(pairs),
        "notes": _counts(judgement.note for judgement in replies if judgement.note),
        "problems": _counts(judgement.problem for judgement in replies if judgement.problem),
        "tokens_in": sum(judgement.tokens_in for judgement in replies),
        "tokens_out": sum(judgement.tokens_out for judgement in replies),
    }


def agreement(pairs: Sequence[Both], labels: Sequence[int]) -> dict[str, Any]:
    """Share of pairs whose preferred answer is the labelled one (1 or 2); no preference counts as half."""
    return rate([_agrees(pair.first_better, label) for pair, label in zip(pairs, labels, strict=True)])


def consistency(first: Sequence[Judgement], again: Sequence[Judgement]) -> dict[str, Any]:
    """Share of judgements whose preferred answer is the same when the same question is asked again."""
    return rate([_side(one) == _side(two) for one, two in zip(first, again, strict=True)])


def rate(values: Sequence[float | bool]) -> dict[str, Any]:
    """Mean of numbers from 0 to 1, with Wilson's interval; None of no numbers."""
    if not values:
        return {"value": None, "low": None, "high": None, "n": 0}
    total = float(sum(values))
    low, high = proportion_confint(total, len(values), alpha=1 - CONFIDENCE, method="wilson")
    return {"value": total / len(values), "low": float(low), "high": float(high), "n": len(values)}


def length_slope(pairs: Sequence[Both]) -> dict[str, Any]:
    """Slope of the log-odds on the log length ratio; `note` says why where there is none."""
    lengths = [(len(pair.question.first), len(pair.question.second)) for pair in pairs]
    ratios = np.array([math.log((1 + first) / (1 + second)) for first, second in lengths])
    found = np.array([pair.first_better for pair in pairs])
    empty = {"value": None, "low": None, "high": None, "n": len(pairs)}
    if len(pairs) < FEWEST_FOR_SLOPE or ratios.std() == 0 or found.std() == 0:
        return {**empty, "note": "too few pairs, or no difference in length or in preference"}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # statsmodels warns of a perfect fit, which probabilities that follow length smoothly have too.
        warnings.simplefilter("ignore", PerfectSeparationWarning)
        fit = sm.GLM(found, sm.add_constant(ratios), family=sm.families.Binomial()).fit(cov_type="HC1")
    if abs(fit.params[1]) > STEEPEST:
        return {**empty, "note": "length alone says nearly every preference"}
    low, high = fit.conf_int(alpha=1 - CONFIDENCE)[1]
    return {"value": float(fit.params[1]), "low": float(low), "high": float(high), "n": len(pairs)}


def _preference(judgement: Judgement) -> float:
    return NO_PREFERENCE if judgement.preference is None else judgement.preference


def _mirrored(pair: Both) -> bool:
    return MIRRORED in (pair.given.note, pair.swapped.note if pair.swapped else "")


def _side(judgement: Judgement) -> int:
    """-1 for the answer shown first, 1 for the second, 0 for neither."""
    return int(np.sign(_preference(judgement) - NO_PREFERENCE))


def _flips(pair: Both) -> bool:
    """Whether the preferred answer changes with the order: the same position wins twice."""
    return pair.swapped is not None and _side(pair.given) == _side(pair.swapped) != 0


def _agrees(first: float, label: int) -> float:
    return 0.5 if first == 0.5 else float((first > 0.5) == (label == 1))


def _counts(texts: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for text in texts:
        # Notes may hold numbers ("answers cut to 812 characters"): one line for all of them.
        kind = " ".join(word for word in text.split() if not word.isdigit())
        counts[kind] = counts.get(kind, 0) + 1
    return counts
