"""Dispersion weights of the comparisons: from the true dispersion, or from what the comparisons themselves show.

Shape legend: S seeds, C contexts, K arms, B comparisons.
"""

from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from mallowspo.bandits.world import Comparisons, Floats, World
from mallowspo.dispersion.controls import controls
from mallowspo.mallows.rankings import pairwise_by_place

#: Points of the even grid over phi in (0, 1).
GRID = 100


def oracle(world: World) -> Floats:
    """(S, C): -log phi of every context, as it is."""
    return np.tile(-np.log(world.phi), (len(world.place), 1))


def estimated(world: World, comparisons: Comparisons, exponent: int) -> Floats:
    """(S, C): posterior mean of -log phi given the comparisons of the context.

    Prior: every central ranking and every phi of an even grid over (0, 1) alike. Likelihood: Kendall's exact pairwise
    probability. The maximum of the likelihood would be phi = 0, an infinite weight, wherever the comparisons do not
    contradict each other, which few comparisons often do not; the mean is finite.
    """
    seeds, contexts, arms = world.place.shape
    wins = np.zeros((seeds, contexts, arms, arms))
    np.add.at(
        wins,
        (np.arange(seeds)[:, None], comparisons.context, comparisons.chosen, comparisons.rejected),
        1.0,
    )
    phi = (np.arange(GRID) + 0.5) / GRID
    law = np.stack([pairwise_by_place(arms, -exponent * np.log(value), "kendall") for value in phi])  # (G, K, K)
    log_law = np.log(np.where(np.eye(arms, dtype=bool), 1.0, law))
    orders = np.array(list(permutations(range(arms))))  # (R, K): the arm at each place
    by_place = wins[:, :, orders[:, :, None], orders[:, None, :]]  # (S, C, R, K, K)
    log_likelihood = np.einsum("scrij,gij->scgr", by_place, log_law, optimize=True)
    highest = log_likelihood.max(axis=(2, 3), keepdims=True)
    posterior = np.exp(log_likelihood - highest).sum(axis=3)
    posterior /= posterior.sum(axis=2, keepdims=True)
    found: Floats = (posterior * -np.log(phi)).sum(axis=2)
    return found


def calibrated(neg_log_phi: Floats, comparisons: Comparisons) -> Floats:
    """(S, B): weight of every comparison, proportional to -log phi of its context, of mean 1 in every seed."""
    weight = np.take_along_axis(neg_log_phi, comparisons.context, axis=1)
    mean = weight.mean(axis=1, keepdims=True)
    if not (mean > 0).all():
        raise ValueError("every -log phi is 0: no comparison has a weight to calibrate")
    calibrated: Floats = weight / mean
    return calibrated


def controlled(weight: Floats, comparisons: Comparisons) -> dict[str, Floats]:
    """The same weights given to other comparisons, seed by seed; the mean stays 1.

    shuffled and inverted as in comparisons of language models (`mallowspo.dispersion.controls`); shuffled_contexts
    deals the contexts' weights out anew, so that all comparisons of a context still share one.
    """
    dealt = [_deal(weight[seed], comparisons.context[seed], seed) for seed in range(len(weight))]
    rows = [controls(row, np.ones_like(row), seed) for seed, row in enumerate(weight)]
    return {
        "shuffled": np.stack([row["shuffled"] for row in rows]),
        "shuffled_contexts": np.stack(dealt),
        "inverted": np.stack([row["inverted"] for row in rows]),
    }


def _deal(weight: Floats, context: NDArray[np.int64], seed: int) -> Floats:
    """One seed: context c gets the weight of context order[c]; every context has as many comparisons, so means stay."""
    of_context = np.array([weight[context == c][0] for c in range(context.max() + 1)])
    order = np.random.default_rng([seed, 2]).permutation(len(of_context))
    dealt: Floats = of_context[order][context]
    return dealt
