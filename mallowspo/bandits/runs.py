"""Everything that is trained in a bandit study, and what it achieves: one table a seed, one a context.

Shape legend: S seeds, N betas, C contexts, K arms, B comparisons of one seed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mallowspo.bandits import outcomes, weights
from mallowspo.bandits.settings import BanditStudy
from mallowspo.bandits.training import tallied, train
from mallowspo.bandits.world import Comparisons, Floats, Law, World, draw_comparisons, make_world
from mallowspo.methods import METHODS

#: What is done to the weights of MallowsPO-theta to see whether they are the cause.
CONTROLS = ("shuffled", "shuffled_contexts", "inverted", "outside")
SOURCES = ("oracle", "estimated")
OUTCOMES = ("reward", "win_rate", "kl", "accuracy")
STAGES = ("early", "end")


@dataclass(frozen=True)
class Variant:
    """One policy to train: a method, whence its weights come, and what is done to them."""

    method: str
    source: str = "oracle"
    control: str = "none"

    @property
    def label(self) -> str:
        """The method's name alone for oracle weights as they are; else with source and control."""
        parts = [self.method, self.source if self.source != "oracle" else "", self.control]
        return " ".join(part for part in parts if part not in ("", "none"))

    @property
    def weighted(self) -> bool:
        return METHODS[self.method].weight == "dispersion"


@dataclass
class Runs:
    """All results.

    Attributes:
        values: one row per law, comparisons, label, stage, seed, beta: the `OUTCOMES`, each a mean over contexts.
        spreads: one row per law, comparisons, label, seed, phi: standard deviation over the arms of the learned reward
            at `same_beta`, after all steps.
        estimates: one row per law, comparisons, seed, phi: estimated -log phi.
        policies: (law, comparisons, label) -> log-policies (S, N, C, K) after all steps.
    """

    values: pd.DataFrame = field(default_factory=pd.DataFrame)
    spreads: pd.DataFrame = field(default_factory=pd.DataFrame)
    estimates: pd.DataFrame = field(default_factory=pd.DataFrame)
    policies: dict[tuple[str, int, str], Tensor] = field(default_factory=dict)


def variants(methods: list[str], law: Law) -> list[Variant]:
    """Every method with oracle weights, and MallowsPO-theta's controls; under Bradley-Terry the basic three alone."""
    theta = [Variant("mallows_theta", source, control) for source in SOURCES for control in ("none", *CONTROLS)]
    if law == "bradley_terry":
        return [Variant("dpo"), Variant("mallows_phi"), theta[0], theta[1 + len(CONTROLS)]]
    return [*(Variant(name) for name in methods if name != "mallows_theta"), *theta]


def run_all(settings: BanditStudy) -> Runs:
    """Train and measure everything."""
    log_reference = reference_of(settings).log()
    runs = Runs()
    values, spreads, estimates = [], [], []
    for law in ("mallows", "bradley_terry"):
        world = make_world(settings.seeds, settings.arms, np.array(settings.phis), law, settings.exponent)
        for count in settings.comparisons:
            comparisons = draw_comparisons(world, count, max(settings.comparisons))
            found = weights.estimated(world, comparisons, settings.exponent)
            keys = {"law": law, "comparisons": count}
            estimates.append(_by_context(found, world).assign(**keys))
            for variant, early, end in _trained(settings, world, comparisons, found, log_reference, law):
                runs.policies[law, count, variant.label] = end
                keys["label"] = variant.label
                for stage, policies in zip(STAGES, (early, end), strict=True):
                    measured = measure(policies, world, log_reference, settings.betas)
                    values.append(measured.assign(**keys, stage=stage))
                at = settings.betas.index(settings.same_beta)
                spread = outcomes.reward_spread(end[:, at], log_reference, torch.tensor(settings.same_beta))
                spreads.append(_by_context(spread.numpy(), world).assign(**keys))
    runs.values, runs.spreads, runs.estimates = (
        pd.concat(parts, ignore_index=True) for parts in (values, spreads, estimates)
    )
    return runs


def reference_of(settings: BanditStudy) -> Tensor:
    """(K,) probabilities of the arms under the reference policy."""
    given = settings.reference or [1 / settings.arms] * settings.arms
    probabilities = torch.tensor(given, dtype=torch.float64)
    return probabilities / probabilities.sum()


def measure(policies: Tensor, world: World, log_reference: Tensor, betas: list[float]) -> pd.DataFrame:
    """One row a seed and beta: every outcome of log-policies (S, N, C, K), the mean over contexts."""
    reward, place, preference = (
        torch.from_numpy(part)[:, None] for part in (world.reward, world.place, world.preference)
    )
    found = {
        "reward": outcomes.expected_reward(policies, reward),
        "win_rate": outcomes.win_rate(policies, log_reference, preference),
        "kl": outcomes.kl(policies, log_reference),
        "accuracy": outcomes.accuracy(policies, log_reference, place),
    }
    seeds = len(policies)
    columns = {name: value.mean(-1).flatten().numpy() for name, value in found.items()}
    return pd.DataFrame({"seed": np.repeat(np.arange(seeds), len(betas)), "beta": np.tile(betas, seeds), **columns})


def _trained(
    settings: BanditStudy, world: World, comparisons: Comparisons, found: Floats, log_reference: Tensor, law: Law
) -> Iterator[tuple[Variant, Tensor, Tensor]]:
    of_source = {
        "oracle": weights.calibrated(weights.oracle(world), comparisons),
        "estimated": weights.calibrated(found, comparisons),
    }
    controlled = {source: weights.controlled(weight, comparisons) for source, weight in of_source.items()}
    fixed: dict[str, Any] = {
        "log_reference": log_reference,
        "contexts": len(world.phi),
        "betas": torch.tensor(settings.betas, dtype=torch.float64),
        "training": settings.training,
    }
    for variant in variants(settings.methods, law):
        weight = None
        if variant.weighted:
            weight = controlled[variant.source].get(variant.control, of_source[variant.source])
        # Batch statistics and draws need the comparisons one by one; a shuffled weight differs within a context.
        one_by_one = METHODS[variant.method].adaptive is not None or variant.control == "shuffled"
        used, share, weight = (comparisons, None, weight) if one_by_one else tallied(comparisons, weight, world)
        policies = train(variant.method, used, weight, share=share, outside=variant.control == "outside", **fixed)
        yield variant, *policies


def _by_context(values: Floats, world: World) -> pd.DataFrame:
    seeds, contexts = values.shape
    return pd.DataFrame(
        {
            "seed": np.repeat(np.arange(seeds), contexts),
            "phi": np.tile(world.phi, seeds),
            "value": values.flatten(),
        }
    )
