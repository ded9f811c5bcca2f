"""Maximum likelihood: against a search by listing, and its recovery of the truth."""

import itertools
import math

import numpy as np
import pytest

from mallowspo.mallows import (
    fit_pairs,
    fit_partial,
    fit_rankings,
    pairwise_matrix,
    ranking_law,
    sample_rankings,
)

DISTANCES = ["kendall", "spearman"]


def random_parts(generator, rankings, size):
    """Each ranking restricted to `size` items, drawn without looking at the ranking; best first."""
    parts = []
    for ranking in rankings:
        items = generator.permutation(rankings.shape[1])[:size]
        parts.append(tuple(items[np.argsort(ranking[items])].tolist()))
    return parts


def listed_log_likelihood(parts, centre, phi, distance, behind):
    """Sum over the listed rankings that agree, written anew."""
    rankings, law = ranking_law(centre, phi, distance)
    total = 0.0
    for part in parts:
        order = [tuple(np.argsort(ranking).tolist()) for ranking in rankings]
        kept = [o[: len(part)] if behind else tuple(item for item in o if item in part) for o in order]
        total += math.log(sum(p for k, p in zip(kept, law, strict=True) if k == part))
    return total


@pytest.mark.parametrize("distance", DISTANCES)
def test_full_rankings_against_every_centre_and_a_grid_of_phi(distance):
    data = sample_rankings(np.random.default_rng(0), 12, [1, 3, 0, 2], 0.7, distance=distance)
    fit = fit_rankings(data, distance=distance)
    values = {}
    for centre in itertools.permutations(range(4)):
        for phi in np.linspace(0.3, 1.0, 141):
            rankings, law = ranking_law(centre, phi, distance)
            by_ranking = {tuple(r): p for r, p in zip(rankings.tolist(), law, strict=True)}
            values[centre, phi] = sum(math.log(by_ranking[tuple(row)]) for row in data.tolist())
    (centre, phi), best = max(values.items(), key=lambda item: item[1])
    assert tuple(fit.centre) == centre
    assert fit.phi == pytest.approx(phi, abs=0.005)
    assert best <= fit.log_likelihood <= best + 0.01
    assert fit.exact
    # The interval is where the log-likelihood is 1.92 below its maximum.
    for edge in (fit.phi_low, fit.phi_high):
        rankings, law = ranking_law(fit.centre, edge, distance)
        by_ranking = {tuple(r): p for r, p in zip(rankings.tolist(), law, strict=True)}
        at_edge = sum(math.log(by_ranking[tuple(row)]) for row in data.tolist())
        assert at_edge == pytest.approx(fit.log_likelihood - 1.920729, abs=1e-6)


def test_dispersion_solves_the_mean_distance():
    """Observed distances 0, 1, 2: mean 1. Of three items 1, 2, 2, 1 rankings lie 0, 1, 2, 3 from the centre:

    mean (2q + 4q^2 + 3q^3) / (1 + 2q + 2q^2 + q^3) = 1  <=>  2q^3 + 2q^2 = 1.
    """
    root = max(r.real for r in np.roots([2, 2, 0, -1]) if abs(r.imag) < 1e-12)
    fit = fit_rankings([[0, 1, 2], [1, 0, 2], [1, 2, 0]], exponent=1, centre=[0, 1, 2])
    assert fit.phi == pytest.approx(root, abs=1e-7)
    assert fit_rankings([[0, 1, 2], [1, 0, 2], [1, 2, 0]], exponent=2, centre=[0, 1, 2]).phi == pytest.approx(
        math.sqrt(root), abs=1e-7
    )


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("unlisted", ["unknown", "behind"])
def test_partial_rankings_against_listing(distance, unlisted):
    data = sample_rankings(np.random.default_rng(1), 15, [2, 0, 1, 3], 0.7, distance=distance)
    if unlisted == "behind":
        parts = [tuple(np.argsort(ranking)[:2].tolist()) for ranking in data]
    else:
        parts = random_parts(np.random.default_rng(2), data, 2)
    fit = fit_partial(parts, 4, distance=distance, unlisted=unlisted)
    values = {
        centre: max(
            listed_log_likelihood(parts, centre, phi, distance, unlisted == "behind") for phi in (0.5, 0.65, 0.8)
        )
        for centre in itertools.permutations(range(4))
    }
    assert fit.log_likelihood >= max(values.values())
    here = listed_log_likelihood(parts, fit.centre, fit.phi, distance, unlisted == "behind")
    assert fit.log_likelihood == pytest.approx(here, abs=1e-9)


@pytest.mark.parametrize("distance", DISTANCES)
def test_pairs_against_the_exact_matrix(distance):
    data = sample_rankings(np.random.default_rng(3), 80, [1, 0, 3, 2, 4], 0.75, distance=distance)
    parts = np.array(random_parts(np.random.default_rng(4), data, 2))
    fit = fit_pairs(parts[:, 0], parts[:, 1], 5, distance=distance)

    def value(centre, phi):
        return float(np.log(pairwise_matrix(centre, phi, distance)[parts[:, 0], parts[:, 1]]).sum())

    assert fit.log_likelihood == pytest.approx(value(fit.centre, fit.phi), abs=1e-9)
    for centre in itertools.permutations(range(5)):
        assert max(value(centre, phi) for phi in (0.5, 0.7, 0.9)) <= fit.log_likelihood


def test_pairs_are_partial_rankings_of_two():
    data = sample_rankings(np.random.default_rng(5), 60, np.arange(5), 0.8)
    parts = random_parts(np.random.default_rng(6), data, 2)
    as_pairs = fit_pairs([a for a, _ in parts], [b for _, b in parts], 5)
    as_parts = fit_partial(parts, 5)
    assert as_pairs.phi == pytest.approx(as_parts.phi, abs=1e-6)
    assert as_pairs.log_likelihood == pytest.approx(as_parts.log_likelihood, abs=1e-9)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("kind", ["rankings", "partial", "pairs"])
def test_the_truth_is_recovered_and_covered(kind, distance):
    """100 data sets of 60 observations of n = 4 items: 95 % intervals hold the truth at least 89 times."""
    phi, centre, generator = 0.75, np.array([3, 1, 0, 2]), np.random.default_rng(9)
    estimates, covered = [], 0
    for _ in range(100):
        data = sample_rankings(generator, 60, centre, phi, distance=distance)
        if kind == "rankings":
            fit = fit_rankings(data, distance=distance, centre=centre)
        elif kind == "partial":
            fit = fit_partial(random_parts(generator, data, 3), 4, distance=distance, centre=centre)
        else:
            parts = np.array(random_parts(generator, data, 2))
            fit = fit_pairs(parts[:, 0], parts[:, 1], 4, distance=distance, centre=centre)
        estimates.append(fit.phi)
        covered += fit.phi_low <= phi <= fit.phi_high
    assert 89 <= covered <= 100
    assert abs(np.mean(estimates) - phi) < 4 * np.std(estimates) / 10 + 0.01  # 0.01: bias of order 1 / observations


def test_the_centre_is_recovered():
    centre = np.random.default_rng(10).permutation(12)
    data = sample_rankings(np.random.default_rng(11), 300, centre, 0.7)
    fit = fit_rankings(data)
    assert (fit.centre == centre).all()
    assert fit.exact
    assert fit.phi == pytest.approx(0.7, abs=0.02)
    long = sample_rankings(np.random.default_rng(12), 200, np.arange(20), 0.7)
    found = fit_rankings(long)
    assert (found.centre == np.arange(20)).all()
    assert not found.exact
    parts = random_parts(
        np.random.default_rng(13), sample_rankings(np.random.default_rng(14), 300, np.arange(7), 0.6), 3
    )
    climbed = fit_partial(parts, 7)
    assert (climbed.centre == np.arange(7)).all()
    assert not climbed.exact


def test_a_kemeny_ranking_that_borda_misses():
    """Three voters A > B > C > D, two B > C > D > A: Kemeny puts A first (6 disagreements), mean places B first."""
    rankings = [[0, 1, 2, 3]] * 3 + [[3, 0, 1, 2]] * 2
    assert fit_rankings(rankings).centre.tolist() == [0, 1, 2, 3]
    assert fit_rankings(rankings, distance="spearman").centre.tolist() == [1, 0, 2, 3]


def test_edges_of_phi():
    same = fit_rankings([[0, 1, 2]] * 8)
    assert (same.phi, same.phi_low) == (0.0, 0.0)
    assert 0 < same.phi_high < 1
    opposite = fit_rankings([[0, 1, 2, 3], [3, 2, 1, 0]])
    assert (opposite.phi, opposite.phi_high) == (1.0, 1.0)
    assert opposite.log_likelihood == pytest.approx(-2 * math.log(24), abs=1e-12)


def test_bad_input():
    with pytest.raises(ValueError, match="m >= 1"):
        fit_rankings(np.empty((0, 3), dtype=int).reshape(0, 3))
    with pytest.raises(ValueError, match="different items of 0..2"):
        fit_partial([(0, 3)], 3)
    with pytest.raises(ValueError, match="no partial rankings"):
        fit_partial([], 3)
    with pytest.raises(ValueError, match="two different items"):
        fit_pairs([0], [0], 3)
    with pytest.raises(ValueError, match="at least one pair"):
        fit_pairs([], [], 3)
