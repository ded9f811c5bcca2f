"""Folders of models that judge, and what identifies them."""

from pathlib import Path
from typing import Any

from mallowspo.errors import InputError
from mallowspo.files import read_json, sha256_file
from mallowspo.hub import commit_of
from mallowspo.model_files import base_of_adapters, is_model_folder, weight_files

_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]


def model_folder(source: str) -> Path:
    """The local folder behind `path:FOLDER` or `hub:ID@REVISION` (from the hub's cache, or fetched into it).

    Raises:
        InputError: no such folder or revision, or no safetensors weights in it.
    """
    kind, _, place = source.partition(":")
    folder = Path(place) if kind == "path" else _from_hub(place)
    if not is_model_folder(folder):
        raise InputError(f"judge's model '{source}': no config.json with *.safetensors in {folder}")
    weight_files(folder)
    return folder


def model_content(folder: Path) -> dict[str, Any]:
    """Digests of the files that a model's numbers depend on; weights by the record of `mallowspo model` if there."""
    record = folder / "source.json"
    known: dict[str, str] = read_json(record).get("files", {}) if record.exists() else {}
    files = sorted({path for pattern in _FILES for path in folder.glob(pattern)} - {record})
    content = {path.name: known.get(path.name) or sha256_file(path) for path in files}
    base = base_of_adapters(folder)
    return content | ({"base": model_content(base)} if base else {})


def _from_hub(place: str) -> Path:
    from huggingface_hub import snapshot_download

    name, _, revision = place.partition("@")
    try:
        return Path(snapshot_download(name, revision=commit_of(name, revision, "model"), allow_patterns=_FILES))
    except (OSError, ValueError) as error:  # the hub's own are both
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"judge's model 'hub:{place}': the hub could not be reached or has no such revision ({reason}); connect, "
            "or download it elsewhere and use path:FOLDER"
        ) from None
