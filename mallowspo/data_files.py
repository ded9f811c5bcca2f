"""Files of public data by name (config/data.yaml): from a folder of one's own, or downloaded and checked.

A file is in `data/` whole, with the checksum that is written down, or not at all. Some have no public address: what was
cut from other files is only in somebody's folder, which MALLOWSPO_SHARED_DATA names.
"""

import hashlib
import os
import re
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field

from mallowspo.errors import InputError
from mallowspo.experiments import NAME, read_yaml, validate
from mallowspo.files import write_bytes
from mallowspo.sections import Section, nearest
from mallowspo.visible import one_line

LIST = Path("config/data.yaml")
FOLDER = Path("data")
#: Names the folder that is looked in before anything is downloaded.
VARIABLE = "MALLOWSPO_SHARED_DATA"
TIMEOUT_SECONDS = 60


class DataFile(Section):
    """One file of public data."""

    url: str | None = Field(
        default=None, pattern=r"^https?://", description="at a commit or version that does not move; none: no address"
    )
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=1)
    licence: str
    what: str = Field(description="what is in it, and where it came from")


def known_files() -> dict[str, DataFile]:
    """The files of config/data.yaml by name; none where there is no such list.

    Raises:
        InputError: the list is wrong; the line names file, entry and key.
    """
    if not LIST.exists():
        return {}
    values = read_yaml(LIST) or {}
    if not isinstance(values, dict):
        raise InputError(f"{LIST}: expected names of files, found {type(values).__name__}")
    wrong = [name for name in values if not re.fullmatch(NAME, str(name))]
    if wrong:
        raise InputError(f"{LIST}: {wrong[0]!r} is no name of a file: letters, digits, _ . - after a letter or digit")
    return {name: validate(DataFile, entry, f"{LIST}: {name}") for name, entry in values.items()}


def can_be_had(path: str | Path) -> bool:
    """Whether a file is there, or is one of the list that can be fetched (whether its address answers is not asked)."""
    path = Path(path)
    if path.exists():
        return True
    entry = known_files().get(path.name) if path.parent == FOLDER else None
    return entry is not None and (entry.url is not None or _in_own_folder(path.name) is not None)


def fetch(name: str, folder: Path = FOLDER) -> Path:
    """Put a file of the list into a folder, unless the right one is there.

    Raises:
        InputError: an unknown name, no source that gives the file, or another file than the list says.
    """
    files = known_files()
    if name not in files:
        raise InputError(f"{LIST}: no file '{name}'; {nearest(name, files)}")
    entry, target = files[name], folder / name
    if target.exists():
        _check(target.read_bytes(), entry, str(target), "remove it, or give your own file another name")
        return target
    own = _in_own_folder(name)
    if own is not None:
        content = own.read_bytes()
        _check(content, entry, str(own), f"mend the folder that {VARIABLE} names")
    elif entry.url is not None:
        content = _download(entry.url, entry.bytes, target)
        _check(content, entry, entry.url, "try again; if it stays so, the file behind the address has changed")
    else:
        raise InputError(
            f"{target}: has no public address ({entry.what}); put it there, or set {VARIABLE} to a folder that holds it"
        )
    write_bytes(target, content)
    return target


def fetch_data(
    names: Annotated[list[str] | None, typer.Argument(help="of config/data.yaml; none: list what there is")] = None,
    into: Annotated[Path, typer.Option(help="folder")] = FOLDER,
) -> None:
    """Put public data files into data/: from the folder that MALLOWSPO_SHARED_DATA names, or downloaded."""
    if not names:
        for name, entry in known_files().items():
            address = entry.url or f"no public address: only from {VARIABLE}"
            typer.echo(f"{name}  {entry.bytes:,} bytes, {entry.licence}\n    {entry.what}\n    {address}")
    for name in names or []:
        typer.echo(str(fetch(name, into)))


def _in_own_folder(name: str) -> Path | None:
    """The file in the folder that the environment names, if it is there."""
    folder = os.environ.get(VARIABLE)
    path = Path(folder) / name if folder else None
    return path if path and path.is_file() else None


def _download(url: str, size: int, target: Path) -> bytes:
    """At most one byte more than is expected: enough to see that it is another file."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
            content: bytes = answer.read(size + 1)
    except (OSError, HTTPException) as error:
        reason = one_line(str(getattr(error, "reason", None) or error) or repr(error))
        raise InputError(
            f"{target}: could not be downloaded from {url} ({reason}); "
            f"connect, or download it elsewhere and set {VARIABLE} to its folder"
        ) from None
    return content


def _check(content: bytes, entry: DataFile, place: str, remedy: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found == entry.sha256:
        return
    size = f"{len(content):,} bytes of {entry.bytes:,}" if len(content) != entry.bytes else "of the right size"
    raise InputError(
        f"{place}: not the file of {LIST} ({size}, sha256 {found[:12]}..., not {entry.sha256[:12]}...); {remedy}"
    )
