"""`openai:MODEL`: any endpoint that speaks OpenAI's chat completions.

Where it is and its key come from the environment alone: OPENAI_BASE_URL (default: OpenAI's own) and OPENAI_API_KEY.
The key is in no file, message or log; should an endpoint send it back, it is cut out.
"""

import json
import logging
import os
import random
import time
from collections.abc import Sequence
from typing import Any

from mallowspo.errors import InputError
from mallowspo.judges.annotators import DEFAULT, Annotator, is_annotator, load_annotator
from mallowspo.judges.judge import Judgement, Question
from mallowspo.judges.settings import JudgeSettings

logger = logging.getLogger(__name__)

LONGEST_WAIT = 60.0
BYTES_PER_TOKEN = 4
#: Statuses that another try may mend.
TRANSIENT = {408, 409, 425, 429, 500, 502, 503, 504, 529}
BY_TEXT = "read as text: no log-probabilities"


class _TryAgain(Exception):
    """A fault of transport; `wait` in seconds where the endpoint says how long."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


class EndpointJudge:
    """Asks a chat model by one of AlpacaEval's annotators, or any model by the prompt of its weighted one.

    Args:
        name: `openai:` with the name of an annotator of AlpacaEval, or of a model at the endpoint.
    """

    deterministic = False
    batch = 1

    def __init__(self, name: str, settings: JudgeSettings):
        self.name = name
        model = name.partition(":")[2]
        named = is_annotator(model)
        self.annotator: Annotator = load_annotator(model if named else DEFAULT)
        self.model = settings.model or (self.annotator.model if named else model)
        self.request = {**self.annotator.request, **settings.request}
        required = "required" if named and self.annotator.label_tokens else "if_given"
        self.log_probabilities = settings.log_probabilities or required
        self.settings = settings
        self.concurrency = settings.concurrency
        self._key = os.environ.get("OPENAI_API_KEY", "")
        self._client = self._connect()
        self.content: dict[str, Any] = {
            "model": self.model,
            "request": self.request,
            "messages": self.annotator.messages,
            "parser": self.annotator.parser,
            "log_probabilities": self.log_probabilities,
        }

    def ask(self, questions: Sequence[Question]) -> list[Judgement]:
        return [self._ask(question) for question in questions]

    def cost(self, question: Question) -> tuple[int, int]:
        text = "".join(message["content"] for message in self.annotator.fill_in(question))
        longest = max(int(self.request.get(name) or 0) for name in ("max_tokens", "max_completion_tokens"))
        return len(text.encode()) // BYTES_PER_TOKEN + 1, longest

    def _connect(self) -> Any:
        import openai

        if not self._key and "OPENAI_BASE_URL" not in os.environ:
            raise InputError(
                f"judge '{self.name}': set OPENAI_API_KEY in the environment, or OPENAI_BASE_URL for an endpoint that "
                "needs no key"
            )
        # Its own retries know neither a torn reply nor our count of tries.
        return openai.OpenAI(api_key=self._key or "none", timeout=self.settings.timeout_seconds, max_retries=0)

    def _ask(self, question: Question) -> Judgement:
        """One judgement; transient faults are waited out.

        Raises:
            InputError: the endpoint refuses the request, or no try brought a whole reply.
        """
        messages, start = self.annotator.fill_in(question), time.monotonic()
        for number in range(1, self.settings.tries + 1):
            try:
                return self._read(self._send(messages), time.monotonic() - start)
            except _TryAgain as fault:
                if number == self.settings.tries:
                    raise InputError(
                        f"judge '{self.name}': no reply in {number} tries, last: {self._safe(str(fault))}; "
                        "see whether the endpoint is up"
                    ) from None
                pause = self._pause(number, fault.wait)
                logger.info("%s: %s; again in %.1f s", self.name, self._safe(str(fault)), pause)
                time.sleep(pause)
        raise AssertionError("unreachable")

    def _send(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        """The reply's JSON object."""
        import openai

        try:
            raw = self._client.chat.completions.with_raw_response.create(
                model=self.model, messages=messages, extra_body=self.request
            )
            reply = json.loads(raw.content)
        except openai.APITimeoutError:
            raise _TryAgain(f"no reply within {self.settings.timeout_seconds:g} s") from None
        except openai.APIConnectionError as error:
            raise _TryAgain(f"no connection ({error.__cause__ or error})") from None
        except openai.APIStatusError as error:
            if error.status_code in TRANSIENT:
                wait = _seconds(error.response.headers.get("retry-after"))
                raise _TryAgain(f"status {error.status_code}", wait) from None
            said = self._safe(str(error).splitlines()[0])[:200]
            raise InputError(f"judge '{self.name}': the endpoint refused the request: {said}") from None
        except (json.JSONDecodeError, UnicodeDecodeError, openai.APIResponseValidationError):
            raise _TryAgain("the reply is torn: not whole JSON") from None
        if not isinstance(reply, dict) or not reply.get("choices"):
            raise _TryAgain("the reply holds no choice")
        return reply

    def _read(self, reply: dict[str, Any], seconds: float) -> Judgement:
        """A whole reply as a judgement: a refusal or an unreadable one is kept as such."""
        choice, usage = _as_alpacaeval(reply["choices"][0]), reply.get("usage") or {}
        preference, note, problem = None, "", ""
        if choice["message"].get("refusal") or choice.get("finish_reason") == "content_filter":
            problem = "a refusal"
        else:
            preference = self.annotator.preference(choice)
            if preference is None and self.log_probabilities == "if_given" and not choice.get("logprobs"):
                preference, note = self.annotator.preference_of_text(choice["text"]), BY_TEXT
            if preference is None:
                problem = "cannot be read"
                if self.log_probabilities == "required" and not choice.get("logprobs"):
                    problem += " (no log-probabilities; log_probabilities: if_given takes the text)"
        return Judgement(
            preference,
            raw=self._safe(json.dumps(reply["choices"][0], ensure_ascii=False)),
            problem=problem,
            tokens_in=int(usage.get("prompt_tokens") or 0),
            tokens_out=int(usage.get("completion_tokens") or 0),
            seconds=round(seconds, 3),
            note=note if preference is not None else "",
        )

    def _pause(self, number: int, asked: float | None) -> float:
        """Seconds before another try: what the endpoint asks for, else doubled each time, and spread."""
        if asked is not None:
            return min(asked, LONGEST_WAIT)
        # Spread, so that requests that failed together do not come back together; it decides nothing that is kept.
        spread = random.uniform(0.75, 1.25)
        return float(min(self.settings.first_wait_seconds * 2 ** (number - 1) * spread, LONGEST_WAIT))

    def _safe(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


def _as_alpacaeval(choice: dict[str, Any]) -> dict[str, Any]:
    """A choice with the key `text`, as AlpacaEval's parsers expect it: the content, or the arguments of a call."""
    message = choice.get("message") or {}
    text = message.get("content") or " "
    calls = message.get("tool_calls")
    if message.get("function_call"):
        text = message["function_call"].get("arguments") or " "
    if calls:
        text = calls[0]["function"].get("arguments") or " "
    return {**choice, "message": message, "text": text}


def _seconds(header: str | None) -> float | None:
    """Retry-After in seconds; its other form, a date, counts as none."""
    try:
        return max(0.0, float(header)) if header is not None else None
    except ValueError:
        return None
