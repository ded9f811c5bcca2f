"""Files of answers and judgements as they are published: JSON or JSONL, plain or compressed, here or on the hub."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mallowspo.errors import InputError
from mallowspo.hub import commit_of
from mallowspo.visible import one_line


def read_rows(path: str | Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """A JSON list of objects, or one object a line; plain or .gz.

    Args:
        keys: what every row must have; None counts as missing.

    Raises:
        InputError: the file is missing or broken, holds no row, or a row lacks a key.
    """
    path = Path(path)
    rows = _parse(path, _read(path))
    if not rows:
        raise InputError(f"{path}: holds no rows; expected objects with {', '.join(keys)}")
    for number, row in enumerate(rows):
        missing = [key for key in keys if not isinstance(row, dict) or row.get(key) is None]
        if missing:
            raise InputError(f"{path}: row {number} has no {', '.join(missing)}; every row needs {', '.join(keys)}")
    return rows


def read_outputs(source: str) -> list[dict[str, Any]]:
    """A model's outputs, AlpacaEval's format: instruction and output each, generator if it says so.

    Args:
        source: a file, path:FILE, or hub:ID@REVISION!FILE of a data set on the hub.
    """
    if source.startswith("hub:"):
        source = str(_from_hub(source.removeprefix("hub:")))
    rows = read_rows(source.removeprefix("path:"), ("instruction", "output"))
    seen: set[str] = set()
    for number, row in enumerate(rows):
        if row["instruction"] in seen:
            raise InputError(f"{source}: row {number}: instruction {row['instruction'][:60]!r} appears twice")
        seen.add(row["instruction"])
    return rows


def generator_of(rows: list[dict[str, Any]], otherwise: str) -> str:
    """The model that wrote the outputs, by its own file; it stands in tables, figures and file names."""
    return one_line(str(rows[0].get("generator") or otherwise), 100)


def _read(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        # By its first bytes, not its name.
        return (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not whole ({error}); fetch it again") from None


def _parse(path: Path, text: str) -> list[Any]:
    if text.lstrip()[:1] == "[":
        try:
            rows: list[Any] = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: not JSON (line {error.lineno}: {error.msg}); fetch it again") from None
        return rows
    rows = []
    # Not splitlines: answers may hold other separators, which JSON leaves as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise InputError(f"{path}: line {number} is not JSON ({error.msg})") from None
    return rows


def _from_hub(place: str) -> Path:
    from huggingface_hub import hf_hub_download

    name, _, rest = place.partition("@")
    revision, _, file = rest.partition("!")
    try:
        commit = commit_of(name, revision, "dataset")
        return Path(hf_hub_download(name, file, revision=commit, repo_type="dataset"))
    except (OSError, ValueError) as error:  # the hub's own are both
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"hub:{place}: could not be fetched ({reason}); download it and use path:FILE") from None
