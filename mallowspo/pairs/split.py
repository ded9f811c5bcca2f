"""Train and test, split by prompt: no prompt is in both.

Where a prompt goes depends on its id and the seed alone, so that neither the order of the rows nor other rows move it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from mallowspo.errors import InputError
from mallowspo.pairs.settings import ShareSettings, SplitSettings
from mallowspo.settings import PairsSettings

SPLITS = ("train", "test")


def unit_draw(seed: int, purpose: str, prompt_id: str) -> float:
    """A draw in [0, 1), uniform over prompts, fixed by its arguments; purposes are independent of each other."""
    number = hashlib.sha256(f"{seed}/{purpose}/{prompt_id}".encode()).digest()[:8]
    # 53 bits, which a float holds exactly: with more, the largest would round to 1.
    return (int.from_bytes(number) >> 11) / 2**53


def assign_splits(
    rows: Mapping[str, Sequence[tuple[int, dict[str, Any]]]], settings: SplitSettings, place: str
) -> dict[str, str]:
    """Split of each prompt_id, from the named column or by draw.

    Args:
        rows: the numbered rows of each prompt_id.
        place: the source, for messages.

    Raises:
        InputError: the column is missing, says something else than train or test, or puts a prompt into both.
    """
    if settings.column is None:
        return {
            prompt_id: "test" if unit_draw(settings.seed, "split", prompt_id) < settings.test_fraction else "train"
            for prompt_id in rows
        }
    splits: dict[str, str] = {}
    for prompt_id, numbered in rows.items():
        for number, values in numbered:
            split = _named_split(values, settings.column, f"{place}: row {number}")
            if splits.setdefault(prompt_id, split) != split:
                raise InputError(
                    f"{place}: row {number}: its prompt is in both train and test by column '{settings.column}'; "
                    "mend the column, or leave out pairs.split.column to split by prompt"
                )
    return splits


def in_share(share: ShareSettings | None, prompt_id: str) -> bool:
    """Whether a prompt is in the share that is taken. No seed moves it: files that name other parts never meet."""
    return share is None or 1 + int(unit_draw(0, "share", prompt_id) * share.of) in share.parts


def draw_prompts(splits: Mapping[str, str], pairs: PairsSettings) -> set[str]:
    """The prompts of the share that is taken, as many of them as `max_train` and `max_test` keep, by seeded draw."""
    kept: set[str] = set()
    for split, limit in zip(SPLITS, (pairs.max_train, pairs.max_test), strict=True):
        prompts = [
            prompt_id
            for prompt_id, assigned in splits.items()
            if assigned == split and in_share(pairs.split.share, prompt_id)
        ]
        prompts.sort(key=lambda prompt_id: unit_draw(pairs.split.seed, "limit", prompt_id))
        kept.update(prompts[:limit])
    return kept


def _named_split(values: dict[str, Any], column: str, place: str) -> str:
    if column not in values:
        raise InputError(
            f"{place}: no column '{column}', which pairs.split.column names; there are {', '.join(values)}"
        )
    if values[column] not in SPLITS:
        raise InputError(f"{place}: column '{column}' is {values[column]!r}; expected train or test")
    return str(values[column])
