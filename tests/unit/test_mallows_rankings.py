"""Whole rankings: against listing, against an independent package, and samples against the exact law."""

import math

import numpy as np
import pytest
import torch
from prefsampling.ordinal.mallows import mallows as other_sampler
from prefsampling.ordinal.mallows import theoretical_distribution as other_law
from scipy.stats import chisquare, kendalltau

from mallowspo.mallows import (
    kendall_distance,
    log_normaliser,
    pairwise_matrix,
    pairwise_probability,
    ranking_law,
    sample_rankings,
    sampling_method,
    spearman_distance,
)

PHIS = (1e-6, 0.05, 0.4, 0.7, 0.95, 1 - 1e-9, 1.0)
SAMPLERS = [("kendall", "insertion"), ("spearman", "enumeration"), ("spearman", "metropolis")]


def listed_matrix(centre, phi, distance, exponent):
    rankings, law = ranking_law(centre, phi, distance, exponent)
    ahead = (rankings[:, :, None] < rankings[:, None, :]).astype(float)
    return np.tensordot(law, ahead, axes=1)


def agreement(observed, expected):
    """p value of the observed counts; cells that expect fewer than 8 are put together."""
    rare = expected < 8
    if rare.any():
        observed = np.append(observed[~rare], observed[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    return chisquare(observed, expected * observed.sum() / expected.sum()).pvalue


def counts_of(rankings, listed):
    code = len(listed[0]) ** np.arange(len(listed[0]))
    position = {value: index for index, value in enumerate(listed @ code)}
    return np.bincount([position[value] for value in rankings @ code], minlength=len(listed)).astype(float)


def test_distances_worked_by_hand():
    """Places (0, 1, 2, 3) against (3, 1, 2, 0): 5 of 6 pairs differ; squares 9 + 0 + 0 + 9."""
    assert kendall_distance([0, 1, 2, 3], [3, 1, 2, 0]) == 5
    assert spearman_distance([0, 1, 2, 3], [3, 1, 2, 0]) == 18


def test_kendall_distance_is_scipys_tau():
    generator = np.random.default_rng(0)
    for n in (2, 5, 9):
        a, b = generator.permutation(n), generator.permutation(n)
        pairs = n * (n - 1) / 2
        assert kendall_distance(a, b) == pytest.approx(pairs * (1 - kendalltau(a, b).statistic) / 2, abs=1e-9)


@pytest.mark.parametrize("distance", ["kendall", "spearman"])
@pytest.mark.parametrize("exponent", [1, 2])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
def test_closed_forms_equal_the_listing(n, exponent, distance):
    centre = np.random.default_rng(n).permutation(n)
    for phi in PHIS:
        rankings, law = ranking_law(centre, phi, distance, exponent)
        assert law.sum() == pytest.approx(1, abs=1e-12)
        # The centre itself has probability 1 / Z.
        at_centre = law[(rankings == centre).all(axis=1)].item()
        assert log_normaliser(n, phi, distance, exponent) == pytest.approx(-math.log(at_centre), abs=1e-12)
        difference = pairwise_matrix(centre, phi, distance, exponent) - listed_matrix(centre, phi, distance, exponent)
        assert np.abs(difference).max() < 1e-12


def test_kendall_law_equals_another_packages():
    for phi in (0.2, 0.8, 1.0):
        theirs = other_law(5, phi)  # by orderings (items best first), centre 0..4, P ~ phi^d
        rankings, law = ranking_law(np.arange(5), phi, "kendall", 1)
        for ranking, probability in zip(rankings, law, strict=True):
            assert theirs[tuple(np.argsort(ranking).tolist())] == pytest.approx(probability, abs=1e-12)


def test_samples_agree_with_another_packages_sampler():
    """Distances from the centre of both samplers, n = 12: two samples of the same law."""
    ours = sample_rankings(np.random.default_rng(1), 4000, np.arange(12), 0.8, exponent=1)
    theirs = np.argsort(np.array(other_sampler(4000, 12, 0.8, seed=2)), axis=1)
    a, b = (np.bincount(kendall_distance(part, np.arange(12)), minlength=67) for part in (ours, theirs))
    kept = a + b >= 20
    statistic = float(np.sum((a - b)[kept] ** 2 / (a + b)[kept]))
    assert abs(statistic - kept.sum()) < 4 * math.sqrt(2 * kept.sum())


@pytest.mark.parametrize(("distance", "method"), SAMPLERS)
@pytest.mark.parametrize("phi", [0.3, 0.8, 1.0])
def test_frequencies_equal_the_law(distance, method, phi):
    centre = np.array([2, 0, 3, 1])
    listed, law = ranking_law(centre, phi, distance)
    drawn = sample_rankings(np.random.default_rng(4), 4000, centre, phi, distance=distance, method=method)
    assert agreement(counts_of(drawn, listed), law * 4000) > 0.001


@pytest.mark.parametrize(("distance", "n"), [("kendall", 40), ("spearman", 12)])
def test_long_rankings_have_the_exact_pairwise_probabilities(distance, n):
    count = 20000
    centre = np.random.default_rng(5).permutation(n)
    drawn = sample_rankings(np.random.default_rng(6), count, centre, 0.9, distance=distance)
    exact = pairwise_matrix(centre, 0.9, distance)
    for i, j in [(0, 1), (3, 7), (2, n - 1)]:
        found = float((drawn[:, i] < drawn[:, j]).mean())
        assert abs(found - exact[i, j]) < 4.5 * math.sqrt(exact[i, j] * (1 - exact[i, j]) / count)


@pytest.mark.parametrize("phi", [0.5, 0.9, 0.99])
def test_metropolis_reaches_the_law_of_long_rankings(phi):
    """n = 10: distances of separate chains against distances of exact draws."""
    draws = [
        spearman_distance(
            sample_rankings(np.random.default_rng(7), 3000, np.arange(10), phi, distance="spearman", method=method),
            np.arange(10),
        )
        for method in ("metropolis", "enumeration")
    ]
    error = math.sqrt(sum(part.var() / len(part) for part in draws))
    assert abs(draws[0].mean() - draws[1].mean()) < 4 * error


def test_auto_says_what_it_takes():
    assert [sampling_method(n, "kendall") for n in (3, 100)] == ["insertion", "insertion"]
    assert [sampling_method(n, "spearman") for n in (16, 17)] == ["enumeration", "metropolis"]
    same = [
        sample_rankings(np.random.default_rng(8), 5, np.arange(6), 0.5, distance="spearman", method=method)
        for method in ("auto", "enumeration")
    ]
    assert (same[0] == same[1]).all()


def test_spearmans_pairwise_form_is_exact_for_two_items_only():
    """sigmoid(-2 s log phi) against the true marginal of P ~ phi^(sum of squares): the form of MallowsPO-theta."""

    def form(gap, phi):
        gap, phi = torch.tensor(float(gap), dtype=torch.float64), torch.tensor(phi, dtype=torch.float64)
        return pairwise_probability(gap, phi, distance="spearman").item()

    assert pairwise_matrix([0, 1], 0.7, "spearman")[0, 1] == pytest.approx(form(1, 0.7), abs=1e-12)
    three = pairwise_matrix([0, 1, 2], 0.7, "spearman")
    assert (three[0, 1], form(1, 0.7)) == (pytest.approx(0.7073, abs=5e-5), pytest.approx(0.6711, abs=5e-5))
    assert (three[0, 2], form(2, 0.7)) == (pytest.approx(0.8711, abs=5e-5), pytest.approx(0.8064, abs=5e-5))
    for n, error in [(4, 0.089), (5, 0.1446)]:
        exact = pairwise_matrix(np.arange(n), 0.9, "spearman")
        worst = max(abs(exact[i, j] - form(j - i, 0.9)) for i in range(n) for j in range(i + 1, n))
        assert worst == pytest.approx(error, abs=5e-4)
    # Beyond two items it depends on the places too, not on the gap alone.
    four = pairwise_matrix(np.arange(4), 0.7, "spearman")
    assert abs(four[0, 1] - four[1, 2]) > 0.01


def test_bad_input():
    with pytest.raises(ValueError, match="each of the places"):
        kendall_distance([0, 0, 2], [0, 1, 2])
    with pytest.raises(ValueError, match="phi must lie in"):
        ranking_law([0, 1], 0.0)
    with pytest.raises(ValueError, match="phi must lie in"):
        log_normaliser(3, math.nan)
    with pytest.raises(ValueError, match="at most 8 items, got 9"):
        ranking_law(np.arange(9), 0.5)
    with pytest.raises(ValueError, match="at most 16 items, got 17"):
        log_normaliser(17, 0.5, "spearman")
    with pytest.raises(ValueError, match="not sampled by metropolis"):
        sample_rankings(np.random.default_rng(0), 2, [0, 1], 0.5, method="metropolis")
