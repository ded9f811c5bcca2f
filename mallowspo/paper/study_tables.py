"""Numbers of studies with their intervals, from the CSV tables beside their pages."""

import math
from pathlib import Path
from typing import Any

import pandas as pd

from mallowspo.errors import InputError
from mallowspo.paper.contests import Found
from mallowspo.paper.finished import Place
from mallowspo.paper.settings import TableTest
from mallowspo.paper.verdict import detectable_of_interval, p_of_interval


def rows(test: TableTest, place: Place, confidence: float) -> dict[str, Found]:
    """Table's name -> the row that `where` picks; several where the name of the table has a *."""
    files = sorted(place.layout.tables.glob(f"{test.table}.csv"))
    return {file.stem: _found(test, file, confidence) for file in files}


def _found(test: TableTest, file: Path, confidence: float) -> Found:
    try:
        table = pd.read_csv(file)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not a CSV file ({error}); run the study again") from None
    needed = [*test.where, test.value, test.low, test.high, "n", *([test.p] if test.p else [])]
    missing = [column for column in needed if column not in table]
    if missing:
        raise InputError(f"{file}: no column '{missing[0]}', which config/paper.yaml asks for; run the study again")
    picked = _picked(table, test.where, file)
    effect, low, high = (test.sign * float(picked[name]) for name in (test.value, test.low, test.high))
    low, high = min(low, high), max(low, high)
    n = float(picked["n"])
    p, short = p_of_interval(effect, low, high, test.claimed, n - 1, confidence)
    detectable = float(picked["detectable"]) if "detectable" in table else math.nan
    if math.isnan(detectable):
        detectable = detectable_of_interval(low, high, n - 1, confidence)
    return Found(
        effect=effect,
        low=low,
        high=high,
        p=float(picked[test.p]) if test.p else p,
        p_short=short,
        claimed=test.claimed,
        detectable=detectable,
        n=n,
        unit=test.unit,
        seeds=math.nan,
        covers=f"new {test.unit}",
        test="the study's own test" if test.p else "the study's interval; p from its width",
        source=f"tables/{file.name}",
    )


def _picked(table: pd.DataFrame, where: dict[str, Any], file: Path) -> pd.Series:
    """The one row with these values; max and min are of the numbers of a column, in the whole table."""
    keep = pd.Series(True, index=table.index)
    for column, wanted in where.items():
        own = pd.to_numeric(table[column], errors="coerce") if wanted in ("max", "min") else table[column]
        finite = own[own.abs() < math.inf] if wanted in ("max", "min") else own
        value = {"max": finite.max, "min": finite.min}[wanted]() if wanted in ("max", "min") else wanted
        keep &= own == value
    if keep.sum() != 1:
        told = ", ".join(f"{column} {value}" for column, value in where.items())
        raise InputError(f"{file}: {keep.sum()} rows have {told}, expected one; mend `where` in config/paper.yaml")
    return table[keep].iloc[0]
