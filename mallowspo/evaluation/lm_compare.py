"""Two models on the same items of lm-eval's tasks, item by item: lm-eval's own comparison takes them for unpaired."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from statsmodels.stats.contingency_tables import mcnemar

from mallowspo.errors import InputError
from mallowspo.files import read_parquet
from mallowspo.inference import holm, paired_difference
from mallowspo.report.words import count, fixed, p_value

KEY = ["task", "metric", "doc_id"]
MCNEMAR = "McNemar's exact test, two-sided"


def compare_files(ours: str | Path, theirs: str | Path, confidence: float = 0.95) -> pd.DataFrame:
    """`compare_items` of two lm_eval.parquet files."""
    tables = [read_parquet(path) for path in (ours, theirs)]
    for path, table in zip((ours, theirs), tables, strict=True):
        missing = [column for column in [*KEY, "value"] if column not in table]
        if missing:
            raise InputError(f"{path}: has no column {missing[0]}; give the lm_eval.parquet of a model")
    return compare_items(tables[0], tables[1], (str(ours), str(theirs)), confidence)


def compare_items(
    ours: pd.DataFrame, theirs: pd.DataFrame, names: tuple[str, str], confidence: float = 0.95
) -> pd.DataFrame:
    """One row a task and metric: ours minus theirs on the same items.

    Where every value is 0 or 1 the test is McNemar's exact one, which asks whether the items that one model alone
    gets right are evenly shared; else a sign-flip permutation test of the paired differences. The interval is that of
    `paired_difference`. p_holm corrects over all rows.

    Args:
        ours, theirs: tables of `evaluation.lm_eval`.
        names: of both, for messages.

    Returns:
        task, metric, ours, theirs, difference, ci_low, ci_high, p, p_holm, only_ours, only_theirs (items that one alone
        gets right; NaN where values are not 0 or 1), n, detectable (with 80 % power), other_prompts (items that were
        asked otherwise, by other examples or another chat template), test.

    Raises:
        InputError: the two do not hold the same items, each once.
    """
    _check(ours, theirs, names)
    together = ours.merge(theirs, on=KEY, suffixes=("_ours", "_theirs"), validate="one_to_one")
    if "doc_hash" in ours and "doc_hash" in theirs:
        other = together[together["doc_hash_ours"] != together["doc_hash_theirs"]]
        if len(other):
            raise InputError(
                f"{names[0]} and {names[1]}: {len(other)} items of {other['task'].iloc[0]} differ (first: doc_id "
                f"{other['doc_id'].iloc[0]}), so they cannot be paired; evaluate both on the same data"
            )
    rows = [
        {"task": task, "metric": metric, **_row(table, confidence)}
        for (task, metric), table in together.groupby(["task", "metric"], sort=False)
    ]
    found = pd.DataFrame(rows)
    return found.assign(p_holm=holm(found["p"]))


def told(table: pd.DataFrame, names: tuple[str, str]) -> str:
    """The rows in lines."""
    lines = [f"{names[0]} minus {names[1]}"]
    for row in table.to_dict("records"):
        alone = "" if math.isnan(row["only_ours"]) else f", {row['only_ours']:.0f} against {row['only_theirs']:.0f}"
        lines.append(
            f"{row['task']}/{row['metric']}: {row['ours']:.4f} - {row['theirs']:.4f} = {row['difference']:+.4f} "
            f"[{fixed(row['ci_low'], 4)}, {fixed(row['ci_high'], 4)}], p {p_value(row['p'])} (Holm "
            f"{p_value(row['p_holm'])}), n = {count(row['n'])}{alone}; {row['test']}"
        )
        if row["other_prompts"]:
            lines.append(
                f"  {count(row['other_prompts'])} items were asked otherwise: examples or chat template differ"
            )
    return "\n".join(lines)


def _check(ours: pd.DataFrame, theirs: pd.DataFrame, names: tuple[str, str]) -> None:
    keys = []
    for table, name in zip((ours, theirs), names, strict=True):
        twice = table[table.duplicated(KEY)]
        if len(twice):
            raise InputError(f"{name}: {tuple(twice[KEY].iloc[0])} is there twice; evaluate again")
        keys.append(set(table[KEY].itertuples(index=False, name=None)))
    for here, there, missing in ((0, 1, keys[1] - keys[0]), (1, 0, keys[0] - keys[1])):
        if missing:
            task, metric, item = min(missing)
            raise InputError(
                f"{names[here]}: lacks {len(missing)} items that {names[there]} has (first: {task}/{metric}, doc_id "
                f"{item}); evaluate both on the same items"
            )
    if not keys[0]:
        raise InputError(f"{names[0]}: holds no items")


def _row(table: pd.DataFrame, confidence: float) -> dict[str, Any]:
    ours, theirs = (table[f"value_{side}"].to_numpy(dtype=float) for side in ("ours", "theirs"))
    found = paired_difference(ours, theirs, confidence)
    binary = bool(np.isin(np.concatenate([ours, theirs]), (0, 1)).all())
    only = [int((ours > theirs).sum()), int((ours < theirs).sum())]
    prompts = "prompt_hash_ours" in table
    return {
        "ours": ours.mean(),
        "theirs": theirs.mean(),
        "difference": found.difference,
        "ci_low": found.low,
        "ci_high": found.high,
        "p": min(1.0, float(mcnemar([[0, only[0]], [only[1], 0]], exact=True).pvalue)) if binary else found.p,
        "only_ours": only[0] if binary else math.nan,
        "only_theirs": only[1] if binary else math.nan,
        "n": found.n,
        "detectable": found.detectable,
        "other_prompts": int((table["prompt_hash_ours"] != table["prompt_hash_theirs"]).sum()) if prompts else 0,
        "test": MCNEMAR if binary else found.test,
    }
