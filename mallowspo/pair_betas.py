"""Methods with a beta of each pair, by which the reference's dispersion may or may not be complemented."""

from collections.abc import Mapping
from typing import Any

from mallowspo.methods import METHODS

#: What a trained objective remembers and learned, beside its policy's weights. In safetensors' format under another
#: ending: it is no part of the model, and who copies or checks the model's weights shall not take it for one.
OBJECTIVE = "objective.tensors"
#: Adaptations whose beta goes by the prompt alone: a learned function of it times its perplexity.
BY_PROMPT = "lb_dpo"


def has_pair_beta(settings: Any) -> bool:
    """Whether pairs of one batch have betas of their own, apart from any dispersion weight.

    Args:
        settings: .method and .options of a label. beta-DPO has one at level instance only.
    """
    kind = METHODS[settings.method].adaptive
    if kind == "beta_dpo":
        return bool(settings.options["level"] == "instance")
    return kind in (BY_PROMPT, "epsilon_dpo")


def learns_from_the_prompt(settings: Any) -> bool:
    """Whether beta is a learned factor times the prompt's log-perplexity under the reference."""
    return METHODS[settings.method].adaptive == BY_PROMPT


def labels_with_pair_beta(methods: Mapping[str, Any]) -> list[str]:
    return [label for label, settings in methods.items() if has_pair_beta(settings)]
