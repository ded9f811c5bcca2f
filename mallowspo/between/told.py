"""Two experiments' differences as a table for a person, as files, and as JSON."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Group
from rich.markup import escape
from rich.table import Table as RichTable

from mallowspo.between.differences import SIDES, Between
from mallowspo.files import write_json
from mallowspo.report.table import Table, rows_of, write_forms
from mallowspo.report.words import count, interval, meaningful_decimals, metric_title, number, p_value, plural
from mallowspo.visible import one_line

#: Of a setting's value in a terminal.
VALUE_CHARACTERS = 60


def told(found: Between) -> Group:
    """What the command prints."""
    differences, settings = differences_table(found), settings_table(found)
    parts: list[Any] = [_rich(differences.shown, differences.text_columns, "a minus b")]
    if len(found.settings):
        short = settings.shown.map(lambda text: one_line(text, VALUE_CHARACTERS))
        parts.append(_rich(short, settings.text_columns, "Settings that differ"))
    return Group(*parts, *(escape(line) for line in words(found)))


def write(found: Between, folder: Path) -> None:
    """Write differences.{csv,md,tex}, settings.{csv,md,tex} and comparison.json."""
    for table in (differences_table(found), settings_table(found)):
        write_forms(folder, table)
    write_json(folder / "comparison.json", as_json(found))


def as_json(found: Between) -> dict[str, Any]:
    """Everything; a number that is not finite is null."""
    sides = {
        side: {
            "experiment": opened.layout.experiment,
            "folder": str(opened.layout.root),
            "settings_digest": opened.settings.identity,
            "seeds": list(opened.settings.seeds),
            "prompts": len(opened.prompts),
        }
        for side, opened in zip(SIDES, found.sides, strict=True)
    }
    rows = [{key: _plain(value) for key, value in row.items()} for row in found.table.to_dict("records")]
    return {
        **sides,
        "shared_prompts": found.shared,
        "confidence": found.sides[0].settings.evaluation.comparison.confidence,
        "differences": rows,
        "settings": found.settings.to_dict("records"),
        "left_out": found.left_out,
        "words": words(found),
    }


def differences_table(found: Between) -> Table:
    """A row a metric and pair of policies."""
    rows = rows_of(found.table)
    widths: dict[str, list[float]] = {}
    for row in rows:
        widths.setdefault(row.metric, []).append(row.ci_high - row.ci_low)
    shown = pd.DataFrame(
        {
            "Outcome": metric_title(row.metric),
            "Policy of a": row.a_policy,
            "of b": row.b_policy,
            "a": number(row.a),
            "b": number(row.b),
            "a − b": interval(row.difference, row.ci_low, row.ci_high, meaningful_decimals(widths[row.metric]), True),
            "p": p_value(row.p),
            "Holm p": p_value(row.p_holm),
            "Detectable": number(row.detectable),
            "n": f"{count(row.shared)} paired" if row.paired else f"{count(row.a_n)} / {count(row.b_n)}",
            "Seeds": f"{row.a_seeds} / {row.b_seeds}",
        }
        for row in rows
    )
    return Table("differences", found.table, shown, ("Outcome", "Policy of a", "of b"))


def settings_table(found: Between) -> Table:
    """A row a setting that differs."""
    shown = found.settings.rename(columns={"key": "Setting"})
    return Table("settings", found.settings, shown, ("Setting", *SIDES))


def words(found: Between) -> list[str]:
    """What the numbers stand on, in sentences."""
    a, b = found.sides
    sizes = [len(side.prompts) for side in found.sides]
    names = ", ".join(f"{side}: {opened.layout.root}" for side, opened in zip(SIDES, found.sides, strict=True))
    confidence = a.settings.evaluation.comparison.confidence
    covers, tests = ("; ".join(dict.fromkeys(found.table[column])) for column in ("covers", "test"))
    lines = [
        f"{names}. {count(found.shared)} test prompts are in both (a has {count(sizes[0])}, b {count(sizes[1])}).",
        f"In brackets: {100 * confidence:g} % interval; it covers {covers}. p: {tests}. Holm's correction over all "
        f"{plural(len(found.table), 'test')} of the table.",
    ]
    if not found.table["paired"].all():
        lines.append("n with a stroke: too few prompts are in both to pair them; two samples of prompts are compared.")
    if not len(found.settings):
        lines.append("No setting differs.")
    lines += [f"Left out: {reason}." for reason in found.left_out]
    if a.settings.model != b.settings.model:
        lines.append("The models differ, and so do the references: win rates and KL are each to another reference.")
    return lines


def _rich(shown: pd.DataFrame, text_columns: tuple[str, ...], title: str) -> RichTable:
    table = RichTable(title=title, title_justify="left")
    for column in shown:
        table.add_column(escape(str(column)), justify="left" if column in text_columns else "right")
    for row in shown.itertuples(index=False, name=None):
        table.add_row(*(escape(one_line(str(cell))) for cell in row))
    return table


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
