"""Who answers: a policy as it is compared, or the same at another temperature.

    dpo                     trained, answering at generation.temperature
    dpo@temperature=0.7     the same at another temperature

The name stands where a method's does: in --method, and in the paths of answers and scores.
"""

import re
from typing import NamedTuple

from mallowspo.errors import InputError


class Policy(NamedTuple):
    """A label of `methods`, or the reference; None: as it is compared."""

    label: str
    temperature: float | None = None

    @classmethod
    def parse(cls, name: str) -> "Policy":
        """From its name.

        Raises:
            InputError: what stands behind the label is no temperature.
        """
        found = re.fullmatch(r"([^@]+)(?:@temperature=([0-9.]+))?", name)
        if not found:
            raise InputError(f"policy '{name}': give a label, with @temperature=T behind it or not")
        label, temperature = found.groups()
        return cls(label, None if temperature is None else float(temperature))

    @property
    def name(self) -> str:
        return self.label if self.is_compared else f"{self.label}@temperature={self.temperature:g}"

    @property
    def is_compared(self) -> bool:
        """Whether it is the policy that the comparison is about."""
        return self.temperature is None
