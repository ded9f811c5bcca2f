"""Tuning runs: which labels are one method's, and whether all methods have as many."""

from collections.abc import Mapping
from typing import Any


def tuning_groups(methods: Mapping[str, Any]) -> dict[str, list[str]]:
    """Labels of the same method under the same control, which differ in beta or options; in the order of the labels.

    Args:
        methods: label -> settings with .method and .control.

    Returns:
        by the method's name, with the control behind it in brackets.
    """
    groups: dict[str, list[str]] = {}
    for label, settings in methods.items():
        control = "" if settings.control == "none" else f" ({settings.control.replace('_', '-')})"
        groups.setdefault(f"{settings.method}{control}", []).append(label)
    return groups


def group_of(label: str, methods: Mapping[str, Any]) -> str:
    """The name of the group that a label is in."""
    return next(name for name, labels in tuning_groups(methods).items() if label in labels)


def check_budgets(methods: Mapping[str, Any], unequal: str) -> None:
    """One budget for all.

    Args:
        unequal: "allow": the groups may differ in size.

    Raises:
        ValueError: they do and may not, or there is nothing to select.
    """
    counts = {name: len(labels) for name, labels in tuning_groups(methods).items()}
    if max(counts.values()) == 1:
        raise ValueError(
            "evaluation.selection: every method has one label, nothing can be selected; add labels with other betas or "
            "options, or remove it"
        )
    if len(set(counts.values())) > 1 and unequal != "allow":
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ValueError(
            f"evaluation.selection: the methods have unequal tuning budgets ({told} labels); give each as many, or set "
            "selection.unequal: allow"
        )
