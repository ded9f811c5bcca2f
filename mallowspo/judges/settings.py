"""How a judge is asked."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mallowspo.sections import secret_in_settings

CREDENTIALS = {"api_key", "apikey", "authorization", "headers", "extra_headers", "token", "key"}


def _keys(value: Any) -> Iterator[str]:
    """Every key, however deep."""
    if isinstance(value, dict):
        yield from map(str, value)
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _keys(item)


class JudgeSettings(BaseModel):
    """Of any judge; a kind that does not read a setting ignores it."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())

    orders: Literal["both", "one"] = Field(
        default="both", description="both: each pair is judged in both orders; one: in the order that AlpacaEval draws"
    )
    max_failed_share: float = Field(
        default=0.02, ge=0, le=1, description="stop when more replies are refusals or cannot be read"
    )
    asked_again_share: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="of the pairs, asked a second time to see whether the judge agrees with itself; a deterministic "
        "judge is not",
    )
    concurrency: int = Field(default=8, ge=1, description="openai: requests at a time")
    batch: int = Field(default=16, ge=1, description="local models: comparisons at a time")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    prompt: str | None = Field(
        default=None, description="logprob: file of the question, with {instruction}, {output_1} and {output_2}"
    )
    model: str | None = Field(
        default=None, description="openai: the model's name at the endpoint, where an annotator of AlpacaEval is named"
    )
    request: dict[str, Any] = Field(default_factory=dict, description="openai: further parameters of each request")
    log_probabilities: Literal["if_given", "required"] | None = Field(
        default=None,
        description="openai: whether a reply without log-probabilities is read as text; default: required for "
        "AlpacaEval's weighted annotators, else if_given",
    )
    tries: int = Field(default=6, ge=1, description="openai: of one request, before the judging stops")
    first_wait_seconds: float = Field(default=1.0, gt=0, description="openai: doubled at each try, up to a minute")
    timeout_seconds: float = Field(default=120.0, gt=0, description="openai: of one request")
    price_in: float | None = Field(default=None, ge=0, description="openai: price of a million tokens read")
    price_out: float | None = Field(default=None, ge=0, description="openai: price of a million tokens written")
    budget_tokens: int | None = Field(
        default=None, ge=1, description="openai: of one run (method and seed), resumptions included"
    )
    budget_money: float | None = Field(default=None, gt=0, description="openai: the same in the prices' money")

    @field_validator("request")
    @classmethod
    def _no_credentials(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Settings are printed, kept beside the results and tracked: a key in them would be everywhere."""
        wrong = sorted(name for name in _keys(value) if name.lower() in CREDENTIALS)
        if wrong:
            raise secret_in_settings(f"{wrong[0]} does not belong in settings; put the key in OPENAI_API_KEY")
        return value

    @model_validator(mode="after")
    def _money_has_prices(self) -> "JudgeSettings":
        if self.budget_money is not None and None in (self.price_in, self.price_out):
            raise ValueError("budget_money needs price_in and price_out")
        return self
