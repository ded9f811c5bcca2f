"""From text to token ids: prompt and response apart, one BOS, one EOS, and never a response cut to nothing.

Padding is no concern here: lengths, not pad ids, say what is a token, so a tokenizer without a pad token, or with
pad equal to EOS, needs no care.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from jinja2 import TemplateError

from mallowspo.errors import InputError
from mallowspo.settings import TokenSettings


@dataclass(frozen=True)
class TokenizedPair:
    """Token ids of one pair. The ids that the model sees are prompt + chosen, and prompt + rejected."""

    pair_id: str
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    chosen_truncated: bool
    rejected_truncated: bool
    prompt_truncated: bool
    header: int = 0  # tokens that the chat template puts between the last message and the response
    prefix_changed: bool = False  # the chat template writes the prompt otherwise once a response follows it


def check_tokenizer(tokenizer: Any, settings: TokenSettings) -> None:
    """Stop before any row is read if the tokenizer lacks what every row needs.

    Raises:
        InputError: no EOS token, or no chat template where `tokens.template` is chat.
    """
    name = tokenizer.name_or_path or "the tokenizer"
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"{name}: no EOS token, which ends a complete response; set eos_token in tokenizer_config.json"
        )
    if settings.template == "chat" and not tokenizer.chat_template:
        raise InputError(f"{name}: no chat template; set tokens.template: plain, or take a model that has one")


def tokenize_prompt(
    tokenizer: Any, prompt: str, messages: list[dict[str, str]], settings: TokenSettings
) -> tuple[list[int], bool]:
    """Ids of a prompt, at most `max_prompt`, and whether it was cut.

    Template plain reads `prompt`, template chat reads `messages` and ends where the assistant begins to write. A
    tokenizer that puts a BOS first, by itself or in its template, gives exactly one; the cut is from the left and
    keeps that BOS.

    Raises:
        InputError: the tokenizer has no chat template, the template refuses the messages, or nothing is left.
    """
    ids = _chat_ids(tokenizer, messages, settings) if settings.template == "chat" else _plain_ids(tokenizer, prompt)
    ids = _one_bos(tokenizer, ids)
    if not ids:
        raise InputError(f"the prompt {prompt[:60]!r} has no tokens, so nothing precedes the response; give it text")
    if len(ids) <= settings.max_prompt:
        return ids, False
    return _cut_left(ids, settings.max_prompt, tokenizer.bos_token_id), True


def tokenize_response(tokenizer: Any, response: str, complete: bool, settings: TokenSettings) -> tuple[list[int], bool]:
    """Ids of a response, at most `max_response` with its EOS, and whether it was cut.

    The response is tokenized apart from the prompt, without special tokens. EOS follows a complete response that fits;
    a text that already ends in the EOS token gets no second one.

    Raises:
        InputError: no EOS token, or the text has no tokens.
    """
    ids: list[int] = tokenizer(response, add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    if not ids:
        raise InputError(
            f"the response {response[:60]!r} has no tokens; an empty response cannot be scored: leave it out"
        )
    if complete and end is None:
        check_tokenizer(tokenizer, settings)
    ended = [*ids, end] if complete and ids[-1:] != [end] else ids
    kept = ended[: settings.max_response]
    return kept, len(kept) < len(ended)


def tokenize_pairs(
    tokenizer: Any, pairs: pd.DataFrame, settings: TokenSettings, window: int | None = None
) -> Iterator[TokenizedPair]:
    """Tokenize a table of pairs (`pairs/*.parquet`), in its order, and say of each what its chat template does.

    Args:
        window: tokens that the model can read; None: no limit is known.

    Raises:
        InputError: a pair cannot be tokenized, or its template leaves out what stands before a response; the message
            names its pair_id.
    """
    check_tokenizer(tokenizer, settings)
    for row in pairs.to_dict("records"):
        try:
            pair = tokenize_pair(tokenizer, row, settings, window)
            if settings.template == "chat":
                header, changed = _template_facts(tokenizer, json.loads(row["messages"]), row["chosen"], settings)
                pair = replace(pair, header=header, prefix_changed=changed)
        except InputError as error:
            raise InputError(f"pair {row['pair_id']}: {error}") from None
        yield pair


def tokenize_pair(
    tokenizer: Any, row: dict[Any, Any], settings: TokenSettings, window: int | None = None
) -> TokenizedPair:
    """Tokenize one row of a table of pairs: its ids, without what its chat template does.

    A pair longer than `window` loses tokens from the left of its prompt, and keeps one at least; only a response that
    fills the window by itself is cut as well.

    Raises:
        InputError: as `tokenize_prompt` and `tokenize_response`.
    """
    meta = json.loads(row["meta"])
    beside_a_prompt = _at_most(settings, "max_response", window and window - 1)
    chosen, chosen_cut = tokenize_response(tokenizer, row["chosen"], meta["chosen_complete"], beside_a_prompt)
    rejected, rejected_cut = tokenize_response(tokenizer, row["rejected"], meta["rejected_complete"], beside_a_prompt)
    before_both = _at_most(settings, "max_prompt", window and window - max(len(chosen), len(rejected)))
    prompt, prompt_cut = tokenize_prompt(tokenizer, row["prompt"], json.loads(row["messages"]), before_both)
    return TokenizedPair(row["pair_id"], prompt, chosen, rejected, chosen_cut, rejected_cut, prompt_cut)


def _at_most(settings: TokenSettings, name: str, most: int | None) -> TokenSettings:
    if most is None or getattr(settings, name) <= most:
        return settings
    return settings.model_copy(update={name: most})


def _template_facts(
    tokenizer: Any, messages: list[dict[str, str]], response: str, settings: TokenSettings
) -> tuple[int, bool]:
    """Number of tokens of the header, which the template puts between the last message and the response, and whether
    it writes the prompt otherwise once that response follows.

    The header is what stands at the prompt's end only where a response is to follow.

    Raises:
        InputError: the template writes a header before a response, and leaves it out where one is to be generated.
    """
    prompt, without = (_chat_ids(tokenizer, messages, settings, generation_prompt=wanted) for wanted in (True, False))
    shared = len(list(itertools.takewhile(lambda both: both[0] == both[1], zip(prompt, without, strict=False))))
    header = len(prompt) - shared
    try:
        whole = _chat_ids(tokenizer, [*messages, {"role": "assistant", "content": response}], settings, False)
    except InputError:
        return header, True  # it refuses a response here, as some do after an assistant's own turn
    if header == 0:
        _check_no_header(tokenizer, messages, response)
    return header, whole[: len(prompt)] != prompt


def _check_no_header(tokenizer: Any, messages: list[dict[str, str]], response: str) -> None:
    """A template such as Llama 2's needs none. One that knows no generation prompt has one all the same."""
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": response}], tokenize=False)
    between = whole.removeprefix(asked).partition(response.strip())[0].strip()
    if whole.startswith(asked) and between:
        raise InputError(
            f"the chat template writes {between[:40]!r} before a response, but not where one is to be generated: the "
            "response would follow the wrong words; give the template a generation prompt, or use template plain"
        )


def _plain_ids(tokenizer: Any, prompt: str) -> list[int]:
    ids: list[int] = tokenizer(prompt)["input_ids"]
    end = tokenizer.eos_token
    # Some tokenizers end every text with EOS: the response would then follow an end.
    if len(ids) > 1 and end and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(end):
        return ids[:-1]
    return ids


def _chat_ids(
    tokenizer: Any, messages: list[dict[str, str]], settings: TokenSettings, generation_prompt: bool = True
) -> list[int]:
    if not tokenizer.chat_template:
        check_tokenizer(tokenizer, settings)
    try:
        # return_dict=False: transformers 5 returns a BatchEncoding by default, whose len() is its number of keys.
        ids: list[int] = tokenizer.apply_chat_template(
            messages, add_generation_prompt=generation_prompt, return_dict=False
        )
    except TemplateError as error:
        raise InputError(
            f"the chat template refuses the messages ({error}); mend the row or use template plain"
        ) from None
    return ids


def _cut_left(ids: list[int], length: int, start: int | None) -> list[int]:
    kept_bos = ids[:1] if ids[0] == start else []
    # Not ids[-n:]: with n = 0 that is everything.
    tail = ids[len(ids) - (length - len(kept_bos)) :]
    # Where BOS also opens a turn (SmolLM2), the tail may begin with one of its own.
    return tail if tail[:1] == kept_bos else kept_bos + tail


def _one_bos(tokenizer: Any, ids: list[int]) -> list[int]:
    start = tokenizer.bos_token_id
    if start is None:
        return ids
    written = next((index for index, token in enumerate(ids) if token != start), len(ids))
    adds_itself = tokenizer("")["input_ids"][:1] == [start]
    return ([start] if written or adds_itself else []) + ids[written:]
