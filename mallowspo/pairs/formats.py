"""One row of a data set, in whichever format, as one candidate pair, or the reason why it cannot be used.

Known formats: HH dialogues (chosen, rejected), standard (prompt, chosen, rejected), conversational (the same as lists
of messages), the last two without a prompt column, where the prompt is what both sides share (as in TRL), votes of
several people (prompt, a, b, votes_a, votes_b), where the side with more votes is chosen, and two data sets of the hub
with columns of their own: stanfordnlp/SHP (history, human_ref_A, human_ref_B, labels) and lvwerra/stack-exchange-paired
(question, response_j, response_k).
"""

import math
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from mallowspo.files import digest
from mallowspo.pairs.dialogues import (
    Message,
    is_dialogue,
    prompt_text,
    shared_beginning,
    shared_messages,
    split_last_turn,
    to_messages,
)

#: Names under which data sets keep the prompt (SHP: history), in the order in which they are looked for.
PROMPT_COLUMNS = ("prompt", "history", "instruction")

# Kinds of rows that give no pair; the health table counts each.
EMPTY = "missing or empty"
EQUAL = "equal sides"
FORMAT = "wrong format"
NO_PREFERENCE = "no preference"
DUPLICATE = "duplicate"
EMPTY_ANSWER = "empty sampled answer"

#: Kinds that count against `pairs.max_unusable_share`; the others say something of the data, not of a defect.
UNUSABLE = (EMPTY, EQUAL, FORMAT)


class UnusableRow(Exception):
    """A row that gives no pair. `kind` is one of the constants above, the message is for a person."""

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True)
class Candidate:
    """A pair as read, before it is tokenized."""

    prompt: str
    messages: list[Message]
    chosen: str
    rejected: str
    meta: dict[str, Any]

    @property
    def prompt_id(self) -> str:
        return digest(self.messages)

    @property
    def pair_id(self) -> str:
        return digest([self.messages, self.chosen, self.rejected])


def recognise(values: dict[str, Any], template: str) -> Candidate:
    """The pair in one row.

    Args:
        values: the row's columns.
        template: `tokens.template`. Under chat, a response that followed a dialogue's mark loses the white space
            around it; under plain, a response to messages gets the space that follows a mark.

    Raises:
        UnusableRow: a side or the prompt is missing, empty or not text, the sides are equal, the prompts differ, or
            the votes are tied, sum to 0, or are no numbers, or SHP's label is neither 0 nor 1.
    """
    if "chosen" not in values:
        values = _in_our_columns(values)
    chosen, rejected = (_present(values, side) for side in ("chosen", "rejected"))
    if isinstance(chosen, str) and isinstance(rejected, str):
        prompt, messages, chosen, rejected = _from_texts(values, chosen, rejected, template)
    elif isinstance(chosen, list) and isinstance(rejected, list):
        prompt, messages, chosen, rejected = _from_messages(values, chosen, rejected, template)
    else:
        raise UnusableRow(FORMAT, f"chosen is {_kind(chosen)} and rejected is {_kind(rejected)}; expected two texts")
    for name, text in (("prompt", messages[-1]["content"]), ("chosen", chosen), ("rejected", rejected)):
        if not text.strip():
            raise UnusableRow(EMPTY, f"{name} is empty")
    if messages[-1]["role"] == "assistant":
        raise UnusableRow(FORMAT, "the prompt ends with an assistant turn")
    if chosen == rejected:
        raise UnusableRow(EQUAL, "chosen equals rejected")
    return Candidate(prompt, messages, chosen, rejected, _meta(values))


def prompt_of(value: Any, template: str) -> tuple[str, list[Message]]:
    """Text and messages of a prompt given as text, as a dialogue that ends where the assistant writes, or as messages.

    Raises:
        UnusableRow: it is none of these, or empty.
    """
    if isinstance(value, list):
        messages = _messages(value, "prompt")
        return prompt_text(messages, template), messages
    if value is None:
        raise UnusableRow(EMPTY, "prompt is missing")
    if not isinstance(value, str):
        raise UnusableRow(FORMAT, f"prompt is {_kind(value)}, not text")
    if not value.strip():
        raise UnusableRow(EMPTY, "prompt is empty")
    if is_dialogue(value):
        return value, to_messages(value)
    return value, [{"role": "user", "content": value}]


def _in_our_columns(values: dict[str, Any]) -> dict[str, Any]:
    """A row of a format that names its sides otherwise, with chosen and rejected; any other row as it is."""
    if "votes_a" in values:
        return _by_votes(values)
    if "human_ref_A" in values:
        return _of_shp(values)
    return _of_stack_exchange(values) if "response_j" in values else values


def _of_shp(values: dict[str, Any]) -> dict[str, Any]:
    """SHP (Ethayarajh et al. 2022): the first reference is preferred where `labels` is 1; columns of one side, such as
    score_A, become score_chosen and score_rejected."""
    label = _present(values, "labels")
    if str(label) not in ("0", "1"):
        raise UnusableRow(FORMAT, f"labels is {label!r}; SHP's is 1 where human_ref_A is preferred, else 0")
    sides = {"A": "chosen", "B": "rejected"} if str(label) == "1" else {"A": "rejected", "B": "chosen"}
    row = _one_question(values, "history", {f"human_ref_{letter}": side for letter, side in sides.items()})
    row.pop("labels")
    return {_of_side(name, sides): value for name, value in row.items()}


def _of_side(name: str, sides: dict[str, str]) -> str:
    start, _, letter = name.rpartition("_")
    return f"{start}_{sides[letter]}" if start and letter in sides else name


def _of_stack_exchange(values: dict[str, Any]) -> dict[str, Any]:
    """lvwerra/stack-exchange-paired: response_j has the higher score; `site` is told by the address of the question."""
    row = _one_question(values, "question", {"response_j": "chosen", "response_k": "rejected"})
    address = next(iter(values.get("metadata") or []), None)
    host = urlsplit(address).hostname if isinstance(address, str) else None
    return row | ({"site": host} if host else {})


def _one_question(values: dict[str, Any], prompt: str, sides: dict[str, str]) -> dict[str, Any]:
    """With one user turn and its two answers as messages, so that template plain marks who speaks."""
    row = {name: value for name, value in values.items() if name not in (prompt, *sides)}
    for name, ours, role in ((prompt, "prompt", "user"), *((name, side, "assistant") for name, side in sides.items())):
        text = _present(values, name)
        if not isinstance(text, str):
            raise UnusableRow(FORMAT, f"{name} is {_kind(text)}, not text")
        row[ours] = [{"role": role, "content": text}]
    return row


def _by_votes(values: dict[str, Any]) -> dict[str, Any]:
    """The row with sides named chosen and rejected, and their votes as votes_chosen and votes_rejected."""
    votes = {side: _votes(values, f"votes_{side}") for side in ("a", "b")}
    if votes["a"] + votes["b"] == 0:
        raise UnusableRow(FORMAT, "votes_a and votes_b sum to 0: nobody voted")
    if votes["a"] == votes["b"]:
        raise UnusableRow(NO_PREFERENCE, f"the votes are tied, {votes['a']:g} to {votes['b']:g}")
    sides = ("a", "b") if votes["a"] > votes["b"] else ("b", "a")
    kept = {name: value for name, value in values.items() if name not in ("a", "b", "votes_a", "votes_b")}
    for name, side in zip(("chosen", "rejected"), sides, strict=True):
        kept |= {name: values.get(side), f"votes_{name}": votes[side]}
    return kept


def _votes(values: dict[str, Any], column: str) -> float:
    try:
        votes = float(_present(values, column))
    except (TypeError, ValueError):
        raise UnusableRow(FORMAT, f"{column} is {values[column]!r}, not a number") from None
    if not (math.isfinite(votes) and votes >= 0):
        raise UnusableRow(FORMAT, f"{column} is {votes}; votes are finite and at least 0")
    return votes


def _from_texts(
    values: dict[str, Any], chosen: str, rejected: str, template: str
) -> tuple[str, list[Message], str, str]:
    column = _prompt_column(values)
    if column:
        prompt, messages = prompt_of(_present(values, column), template)
        return prompt, messages, chosen, rejected
    if is_dialogue(chosen) and is_dialogue(rejected):
        return _from_dialogues(chosen, rejected, template)
    shared = shared_beginning(chosen, rejected)
    if not shared.strip():
        raise UnusableRow(EMPTY, "prompt is missing: no column of that name, and the sides share no beginning")
    prompt, messages = prompt_of(shared, template)
    return prompt, messages, chosen[len(shared) :], rejected[len(shared) :]


def _from_dialogues(chosen: str, rejected: str, template: str) -> tuple[str, list[Message], str, str]:
    prompt, chosen = split_last_turn(chosen)
    other_prompt, rejected = split_last_turn(rejected)
    if prompt != other_prompt:
        raise UnusableRow(FORMAT, "chosen and rejected differ before their last Assistant turn")
    if any("\n\nHuman:" in response for response in (chosen, rejected)):
        raise UnusableRow(FORMAT, "the dialogue ends with a Human turn")
    messages = to_messages(prompt)
    if template == "plain":
        return prompt, messages, chosen, rejected
    return prompt_text(messages, template), messages, chosen.strip(), rejected.strip()


def _from_messages(
    values: dict[str, Any], chosen: list[Any], rejected: list[Any], template: str
) -> tuple[str, list[Message], str, str]:
    chosen, rejected = _messages(chosen, "chosen"), _messages(rejected, "rejected")
    column = _prompt_column(values)
    given = prompt_of(_present(values, column), template)[1] if column else []
    # Some data sets repeat the prompt inside both sides, whether or not they also have it as a column.
    shared = shared_messages(chosen, rejected)
    messages = shared or given
    if not messages:
        raise UnusableRow(EMPTY, "prompt is missing: no column of that name, and the sides share no first message")
    if shared and given and shared[-len(given) :] != given:
        raise UnusableRow(FORMAT, "the prompt column differs from the messages that both sides share")
    lead = " " if template == "plain" else ""
    sides = [
        lead + _only_answer(side[len(shared) :], name) for side, name in ((chosen, "chosen"), (rejected, "rejected"))
    ]
    return prompt_text(messages, template), messages, sides[0], sides[1]


def _only_answer(messages: list[Message], side: str) -> str:
    if [message["role"] for message in messages] != ["assistant"]:
        roles = ", ".join(message["role"] for message in messages)
        raise UnusableRow(FORMAT, f"{side} has the turns ({roles}) after the prompt; expected one assistant turn")
    return messages[0]["content"]


def _messages(value: list[Any], column: str) -> list[Message]:
    if not value:
        raise UnusableRow(EMPTY, f"{column} is an empty list")
    for message in value:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise UnusableRow(FORMAT, f"{column} has a message without role and content as text")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _prompt_column(values: dict[str, Any]) -> str | None:
    return next((name for name in PROMPT_COLUMNS if name in values), None)


def _present(values: dict[str, Any], column: str) -> Any:
    if values.get(column) is None:
        raise UnusableRow(EMPTY, f"{column} is missing")
    return values[column]


def _meta(values: dict[str, Any]) -> dict[str, Any]:
    meta: dict[str, Any] = {"chosen_complete": True, "rejected_complete": True}
    for name, value in values.items():
        if name in ("chosen", "rejected", _prompt_column(values)):
            continue
        if name in meta and not isinstance(value, bool):
            raise UnusableRow(FORMAT, f"{name} is {value!r}; expected true or false")
        # NaN, which tables use for a missing value, is not JSON.
        meta[name] = None if isinstance(value, float) and not math.isfinite(value) else value
    return meta


def _kind(value: Any) -> str:
    return {"str": "text", "list": "a list"}.get(type(value).__name__, f"a value of type {type(value).__name__}")
