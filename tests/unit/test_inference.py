"""Intervals, tests and power: against hand calculation, formulas, enumeration, scipy and statsmodels."""

import math
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from mallowspo.inference import (
    Components,
    Spread,
    association,
    benjamini_hochberg,
    components,
    detectable_effect,
    discordant_power,
    dispersion_slope,
    equivalence_p,
    estimate,
    holm,
    paired_difference,
    power,
    prompts_needed,
    seeds_needed,
    sign_flip_p,
    two_level_bootstrap,
)
from mallowspo.inference.crossed import half_width, p_value, pooled_seeds, spread_of

#: Two prompts by two seeds, small enough for paper.
BY_HAND = np.array([[1.0, 3.0], [5.0, 11.0]])


def made_up(seed=0, prompts=40, seeds=3, methods=4):
    """(M, P, S) with effects of prompts, seeds and runs."""
    generator = np.random.default_rng(seed)
    shapes = (1, prompts, 1), (methods, prompts, 1), (methods, 1, seeds), (methods, prompts, seeds)
    return sum(sd * generator.normal(size=shape) for sd, shape in zip((1, 0.5, 0.2, 0.7), shapes, strict=True))


def test_spread_by_hand():
    """Prompt means 2 and 8, seed means 3 and 7, all 5. MS(prompts) 2 (9 + 9) = 36, MS(seeds) 2 (4 + 4) = 16; residuals
    1, -1, -1, 1 give MS 4. Each over P S = 4: 9, 4 and 1."""
    spread = spread_of(BY_HAND)
    assert (spread.of_prompts, spread.of_seeds, spread.of_noise) == pytest.approx((9, 4, 1))
    assert (spread.prompt_freedom, spread.seed_freedom) == (1, 1)
    t = stats.t.ppf(0.975, 1)
    assert half_width(spread, 0.95) == pytest.approx(t * math.sqrt((9 - 1) + (4 - 2 / 5)))
    of = components(spread)
    assert (of.prompt, of.seed, of.noise) == pytest.approx((16, 6, 4))


def test_spread_agrees_with_statsmodels_analysis_of_variance():
    from statsmodels.formula.api import ols

    table = made_up()[0]
    prompts, seeds = (index.ravel() for index in np.indices(table.shape))
    fitted = ols("y ~ C(p) + C(s)", pd.DataFrame({"y": table.ravel(), "p": prompts, "s": seeds})).fit()
    mean_squares = sm.stats.anova_lm(fitted)["mean_sq"].to_numpy() / table.size
    spread = spread_of(table)
    np.testing.assert_allclose([spread.of_prompts, spread.of_seeds, spread.of_noise], mean_squares)


def test_single_seed_is_the_paired_t_interval():
    values, baseline = made_up(seeds=1)[:2, :, 0]
    found = paired_difference(values, baseline)
    expected = stats.ttest_rel(values, baseline).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.covers == "new prompts, these runs only" and found.p == found.p_policies


def test_p_is_where_the_interval_ends_at_zero():
    runs = made_up()
    found = paired_difference(runs[0], runs[1], runs=runs)
    assert found.covers == "new prompts, new seeds"
    assert half_width(found.spread, 1 - found.p) == pytest.approx(abs(found.difference), rel=1e-6)
    for difference in (0.01, 0.3, 5.0):
        p = p_value(difference, found.spread)
        assert half_width(found.spread, 1 - p) == pytest.approx(difference, rel=1e-6)


def test_seeds_that_differ_widen_the_interval_and_more_prompts_do_not_help():
    """No spread over prompts, two seeds at 0 and 1: standard error 1/2, one degree of freedom."""
    for prompts in (50, 5000):
        table = np.column_stack([np.zeros(prompts), np.ones(prompts)])
        found = estimate(table)
        assert found.high - 0.5 == pytest.approx(stats.t.ppf(0.975, 1) / 2)


def test_pooling_by_hand():
    """Three methods, two seeds: own deviations -1 and 1, -2 and 2, -3 and 3: squares 28 over 3, halved for the mean.
    Paired, a seed's common part 2 is gone: -1..1, 0, 1..-1: squares 4 over 2 degrees of freedom, two runs, halved."""
    runs = np.array([[0.0, 2.0], [0.0, 4.0], [0.0, 6.0]])
    variance, freedom = pooled_seeds(runs, paired=False)
    # Intraclass correlation of the deviations 1, 2, 3: ((1 + 2 + 3)^2 - 14) / (2 x 14) = 22 / 28.
    assert variance == pytest.approx(28 / 3 / 2) and freedom == pytest.approx(3 / (1 + 2 * (22 / 28) ** 2))
    assert pooled_seeds(runs, paired=True) == pytest.approx((2 * 4 / 2 / 2, 2))


def test_two_methods_pooled_are_the_difference_alone():
    runs = made_up(methods=2)
    alone, pooled = paired_difference(runs[0], runs[1]), paired_difference(runs[0], runs[1], runs=runs)
    assert (alone.low, alone.high, alone.p) == pytest.approx((pooled.low, pooled.high, pooled.p))


def test_degenerate_input_is_handled_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        equal = estimate(np.full((10, 2), 0.25))
        alone = estimate([0.3])
        same = paired_difference(np.ones((10, 2)), np.ones((10, 1)))
        shifted = paired_difference(np.ones((5, 2)), np.zeros((5, 1)))
        one = paired_difference([[0.3, 0.4]], [[0.1, 0.1]])
    assert (equal.mean, equal.low, equal.high, equal.n) == (0.25, 0.25, 0.25, 10)
    assert alone.mean == 0.3 and math.isnan(alone.low) and math.isnan(alone.high)
    assert (same.difference, same.low, same.high, same.p, same.detectable) == (0.0, 0.0, 0.0, 1.0, 0.0)
    # Five prompts that all say 1: two of 32 patterns of signs.
    assert (shifted.low, shifted.p) == (1.0, 2 / 32)
    assert one.difference == pytest.approx(0.25) and math.isnan(one.low) and one.p == 1.0


def test_p_is_the_exact_share_of_sign_flips():
    """Five prompts: all 32 sign patterns, enumerated here, without a random draw."""
    differences = np.array([1.0, 2.0, 3.0, 4.0, -1.0])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1)
    sums = (signs * np.abs(differences)[:, None]).sum(axis=0)
    expected = np.mean(np.abs(sums) >= differences.sum())
    result = paired_difference(differences, np.zeros(5))
    assert result.p == pytest.approx(expected)
    assert result.difference == pytest.approx(1.8)
    assert "sign-flip" in result.test


def test_sign_flips_agree_with_scipy_and_with_mcnemar():
    differences = np.random.default_rng(0).normal(0.2, 1, size=60)
    drawn = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", vectorized=True, n_resamples=20_000, rng=1
    )
    assert sign_flip_p(differences, resamples=20_000) == pytest.approx(drawn.pvalue, abs=0.012)
    right_wrong = np.array([1.0] * 9 + [-1.0] * 2)
    assert sign_flip_p(right_wrong) == pytest.approx(mcnemar([[30, 9], [2, 40]], exact=True).pvalue)
    assert sign_flip_p(differences) == sign_flip_p(differences) != sign_flip_p(differences, seed=1)


def test_pairing_removes_what_prompts_share():
    """Prompts differ by 100, the methods by 0.1 each time: paired, the difference is certain."""
    prompts = np.linspace(0, 100, 30)
    noise = np.random.default_rng(0).normal(0, 0.01, size=30)
    result = paired_difference(prompts + 0.1 + noise, prompts)
    assert result.low > 0.08 and result.high < 0.12
    assert result.p == pytest.approx(1 / 10_000)


def test_baseline_with_one_run_serves_every_seed_and_runs_pair_by_seed():
    values = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]])
    assert paired_difference(values, [1.0, 3.0, 5.0]).difference == pytest.approx((0 + 1 + 0 + 1 + 0 + 2) / 6)
    assert paired_difference(values, values - [0.0, 1.0]).difference == pytest.approx(0.5)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    seeds=st.integers(1, 4),
    constant=st.floats(-5, 5),
    pooled=st.booleans(),
)
def test_swapping_reordering_and_shifting_change_nothing_but_the_sign(seed, seeds, constant, pooled):
    runs = made_up(seed, prompts=15, seeds=seeds, methods=3)
    order = np.random.default_rng(seed).permutation(15)
    options = {"resamples": 99, "runs": runs if pooled else None}
    found = paired_difference(runs[0], runs[1], **options)
    swapped = paired_difference(runs[1], runs[0], **options)
    reordered = paired_difference(runs[0][order], runs[1][order], **options)
    shifted = paired_difference(runs[0] + constant, runs[1] + constant, **options)
    assert (swapped.difference, swapped.low, swapped.high) == pytest.approx(
        (-found.difference, -found.high, -found.low)
    )
    assert swapped.p == pytest.approx(found.p)
    for other in (reordered, shifted):
        assert (other.difference, other.low, other.high) == pytest.approx((found.difference, found.low, found.high))
        assert other.detectable == pytest.approx(found.detectable)
    unit = np.random.default_rng(seed + 1).gamma(2, size=15)
    slope = dispersion_slope(runs[0], runs[1], unit, runs=options["runs"])
    back = dispersion_slope(runs[1], runs[0], unit, runs=options["runs"])
    again = dispersion_slope(
        runs[0][order] + constant,
        runs[1][order] + constant,
        3 * unit[order] + 1,
        runs=runs[:, order] if pooled else None,
    )
    assert (back.slope, back.low, back.rank_correlation) == pytest.approx(
        (-slope.slope, -slope.high, -slope.rank_correlation)
    )
    assert (again.slope, again.low, again.p) == pytest.approx((slope.slope, slope.low, slope.p))


@pytest.mark.parametrize(
    ("values", "baseline"),
    [(np.zeros((4, 3)), np.zeros((4, 2))), (np.zeros(4), np.zeros(5)), ([np.nan], [0.0]), ([], [])],
)
def test_unpairable_or_not_finite_values_are_refused(values, baseline):
    with pytest.raises(ValueError, match="shape"):
        paired_difference(values, baseline)


def test_runs_of_other_seeds_are_refused():
    runs = made_up()
    with pytest.raises(ValueError, match=r"expected runs of shape \(methods, prompts, 2\)"):
        paired_difference(runs[0][:, :2], runs[1][:, :2], runs=runs)


def test_association_is_pearsons_r_with_an_exact_p_for_few_prompts():
    from itertools import permutations

    from scipy.stats import pearsonr

    x, y = np.array([1.0, 2.0, 4.0, 3.0, 7.0]), np.array([0.1, 0.4, 0.2, 0.3, 0.9])
    r, p = association(x, y)
    assert r == pytest.approx(pearsonr(x, y).statistic)
    shuffled = np.array([pearsonr(x, order).statistic for order in permutations(y)])
    above, below = np.mean(shuffled >= r - 1e-12), np.mean(shuffled <= r + 1e-12)
    assert p == pytest.approx(min(1.0, 2 * min(above, below)))
    assert association(x, np.ones(5))[1] == 1.0


def test_bootstrap_resamples_prompts_and_seeds():
    """One seed: the normal interval for many prompts. Only seeds differ: the resampled means spread by s / 3.46."""
    values = np.random.default_rng(1).normal(2.0, 3.0, size=900)
    low, high = two_level_bootstrap(values, resamples=4000)
    half_width = 1.96 * values.std(ddof=1) / 30
    assert (low, high) == pytest.approx((values.mean() - half_width, values.mean() + half_width), abs=0.02)
    seed_means = np.random.default_rng(0).normal(size=12)
    low, high = two_level_bootstrap(np.tile(seed_means, (5, 1)), confidence=0.6827, resamples=20_000)
    assert (high - low) / 2 == pytest.approx(seed_means.std(ddof=1) / math.sqrt(12), rel=0.04)
    assert two_level_bootstrap(BY_HAND, resamples=200) == two_level_bootstrap(BY_HAND, resamples=200)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(max_examples=10, deadline=None)
def test_holm_is_statsmodels(p_values):
    np.testing.assert_allclose(holm(p_values), multipletests(p_values, method="holm")[1], rtol=1e-12)


def test_holm_and_benjamini_hochberg_by_hand():
    """Holm: 0.01 x 4; 0.02 x 3 = 0.06; 0.03 x 2 = 0.06; 0.5 x 1. BH: 0.01 x 4 / 1, 0.02 x 4 / 2, 0.03 x 4 / 3: 0.04."""
    np.testing.assert_allclose(holm([0.03, 0.01, 0.5, 0.02]), [0.06, 0.04, 0.5, 0.06])
    np.testing.assert_allclose(benjamini_hochberg([0.03, 0.01, 0.5, 0.02]), [0.04, 0.04, 0.5, 0.04])
    # What was not tested is no member of the family.
    np.testing.assert_allclose(holm([0.03, math.nan, 0.04]), [0.06, math.nan, 0.06])
    assert holm([]).size == 0


def test_equivalence_is_statsmodels_tost_for_one_seed_and_the_90_percent_interval_for_several():
    values = np.random.default_rng(0).normal(0.02, 1, size=200)
    found = paired_difference(values, np.zeros(200))
    expected = DescrStatsW(values).ttost_mean(-0.2, 0.2)[0]
    assert equivalence_p(found.difference, found.spread, 0.2) == pytest.approx(expected)
    runs = made_up(prompts=80)
    found = paired_difference(runs[0], runs[1], confidence=0.9, runs=runs)
    margin = max(-found.low, found.high)
    assert equivalence_p(found.difference, found.spread, margin) == pytest.approx(0.05)
    assert math.isnan(equivalence_p(found.difference, found.spread, math.nan))


def test_detectable_effect_agrees_with_simulation():
    """A t-test finds the stated effect in 80 % of simulated experiments."""
    generator = np.random.default_rng(3)
    sample = generator.normal(size=40)
    sample = (sample - sample.mean()) / sample.std(ddof=1)
    effect = detectable_effect(spread_of(sample[:, None]), alpha=0.05)
    found = stats.ttest_1samp(generator.normal(effect, 1, size=(4000, 40)), 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.03)
    assert detectable_effect(spread_of(10 * sample[:, None])) == pytest.approx(10 * effect)


def test_detectable_effect_near_the_landscape_figure():
    """sd 0.42 a policy and correlation 0.5 make differences of sd 0.42: 805 prompts detect 4.1 points."""
    sample = np.random.default_rng(0).normal(size=805)
    sample = 0.42 * (sample - sample.mean()) / sample.std(ddof=1)
    assert detectable_effect(spread_of(sample[:, None])) == pytest.approx(0.0415, abs=0.0005)
    assert math.isnan(detectable_effect(spread_of(np.array([[0.1], [0.2]]))))


def test_the_detectable_effect_goes_with_the_interval():
    """With mean squares known as well as here, 80 % power is half of the interval and 0.84 standard errors more."""
    spread = Spread(2e-3, 1.5e-3, 5e-4, prompts=400, seeds=5, prompt_freedom=399, seed_freedom=400)
    expected = half_width(spread, 0.95) + stats.norm.ppf(0.8) * spread.standard_error
    assert detectable_effect(spread) == pytest.approx(expected, rel=0.01)


def test_runs_that_agree_by_luck_narrow_the_interval_and_not_the_detectable_effect():
    """Two runs without an effect of the seed: of_seeds is expected to be of_noise, and in one of four is a tenth of it.

    The detectable effect is what 80 % of all such experiments find, those with wide intervals among them.
    """
    generator = np.random.default_rng(0)
    values = generator.normal(size=(2000, 48, 1)) + generator.normal(size=(2000, 48, 2))
    spreads = [spread_of(table) for table in values]
    halves = np.array([half_width(spread, 0.95) for spread in spreads])
    usual = Spread(*(np.mean([getattr(s, part) for s in spreads]) for part in ("of_prompts", "of_noise", "of_noise")),
                   prompts=48, seeds=2, prompt_freedom=47, seed_freedom=1)  # fmt: skip
    effect = detectable_effect(usual)
    assert 1.2 < effect / half_width(usual, 0.95) < 1.6
    found = np.abs(values.mean(axis=(1, 2)) + effect) > halves
    assert found.mean() == pytest.approx(0.8, abs=0.03)
    lucky = replace(usual, of_seeds=0.1 * usual.of_noise)
    assert detectable_effect(lucky) == pytest.approx(effect)
    assert effect / half_width(lucky, 0.95) > 2
    assert half_width(lucky, 0.95) < np.median(halves) < effect


def test_a_wide_detectable_effect_beside_a_narrow_interval_is_no_contradiction():
    """Win rates of three methods against one opponent, two seeds, 48 prompts, no method better: docs/statistics.md.

    In some experiments the two runs agree by luck. The interval is narrow then, and covers all the same; the detectable
    effect is more than twice its half, and is right about the power of an experiment of this size.
    """
    generator, rows = np.random.default_rng(1), []
    for _ in range(300):
        parts = [generator.normal(size=shape) for shape in ((1, 48, 1), (3, 48, 1), (3, 48, 2))]
        wins = (0.7 * parts[0] + 0.3 * parts[1] + 0.7 * parts[2] > 0).astype(float)
        found = paired_difference(wins[0], np.full((48, 1), 0.5), runs=wins, resamples=99)
        half = (found.high - found.low) / 2
        # The same degrees of freedom behind both: 1 to 3, by how alike runs of a seed are.
        assert half == pytest.approx(half_width(found.spread, 0.95)) and 1 <= found.spread.seed_freedom <= 3
        assert found.detectable == pytest.approx(detectable_effect(found.spread))
        rows.append((found.difference, half, found.detectable))
    difference, half, detectable = np.array(rows).T
    covered, lucky = abs(difference) <= half, detectable > 2 * half
    assert (np.median(half), np.median(detectable)) == pytest.approx((0.134, 0.217), abs=0.001)
    assert detectable.max() > 0.45 and 0.05 < lucky.mean() < 0.12
    assert covered.mean() > 0.95 and covered[lucky].mean() > 0.93
    usual = np.median(detectable)
    assert (abs(difference + usual) > half).mean() == pytest.approx(0.8, abs=0.05)


def test_sizes_needed_tell_prompts_and_seeds_apart():
    runs = made_up(prompts=20, methods=6)
    spread = paired_difference(runs[0], runs[1], runs=runs).spread
    of = components(spread)
    effect = detectable_effect(spread)
    assert power(effect, of, 20, 3) == pytest.approx(0.8, abs=1e-3)
    for factor in (0.9, 1.2):
        prompts, seeds = prompts_needed(factor * effect, spread), seeds_needed(factor * effect, spread)
        assert power(factor * effect, of, int(prompts), 3) >= 0.8 > power(factor * effect, of, int(prompts) - 1, 3)
        assert power(factor * effect, of, 20, int(seeds)) >= 0.8
        assert seeds == 2 or power(factor * effect, of, 20, int(seeds) - 1) < 0.8
    # What seeds do to the mean, no number of prompts averages out, and the other way round.
    assert math.isinf(prompts_needed(0.1 * math.sqrt(of.seed), spread))
    assert math.isinf(seeds_needed(0.1 * math.sqrt(of.prompt / 20), spread))
    alone = paired_difference(runs[0][:, 0], runs[1][:, 0]).spread
    assert math.isnan(seeds_needed(0.1, alone)) and math.isnan(prompts_needed(math.nan, alone))


def test_power_is_the_t_tests_with_one_seed_and_grows_with_pooling():
    from statsmodels.stats.power import TTestPower

    of = Components(prompt=0.5, seed=0.0, noise=0.5)
    assert power(0.3, of, 100, 1) == pytest.approx(TTestPower().power(0.3, 100, 0.05))
    alone, pooled = Components(1, 0.01, 1), Components(1, 0.01, 1, pooled=6)
    assert power(0.4, alone, 100, 2) < power(0.4, pooled, 100, 2)


def test_two_points_need_thousands_of_prompts():
    """(1.96 + 0.84)^2 x (d - 0.0004) / 0.0004, with the null variance d in place of d - 0.0004 in the first part."""
    for discordance in (0.1, 0.3):
        parts = stats.norm.ppf(0.975) * math.sqrt(discordance), stats.norm.ppf(0.8) * math.sqrt(discordance - 0.0004)
        assert float(discordant_power(0.02, discordance, (sum(parts) / 0.02) ** 2)) == pytest.approx(0.8)
    assert float(discordant_power(0.02, 0.3, 805)) == pytest.approx(0.178, abs=0.001)


def test_slope_error_is_statsmodels_clustered_by_prompt_without_leverage():
    """Balanced rows (p, s), errors clustered by prompt: HC0 on prompts' means, up to statsmodels' factor for few."""
    runs, unit = made_up(), np.random.default_rng(5).gamma(2, size=40)
    standard = (unit - unit.mean()) / unit.std()
    table = runs[0] - runs[1]
    rows = sm.add_constant(np.repeat(standard, 3))
    clustered = sm.OLS(table.ravel(), rows).fit(cov_type="cluster", cov_kwds={"groups": np.repeat(np.arange(40), 3)})
    means = sm.OLS(table.mean(axis=1), sm.add_constant(standard)).fit(cov_type="HC0")
    factor = 40 / 39 * (120 - 1) / (120 - 2)
    assert clustered.bse[1] == pytest.approx(means.bse[1] * math.sqrt(factor))
    found = dispersion_slope(runs[0][:, :1], runs[1][:, :1], unit)
    robust = sm.OLS(table[:, 0], sm.add_constant(standard)).fit(cov_type="HC3", use_t=True)
    assert (found.slope, found.p) == pytest.approx((robust.params[1], robust.pvalues[1]))
    assert (found.low, found.high) == pytest.approx(tuple(robust.conf_int()[1]))
    assert (found.rank_correlation, found.rank_p) == pytest.approx(tuple(stats.spearmanr(unit, table[:, 0])))
    assert dispersion_slope(runs[0], runs[1], unit).slope == pytest.approx(clustered.params[1])


def test_slope_by_hand_and_its_limits():
    """Difference 2 - 3 z on every prompt: slope -3 in units of z, which has mean 0 and standard deviation 1."""
    standard = np.array([-1.0, 1.0] * 6)
    found = dispersion_slope(2 - 3 * standard, np.zeros(12), 7 + 0.1 * standard)
    assert (found.slope, found.rank_correlation, found.n) == (pytest.approx(-3), pytest.approx(-1), 12)
    for unit in (np.ones(12), np.arange(11)):
        with pytest.raises(ValueError, match="no slope"):
            dispersion_slope(standard, np.zeros(12), unit)
    with pytest.raises(ValueError, match="no slope"):
        dispersion_slope(standard[:9], np.zeros(9), np.arange(9))


def test_inference_and_report_import_no_torch():
    code = (
        "import sys; import mallowspo.inference, mallowspo.compare, mallowspo.report; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
