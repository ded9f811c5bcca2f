"""One table in its four forms: CSV with the numbers; Markdown, LaTeX and the page with what people read."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mallowspo.files import write_text
from mallowspo.layout import Layout
from mallowspo.report.style import csv
from mallowspo.report.words import ABSENT
from mallowspo.visible import one_line


@dataclass(frozen=True)
class Table:
    """One table: `numbers` goes to the CSV, `shown` (text only) to people; `text_columns` are set flush left."""

    name: str
    numbers: pd.DataFrame
    shown: pd.DataFrame
    text_columns: tuple[str, ...]


def write_table(layout: Layout, table: Table) -> None:
    """Write NAME.csv, NAME.md and NAME.tex among the experiment's tables."""
    write_forms(layout.tables, table)


def write_forms(folder: Path, table: Table) -> None:
    """The same into any folder."""
    write_text(folder / f"{table.name}.csv", csv(table.numbers))
    write_text(folder / f"{table.name}.md", markdown(table))
    write_text(folder / f"{table.name}.tex", _latex(table))


def rows_of(table: pd.DataFrame) -> list[Any]:
    """Rows as named tuples."""
    return list(table.itertuples())


def markdown(table: Table) -> str:
    """As people read it."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(map(markdown_text, cells)) + " |\n"

    columns = [str(column) for column in table.shown]
    rule = "|" + "|".join("---" if column in table.text_columns else "---:" for column in columns) + "|\n"
    return line(columns) + rule + "".join(line(list(row)) for row in table.shown.itertuples(index=False, name=None))


def markdown_text(text: str) -> str:
    """Text of a cell, or of a line: what would end it, begin a tag, or make a link, is escaped."""
    escaped = one_line(text).replace("\\", "\\\\").replace("|", "\\|").replace("](", "]\\(")
    return re.sub(r"<(?=[A-Za-z/!?])", r"\\<", escaped)


def _latex(table: Table) -> str:
    """A booktabs tabular; needs \\usepackage{booktabs}."""
    alignment = "".join("l" if column in table.text_columns else "r" for column in table.shown)
    shown = table.shown.rename(columns=one_line).map(one_line)
    text = str(shown.to_latex(index=False, escape=True, column_format=alignment))
    for sign, command in (("−", "$-$"), (ABSENT, "--"), ("< 0.001", "$<$ 0.001")):
        text = text.replace(sign, command)
    return text
