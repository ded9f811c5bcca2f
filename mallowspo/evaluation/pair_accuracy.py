"""Implicit-reward accuracy, margin and calibration on pairs: in all, by source, by length, by dispersion.

The pairs are the held-out ones, and further sets (`evaluation.other_pairs`), each by itself.

The implicit reward's margin of a pair is the difference of log(pi / pi_ref) of its two responses, in nats; the policy
is right where it is above 0. Bradley and Terry's probability that the chosen response is preferred is sigmoid(beta x
margin): beta is the method's own, without any dispersion weight, and stands in every row. How sure the policy is of
the side that it takes is the larger of that probability and 1 minus it.

Expected calibration error (Naeini, Cooper and Hauskrecht 2015): mean over bins of |how sure - how often right|, bins of
equal counts. It is never below 0, so that a perfectly calibrated policy has some, and more of it the fewer the pairs:
`calibration_error_if_calibrated` is what such a policy would have on these pairs.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from mallowspo.evaluation.held_apart import is_validation
from mallowspo.files import read_parquet
from mallowspo.inference import estimate
from mallowspo.layout import Layout
from mallowspo.visible import one_line

Array = NDArray[np.float64]

#: In the column `pair_set`, the pairs of the experiment itself.
HELD_OUT = "test"
#: In how many parts pairs are looked at by the ratio of their lengths, and by their dispersion.
LENGTH_PARTS, DISPERSION_PARTS = 3, 5
#: Keys of a row of the data under which data sets say where it comes from.
SOURCES = ("source", "subset", "domain", "site")
#: Bins of the calibration error, and the fewest pairs in one.
BINS, LEAST_IN_BIN = 10, 10
BOOTSTRAP, SIMULATED = 1000, 200


def of_experiment(view: Any, layout: Layout) -> pd.DataFrame:
    """`accuracy_by_group` of every method of an experiment; a first column `pair_set` says test, or another set's name.

    Args:
        view: .methods, .seeds, .evaluation.comparison.confidence, .evaluation.other_pairs, .evaluation.selection: pairs
            of prompts that it holds apart are left out.
    """
    places = {HELD_OUT: layout, **{name: layout.other_pairs(name) for name in view.evaluation.other_pairs}}
    betas = {label: method.beta for label, method in view.methods.items()}
    confidence = view.evaluation.comparison.confidence
    apart = {HELD_OUT: view.evaluation.selection}
    parts = [
        _of_set(place, betas, view.seeds, confidence, apart.get(name)).assign(pair_set=name)
        for name, place in places.items()
    ]
    together = pd.concat(parts, ignore_index=True)
    return together[["pair_set", *together.columns.drop("pair_set")]]


def _of_set(
    layout: Layout, betas: Mapping[str, float], seeds: list[int], confidence: float, selection: Any
) -> pd.DataFrame:
    margins = {}
    for label in betas:
        tables = {seed: read_parquet(layout.scores(label, seed) / "pairs.parquet") for seed in seeds}
        margins[label] = pd.DataFrame({seed: t.set_index("pair_id")["margin"] for seed, t in tables.items()})
    dispersion = read_parquet(layout.dispersion) if layout.dispersion.exists() else None
    facts = pair_facts(read_parquet(layout.pairs("test")), read_parquet(layout.reference("test")), dispersion)
    tests = [not is_validation(name, selection) for name in facts["prompt_id"]]
    return accuracy_by_group(margins, facts[tests], betas, confidence)


def pair_facts(pairs: pd.DataFrame, reference: pd.DataFrame, dispersion: pd.DataFrame | None) -> pd.DataFrame:
    """By pair_id: prompt_id, source, length_ratio (tokens of chosen over tokens of rejected) and dispersion.

    Without a table of dispersion, the reference's mean entropy a token of both responses, in nats, stands in its place:
    the two order pairs alike, under the estimator `entropy`.
    """
    scored = reference.set_index("pair_id").loc[pairs["pair_id"]]
    tokens = {side: scored[f"{side}_tokens"].to_numpy(dtype=float) for side in ("chosen", "rejected")}
    if dispersion is None:
        each = [scored[f"{side}_entropy"].to_numpy() / tokens[side] for side in tokens]
        unit = (each[0] + each[1]) / 2
    else:
        unit = dispersion.set_index("pair_id")["dispersion_index"].reindex(pairs["pair_id"]).to_numpy()
    sources = [_source(meta, source) for meta, source in zip(pairs["meta"], pairs["source"], strict=True)]
    facts = {
        "prompt_id": pairs["prompt_id"].to_numpy(),
        "source": sources,
        "length_ratio": tokens["chosen"] / tokens["rejected"],
        "dispersion": unit,
    }
    return pd.DataFrame(facts, index=pd.Index(pairs["pair_id"], name="pair_id"))


def accuracy_by_group(
    margins: Mapping[str, pd.DataFrame], facts: pd.DataFrame, betas: Mapping[str, float], confidence: float = 0.95
) -> pd.DataFrame:
    """One row a method and group of pairs.

    Args:
        margins: of each method, by pair_id, one column a seed; nats.
        facts: of the same pairs, from `pair_facts`.

    Returns:
        method, by (all, source, length_ratio, dispersion), group, group_low and group_high (the range of what it is
        grouped by), pairs, prompts, seeds, beta; accuracy, margin, calibration_error, each with _low and _high;
        calibration_error_if_calibrated; covers. Accuracy and margin are means over prompts of the mean over a prompt's
        pairs, with the interval of `inference.estimate` (NaN for one prompt); the calibration error's is a percentile
        bootstrap over prompts.
    """
    rows = []
    for by, group, bounds, pair_ids in _groups(facts):
        prompts = facts.loc[pair_ids, "prompt_id"]
        each = {label: table.loc[pair_ids] for label, table in margins.items()}
        by_prompt = {
            "accuracy": {label: _right(table).groupby(prompts).mean() for label, table in each.items()},
            "margin": {label: table.groupby(prompts).mean() for label, table in each.items()},
        }
        for label, table in each.items():
            row: dict[str, Any] = {"method": label, "by": by, "group": group}
            row |= {"group_low": bounds[0], "group_high": bounds[1], "pairs": len(pair_ids)}
            row |= {"prompts": prompts.nunique(), "seeds": table.shape[1], "beta": betas[label]}
            for metric, tables in by_prompt.items():
                row |= _estimated(metric, tables, label, confidence)
            calibration = calibration_error(betas[label] * table.to_numpy(), prompts.to_numpy(), confidence)
            rows.append(row | {f"calibration_error{name}": value for name, value in calibration.items()})
    return pd.DataFrame(rows)


def calibration_error(scaled: Array, prompts: NDArray[Any], confidence: float = 0.95) -> dict[str, float]:
    """Expected calibration error with its bootstrap interval.

    Args:
        scaled: (pairs, seeds), beta x margin.
        prompts: (pairs,), what is resampled.

    Returns:
        "" (the error), _low, _high, _if_calibrated.
    """
    generator = np.random.default_rng(0)
    sure = expit(np.abs(scaled)).ravel()
    right = (0.5 + 0.5 * np.sign(scaled)).ravel()
    bins = max(1, min(BINS, len(scaled) // LEAST_IN_BIN))
    edges = np.quantile(sure, np.arange(1, bins) / bins)
    place = np.searchsorted(edges, sure, side="right")
    unit = np.unique(prompts, return_inverse=True)[1].repeat(scaled.shape[1])
    count = int(unit.max()) + 1
    gaps, sizes = np.zeros((count, bins)), np.bincount(unit).astype(float)
    np.add.at(gaps, (unit, place), sure - right)
    drawn = []
    for _ in range(BOOTSTRAP):
        weights = np.bincount(generator.integers(count, size=count), minlength=count)
        drawn.append(np.abs(weights @ gaps).sum() / (weights @ sizes))
    calibrated = [
        np.abs(np.bincount(place, sure - (generator.random(len(sure)) < sure), bins)).sum() / len(sure)
        for _ in range(SIMULATED)
    ]
    found = float(np.abs(gaps.sum(axis=0)).sum() / len(sure))
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2]) if count > 1 else (math.nan, math.nan)
    return {
        "": found,
        # Redrawn prompts are less calibrated than the ones at hand: few of them can leave the error below all draws.
        "_low": min(float(low), found) if count > 1 else math.nan,
        "_high": float(high),
        "_if_calibrated": float(np.mean(calibrated)),
    }


def _right(margins: pd.DataFrame) -> pd.DataFrame:
    """1 where the chosen response has the larger implicit reward, 0.5 where they are equal."""
    return 0.5 + 0.5 * margins.apply(np.sign)


def _source(meta: str, otherwise: str) -> str:
    values = json.loads(meta)
    return one_line(str(next((values[name] for name in SOURCES if values.get(name)), otherwise)), 100)


def _groups(facts: pd.DataFrame) -> Iterator[tuple[str, str, tuple[float, float], pd.Index]]:
    """What pairs are grouped by, the group's name, its range and its pairs."""
    nothing = (math.nan, math.nan)
    yield "all", "all", nothing, facts.index
    sources = sorted(set(facts["source"]))
    for source in sources if len(sources) > 1 else []:
        yield "source", source, nothing, facts.index[facts["source"] == source]
    for by, parts in (("length_ratio", LENGTH_PARTS), ("dispersion", DISPERSION_PARTS)):
        known = facts[by].dropna()
        if known.empty or known.min() == known.max():
            continue
        # Equal values stay together, so that parts can differ in size.
        place = np.searchsorted(np.quantile(known, np.arange(1, parts) / parts), known, side="left")
        for part in range(parts):
            values = known[place == part]
            if len(values):
                yield by, f"{part + 1} of {parts}", (float(values.min()), float(values.max())), values.index


def _estimated(metric: str, tables: Mapping[str, pd.DataFrame], label: str, confidence: float) -> dict[str, Any]:
    runs = np.stack([table.to_numpy() for table in tables.values()])
    found = estimate(tables[label], confidence, runs)
    low, high = found.low, found.high
    if metric == "accuracy" and not math.isnan(low):
        low, high = max(low, 0.0), min(high, 1.0)
    return {metric: found.mean, f"{metric}_low": low, f"{metric}_high": high, "covers": found.covers}
