"""The rule by which a claim is called held, not held, or open: pure functions, written before any result was seen.

Of each deciding test there are two questions, both answered by an interval and a p:

- Is there a gain? p: two-sided against no effect.
- Is the claimed effect excluded? p_short: one-sided against an effect of the claimed size or more; small where the
  true effect is below the claimed one.

Holm's correction goes over all deciding tests of the page, for each question by itself; a test that has not run counts
as p = 1, so that a partly finished page is corrected as strictly as the whole one. With alpha = 1 - confidence, a test
is

    not held      if the claimed effect is excluded (Holm's p_short below alpha / 2, interval below it), or the effect
                  is clearly the other way (Holm's p below alpha, interval below 0),
    held          else if there is a gain (Holm's p below alpha, interval above 0),
    cannot tell   else.

alpha / 2 because the interval's upper end is a one-sided bound at that level. A gain that is clear and clearly smaller
than the claimed effect is therefore not held.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from scipy import stats

from mallowspo.inference import holm

Word = Literal["held", "not held", "cannot tell at this size", "not run"]
HELD: Final = "held"
NOT_HELD: Final = "not held"
CANNOT_TELL: Final = "cannot tell at this size"
NOT_RUN: Final = "not run"


@dataclass(frozen=True)
class Measured:
    """What a deciding test found; all NaN where it did not run (`ran` false) or had nothing to measure."""

    low: float
    high: float
    p: float
    p_short: float
    claimed: float
    ran: bool = True


@dataclass(frozen=True)
class Verdict:
    """Of one test, with the p-values that it went by and the reason in words."""

    word: Word
    why: str
    p_holm: float
    short_holm: float


def verdicts(tests: Sequence[Measured], confidence: float) -> list[Verdict]:
    """Of all deciding tests of a page together, in their order."""
    gains, shorts = (_corrected([getattr(test, name) for test in tests]) for name in ("p", "p_short"))
    # Rounded: 1 - 0.95 is a little more than 0.05 in floating point.
    alpha = round(1 - confidence, 12)
    return [_verdict(*row, alpha=alpha) for row in zip(tests, gains, shorts, strict=True)]


def _corrected(p_values: list[float]) -> list[float]:
    """What is not there is a test all the same."""
    return [float(p) for p in holm([1.0 if math.isnan(p) else p for p in p_values])]


def _verdict(test: Measured, p_holm: float, short_holm: float, alpha: float) -> Verdict:
    if not test.ran:
        return Verdict(NOT_RUN, "its experiment is not finished", math.nan, math.nan)
    if p_holm < alpha and test.high < 0:
        return Verdict(NOT_HELD, "clearly the other way", p_holm, short_holm)
    if short_holm < alpha / 2 and test.high < test.claimed:
        clear = p_holm < alpha and test.low > 0
        why = "a gain, but clearly less than the claimed effect" if clear else "the claimed effect is excluded"
        return Verdict(NOT_HELD, why, p_holm, short_holm)
    if p_holm < alpha and test.low > 0:
        return Verdict(HELD, "a gain is clear, and the claimed effect is not excluded", p_holm, short_holm)
    if math.isnan(test.low):
        return Verdict(CANNOT_TELL, "nothing was measured that could tell", p_holm, short_holm)
    if test.low > 0:
        why = "above 0, but not after Holm's correction"
    else:
        why = "neither no effect nor the claimed one is excluded"
    return Verdict(CANNOT_TELL, why, p_holm, short_holm)


def claim_verdict(words: Sequence[Word], needs: Literal["every", "one"]) -> Word:
    """Of a claim, from the verdicts of its deciding tests.

    every: one that is not held decides, then one that has not run, then one that is open. one: one that is held.
    """
    if needs == "every":
        order: tuple[Word, ...] = (NOT_HELD, NOT_RUN, CANNOT_TELL, HELD)
    else:
        order = (HELD, NOT_RUN, CANNOT_TELL, NOT_HELD)
    if all(word == NOT_RUN for word in words):
        return NOT_RUN
    return next(word for word in order if word in words)


def short_p(difference: float, p: float, p_equivalence: float) -> float:
    """p_short of a comparison's row whose claimed effect is its margin of equivalence; never too small.

    p_equivalence is the larger of two one-sided p, and the one against the margin from below is p_short. Below 0 that
    bound is loose: an effect of the margin or more is further away than none, so half the two-sided p bounds it, too.
    """
    return min(p_equivalence, p / 2) if difference < 0 else p_equivalence


def p_of_interval(
    effect: float, low: float, high: float, claimed: float, freedom: float, confidence: float
) -> tuple[float, float]:
    """p and p_short where a file has an interval alone, taken for Student's with `freedom` degrees.

    Bootstrap intervals are not quite that; docs/paper.md says where this stands in for a test. NaN without an interval.
    """
    half = (high - low) / 2
    if not half > 0 or not freedom > 0:
        return math.nan, math.nan
    error = half / float(stats.t.ppf((1 + confidence) / 2, freedom))
    # Of an interval that is not symmetric the end that counts: towards 0, and upwards.
    towards_zero = ((effect - low) if effect > 0 else (high - effect)) / half
    upwards = (high - effect) / half
    p = 2 * float(stats.t.sf(abs(effect) / (error * max(towards_zero, 1e-12)), freedom))
    short = float(stats.t.sf((claimed - effect) / (error * max(upwards, 1e-12)), freedom))
    return min(p, 1.0), short


def detectable_of_interval(low: float, high: float, freedom: float, confidence: float, power: float = 0.8) -> float:
    """Smallest true effect found with that power, from the width of an interval; as `p_of_interval`."""
    half = (high - low) / 2
    if not half > 0 or not freedom > 0:
        return math.nan
    quantile = float(stats.t.ppf((1 + confidence) / 2, freedom))
    return half / quantile * (quantile + float(stats.t.ppf(power, freedom)))
