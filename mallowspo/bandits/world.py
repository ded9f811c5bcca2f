"""Contexts with a known ranking of the arms and a known dispersion, and comparisons drawn from them.

Shape legend: S seeds, C contexts, K arms, B comparisons of one seed (all contexts together).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from mallowspo.mallows import pairwise_probability

Law = Literal["mallows", "bradley_terry"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class World:
    """Every seed has its own central rankings; the dispersions are the same.

    Attributes:
        phi: (C,) dispersion of each context.
        place: (S, C, K) place of each arm in its context's central ranking, 0 the best.
        reward: (S, C, K) from 1 (first place) to 0 (last), in equal steps.
        preference: (S, C, K, K) probability that the first arm is preferred to the second; 1/2 with itself.
    """

    phi: Floats
    place: Ints
    reward: Floats
    preference: Floats


@dataclass(frozen=True)
class Comparisons:
    """(S, B): context, preferred and other arm of every comparison; each seed has the same number in each context."""

    context: Ints
    chosen: Ints
    rejected: Ints


def make_world(seeds: int, arms: int, phi: Floats, law: Law, exponent: Literal[1, 2]) -> World:
    """Central rankings by seed, the same under both laws, and the exact preference of every pair of arms.

    mallows: Kendall's exact pairwise probability for the context's phi. bradley_terry: the control, in which DPO's
    model is right: sigmoid of the reward gap, a place being worth -exponent * log(phi), so that neighbours are as
    clearly apart as under Mallows (both laws agree at gap 1).
    """
    place = np.stack([_generator(seed, 0).permuted(_in_order(len(phi), arms), axis=1) for seed in range(seeds)])
    gap = place[..., None, :] - place[..., :, None]  # places that the first arm is ahead
    if law == "mallows":
        shape = (1, len(phi), 1, 1)
        dispersion = torch.from_numpy(phi).reshape(shape)
        preference = pairwise_probability(torch.from_numpy(gap).double(), dispersion, exponent=exponent).numpy()
    else:
        preference = expit(-exponent * np.log(phi)[:, None, None] * gap)
    reward = (arms - 1 - place) / (arms - 1)
    return World(phi, place, reward, preference)


def draw_comparisons(world: World, count: int, most: int) -> Comparisons:
    """`count` comparisons in each context: two arms by lot, the preferred one by the world's law.

    Of `most` draws the first `count` are used, so that fewer comparisons are part of more, and both laws use the same
    draws: what differs between the tables is what is meant to differ.
    """
    seeds, contexts, arms = world.place.shape
    first, second = np.triu_indices(arms, 1)
    chosen = np.empty((seeds, contexts, count), dtype=np.int64)
    rejected = np.empty_like(chosen)
    for seed in range(seeds):
        generator = _generator(seed, 1)
        pair = generator.integers(len(first), size=(contexts, most))[:, :count]
        luck = generator.random((contexts, most))[:, :count]
        one, other = first[pair], second[pair]
        wins = luck < world.preference[seed, np.arange(contexts)[:, None], one, other]
        chosen[seed], rejected[seed] = np.where(wins, one, other), np.where(wins, other, one)
    context = np.broadcast_to(np.arange(contexts)[:, None], (seeds, contexts, count))
    return Comparisons(*(part.reshape(seeds, -1).copy() for part in (context, chosen, rejected)))


def every_pair(world: World) -> Comparisons:
    """Every ordered pair of arms once in each context."""
    seeds, contexts, arms = world.place.shape
    first, second = np.nonzero(~np.eye(arms, dtype=bool))
    shape = (seeds, contexts, len(first))
    context = np.broadcast_to(np.arange(contexts)[:, None], shape)
    chosen, rejected = np.broadcast_to(first, shape), np.broadcast_to(second, shape)
    return Comparisons(*(part.reshape(seeds, -1).copy() for part in (context, chosen, rejected)))


def _in_order(contexts: int, arms: int) -> Ints:
    return np.tile(np.arange(arms), (contexts, 1))


def _generator(seed: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, stream])
