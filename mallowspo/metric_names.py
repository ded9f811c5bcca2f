"""What the names in the column `metric` of estimates.parquet and comparison.parquet say.

reward, kl, length, ...     of answers to the test prompts; second_reward: the reward by evaluation.second_judge
win_rate                    against the reference's answers; `win_rate against NAME`: against another's
accuracy, margin            of the held-out pairs; `accuracy on NAME`: of another set of pairs
TASK/METRIC                 of a benchmark; `GROUP > TASK/METRIC`: of a part of a group that has a number of its own
"""

from mallowspo.layout import REFERENCE

_AGAINST, _ON, _PART_OF = " against ", " on ", " > "
SECOND_REWARD = "second_reward"
#: Metrics that say whether a policy is better.
OUTCOMES = ("reward", SECOND_REWARD, "win_rate", "accuracy")


def against(metric: str, name: str) -> str:
    """A win rate against another's answers than the reference's."""
    return f"{metric}{_AGAINST}{name}"


def on(metric: str, name: str) -> str:
    """A metric of another set of pairs than the held-out ones."""
    return f"{metric}{_ON}{name}"


def part_of(group: str, metric: str) -> str:
    """A benchmark's metric that a group's own number sums up."""
    return f"{group}{_PART_OF}{metric}"


def bare(metric: str) -> str:
    """What is measured, whatever against or on: win_rate, accuracy, ..."""
    return metric.split(_AGAINST)[0].split(_ON)[0]


def opponent(metric: str) -> str:
    """Whose own value of the metric follows from its definition: who is compared with itself."""
    return metric.split(_AGAINST, maxsplit=1)[1] if _AGAINST in metric else REFERENCE


def is_on_other_pairs(metric: str) -> bool:
    return _ON in metric.split(_AGAINST)[0]


def is_benchmark(metric: str) -> bool:
    """TASK/METRIC, of parts too."""
    return "/" in bare(metric)


def is_part(metric: str) -> bool:
    """Whether a group's number sums it up: it is shown, and is no claim of its own."""
    return is_benchmark(metric) and _PART_OF in metric


def is_outcome(metric: str) -> bool:
    """Whether a larger value means a better policy, so that a claim may point at it."""
    return bare(metric) in OUTCOMES or (is_benchmark(metric) and not is_part(metric))
