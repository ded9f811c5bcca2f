"""How the labels of an experiment belong together: two factors that are crossed, tuning runs of one method."""

from typing import Literal

from pydantic import Field, model_validator

from mallowspo.sections import Section


class FactorialSettings(Section):
    """Two factors, each off or on, in four labels: what each does, and whether they add up."""

    factors: tuple[str, str] = Field(description="what they are called, such as [dispersion weight, learnable beta]")
    neither: str = Field(description="the label where both are off")
    first: str = Field(description="where the first alone is on")
    second: str = Field(description="where the second alone is on")
    both: str = Field(description="where both are on")

    @property
    def labels(self) -> tuple[str, str, str, str]:
        return (self.neither, self.first, self.second, self.both)

    @model_validator(mode="after")
    def _four_labels_two_factors(self) -> "FactorialSettings":
        if len(set(self.labels)) < 4:
            raise ValueError(f"needs four different labels, not {', '.join(self.labels)}")
        if self.factors[0] == self.factors[1] or not all(name.strip() for name in self.factors):
            raise ValueError("the two factors need a name each")
        return self


class SelectionSettings(Section):
    """A method's labels (other betas, other options) are its tuning runs: the best by validation prompts is tested."""

    outcome: Literal["reward", "second_reward", "win_rate", "accuracy"] = Field(
        default="reward", description="the largest mean on the validation prompts is selected"
    )
    validation_share: float = Field(
        default=0.5, gt=0, lt=1, description="of the test prompts, by a draw that goes by the prompt; the others test"
    )
    seed: int = Field(default=0, description="of that draw")
    unequal: Literal["error", "allow"] = Field(
        default="error", description="where a method has more tuning runs than another"
    )
