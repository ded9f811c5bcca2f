"""What a bandit study is. Free of torch."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from mallowspo.methods import METHODS
from mallowspo.settings import Section, nearest
from mallowspo.studies.settings import Study

Phi = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]


class BanditTraining(Section):
    """Full-batch gradient steps on the logits."""

    steps: int = Field(default=200, ge=2)
    early_steps: int = Field(default=20, ge=1, description="the policies are looked at here too: stopped early")
    learning_rate: float = Field(default=0.1, gt=0, description="nats of a logit a step, falling to 0 by the last")

    @model_validator(mode="after")
    def _early_comes_first(self) -> "BanditTraining":
        if self.early_steps >= self.steps:
            raise ValueError("early_steps must be below steps")
        return self


class BanditStudy(Study):
    """Softmax policies over a few arms, trained on preferences drawn from a known law."""

    kind: Literal["bandit"]
    seeds: int = Field(default=20, ge=2, description="independent repetitions, numbered from 0")
    arms: int = Field(default=5, ge=2, le=8)
    phis: list[Phi] = Field(
        default=[0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95],
        min_length=2,
        description="dispersion of each context; a context is what a prompt is to a language model",
    )
    exponent: Literal[1, 2] = Field(default=2, description="probability of a ranking ~ phi^(exponent * Kendall's tau)")
    reference: list[Positive] | None = Field(
        default=None, description="probabilities of the arms under the reference policy; default: uniform"
    )
    comparisons: list[Annotated[int, Field(ge=2)]] = Field(
        default=[16, 64], min_length=1, description="drawn in each context, with replacement over pairs of arms"
    )
    methods: list[str] = Field(default_factory=lambda: list(METHODS), description="rows of `mallowspo methods`")
    betas: list[Positive] = Field(default=[0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8], min_length=3)
    same_beta: float = Field(default=0.4, description="one of betas: where methods are compared at the same beta")
    kl_targets: list[Positive] = Field(
        default=[0.3, 0.45, 0.6, 0.75, 0.9], description="nats; rewards at the same KL are compared at these"
    )
    training: BanditTraining = BanditTraining()
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    resamples: int = Field(default=9999, ge=99)

    @field_validator("methods")
    @classmethod
    def _methods_exist(cls, methods: list[str]) -> list[str]:
        for name in methods:
            if name not in METHODS:
                raise ValueError(f"unknown method '{name}'; {nearest(name, METHODS)}")
        needed = [name for name in ("dpo", "mallows_theta", "mallows_phi") if name not in methods]
        if needed or len(set(methods)) != len(methods):
            raise ValueError(f"every method once, and dpo, mallows_theta, mallows_phi among them; missing: {needed}")
        return methods

    @model_validator(mode="after")
    def _fits_together(self) -> "BanditStudy":
        if self.reference is not None:
            if len(self.reference) != self.arms:
                raise ValueError(f"reference has {len(self.reference)} probabilities, arms is {self.arms}")
            if abs(sum(self.reference) - 1) > 1e-6:
                raise ValueError(f"reference sums to {sum(self.reference):g}, not to 1")
        if self.same_beta not in self.betas:
            raise ValueError(f"same_beta {self.same_beta:g} is none of betas")
        if sorted(set(self.betas)) != self.betas:
            raise ValueError("betas must rise, each once")
        return self
