"""The rule of the verdicts at its edges."""

import math

import pytest
from scipy import stats

from mallowspo.inference import equivalence_p, paired_difference
from mallowspo.paper.verdict import (
    CANNOT_TELL,
    HELD,
    NOT_HELD,
    NOT_RUN,
    Measured,
    claim_verdict,
    detectable_of_interval,
    p_of_interval,
    short_p,
    verdicts,
)

NAN = math.nan


def verdict(low, high, p, p_short, claimed=0.02, beside=()):
    return verdicts([Measured(low, high, p, p_short, claimed), *beside], 0.95)[0]


@pytest.mark.parametrize(
    ("low", "high", "p", "p_short", "word", "why"),
    [
        (0.01, 0.05, 0.01, 0.9, HELD, "a gain is clear"),
        # Holm's p must be below alpha, not at it.
        (0.01, 0.05, 0.05, 0.9, CANNOT_TELL, "above 0, but not after"),
        (0.01, 0.05, 0.0499, 0.9, HELD, "a gain is clear"),
        # An interval that ends at 0 leaves it in.
        (0.0, 0.05, 0.049, 0.9, CANNOT_TELL, "neither"),
        (-0.03, 0.05, 0.6, 0.3, CANNOT_TELL, "neither"),
        # The claimed effect is excluded below alpha / 2, the interval's upper end below it.
        (-0.01, 0.0199, 0.6, 0.0249, NOT_HELD, "the claimed effect is excluded"),
        (-0.01, 0.0199, 0.6, 0.025, CANNOT_TELL, "neither"),
        (-0.01, 0.02, 0.6, 0.02, CANNOT_TELL, "neither"),
        # A gain that is clear and clearly too small.
        (0.001, 0.01, 0.01, 0.001, NOT_HELD, "clearly less"),
        # The other way, also where the margin is unknown.
        (-0.05, -0.01, 0.01, NAN, NOT_HELD, "the other way"),
        (-0.05, -0.01, 0.05, NAN, CANNOT_TELL, "neither"),
        (NAN, NAN, NAN, NAN, CANNOT_TELL, "nothing was measured"),
    ],
)
def test_one_test(low, high, p, p_short, word, why):
    found = verdict(low, high, p, p_short)
    assert found.word == word and why in found.why


def test_holm_goes_over_all_tests_and_those_that_did_not_run():
    clear = Measured(0.01, 0.05, 0.02, 0.9, 0.02)
    absent = Measured(NAN, NAN, NAN, NAN, NAN, ran=False)
    (alone,) = verdicts([clear], 0.95)
    first, second = verdicts([clear, absent], 0.95)
    assert (alone.word, alone.p_holm) == (HELD, pytest.approx(0.02))
    assert first.p_holm == pytest.approx(0.04) and second.word == NOT_RUN and math.isnan(second.p_holm)
    assert verdicts([clear, absent, absent], 0.95)[0].word == CANNOT_TELL
    assert verdicts([clear, clear], 0.95)[0].p_holm == pytest.approx(0.04)
    short = Measured(-0.01, 0.01, 0.9, 0.01, 0.02)
    assert [found.word for found in verdicts([short, clear], 0.95)] == [NOT_HELD, HELD]
    assert verdicts([short, absent, absent], 0.95)[0].word == CANNOT_TELL


@pytest.mark.parametrize(
    ("words", "every", "one"),
    [
        ((HELD, HELD), HELD, HELD),
        ((HELD, NOT_HELD), NOT_HELD, HELD),
        ((HELD, CANNOT_TELL), CANNOT_TELL, HELD),
        ((NOT_HELD, CANNOT_TELL), NOT_HELD, CANNOT_TELL),
        ((NOT_HELD, NOT_HELD), NOT_HELD, NOT_HELD),
        ((HELD, NOT_RUN), NOT_RUN, HELD),
        ((NOT_HELD, NOT_RUN), NOT_HELD, NOT_RUN),
        ((NOT_RUN, NOT_RUN), NOT_RUN, NOT_RUN),
    ],
)
def test_a_claim(words, every, one):
    assert claim_verdict(words, "every") == every
    assert claim_verdict(words, "one") == one


def test_short_p_is_the_one_sided_p_against_the_margin():
    values = [0.1, 0.3, -0.1, 0.2, 0.4, 0.0, 0.15, 0.05]
    for shift, exact in ((0.0, True), (-0.4, False)):
        found = paired_difference([value + shift for value in values], [0.0] * len(values))
        equal = equivalence_p(found.difference, found.spread, 0.25)
        parametric = stats.ttest_1samp([value + shift for value in values], 0.25, alternative="less").pvalue
        p = stats.ttest_1samp([value + shift for value in values], 0).pvalue
        assert short_p(found.difference, p, equal) == pytest.approx(parametric) if exact else True
        # Below 0 a bound, never too small.
        assert short_p(found.difference, p, equal) >= parametric - 1e-12
        assert short_p(found.difference, p, equal) <= p / 2 + 1e-12 or exact


def test_p_of_an_interval_is_alpha_where_it_ends():
    assert p_of_interval(0.5, 0.0, 1.2, 3.0, 20, 0.95)[0] == pytest.approx(0.05)
    assert p_of_interval(-0.5, -1.4, 0.0, 3.0, 20, 0.95)[0] == pytest.approx(0.05)
    assert p_of_interval(0.5, -0.3, 1.2, 1.2, 20, 0.95)[1] == pytest.approx(0.025)
    values = [0.1, 0.3, -0.1, 0.2, 0.4]
    test = stats.ttest_1samp(values, 0)
    low, high = test.confidence_interval(0.95)
    p, short = p_of_interval(sum(values) / 5, low, high, 0.3, 4, 0.95)
    assert p == pytest.approx(test.pvalue)
    assert short == pytest.approx(stats.ttest_1samp(values, 0.3, alternative="less").pvalue)
    for low, high, freedom in ((NAN, NAN, 4), (1.0, 1.0, 4), (0.0, 1.0, 0)):
        assert all(map(math.isnan, p_of_interval(0.5, low, high, 1.0, freedom, 0.95)))
        assert math.isnan(detectable_of_interval(low, high, freedom, 0.95))


def test_detectable_is_more_than_half_of_the_interval():
    assert detectable_of_interval(-1, 1, 1e6, 0.95) == pytest.approx((1.959964 + 0.841621) / 1.959964, rel=1e-4)
    assert detectable_of_interval(-1, 1, 3, 0.95) == pytest.approx(1 + stats.t.ppf(0.8, 3) / stats.t.ppf(0.975, 3))
