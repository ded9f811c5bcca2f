"""What all settings are made of: sections that are frozen and know their keys."""

import difflib
from types import SimpleNamespace
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

#: Type of the error whose message must not repeat the value.
SECRET = "secret_in_settings"

#: Of a method, and of a set of pairs; for re.fullmatch, as $ also matches before a newline.
LABEL = r"[a-z][a-z0-9_]*"


def nearest(wrong: str, known: Any) -> str:
    """A hint at the known name that `wrong` was meant for, or all known ones."""
    names = list(known)
    match = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
    return f"did you mean '{match[0]}'?" if match else f"known: {', '.join(names) or 'none'}"


def secret_in_settings(message: str) -> PydanticCustomError:
    """The error of a setting that holds a password or key: settings are kept and shown, and so are other errors'
    values."""
    return PydanticCustomError(SECRET, "{message}", {"message": message})


class Section(BaseModel):
    """A part of the settings: frozen, and no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())


def dotted(settings: Any, key: str) -> Any:
    """The value at `a.b.c`."""
    for part in key.split("."):
        settings = getattr(settings, part)
    return settings


def jsonable(value: Any) -> Any:
    """Sections as mappings."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    return value


def view_of(settings: Any, keys: tuple[str, ...]) -> SimpleNamespace:
    """The values at these keys and no others, in the shape of the settings."""
    view = SimpleNamespace()
    for key in keys:
        place, parts = view, key.split(".")
        for part in parts[:-1]:
            if not hasattr(place, part):
                setattr(place, part, SimpleNamespace())
            place = getattr(place, part)
        setattr(place, parts[-1], dotted(settings, key))
    return view
