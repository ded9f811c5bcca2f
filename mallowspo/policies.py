"""Who answers: a policy as it is compared, or the same under another condition.

    dpo                     trained, answering at generation.temperature
    dpo@temperature=0.7     the same at another temperature
    dpo@training=0.25       after a quarter of its training's steps

The name stands where a method's does: in --method, and in the paths of answers and scores.
"""

import re
from typing import NamedTuple

from mallowspo.errors import InputError


class Policy(NamedTuple):
    """A label of `methods`, or the reference, and at most one condition; None: as it is compared."""

    label: str
    temperature: float | None = None
    training: float | None = None

    @classmethod
    def parse(cls, name: str) -> "Policy":
        """From its name.

        Raises:
            InputError: what stands behind the label is no condition.
        """
        found = re.fullmatch(r"([^@]+)(?:@(temperature|training)=([0-9.]+))?", name)
        if not found:
            raise InputError(f"policy '{name}': give a label, with @temperature=T or @training=SHARE behind it or not")
        label, condition, value = found.groups()
        return cls(label, **({condition: float(value)} if condition else {}))

    @property
    def name(self) -> str:
        conditions = {"temperature": self.temperature, "training": self.training}
        return self.label + "".join(f"@{key}={value:g}" for key, value in conditions.items() if value is not None)

    @property
    def is_compared(self) -> bool:
        """Whether it is the policy that the comparison is about."""
        return self.temperature is None and self.training is None
