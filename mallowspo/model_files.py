"""What may be read from a model's folder: weights that are numbers and nothing else, and code only where it is trusted.

Pickled weights (.bin, .pt, ...) run whatever is in them when they are read, so they are never read. Python files of a
model run only if the settings name the model (`model.trust_remote_code`) and the files are those that were fetched.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mallowspo.errors import InputError
from mallowspo.files import read_json, sha256_file

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
INDEX = "model.safetensors.index.json"
#: PEFT's settings beside adapters, and their key for the model that these belong to.
ADAPTERS, BASE = "adapter_config.json", "base_model_name_or_path"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

#: sha256 of the Python files that may run in this process.
_trusted: set[str] = set()


def weight_files(folder: Path) -> list[Path]:
    """The weights of a model's folder, by name.

    Raises:
        InputError: there are none that may be read, or the index names others.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        refuse_other_weights((file.name for file in folder.glob("*")), str(folder))
    listed = _listed(folder / INDEX)
    others = sorted(listed - {file.name for file in weights})
    if others:
        raise InputError(f"{folder / INDEX}: names {others[0]!r}, no *.safetensors file of its folder; fetch it again")
    return weights


def is_model_folder(folder: Path) -> bool:
    """Whether a folder says what it holds as a model's does, whole or adapters."""
    return (folder / "config.json").exists() or (folder / ADAPTERS).exists()


def base_of_adapters(folder: Path) -> Path | None:
    """The folder of the model that a folder's adapters belong to; None where it holds a whole model.

    Raises:
        InputError: that model is no folder that is there, or the adapters are pickled.
    """
    if not (folder / ADAPTERS).exists():
        return None
    if not (folder / ADAPTER_WEIGHTS).exists():
        refuse_other_weights((file.name for file in folder.glob("*")), str(folder))
    named = str(read_json(folder / ADAPTERS).get(BASE))
    base = (folder / named).resolve()
    if not (base / "config.json").exists():
        raise InputError(
            f"{folder}: adapters of another model, {named}, which is no folder of this machine; merge the two (peft's "
            "merge_and_unload) and save that"
        )
    return base


def refuse_other_weights(names: Iterable[str], where: str) -> None:
    """Say why a model whose files have these names is not read, and what to do.

    Raises:
        InputError: always.
    """
    pickled = sorted(name for name in names if name.lower().endswith(PICKLED))
    if not pickled:
        raise InputError(f"{where}: no *.safetensors weights there; give a model's folder in the Hugging Face layout")
    raise InputError(
        f"{where}: no *.safetensors weights there, only pickled ones ({pickled[0]}), which run code when they are "
        "read; if you trust whoever made them, convert them once: "
        "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
    )


def _listed(index: Path) -> set[str]:
    """File names in an index of weights that are spread over several files."""
    content = read_json(index) if index.exists() else {}
    places: Any = content.get("weight_map") if isinstance(content, dict) else None
    return {str(place) for place in places.values()} if isinstance(places, dict) else set()


def code_files(folder: Path) -> dict[str, str]:
    """Python files of a model: name -> sha256."""
    return {file.relative_to(folder).as_posix(): sha256_file(file) for file in sorted(folder.rglob("*.py"))}


def trust_code(digests: Iterable[str]) -> None:
    """Let Python files with these sha256 run in this process, where they come with a model."""
    _trusted.update(digests)


def trust_fetched(folder: Path | None, named: str | None) -> None:
    """The same of the Python files that were fetched into a folder, if the settings name the model (`named`)."""
    if folder and named and (folder / "source.json").exists():
        trust_code(read_json(folder / "source.json").get("code", {}).values())


def may_run_code(folder: Path) -> bool:
    """transformers' `trust_remote_code` for a folder: it has Python files, and each of them is trusted.

    Raises:
        InputError: they are, but the model also takes code from another repository, which nobody has looked at.
    """
    files = code_files(folder)
    if not files or not set(files.values()) <= _trusted:
        return False
    for name in ("config.json", "tokenizer_config.json"):
        content = read_json(folder / name) if (folder / name).exists() else {}
        # transformers writes code of another repository as OWNER/NAME--MODULE.CLASS.
        if "--" in str(content.get("auto_map", "")):
            raise InputError(f"{folder / name}: auto_map takes code from another repository; copy it into the folder")
    return True


def why_not_loaded(folder: Path, error: Exception) -> str:
    """transformers' error in one line, for people who do not pass its arguments themselves."""
    if "trust_remote_code" in str(error):
        return (
            "it comes with Python code of its own, which is not run unless the settings name the model: read the code, "
            "then set model.trust_remote_code to the model's source"
        )
    return (str(error).strip() or type(error).__name__).splitlines()[0]
