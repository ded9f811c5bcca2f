"""Is a method better at equal KL? Reward against KL over several betas, or along a training, compared between methods.

A curve is made of points (mean KL by k1, mean reward): of the labels of an experiment that differ in beta alone, or of
the policies that were kept along one label's training, and its end. Which of the two it is says the column `along`.

- Reward at equal KL: a label's reward minus that of the baseline's curve at the label's own KL, by linear interpolation
  between the neighbouring points of the curve. There is none beyond the curve's ends, which the reference at KL 0 does
  not extend: reward rises fast there, and a straight line from 0 would flatter whoever is compared with it.
- Hypervolume (Zitzler and Thiele 1998): the area between the best reward that a curve has reached by each KL and the
  reference's reward, from KL 0 to the largest mean KL of any curve; in the reward's unit times nats.

Intervals are percentiles of a bootstrap over prompts and seeds that draws the same ones for all points, so that what is
common to them drops out; rewards and KL are resampled together. With two seeds that differ much it is too narrow
(docs/evaluation.md).
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mallowspo.evaluation.kl import K1
from mallowspo.files import digest
from mallowspo.inference import bootstrap_means
from mallowspo.layout import REFERENCE

Array = NDArray[np.float64]
EQUAL_KL, HYPERVOLUME, HYPERVOLUME_GAIN = "reward at equal KL", "hypervolume", "hypervolume gain"
BETA, TRAINING = "beta", "training"
COLUMNS = ("along", "measure", "method", "against", "kl", "estimate", "ci_low", "ci_high", "n", "seeds", "outside",
           "note")  # fmt: skip


def curves(methods: Mapping[str, Any]) -> list[list[str]]:
    """Labels that differ in beta alone, together; alone-standing ones are left out."""
    alike: dict[str, dict[float, str]] = {}
    for label, settings in methods.items():
        rest = digest([settings.method, settings.options, settings.control])
        alike.setdefault(rest, {}).setdefault(settings.beta, label)
    return [list(labels.values()) for labels in alike.values() if len(labels) > 1]


def curve_name(labels: list[str]) -> str:
    """What a curve is called in tables."""
    return ", ".join(labels)


def reward_at(kl: Array, curve_kl: Array, curve_reward: Array) -> Array:
    """Reward of a curve of B points (R, B) at KL (R,), by the line through the two neighbouring points.

    Beyond the ends the last line goes on; of two points with the same KL the mean is taken.
    """
    order = curve_kl.argsort(axis=1, kind="stable")
    x, y = (np.take_along_axis(values, order, axis=1) for values in (curve_kl, curve_reward))
    left = np.clip((x <= kl[:, None]).sum(axis=1) - 1, 0, x.shape[1] - 2)
    rows = np.arange(len(x))
    width = x[rows, left + 1] - x[rows, left]
    share = np.divide(kl - x[rows, left], width, out=np.full(len(x), 0.5), where=width > 0)
    found: Array = y[rows, left] + share * (y[rows, left + 1] - y[rows, left])
    return found


def hypervolume(curve_kl: Array, curve_reward: Array, floor: Array, largest_kl: float) -> Array:
    """Area (R,) under the best reward reached by each KL, above `floor` (R,), from KL 0 to `largest_kl`."""
    order = curve_kl.argsort(axis=1, kind="stable")
    x = np.clip(np.take_along_axis(curve_kl, order, axis=1), 0, largest_kl)
    gain = np.take_along_axis(curve_reward, order, axis=1) - floor[:, None]
    best = np.maximum.accumulate(np.maximum(gain, 0), axis=1)
    widths = np.diff(x, axis=1, append=largest_kl)
    area: Array = (best * widths).sum(axis=1)
    return area


def frontier_table(
    values: dict[str, dict[str, pd.DataFrame]], methods: Mapping[str, Any], baseline: str, resampling: dict[str, Any]
) -> pd.DataFrame:
    """Rows of `COLUMNS` for frontier.parquet; none where no method has several betas.

    Args:
        values: metric -> label -> (prompts, seeds), of `mallowspo.compare_values.read_values`.
        methods: label -> settings with method, beta, options and control.
        resampling: confidence, resamples, seed.

    Returns:
        n is prompts; kl is the label's mean KL, or the largest of the hypervolume's; outside is the share of resamples
        in which the label's KL lay beyond the curve's ends, where its last line goes on.
    """
    found = {curve_name(labels): labels for labels in curves(methods)}
    own = next((name for name, labels in found.items() if baseline in labels), None)
    others = [label for label in methods if own and label not in found[own]]
    return _compared(values, found, own, others, resampling).assign(along=BETA)


def paths_table(
    values: dict[str, dict[str, pd.DataFrame]],
    paths: Mapping[str, list[str]],
    baseline: str,
    resampling: dict[str, Any],
) -> pd.DataFrame:
    """The same where each label's curve is its training: `paths` has the policies along it, the label itself last."""
    others = [name for label, path in paths.items() if label != baseline for name in path]
    return _compared(values, paths, baseline, others, resampling).assign(along=TRAINING)


def _compared(
    values: dict[str, dict[str, pd.DataFrame]],
    found: Mapping[str, list[str]],
    own: str | None,
    others: list[str],
    resampling: dict[str, Any],
) -> pd.DataFrame:
    """Curves by name, and policies beside them, against the curve `own`."""
    if not found:
        return pd.DataFrame({name: pd.Series(dtype=object) for name in COLUMNS})
    names = dict.fromkeys([name for curve in found.values() for name in curve] + others)
    points = _Points(values, list(names), resampling)
    largest = float(max(points.of(K1, [name])[0, 0] for curve in found.values() for name in curve))
    rows = [_equal_kl(points, name, own, found[own]) for name in others if own]
    rows += [_hypervolume(points, {name: curve}, largest) for name, curve in found.items()]
    rows += [
        _hypervolume(points, {name: curve, own: found[own]}, largest)
        for name, curve in found.items()
        if own and name != own
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


class _Points:
    """Mean KL and reward of every label: row 0 as measured, the other rows of the resamples."""

    def __init__(self, values: dict[str, dict[str, pd.DataFrame]], labels: list[str], resampling: dict[str, Any]):
        self.confidence = resampling["confidence"]
        index = values["reward"][REFERENCE].index
        self.n, self.seeds = len(index), values["reward"][labels[0]].shape[1]
        self.columns = {(metric, label): at for at, (metric, label) in enumerate(
            [("reward", REFERENCE), *((metric, label) for label in labels for metric in (K1, "reward"))]
        )}  # fmt: skip
        tables = np.stack(
            [
                # The untrained policy has one column, which stands beside every seed.
                np.broadcast_to(values[metric][label].loc[index].to_numpy(dtype=float), (self.n, self.seeds))
                for metric, label in self.columns
            ]
        )
        drawn = bootstrap_means(tables, resampling["resamples"], resampling["seed"])
        self.means = np.concatenate([tables.mean(axis=(1, 2))[None], drawn])

    def of(self, metric: str, labels: list[str]) -> Array:
        """(1 + R, labels)."""
        found: Array = self.means[:, [self.columns[metric, label] for label in labels]]
        return found

    def row(self, measure: str, method: str, against: str, numbers: Array, kl: float) -> dict[str, Any]:
        """One row of the table from (1 + R,) numbers."""
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(numbers[1:], [tail, 1 - tail])
        row: dict[str, Any] = {"along": "", "measure": measure, "method": method, "against": against, "kl": kl}
        row |= {"estimate": float(numbers[0]), "ci_low": float(low), "ci_high": float(high)}
        return {**row, "n": self.n, "seeds": self.seeds, "outside": math.nan, "note": ""}


def _equal_kl(points: _Points, label: str, name: str, curve: list[str]) -> dict[str, Any]:
    kl, curve_kl = points.of(K1, [label])[:, 0], points.of(K1, curve)
    gain = points.of("reward", [label])[:, 0] - reward_at(kl, curve_kl, points.of("reward", curve))
    row = points.row(EQUAL_KL, label, name, gain, float(kl[0]))
    outside = (kl < curve_kl.min(axis=1)) | (kl > curve_kl.max(axis=1))
    if outside[0]:
        row |= dict.fromkeys(("estimate", "ci_low", "ci_high"), math.nan)
        ends = f"{curve_kl[0].min():.3g} to {curve_kl[0].max():.3g}"
        return {**row, "note": f"its KL lies outside the curve's, {ends} nats: nothing to compare it with"}
    return {**row, "outside": float(outside[1:].mean())}


def _hypervolume(points: _Points, named: dict[str, list[str]], largest: float) -> dict[str, Any]:
    """Of one curve by name; of two, how much larger the first one's is."""
    floor = points.of("reward", [REFERENCE])[:, 0]
    areas = {
        name: hypervolume(points.of(K1, curve), points.of("reward", curve), floor, largest)
        for name, curve in named.items()
    }
    name, *against = areas
    if not against:
        return points.row(HYPERVOLUME, name, "", areas[name], largest)
    return points.row(HYPERVOLUME_GAIN, name, against[0], areas[name] - areas[against[0]], largest)
