"""AlpacaEval's annotators: its configurations, prompts and parsers, without its way of asking.

Its own requests give up in silence after some tries, and its cache is written once in 128 replies; so prompt and
parser are its code, and asking is `mallowspo.judges.endpoint`.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mallowspo.errors import InputError
from mallowspo.judges.judge import Question

#: The prompt and parser of a model that is named itself: one token, its log-probability read.
DEFAULT = "weighted_alpaca_eval_gpt4_turbo"

#: What AlpacaEval's own requests read and an endpoint does not.
_NOT_SENT = {"model_name", "requires_chatml", "is_chat", "price_per_token", "client_kwargs", "num_procs", "batch_size",
             "is_strip", "n_retries", "sleep_time"}  # fmt: skip


@dataclass(frozen=True)
class Annotator:
    """One of AlpacaEval's annotators that asks an OpenAI-compatible endpoint."""

    name: str
    model: str
    messages: list[dict[str, str]]  # with {instruction}, {output_1} and {output_2}
    request: dict[str, Any]  # max_tokens, temperature, logprobs, tools, ...
    parse: Callable[[Any], list[Any]]  # a completion to its annotations
    reads: str  # "completions": the text; "completions_all": the whole choice
    label_tokens: tuple[str, str] | None  # what the model writes for the first and the second answer, if one token
    parser: dict[str, Any]  # the parser's name and settings

    def fill_in(self, question: Question) -> list[dict[str, str]]:
        """The messages that show a question.

        In one pass: AlpacaEval replaces one key after the other, so that an answer with "{output_2}" in it changes
        the prompt, and reads the turns afterwards, so that "<|im_start|>" does. For all other texts the two agree.
        """
        texts = {"instruction": question.instruction, "output_1": question.first, "output_2": question.second}
        return [
            {
                **message,
                "content": re.sub(r"{(instruction|output_1|output_2)}", lambda key: texts[key[1]], text).strip(),
            }
            for message in self.messages
            for text in (message["content"],)
        ]

    def preference(self, choice: dict[str, Any]) -> float | None:
        """1 to 2, or None where the parser cannot read the reply."""
        try:
            found = list(self.parse(choice["text"] if self.reads == "completions" else choice))
        except Exception:  # noqa: BLE001 - the parsers raise whatever a reply makes them raise; the reply is kept
            return None
        if len(found) != 1 or not isinstance(found[0], int | float) or isinstance(found[0], bool):
            return None
        value = float(found[0]) or 1.5  # 0 is a tie to some parsers
        return value if math.isfinite(value) and 1 <= value <= 2 else None

    def preference_of_text(self, text: str) -> float | None:
        """The same from the written label alone, where an endpoint gives no log-probabilities."""
        written = text.strip().strip("\"'`.")
        if self.label_tokens is None or written not in self.label_tokens:
            return None
        return 1.0 + self.label_tokens.index(written)


def is_annotator(name: str) -> bool:
    """Whether AlpacaEval has an annotator of that name."""
    return re.fullmatch(r"[\w.-]+", name) is not None and (_folder() / name / "configs.yaml").exists()


def load_annotator(name: str) -> Annotator:
    """One of AlpacaEval's annotators by its name.

    Raises:
        InputError: it does not ask an OpenAI-compatible chat endpoint, one pair a request.
    """
    from alpaca_eval.annotators.pairwise_evaluator import SinglePairwiseAnnotator
    from alpaca_eval.utils import prompt_to_chatml

    configs = yaml.safe_load((_folder() / name / "configs.yaml").read_text(encoding="utf-8"))
    config = next(iter(configs.values()))
    keywords = dict(config.get("completions_kwargs") or {})
    unfit = sorted({"tokens_to_avoid", "tokens_to_favor"} & set(keywords))
    if (
        len(configs) > 1
        or config["fn_completions"] != "openai_completions"
        or config.get("batch_size", 1) != 1
        or unfit
    ):
        raise InputError(
            f"judge 'openai:{name}': this annotator of AlpacaEval is no single request to a chat endpoint for each "
            f"pair{f' ({unfit[0]})' if unfit else ''}; take another, such as openai:{DEFAULT}"
        )
    # Its constructor looks the function up that asks, which may need a package; nothing asks through it here.
    single = SinglePairwiseAnnotator(**{**config, "fn_completions": _never, "processors_to_kwargs": None})
    template = single.prompt_template
    try:
        messages = prompt_to_chatml(template)
    except AssertionError:
        raise InputError(f"judge 'openai:{name}': its prompt is no chat; take openai:{DEFAULT}") from None
    settings = dict(config.get("completion_parser_kwargs") or {})
    return Annotator(
        name=name,
        model=keywords["model_name"],
        messages=messages,
        request={key: value for key, value in keywords.items() if key not in _NOT_SENT},
        parse=single.fn_completion_parser,
        reads=single.completion_key,
        label_tokens=_labels(settings),
        parser={"function": config.get("fn_completion_parser"), "settings": settings},
    )


def _labels(settings: dict[str, Any]) -> tuple[str, str] | None:
    first, both = settings.get("numerator_token"), settings.get("denominator_tokens", [])
    others = [token for token in both if token != first]
    return (first, others[0]) if first and len(others) == 1 else None


def _never(**_: Any) -> Any:
    raise AssertionError("the endpoint is asked by mallowspo.judges.endpoint")


def _folder() -> Path:
    from alpaca_eval import constants

    return Path(constants.EVALUATORS_CONFIG_DIR)
