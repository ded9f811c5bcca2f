"""Rows of a data set, from the hub or from a file, each with its number. Nothing in a data set is ever run as code."""

import csv
import gzip
import io
import json
import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
import pyarrow
import pyarrow.parquet

from mallowspo.errors import InputError
from mallowspo.files import digest
from mallowspo.hub import commit_of
from mallowspo.pairs.formats import UnusableRow, prompt_of
from mallowspo.pairs.split import assign_splits, draw_prompts
from mallowspo.pairs.texts import as_pairs, as_prompts
from mallowspo.settings import PairsSettings

#: (row number from 1, columns of the row). In a JSONL file the number is the line's.
Row = tuple[int, dict[str, Any]]

logger = logging.getLogger(__name__)

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def read_rows(pairs: PairsSettings) -> list[Row]:
    """Every row behind `hub:ID@REVISION` or `path:FILE`.

    Raises:
        InputError: the source cannot be reached, is missing, cut off, or of an unknown kind.
    """
    rows = _rows(pairs.source, pairs)
    return as_pairs(rows, pairs.texts) if pairs.texts else rows


def read_prompts(pairs: PairsSettings, template: str = "chat") -> pd.DataFrame:
    """Prompts to sample answers to, from the file or data set of `on_policy:FILE` or `on_policy:hub:ID@REVISION`.

    A row holds `prompt` (text, or messages), or the text that `pairs.texts` cuts, and, where `pairs.split.column`
    names one, the column that says train or test. Of texts that begin alike the first gives the prompt; the log says
    how many do.

    Returns:
        prompt_id, prompt, messages (JSON), split; split by prompt and cut to `max_train` and `max_test`.

    Raises:
        InputError: as `read_rows`; a row without a usable prompt, or one that repeats another; both name the row.
    """
    path = pairs.source.removeprefix("on_policy:")
    read = _rows(path, pairs) if path.startswith("hub:") else list(_file_rows(Path(path)))
    prompts: dict[str, tuple[str, str]] = {}
    rows: dict[str, Row] = {}
    alike = 0
    for number, values in as_prompts(read, pairs.texts) if pairs.texts else read:
        try:
            text, messages = prompt_of(values.get("prompt"), template)
        except UnusableRow as problem:
            raise InputError(f"{path}: row {number}: {problem}; mend or remove the row") from None
        prompt_id = digest(messages)
        if prompt_id in rows and pairs.texts:
            alike += 1
            continue
        if prompt_id in rows:
            raise InputError(f"{path}: row {number} repeats the prompt of row {rows[prompt_id][0]}; remove one of them")
        rows[prompt_id] = (number, values)
        prompts[prompt_id] = (text, json.dumps(messages, ensure_ascii=False))
    if alike:
        logger.info("%s: %d of %d texts begin as another one does and give no further prompt", path, alike, len(read))
    splits = assign_splits({prompt_id: [row] for prompt_id, row in rows.items()}, pairs.split, str(path))
    kept = draw_prompts(splits, pairs)
    table = [
        {"prompt_id": prompt_id, "prompt": text, "messages": messages, "split": splits[prompt_id]}
        for prompt_id, (text, messages) in prompts.items()
        if prompt_id in kept
    ]
    return pd.DataFrame(table, columns=["prompt_id", "prompt", "messages", "split"])


def pinned(pairs: PairsSettings) -> PairsSettings:
    """The settings with the commit in place of a revision of the hub that can move: so it stands with each pair."""
    before, hub, place = pairs.source.partition("hub:")
    if not hub or before not in ("", "on_policy:"):
        return pairs
    name, _, revision = place.partition("@")
    if not revision:
        raise InputError(f"pairs.source '{pairs.source}': which revision? Write hub:{name}@REVISION")
    with _hub_errors(place, pairs):
        commit = commit_of(name, revision, "dataset")
    return pairs.model_copy(update={"source": f"{before}hub:{name}@{commit}"})


def _rows(source: str, pairs: PairsSettings) -> list[Row]:
    kind, _, place = source.partition(":")
    return _hub_rows(place, pairs) if kind == "hub" else list(_file_rows(Path(place)))


def _hub_rows(place: str, pairs: PairsSettings) -> list[Row]:
    from datasets import load_dataset

    name, _, revision = place.partition("@")
    with _hub_errors(place, pairs):
        table = load_dataset(name, data_dir=pairs.hub_data_dir, revision=revision, split=pairs.hub_split)
    return list(enumerate(table, start=1))


@contextmanager
def _hub_errors(place: str, pairs: PairsSettings) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        # Connection, authentication, missing revision or split, and data sets that are scripts all end here.
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"pairs.source 'hub:{place}', split '{pairs.hub_split}': could not be loaded ({reason}); check the name, "
            "the revision, pairs.hub_split and the connection, or download the file elsewhere and use path:FILE"
        ) from None


def _file_rows(path: Path) -> Iterator[Row]:
    """Rows of one file; a gzipped one is recognised by its content, its kind by its suffix."""
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: unknown kind of file; expected {', '.join(SUFFIXES)}, gzipped or not")
    number = 0
    try:
        if suffix == ".parquet":
            yield from enumerate(_parquet_rows(path), start=1)
            return
        with _open_text(path) as handle:
            for number, values in _READERS[suffix](handle):
                if not isinstance(values, dict):
                    raise InputError(f"{path}: row {number} is no object with columns, but {str(values)[:60]!r}")
                yield number, values
    except FileNotFoundError:
        raise InputError(f"{path}: no such file (relative paths start at {Path.cwd()}); mend pairs.source") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path}: gzip data is cut off or damaged after row {number} ({error}); fetch it again"
        ) from None
    except (json.JSONDecodeError, csv.Error, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: after row {number}: not whole {suffix[1:].upper()} ({error}); fetch it again or mend the row"
        ) from None
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: cannot be read ({str(error).splitlines()[0]}); fetch it again") from None


def _open_text(path: Path) -> TextIO:
    with path.open("rb") as handle:
        zipped = handle.read(2) == b"\x1f\x8b"
    if zipped:
        return io.TextIOWrapper(gzip.open(path, "rb"), encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _jsonl(handle: TextIO) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(handle, start=1):
        if line.strip():
            yield number, json.loads(line)


def _json(handle: TextIO) -> Iterator[tuple[int, Any]]:
    rows = json.load(handle)
    if not isinstance(rows, list):
        rows = [rows]
    yield from enumerate(rows, start=1)


def _csv(handle: TextIO) -> Iterator[tuple[int, Any]]:
    # Not pandas: it guesses types, and reads the answer "None" or "NA" as a missing value.
    reader = csv.DictReader(handle, strict=True)
    for number, values in enumerate(reader, start=1):
        if None in values:
            raise csv.Error(f"row {number} has more values than the header has columns")
        yield number, values


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    return rows


_READERS = {".jsonl": _jsonl, ".json": _json, ".csv": _csv}
