"""Intervals, tests and power for measurements on the same prompts; docs/statistics.md says what was tried.

Shape legend: P prompts (or items of a benchmark), S seeds. A value (p, s) is already the mean over the answers to
prompt p of the run with seed s, so the prompt is the unit: n is always P, never P x S or the number of answers.
"""

from mallowspo.inference.crossed import Spread
from mallowspo.inference.differences import Difference, Estimate, contrast, estimate, paired_difference
from mallowspo.inference.equivalence import equivalence_p
from mallowspo.inference.families import benjamini_hochberg, holm
from mallowspo.inference.interaction import Slope, dispersion_slope
from mallowspo.inference.power import (
    POWER,
    Components,
    components,
    detectable_effect,
    discordant_power,
    power,
    prompts_needed,
    seeds_needed,
)
from mallowspo.inference.resampling import association, bootstrap_means, sign_flip_p, two_level_bootstrap

__all__ = [
    "POWER",
    "Components",
    "Difference",
    "Estimate",
    "Slope",
    "Spread",
    "association",
    "benjamini_hochberg",
    "bootstrap_means",
    "components",
    "contrast",
    "detectable_effect",
    "discordant_power",
    "dispersion_slope",
    "equivalence_p",
    "estimate",
    "holm",
    "paired_difference",
    "power",
    "prompts_needed",
    "seeds_needed",
    "sign_flip_p",
    "two_level_bootstrap",
]
