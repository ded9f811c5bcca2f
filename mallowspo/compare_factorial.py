"""Two factors over four labels: main effects and their interaction on every outcome, for factorial.parquet.

With the four labels' values of one prompt and seed, n (neither), a (the first alone), b (the second alone), ab (both):

    first        ((a - n) + (ab - b)) / 2      what the first factor does, on average over the second
    second       ((b - n) + (ab - a)) / 2
    interaction  (ab - b) - (a - n)            how much more the first does where the second is on; 0: they add up

Each is a contrast of paired values, so that its interval and test are those of any difference here, over prompts and
seeds (`mallowspo.inference.contrast`); runs of all methods tell how much runs differ. A metric that one of the four has
no value of (a win rate against the baseline: nothing is compared with itself) is left out.
"""

from typing import Any

import numpy as np
import pandas as pd

from mallowspo.compare_values import Values
from mallowspo.inference import benjamini_hochberg, contrast, holm
from mallowspo.metric_names import is_outcome, is_part

FIRST, SECOND, INTERACTION = "first", "second", "interaction"
#: Effect -> coefficients of (neither, first, second, both).
COEFFICIENTS = {
    FIRST: (-0.5, 0.5, -0.5, 0.5),
    SECOND: (-0.5, -0.5, 0.5, 0.5),
    INTERACTION: (1.0, -1.0, -1.0, 1.0),
}
COLUMNS = ("effect", "name", "metric", "estimate", "ci_low", "ci_high", "p", "p_policies", "detectable", "n", "seeds",
           "covers", "test", "family", "p_holm", "p_bh", "family_size")  # fmt: skip


def factorial_table(values: Values, settings: Any, methods: list[str], resampling: dict[str, Any]) -> pd.DataFrame:
    """Rows of `COLUMNS`, an effect and metric each; none where `settings` (evaluation.factorial) is None.

    Args:
        values: of the metrics that are tested.
        methods: all labels of the experiment.
        resampling: confidence, resamples, seed.

    Returns:
        name: the factor's, or both with × between. Corrected by Holm: all effects on all outcomes together, and on all
        descriptions; parts of benchmarks are in no family.
    """
    rows = []
    for metric, by_label in values.items() if settings else ():
        if all(label in by_label for label in settings.labels):
            rows += [_row(effect, metric, by_label, settings, methods, resampling) for effect in COEFFICIENTS]
    if not rows:
        return pd.DataFrame({name: pd.Series(dtype=object) for name in COLUMNS})
    table = pd.DataFrame(rows)
    family = table.groupby("family")["p"]
    adjusted = {"p_holm": family.transform(holm), "p_bh": family.transform(benjamini_hochberg)}
    return table.assign(**adjusted, family_size=family.transform("count"))[list(COLUMNS)]


def _row(
    effect: str, metric: str, by_label: Any, settings: Any, methods: list[str], resampling: dict[str, Any]
) -> dict[str, Any]:
    known = [label for label in methods if label in by_label]
    weights = dict(zip(settings.labels, COEFFICIENTS[effect], strict=True))
    runs = np.stack([by_label[label].to_numpy() for label in known])
    found = contrast(runs, [weights.get(label, 0.0) for label in known], **resampling)
    first, second = settings.factors
    names = {FIRST: first, SECOND: second, INTERACTION: f"{first} × {second}"}
    return {
        "effect": effect,
        "name": names[effect],
        "metric": metric,
        "estimate": found.difference,
        "ci_low": found.low,
        "ci_high": found.high,
        "p": found.p,
        "p_policies": found.p_policies,
        "detectable": found.detectable,
        "n": found.n,
        "seeds": runs.shape[2],
        "covers": found.covers,
        "test": found.test,
        "family": None if is_part(metric) else "outcomes" if is_outcome(metric) else "descriptions",
    }
