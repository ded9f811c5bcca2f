"""What the runs of an experiment measured, joined by id: the same answers, pairs and benchmark items of all of them.

A run that lacks one, or holds a value that is not finite, stops the stage with its name.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mallowspo.errors import InputError
from mallowspo.evaluation.displacement import CHANGES, CHOSEN_FELL, chosen_fell
from mallowspo.evaluation.held_apart import is_validation
from mallowspo.evaluation.lm_groups import Groups, with_groups
from mallowspo.files import read_json, read_parquet
from mallowspo.layout import REFERENCE, Layout
from mallowspo.metric_names import against, on

#: metric -> label -> table with one row a unit (prompt or benchmark item) and one column a seed.
Values = dict[str, dict[str, pd.DataFrame]]
Run = tuple[str, int]
AGAINST = "alpaca_against.parquet"


def read_values(view: Any, layout: Layout) -> Values:
    """Every metric of every run, averaged over the answers (or pairs) to a prompt.

    With `evaluation.selection`, of the test prompts that are not held apart for it.

    Args:
        view: .methods, .seeds, and of .evaluation: .comparison, .second_judge, .selection, .lm_eval, .alpaca.against,
            .other_pairs.

    Returns:
        metric -> label -> table: index prompt_id (doc_id for a benchmark), one column a seed, all tables of a metric
        with the same index in the same order. Names of metrics: `mallowspo.metric_names`.
    """
    evaluation = view.evaluation
    runs = [(label, seed) for label in view.methods for seed in view.seeds]
    everyone = [(REFERENCE, 0), *runs]
    values = prompts_of(_of_test_prompts(view, layout), layout, evaluation.selection, validation=False)
    for name in evaluation.other_pairs:
        values |= _read(layout.other_pairs(name), runs, "pairs.parquet", partial(_other_pairs, name))
    if evaluation.lm_eval is not None:
        groups = read_json(layout.scores(REFERENCE, 0) / "lm_eval.json").get("groups", {})
        values |= _read(layout, everyone, "lm_eval.parquet", partial(_lm_eval, groups))
    return values


def read_validation_values(view: Any, layout: Layout) -> Values:
    """The same of the prompts that `evaluation.selection` holds apart; of the test prompts' metrics alone."""
    return prompts_of(_of_test_prompts(view, layout), layout, view.evaluation.selection, validation=True)


def _of_test_prompts(view: Any, layout: Layout) -> Values:
    evaluation = view.evaluation
    runs = [(label, seed) for label in view.methods for seed in view.seeds]
    values = _read_scores(layout, [(REFERENCE, 0), *runs], evaluation.second_judge)
    values |= _read(layout, runs, "pairs.parquet", _pairs)
    values |= _read(layout, runs, "alpaca.parquet", _alpaca)
    return values | _read_against(layout, runs, evaluation.comparison.baseline, evaluation.alpaca.against)


def read_scores(layout: Layout, runs: list[Run], evaluation: Any) -> Values:
    """What the judges say of the runs' answers, the second where there is one; to prompts that select no method."""
    values = _read_scores(layout, runs, evaluation.second_judge)
    return prompts_of(values, layout, evaluation.selection, validation=False)


def _read_scores(layout: Layout, runs: list[Run], second_judge: str | None) -> Values:
    values = _read(layout, runs, "score.parquet", _score)
    return values | _read(layout, runs, "second.parquet", _score) if second_judge else values


def prompts_of(values: Values, layout: Layout, selection: Any, validation: bool) -> Values:
    """The rows of the prompts that select (`validation`) or test; all of them where nothing is selected.

    Raises:
        InputError: fewer than two prompts are left.
    """
    if selection is None:
        return values
    prompts = next(iter(next(iter(values.values())).values())).index
    kept = [name for name in prompts if is_validation(name, selection) == validation]
    if len(kept) < 2:
        raise InputError(
            f"{layout.prompts}: evaluation.selection leaves {len(kept)} of {len(prompts)} test prompts to "
            f"{'select by' if validation else 'test on'}; change its validation_share, or take more test prompts"
        )
    return {metric: {label: t.loc[t.index.isin(kept)] for label, t in by.items()} for metric, by in values.items()}


def _read_against(layout: Layout, runs: list[Run], baseline: str, opponents: list[str]) -> Values:
    """Win rates against the baseline, which the baseline itself has not, and against published outputs."""
    challengers = [run for run in runs if run[0] != baseline]
    values: Values = {}
    if "baseline" in opponents and challengers:
        values |= _read(layout, challengers, AGAINST, lambda table: _alpaca(table[table["against"] == baseline]))
    if set(opponents) - {"baseline"}:
        values |= _read(layout, runs, AGAINST, lambda table: _alpaca(table[table["against"] != baseline]))
    return values


# Each reader gives rows of: metric, key (one measurement), unit (what is resampled), value.


def _score(table: pd.DataFrame) -> pd.DataFrame:
    key = table["prompt_id"] + " answer " + table["answer_index"].astype(str)
    return _rows(table["metric"].replace("tokens", "length"), key, table["prompt_id"], table["value"])


def _alpaca(table: pd.DataFrame) -> pd.DataFrame:
    key = table["prompt_id"] + " answer " + table["answer_index"].astype(str)
    metric = table["metric"].replace("win", "win_rate")
    if "against" in table:
        metric = pd.Series([against(*names) for names in zip(metric, table["against"], strict=True)], table.index, str)
    return _rows(metric, key, table["prompt_id"], table["value"])


def _other_pairs(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """How often right and by how much; what the log-probabilities did is looked at on the held-out pairs."""
    rows = _pairs(table)
    rows = rows[rows["metric"].isin(["accuracy", "margin"])]
    return rows.assign(metric=[on(metric, name) for metric in rows["metric"]])


def _pairs(table: pd.DataFrame) -> pd.DataFrame:
    columns = {"accuracy": table["correct"], "margin": table["margin"], CHOSEN_FELL: chosen_fell(table)}
    columns |= {name: table[name] for name in CHANGES}
    parts = [
        _rows(pd.Series(metric, index=table.index), table["pair_id"], table["prompt_id"], values)
        for metric, values in columns.items()
    ]
    return pd.concat(parts)


def _lm_eval(groups: Groups, table: pd.DataFrame) -> pd.DataFrame:
    rows = with_groups(table, groups)
    return _rows(rows["name"], rows["item"], rows["item"], rows["value"])


def _rows(metric: pd.Series, key: pd.Series, unit: pd.Series, value: pd.Series) -> pd.DataFrame:
    return pd.DataFrame({"metric": metric, "key": key, "unit": unit, "value": value.astype(float)})


def _read(
    layout: Layout,
    runs: list[Run],
    file: str,
    reader: Callable[[pd.DataFrame], pd.DataFrame],
) -> Values:
    paths = {run: layout.scores(*run) / file for run in runs}
    collected: dict[str, dict[str, dict[int, pd.Series]]] = {}
    first: tuple[Path, set[tuple[str, str]]] | None = None
    for (label, seed), path in paths.items():
        try:
            rows = reader(read_parquet(path))
        except KeyError as error:
            raise InputError(f"{path}: lacks a column ({error.args[0]}); run its stage again") from None
        measured = _checked_keys(rows, path)
        first = first or (path, measured)
        _same_keys(first, (path, measured))
        for metric, table in rows.groupby("metric"):
            by_seed = collected.setdefault(str(metric), {}).setdefault(label, {})
            by_seed[seed] = table.groupby("unit")["value"].mean()
    # By id, whatever order the files had: groupby sorts.
    return {m: {label: pd.DataFrame(seeds) for label, seeds in by.items()} for m, by in collected.items()}


def _checked_keys(rows: pd.DataFrame, path: Path) -> set[tuple[str, str]]:
    if rows.empty:
        raise InputError(f"{path}: holds no rows; run its stage again")
    broken = rows[~np.isfinite(rows["value"])]
    if len(broken):
        worst = broken.iloc[0]
        raise InputError(f"{path}: {worst['metric']} of {worst['key']} is not finite ({len(broken)} such rows)")
    twice = rows[rows.duplicated(["metric", "key"])]
    if len(twice):
        raise InputError(
            f"{path}: {twice.iloc[0]['metric']} of {twice.iloc[0]['key']} is there twice; run its stage again"
        )
    return set(zip(rows["metric"], rows["key"], strict=True))


def _same_keys(first: tuple[Path, set[tuple[str, str]]], other: tuple[Path, set[tuple[str, str]]]) -> None:
    """Both files hold the same measurements, or an error that names the first missing one and where it is missing."""
    for (here, measured), (there, expected) in ((other, first), (first, other)):
        missing = sorted(expected - measured)
        if missing:
            metric, key = missing[0]
            raise InputError(
                f"{here}: {metric} of {key} is missing ({len(missing)} such), but {there} has it; run its stage again"
            )
