"""The pairs that both sides train on: made up from stated lengths, or read from a file; and their token ids."""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mallowspo.bench.lengths import SETS, Lengths, draw
from mallowspo.errors import InputError
from mallowspo.files import digest
from mallowspo.pairs.tokens import TokenizedPair, tokenize_pairs
from mallowspo.settings import PairsSettings, TokenSettings

#: Frequent words that most tokenizers know as one token each when a space stands before them.
_WORDS = (
    "a the and but so of to in on for with from as it we you they this that what how when where there here is are was "
    "were be have has had do did can could would should will not no yes if or all some more most other only own same "
    "time year people way day man thing woman life child world school state family group country problem hand part "
    "place case week company system program question work number night point home water room mother area money story "
    "fact month lot right study book eye job word business issue side kind head house friend father power hour game "
    "line end member law car city name team minute idea body back parent face level office door health person art war "
    "history party result change morning reason research girl guy moment air teacher force"
)
WORDS = tuple(_WORDS.split())


@dataclass(frozen=True)
class Data:
    """Pairs of one set, and what they are in tokens."""

    name: str
    table: pd.DataFrame  # as pairs/*.parquet
    tokens: list[TokenizedPair]  # of each row
    left_out: int = 0  # pairs of the file that are longer than the maximum

    @property
    def ids(self) -> list[dict[str, list[int]]]:
        """Token ids under the names that TRL's collator reads."""
        return [
            {"prompt_ids": pair.prompt, "chosen_ids": pair.chosen, "rejected_ids": pair.rejected}
            for pair in self.tokens
        ]

    @property
    def real_tokens(self) -> int:
        """Tokens of all rows, without padding; each prompt counts twice, once a response."""
        return sum(2 * len(pair.prompt) + len(pair.chosen) + len(pair.rejected) for pair in self.tokens)


def token_settings(template: str, maximum: int) -> TokenSettings:
    """Cut nothing that `fits`."""
    return TokenSettings.model_validate({"template": template, "max_prompt": maximum, "max_response": maximum})


def made_up(name: str, lengths: Lengths, pairs: int, maximum: int, seed: int, tokenizer: Any) -> Data:
    """Dialogues of random words with the lengths of `lengths.draw`, under template plain; the same for equal seeds."""
    words = random.Random(seed)
    rows = []
    for prompt_length, chosen_length, rejected_length in draw(lengths, pairs, maximum, seed):
        question = _words_around("\n\nHuman:", "\n\nAssistant:", prompt_length, words, tokenizer, start=True)
        # One less: the end-of-sequence token follows.
        chosen, rejected = (
            _words_around("", "", length - 1, words, tokenizer) for length in (chosen_length, rejected_length)
        )
        rows.append(pair_row(question, chosen, rejected if rejected != chosen else f"{rejected} no"))
    table = pd.DataFrame(rows)
    return Data(name, table, list(tokenize_pairs(tokenizer, table, token_settings("plain", maximum))))


def _words_around(
    before: str, after: str, length: int, words: random.Random, tokenizer: Any, start: bool = False
) -> str:
    """`before`, words and `after`, of about `length` tokens; at least one word."""

    def tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=start)["input_ids"])

    return before + _random_words(length - tokens(before + after), words, _token_counts(tokenizer)) + after


def _token_counts(tokenizer: Any) -> dict[str, int]:
    encoded = tokenizer([f" {word}" for word in WORDS], add_special_tokens=False)["input_ids"]
    return {word: len(ids) for word, ids in zip(WORDS, encoded, strict=True)}


def _random_words(room: int, words: random.Random, counts: dict[str, int]) -> str:
    """Random words of `room` tokens in all; where none fits the rest, it stays that much shorter."""
    chosen = [words.choice([word for word in WORDS if counts[word] <= room] or [min(WORDS, key=counts.__getitem__)])]
    room -= counts[chosen[0]]
    while fitting := [word for word in WORDS if counts[word] <= room]:
        chosen.append(words.choice(fitting))
        room -= counts[chosen[-1]]
    return " " + " ".join(chosen)


def pair_row(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    """A pair as in pairs/*.parquet."""
    text = prompt.removeprefix("\n\nHuman:").removesuffix("\n\nAssistant:").strip()
    messages = [{"role": "user", "content": text}]
    return {
        "pair_id": digest([messages, chosen, rejected]),
        "prompt_id": digest(messages),
        "prompt": prompt,
        "messages": json.dumps(messages),
        "chosen": chosen,
        "rejected": rejected,
        "source": "made up",
        "meta": json.dumps({"chosen_complete": True, "rejected_complete": True}),
    }


def from_file(file: Path, pairs: int, maximum: int, template: str, seed: int, tokenizer: Any) -> Data:
    """A seeded draw of real pairs through the package's own readers; those longer than `maximum` are left out.

    Raises:
        InputError: the file cannot be read, or holds too few pairs.
    """
    from mallowspo.pairs.build import check_rows, read_source

    unlimited = token_settings(template, 1 << 20)
    settings = PairsSettings(source=f"path:{file}")
    usable, _ = check_rows(read_source(settings, template), tokenizer, settings.source, unlimited)
    fitting = [one for one in usable if _length(one.tokens) <= maximum]
    if len(fitting) < pairs:
        raise InputError(
            f"{file}: {len(fitting)} of {len(usable)} usable pairs fit into {maximum} tokens, "
            f"{pairs} are wanted; lower --number-of-pairs or raise --max-length"
        )
    kept = random.Random(seed).sample(fitting, pairs)
    table = pd.DataFrame([one.pair for one in kept])
    return Data("pairs", table, [one.tokens for one in kept], len(usable) - len(fitting))


def _length(pair: TokenizedPair) -> int:
    return len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))


def describe(data: Data, batch: int) -> dict[str, Any]:
    """Sizes of a set: pairs, tokens, tokens once padded in batches of `batch` pairs, quantiles of the lengths."""
    rows = [_length(pair) for pair in data.tokens]
    padded = sum(2 * batch * max(rows[start : start + batch]) for start in range(0, len(rows), batch))
    sides = {name: [len(getattr(pair, name)) for pair in data.tokens] for name in ("prompt", "chosen", "rejected")}
    quantiles = pd.DataFrame(sides).quantile([0.05, 0.25, 0.5, 0.75, 0.95]).to_dict("list")
    known = {"quantiles_wanted": asdict(SETS[data.name])} if data.name in SETS else {}
    return {
        "pairs": len(data.tokens),
        "left_out_as_too_long": data.left_out,
        "real_tokens": data.real_tokens,
        "padded_tokens": padded,
        "quantiles_at_5_25_50_75_95_percent": quantiles,
        **known,
    }
