"""(a) Rankings from Mallows models over a grid of dispersions: what do annotators' rankings say of -log phi?

Shape legend: F dispersions, R replicates (prompts) of each, M annotators of one prompt, B resamples.

Under Kendall's tau a ranking is built by insertions that are independent of each other (Doignon et al. 2004): with
q = phi^exponent, insertion j of n takes one of j places with probabilities proportional to 1, q, ..., q^(j-1). So the
entropy of the whole ranking is the sum of n small entropies, and that of the first choice is the last of them.
"""

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from mallowspo.dispersion_study.association import spearman
from mallowspo.dispersion_study.settings import RankingSettings, StatisticsSettings
from mallowspo.mallows.likelihood import fit_rankings
from mallowspo.mallows.rankings import Exponent, sample_rankings

Array = NDArray[np.float64]

LIKELIHOOD, CHOICE, RANKING = "maximum likelihood", "entropy of the first choice", "entropy of the ranking"
ESTIMATORS = (LIKELIHOOD, CHOICE, RANKING)


def exact_index(phi: float, items: int, exponent: int) -> dict[str, float]:
    """Normalised entropies of the law itself (infinitely many annotators), in [0, 1]: first choice, whole ranking."""
    entropies = [stats.entropy(phi ** (exponent * np.arange(places))) for places in range(1, items + 1)]
    return {
        CHOICE: float(entropies[-1]) / math.log(items),
        RANKING: float(sum(entropies)) / math.lgamma(items + 1),
    }


def plug_in_index(rankings: NDArray[np.int64]) -> dict[str, float]:
    """Normalised entropies of the observed frequencies, (M, n) rankings: the paper's form, from annotators' answers."""
    items = rankings.shape[1]
    first = np.bincount(rankings.argmin(axis=1))
    whole = np.unique(rankings, axis=0, return_counts=True)[1]
    return {
        CHOICE: float(stats.entropy(first)) / math.log(items),
        RANKING: float(stats.entropy(whole)) / math.lgamma(items + 1),
    }


def simulate(settings: RankingSettings, replicates: int, seed: int) -> pd.DataFrame:
    """One row a prompt and estimator: items, annotators, phi, truth (-log phi), replicate, estimator, estimate, capped.

    `replicates` prompts a cell, each with a centre of its own; `capped`: set to `settings.cap`, being above it.
    """
    rows = []
    for items in settings.items:
        for annotators in settings.annotators:
            for index, phi in enumerate(settings.phis):
                # A generator a cell: adding a cell leaves the draws of the others as they were.
                rng = np.random.default_rng([seed, items, annotators, index])
                for replicate in range(replicates):
                    centre = rng.permutation(items)
                    rankings = sample_rankings(rng, annotators, centre, phi, exponent=settings.exponent)
                    for estimator, value in estimates(rankings, settings.exponent).items():
                        rows.append(
                            {
                                "items": items,
                                "annotators": annotators,
                                "phi": phi,
                                "truth": -math.log(phi),
                                "replicate": replicate,
                                "estimator": estimator,
                                "estimate": min(value, settings.cap),
                                "capped": value > settings.cap,
                            }
                        )
    return pd.DataFrame(rows)


def estimates(rankings: NDArray[np.int64], exponent: Exponent) -> dict[str, float]:
    """Each estimate of -log phi, before calibration; infinite where all annotators agree."""
    fit = fit_rankings(rankings, distance="kendall", exponent=exponent)
    return {LIKELIHOOD: _negative_log(fit.phi)} | {
        name: _negative_log(value) for name, value in plug_in_index(rankings).items()
    }


def _negative_log(value: float) -> float:
    # Not -log alone: an index of 1 gives -0.0, and one of 1 + 1e-16 a negative estimate.
    return math.inf if value <= 0 else max(0.0, -math.log(value))


def summarise(table: pd.DataFrame, statistics: StatisticsSettings, seed: int) -> pd.DataFrame:
    """One row for each number of items, annotators and estimator, with intervals from resampling prompts.

    constant: makes the mean estimate equal the mean truth (phi* of the paper's form; 1 for maximum likelihood);
    slope: least squares of constant * estimate on the truth; bias: mean of estimate - truth, constant left out;
    error: root mean square of constant * estimate - truth; rho: Spearman's over all prompts of the grid.
    """
    rows = []
    for (items, annotators, estimator), part in table.groupby(["items", "annotators", "estimator"], sort=False):
        values = part.pivot(index="truth", columns="replicate", values="estimate")
        truth = np.broadcast_to(values.index.to_numpy()[:, None], values.shape)
        grid = values.to_numpy()
        rng = np.random.default_rng(seed)
        drawn = rng.integers(grid.shape[1], size=(statistics.resamples, *grid.shape))
        resampled = np.take_along_axis(np.broadcast_to(grid, drawn.shape), drawn, axis=2)
        scaled = estimator != LIKELIHOOD
        found, spread = _measures(grid[None], truth, scaled), _measures(resampled, truth, scaled)
        row = {"items": items, "annotators": annotators, "estimator": estimator, "n": grid.size}
        row["capped"] = int(part["capped"].sum())
        tails = [(1 - statistics.confidence) / 2, (1 + statistics.confidence) / 2]
        for name, value in found.items():
            row[name] = float(value[0])
            row[f"{name}_low"], row[f"{name}_high"] = map(float, np.quantile(spread[name], tails))
        rows.append(row)
    return pd.DataFrame(rows)


def exact_summary(settings: RankingSettings) -> pd.DataFrame:
    """As `summarise`, of the law itself: infinitely many annotators, no chance, so no intervals."""
    rows = []
    truth = -np.log(np.array(settings.phis))[:, None]
    for items in settings.items:
        laws = [exact_index(phi, items, settings.exponent) for phi in settings.phis]
        for estimator in (CHOICE, RANKING):
            grid = np.array([_negative_log(law[estimator]) for law in laws])[None, :, None]
            found = {name: float(value[0]) for name, value in _measures(grid, truth, True).items()}
            rows.append({"items": items, "annotators": math.inf, "estimator": estimator, "n": grid.size, **found})
    return pd.DataFrame(rows)


def _measures(grid: Array, truth: Array, scaled: bool) -> dict[str, Array]:
    """(B, F, R) estimates and (F, R) truth -> each measure (B,)."""
    flat, target = grid.reshape(len(grid), -1), truth.reshape(-1)
    constant = target.mean() / flat.mean(axis=1) if scaled else np.ones(len(flat))
    calibrated = constant[:, None] * flat
    centred = target - target.mean()
    return {
        "constant": constant,
        "slope": calibrated @ centred / (centred @ centred),
        "bias": (flat - target).mean(axis=1),
        "error": np.sqrt(((calibrated - target) ** 2).mean(axis=1)),
        "rho": spearman(flat, np.broadcast_to(target, flat.shape)),
    }
