"""What differs between two finished experiments: each outcome of each pair of policies, and the settings."""

from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from mallowspo.between.finished import Finished
from mallowspo.compare import NOT_TESTED
from mallowspo.errors import InputError
from mallowspo.inference import holm
from mallowspo.inference.independent import independent_difference
from mallowspo.layout import REFERENCE
from mallowspo.metric_names import OUTCOMES, bare, is_benchmark, is_part, opponent

#: The experiments' names in `--policies`, and on the tables.
SIDES = ("a", "b")
#: Prompts are paired where at least so many are in both, and a share of the smaller experiment's.
LEAST = 10
_ORDER = (*OUTCOMES, "benchmark", "kl", "length", "margin", "complete")
Pair = tuple[str, str]


@dataclass(frozen=True)
class Between:
    """Attributes:
    sides: the two experiments, a and b.
    shared: test prompts that both have.
    table: a row a metric and pair of policies, the difference being a - b.
    settings: rows of key, a, b: resolved settings that differ.
    left_out: outcomes that are no comparison, each with its reason.
    """

    sides: tuple[Finished, Finished]
    shared: int
    table: pd.DataFrame
    settings: pd.DataFrame
    left_out: list[str] = field(default_factory=list)


def compare_finished(a: Finished, b: Finished, policies: str | None, shared: float = 0.5) -> Between:
    """All differences a - b, with Holm's correction over the table.

    Args:
        policies: such as "a:dpo,b:mallows_theta": every named policy of a against every named one of b; default: each
            label of a method that both have.
        shared: share of the smaller experiment's prompts (or items) from which on they are paired.

    Raises:
        InputError: a policy is unknown, or nothing is left to compare.
    """
    pairs = named_pairs(policies, a, b) if policies else _common(a, b)
    metrics, left_out = _comparable(a, b)
    rows = [
        {"metric": metric, "a_policy": pair[0], "b_policy": pair[1], **_row(a, b, metric, pair, shared)}
        for metric, pair in product(metrics, pairs)
        if pair[0] in a.values[metric] and pair[1] in b.values[metric]
    ]
    if not rows:
        reasons = f": {'; '.join(left_out)}" if left_out else ""
        raise InputError(f"{a.layout.root} and {b.layout.root}: these policies have no outcome in common{reasons}")
    table = pd.DataFrame(rows)
    table.insert(list(table).index("p") + 1, "p_holm", holm(table["p"]))
    both = len(a.prompts.intersection(b.prompts))
    return Between((a, b), both, table, settings_differences(a, b), left_out)


def named_pairs(policies: str, a: Finished, b: Finished) -> list[Pair]:
    """All pairs of the policies of a and of b that a text such as "a:dpo,b:dpo,b:mallows_theta" names."""
    named: dict[str, list[str]] = {side: [] for side in SIDES}
    for word in filter(None, (part.strip() for part in policies.split(","))):
        side, _, label = word.partition(":")
        if side not in SIDES or not label:
            raise InputError(f"--policies {word}: write a:LABEL (of the first folder) or b:LABEL (of the second)")
        known = dict(zip(SIDES, (a, b), strict=True))[side].labels
        if label not in known:
            raise InputError(f"--policies {word}: {side} has {', '.join(known)}")
        named[side].append(label)
    for side, labels in named.items():
        if not labels:
            raise InputError(f"--policies {policies}: names no policy of {side}; write such as a:dpo,b:mallows_theta")
    return list(dict.fromkeys(product(named["a"], named["b"])))


def _common(a: Finished, b: Finished) -> list[Pair]:
    common = [(label, label) for label in a.settings.methods if label in b.settings.methods]
    if not common:
        raise InputError(
            f"{a.layout.root} and {b.layout.root}: no label in common (a: {', '.join(a.settings.methods)}; b: "
            f"{', '.join(b.settings.methods)}); name policies, such as --policies a:{next(iter(a.settings.methods))},"
            f"b:{next(iter(b.settings.methods))}"
        )
    return common


def _comparable(a: Finished, b: Finished) -> tuple[list[str], list[str]]:
    """Metrics of both in reading order, and those that measure something else in a than in b, with the reason."""
    shared = [metric for metric in a.values if metric in b.values and metric not in NOT_TESTED and not is_part(metric)]
    order = {kind: position for position, kind in enumerate(_ORDER)}
    shared.sort(key=lambda metric: order.get("benchmark" if is_benchmark(metric) else bare(metric), len(order)))
    kept, left_out = [], []
    judges = {"reward": [side.settings.evaluation.judge for side in (a, b)]}
    judges["win_rate"] = [side.settings.evaluation.alpaca.judge or side.settings.evaluation.judge for side in (a, b)]
    for metric in shared:
        by = judges.get(bare(metric), ["", ""])
        if by[0] != by[1]:
            left_out.append(f"{metric}: judged by {by[0]} in a and by {by[1]} in b")
        elif opponent(metric) in {*a.settings.methods, *b.settings.methods}:
            left_out.append(f"{metric}: each against a policy of its own experiment")
        else:
            kept.append(metric)
    return kept, left_out


def _row(a: Finished, b: Finished, metric: str, pair: Pair, shared: float) -> dict[str, Any]:
    tables = (a.values[metric][pair[0]], b.values[metric][pair[1]])
    both = tables[0].index.intersection(tables[1].index)
    paired = len(both) >= max(LEAST, shared * min(map(len, tables)))
    if paired:
        tables = (tables[0].loc[both], tables[1].loc[both])
    settings = a.settings.evaluation.comparison
    found = independent_difference(
        tables[0].to_numpy(),
        tables[1].to_numpy(),
        paired,
        (_runs(a, metric, pair[0], tables[0]), _runs(b, metric, pair[1], tables[1])),
        settings.confidence,
        settings.resamples,
        settings.seed,
    )
    return {
        "a": float(tables[0].to_numpy().mean()),
        "b": float(tables[1].to_numpy().mean()),
        "difference": found.difference,
        "ci_low": found.low,
        "ci_high": found.high,
        "p": found.p,
        "p_policies": found.p_policies,
        "detectable": found.detectable,
        "paired": paired,
        "shared": len(both),
        "a_n": len(tables[0]),
        "b_n": len(tables[1]),
        "a_seeds": tables[0].shape[1],
        "b_seeds": tables[1].shape[1],
        "covers": found.covers,
        "test": found.test,
    }


def _runs(side: Finished, metric: str, label: str, table: pd.DataFrame) -> Any:
    """(M, P, S): all methods of the experiment tell how much runs differ; of the reference, its own one run does."""
    if label == REFERENCE:
        return table.to_numpy()[None]
    by_label = side.values[metric]
    return np.stack([by_label[name].loc[table.index].to_numpy() for name in side.settings.methods if name in by_label])


def settings_differences(a: Finished, b: Finished) -> pd.DataFrame:
    """Resolved settings that differ, a row a key: key, a, b; a dash where one has no such key. Titles do not count."""
    flat = [_leaves(side.settings.model_dump(exclude={"title", "question"})) for side in (a, b)]
    keys = list(dict.fromkeys([*flat[0], *flat[1]]))
    rows = [(key, flat[0].get(key, "–"), flat[1].get(key, "–")) for key in keys]
    return pd.DataFrame([row for row in rows if row[1] != row[2]], columns=["key", *SIDES])


def _leaves(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            found |= _leaves(value, f"{name}.")
        else:
            found[name] = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return found
