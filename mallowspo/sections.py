"""What all settings are made of: sections that are frozen and know their keys."""

import difflib
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
