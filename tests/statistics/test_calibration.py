"""Every interval and test on simulated experiments in which nothing is going on: `make test-statistics`.

2,000 experiments a row, so a share near 95 % has a Monte Carlo error of 0.5 %.
"""

import math
import zlib

import numpy as np
import pytest
from scipy import stats

from mallowspo.dispersion_study.association import rank_correlations
from mallowspo.inference import (
    Components,
    discordant_power,
    dispersion_slope,
    equivalence_p,
    estimate,
    paired_difference,
    power,
    sign_flip_p,
    two_level_bootstrap,
)
from mallowspo.inference.crossed import spread_of
from tests.statistics.rows import EXPERIMENTS, check, note
from tests.statistics.simulate import KINDS, experiment

SPREADS = {"none": 0.0, "small": 0.05, "large": 0.2}
RESAMPLES = 399


def generator_of(*names):
    return np.random.default_rng(zlib.crc32(repr(names).encode()))


def covers(found, truth=0.0):
    return found.low <= truth <= found.high


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_difference_of_methods_with_several_seeds(seeds, spread, kind):
    generator = generator_of("difference", seeds, spread, kind)
    covered = rejected = 0
    for _ in range(EXPERIMENTS):
        runs = experiment(generator, seeds, SPREADS[spread], kind)
        found = paired_difference(runs[0], runs[1], resamples=99, runs=runs)
        covered += covers(found)
        rejected += found.p < 0.05
    what = ("paired difference", f"{kind}, {seeds} seeds, {spread} seed effect")
    check(what, covered / EXPERIMENTS, rejected / EXPERIMENTS)


@pytest.mark.parametrize("kind", KINDS)
def test_difference_of_two_runs_on_new_prompts(kind):
    """One seed: the truth is what these two runs do on average over prompts."""
    generator = generator_of("one seed", kind)
    covered = rejected = 0
    for _ in range(EXPERIMENTS):
        runs = experiment(generator, 1, 0.0, kind)
        found = paired_difference(runs[0], runs[1], resamples=RESAMPLES)
        assert found.covers == "new prompts, these runs only"
        covered += covers(found)
        rejected += found.p < 0.05
    check(("paired difference", f"{kind}, 1 seed, these runs"), covered / EXPERIMENTS, rejected / EXPERIMENTS)


@pytest.mark.parametrize("spread", ["small", "large"])
def test_one_seed_says_nothing_about_methods(spread):
    generator = generator_of("one seed, methods", spread)
    covered = rejected = 0
    for _ in range(EXPERIMENTS):
        runs = experiment(generator, 1, SPREADS[spread], KINDS[0])
        found = paired_difference(runs[0], runs[1], resamples=RESAMPLES)
        covered += covers(found)
        rejected += found.p < 0.05
    what = ("paired difference", f"1 seed, {spread} seed effect, taken for the methods'")
    note(what, covered / EXPERIMENTS, rejected / EXPERIMENTS, held=False)
    assert covered / EXPERIMENTS < 0.94


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_level_of_one_method(seeds, spread):
    generator = generator_of("level", seeds, spread)
    covered = sum(
        covers(estimate(runs[0], runs=runs), 0.5)
        for runs in (experiment(generator, seeds, SPREADS[spread], KINDS[2]) for _ in range(EXPERIMENTS))
    )
    check(("mean of one method", f"{KINDS[2]}, {seeds} seeds, {spread} seed effect"), covered / EXPERIMENTS)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_two_methods_alone_have_nobody_to_pool_with(seeds, spread):
    generator = generator_of("alone", seeds, spread)
    covered = rejected = 0
    for _ in range(EXPERIMENTS):
        runs = experiment(generator, seeds, SPREADS[spread], KINDS[0], methods=2)
        found = paired_difference(runs[0], runs[1], resamples=99)
        covered += covers(found)
        rejected += found.p < 0.05
    what = ("paired difference, no other methods", f"{KINDS[0]}, {seeds} seeds, {spread} seed effect")
    note(what, covered / EXPERIMENTS, rejected / EXPERIMENTS, held=False)
    assert 0.92 < covered / EXPERIMENTS < 0.99


def test_methods_whose_runs_vary_unlike():
    """Pooling assumes equal variance between seeds: here the first method's runs vary twice as much as the others'."""
    generator = generator_of("unlike")
    covered = 0
    for _ in range(EXPERIMENTS):
        runs = experiment(generator, 3, 0.05, KINDS[0])
        runs[0] += generator.normal(size=3) * 0.05 * math.sqrt(3.5)
        covered += covers(paired_difference(runs[0], runs[1], resamples=99, runs=runs))
    what = ("paired difference", f"{KINDS[0]}, 3 seeds, one method's runs vary twice as much")
    note(what, covered / EXPERIMENTS, held=False)
    assert covered / EXPERIMENTS > 0.85


def satterthwaite(table):
    """Half the interval with Satterthwaite's degrees of freedom, for comparison."""
    spread = spread_of(table)
    parts = np.array([spread.of_prompts, spread.of_seeds, spread.of_noise])
    freedoms = np.array([len(table) - 1, table.shape[1] - 1, (len(table) - 1) * (table.shape[1] - 1)])
    variance = max(parts[0] + parts[1] - parts[2], 1e-12)
    return stats.t.ppf(0.975, variance**2 / (parts**2 / freedoms).sum()) * math.sqrt(variance)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_what_was_tried_and_left(seeds, spread):
    generator = generator_of("tried", seeds, spread)
    of_bootstrap = of_satterthwaite = 0
    for trial in range(EXPERIMENTS):
        runs = experiment(generator, seeds, SPREADS[spread], KINDS[0], methods=2)
        table = runs[0] - runs[1]
        low, high = two_level_bootstrap(table, resamples=RESAMPLES, seed=trial)
        of_bootstrap += low <= 0 <= high
        of_satterthwaite += abs(table.mean()) <= satterthwaite(table)
    case = f"{KINDS[0]}, {seeds} seeds, {spread} seed effect"
    note(("two-level bootstrap", case), of_bootstrap / EXPERIMENTS, held=False)
    note(("Satterthwaite", case), of_satterthwaite / EXPERIMENTS, held=False)
    assert of_bootstrap / EXPERIMENTS > 0.5 and of_satterthwaite / EXPERIMENTS > 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_paired_bootstrap_and_sign_flips_of_two_models_on_the_same_items(kind):
    generator = generator_of("items", kind)
    covered = rejected = 0
    for trial in range(EXPERIMENTS):
        runs = experiment(generator, 1, 0.0, kind, methods=2)
        low, high = two_level_bootstrap(runs[0] - runs[1], resamples=999, seed=trial)
        covered += low <= 0 <= high
        rejected += sign_flip_p((runs[0] - runs[1])[:, 0], RESAMPLES, trial) < 0.05
    what = ("paired bootstrap; sign flips", f"{kind}, two models on the same items")
    check(what, covered / EXPERIMENTS, rejected / EXPERIMENTS)


def test_mcnemar_by_sign_flips_on_right_and_wrong_answers():
    """Exact for whole numbers: it may reject less than 5 %, and never more."""
    generator = generator_of("mcnemar")
    rejected = 0
    for trial in range(EXPERIMENTS):
        items, discordance = int(generator.integers(60, 301)), generator.uniform(0.1, 0.4)
        differences = generator.choice([-1, 0, 1], size=items, p=[discordance / 2, 1 - discordance, discordance / 2])
        rejected += sign_flip_p(differences, RESAMPLES, trial) < 0.05
    what = ("McNemar (sign flips)", "right or wrong on 60 to 300 items")
    note(what, rejected=rejected / EXPERIMENTS, held=False)
    assert 0.02 <= rejected / EXPERIMENTS <= 0.05


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_slope_on_dispersion(seeds, spread):
    """Skewed dispersion, and differences that vary more where it is large; no slope."""
    generator = generator_of("slope", seeds, spread)
    covered = rejected = ranked = 0
    for _ in range(EXPERIMENTS):
        runs = experiment(generator, seeds, 0.0, KINDS[0])
        unit = generator.gamma(3, size=runs.shape[1])
        standard = (unit - unit.mean()) / unit.std()
        # A run's slope of its own, as large as a seed's effect on the mean.
        runs += standard[:, None] * generator.normal(size=(len(runs), 1, seeds)) * (SPREADS[spread] if seeds > 1 else 0)
        runs = runs * (0.5 + 0.5 * unit / unit.mean())[:, None]
        found = dispersion_slope(runs[0], runs[1], unit, runs=runs)
        covered += covers(found)
        rejected += found.p < 0.05
        ranked += found.rank_p < 0.05
    if seeds > 1 or spread == "none":
        case = f"{seeds} seeds, {spread} effect of the seed on the slope" if seeds > 1 else "1 seed, these runs"
        check(("slope on dispersion", case), covered / EXPERIMENTS, rejected / EXPERIMENTS)
        if spread == "none":
            check(("Spearman's rank check", case), rejected=ranked / EXPERIMENTS)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_equivalence_at_its_margin(seeds, spread):
    """The true difference is the margin itself: the largest share of wrong claims of equivalence."""
    generator = generator_of("equivalence", seeds, spread)
    claimed = 0
    for _ in range(EXPERIMENTS):
        runs = experiment(generator, seeds, SPREADS[spread] if seeds > 1 else 0.0, KINDS[0])
        runs[0] += 1.0
        found = paired_difference(runs[0], runs[1], resamples=99, runs=runs)
        claimed += equivalence_p(found.difference, found.spread, 1.0) < 0.05
    case = f"{seeds} seeds, {spread} seed effect" if seeds > 1 else "1 seed, these runs"
    if seeds > 1 or spread == "none":
        check(("equivalence (TOST)", f"true difference at the margin, {case}"), rejected=claimed / EXPERIMENTS)


def test_rank_correlation_of_the_study_of_estimates():
    generator = generator_of("ranks")
    covered = rejected = 0
    truth = 6 / math.pi * math.asin(0.5 / 2)
    for trial in range(EXPERIMENTS):
        first, second, noise = generator.normal(size=(3, int(generator.integers(60, 301))))
        related = 0.5 * first + math.sqrt(0.75) * second
        options = {"resamples": RESAMPLES, "permutations": RESAMPLES, "seed": trial}
        found = rank_correlations({"related": related, "noise": noise}, first, **options)
        covered += found["related"].low <= truth <= found["related"].high
        rejected += found["noise"].p < 0.05
    case = "60 to 300 pairs; covers at r = 0.5, p at r = 0"
    check(("Spearman, bootstrap and permutation", case), covered / EXPERIMENTS, rejected / EXPERIMENTS)


@pytest.mark.parametrize(("seeds", "prompts"), [(2, 150), (3, 150), (5, 100)])
def test_power_is_what_it_says(seeds, prompts):
    of = Components(prompt=1.0, seed=0.01, noise=1.0)
    effect = next(e for e in np.arange(0.05, 6, 0.01) if power(e, of, prompts, seeds) > 0.8)
    generator = generator_of("power", seeds)
    found = 0
    for _ in range(EXPERIMENTS):
        table = effect + generator.normal(size=(prompts, 1)) + 0.1 * generator.normal(size=seeds)
        found += (
            paired_difference(table + generator.normal(size=(prompts, seeds)), np.zeros(prompts), resamples=99).p < 0.05
        )
    note(("power", f"0.8 by the formula, {prompts} prompts, {seeds} seeds"), rejected=found / EXPERIMENTS, held=False)
    assert found / EXPERIMENTS == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize("discordance", [0.1, 0.3, 0.5])
def test_power_of_two_points_of_win_rate(discordance):
    generator = generator_of("two points", discordance)
    prompts = 4000
    wins = generator.multinomial(
        prompts, [(discordance + 0.02) / 2, (discordance - 0.02) / 2, 1 - discordance], size=20_000
    )
    better, worse = wins[:, 0], wins[:, 1]
    found = ((better - worse) ** 2 / (better + worse) > stats.chi2.ppf(0.95, 1)).mean()
    expected = float(discordant_power(0.02, discordance, prompts))
    note(
        ("power", f"{expected:.3f} by the formula, two points, discordance {discordance}, 4,000 prompts"),
        rejected=float(found),
        held=False,
        experiments=20_000,
    )
    assert found == pytest.approx(expected, abs=0.01)
