"""What all settings are made of: sections that are frozen and know their keys."""

import difflib
from typing import Any

from pydantic import BaseModel, ConfigDict

#: Of a method, and of a set of pairs.
LABEL = r"^[a-z][a-z0-9_]*$"


def nearest(wrong: str, known: Any) -> str:
    """A hint at the known name that `wrong` was meant for, or all known ones."""
    names = list(known)
    match = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
    return f"did you mean '{match[0]}'?" if match else f"known: {', '.join(names) or 'none'}"


class Section(BaseModel):
    """A part of the settings: frozen, and no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())
