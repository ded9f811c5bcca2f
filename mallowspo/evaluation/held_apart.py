"""Test prompts that are held apart to select tuning runs by (`evaluation.selection`)."""

from typing import Any

from mallowspo.pairs.split import unit_draw


def is_validation(prompt_id: str, selection: Any) -> bool:
    """Whether a test prompt is held apart; no other prompt moves it.

    Args:
        selection: .seed and .validation_share; None: none is.
    """
    return selection is not None and unit_draw(selection.seed, "validation", prompt_id) < selection.validation_share
