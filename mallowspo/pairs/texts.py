"""Plain texts, such as reviews, in place of pairs: the beginning of each is a prompt, and the rest goes on from it.

How many words a beginning has is drawn for each text, by its content alone: the same in any order and any part.
"""

import re
from collections.abc import Sequence
from typing import Any

from mallowspo.files import digest
from mallowspo.pairs.settings import TextsSettings
from mallowspo.pairs.split import unit_draw

#: (row number, columns), as `mallowspo.pairs.sources` reads them.
Row = tuple[int, dict[str, Any]]


def as_prompts(rows: Sequence[Row], settings: TextsSettings) -> list[Row]:
    """The rows with the beginning of their text as `prompt`; one of too few words has none."""
    return [(number, {**values, "prompt": _cut(values.get(settings.column), settings)[0]}) for number, values in rows]


def as_pairs(rows: Sequence[Row], settings: TextsSettings) -> list[Row]:
    """The rows with `prompt`, `chosen` (how the text goes on) and `rejected` (how the next row's text does).

    For maximum likelihood of the chosen side; an accuracy then says how often a policy finds a text's own rest likelier
    than a stranger's. A text of too few words gives a row without a side, which counts as unusable.
    """
    cuts = [_cut(values.get(settings.column), settings) for _, values in rows]
    others = [*cuts[1:], *cuts[:1]]
    return [
        (number, {"prompt": prompt, "chosen": rest, "rejected": other})
        for (number, _), (prompt, rest), (_, other) in zip(rows, cuts, others, strict=True)
    ]


def _cut(text: Any, settings: TextsSettings) -> tuple[str | None, str | None]:
    """Beginning and rest, the white space between them with the rest; None where nothing would be left."""
    if not isinstance(text, str):
        return None, None
    spread = settings.most_words - settings.least_words + 1
    words = settings.least_words + int(unit_draw(0, "words", digest(text)) * spread)
    found = re.match(rf"\s*(?:\S+\s+){{{words - 1}}}\S+(?=\s+\S)", text)
    return (found[0], text[found.end() :]) if found else (None, None)
