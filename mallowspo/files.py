"""Files that appear whole or not at all, and digests of what is in them."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from mallowspo.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


def digest(value: Any, length: int = 16) -> str:
    """Hex digest of a JSON-able value; the same for equal values whatever their key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def sha256_file(path: str | Path) -> str:
    """Full sha256 of a file's bytes."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def content_digest(path: str | Path) -> str:
    """128-bit digest of a file's bytes, as fast as they can be read: to tell contents apart, not to prove an origin."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, xxhash.xxh3_128).hexdigest()


def _write_whole(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary name beside `path`, flush to disk, and rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        # mkstemp makes files private; what a stage writes is for everybody who may read the folder.
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"{path}: could not be written ({error.strerror or error}); nothing half-written was left"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    _write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write bytes whole or not at all."""
    _write_whole(path, lambda temporary: temporary.write_bytes(content))


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON that a person can read. NaN and infinity are refused: they are not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line."""
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows]
    write_text(path, "".join(line + "\n" for line in lines))


def write_parquet(path: str | Path, table: "pd.DataFrame") -> None:
    """Write a table without its index."""
    _write_whole(path, lambda temporary: table.to_parquet(temporary, index=False))


def read_json(path: str | Path) -> Any:
    """Read a JSON file; a missing or broken one is an `InputError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run the stage that writes it first") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON ({error}); delete it and run its stage again") from None


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Read one JSON object a line; a broken line is an `InputError` with its number."""
    try:
        # Not splitlines(): it also splits at characters such as U+2028, which JSON leaves in a text.
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run the stage that writes it first") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: line {number} is not JSON ({error.msg})") from None
    return rows


def read_parquet(path: str | Path) -> "pd.DataFrame":
    """Read a table; a missing or truncated file is an `InputError` that names it."""
    # Here, for it takes half a second, and every Snakemake of a workflow reads this module.
    import pandas as pd

    try:
        return pd.read_parquet(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run the stage that writes it first") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a whole Parquet file ({error}); delete it and run its stage again") from None


@contextmanager
def whole_directory(path: str | Path) -> Iterator[Path]:
    """Fill a temporary folder that becomes `path` (replacing it) only if the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
