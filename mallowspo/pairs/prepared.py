"""Stage "tokens": the pairs as token ids, once, in Arrow files that every later stage maps into memory.

Reference pass, training and the scoring of held-out pairs read rows from the map as they need them: a data set larger
than the memory is no trouble, and nothing is tokenized again for another method or seed.
"""

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow.compute
from datasets import Dataset, Features, List, Value, load_from_disk
from datasets.arrow_writer import ArrowWriter
from numpy.typing import NDArray
from tqdm import tqdm

from mallowspo.errors import InputError
from mallowspo.files import read_json, read_parquet, whole_directory, write_json
from mallowspo.layout import Layout
from mallowspo.models import load_config, load_tokenizer
from mallowspo.pairs.split import SPLITS
from mallowspo.pairs.tokens import TokenizedPair, tokenize_pairs

logger = logging.getLogger(__name__)

SIDES = ("prompt", "chosen", "rejected")
#: One row a pair, as `TokenizedPair`.
FEATURES = Features(
    {
        "pair_id": Value("string"),
        **{side: List(Value("int32")) for side in SIDES},
        **{f"{side}_truncated": Value("bool") for side in SIDES},
        "header": Value("int32"),
        "prefix_changed": Value("bool"),
    }
)
#: Beside the Arrow files: counts, the digest of the rows, and the id of the token that ends a response.
SUMMARY = "summary.json"


class PreparedPairs(Sequence[TokenizedPair]):
    """Tokenized pairs in a table's order, each read from the memory-mapped file when it is asked for."""

    def __init__(self, rows: Dataset, summary: dict[str, Any]):
        self._rows = rows
        #: Of every row's content and the end token: equal for equal tokens, wherever they came from.
        self.digest: str = summary["digest"]
        #: Id of the token that ends a complete response.
        self.end_token: int = summary["end_token"]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> TokenizedPair: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenizedPair]: ...
    def __getitem__(self, index: int | slice) -> TokenizedPair | list[TokenizedPair]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        return TokenizedPair(**self._rows[index])

    @cached_property
    def pair_ids(self) -> list[str]:
        return list(self._rows["pair_id"])

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """(n, 3): number of tokens of prompt, chosen and rejected."""
        table = self._rows.data
        # Lists know where they begin and end: no token is read for this.
        counts = [pyarrow.compute.list_value_length(table.column(side)).to_numpy() for side in SIDES]
        return np.stack(counts, axis=1).astype(np.int64)


def open_tokens(folder: Path) -> PreparedPairs:
    """The pairs that `write_tokens` left in a folder, mapped into memory.

    Raises:
        InputError: the folder is missing or broken.
    """
    summary = read_json(folder / SUMMARY)
    try:
        rows = load_from_disk(str(folder), keep_in_memory=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no whole tokens ({error}); delete it and run the stage tokens again") from None
    return PreparedPairs(rows, summary)


def run(view: Any, layout: Layout, model_folder: Path, splits: Sequence[str] = SPLITS) -> None:
    """Write tokens/SPLIT/ of each split, and tokens/tokens.json.

    Raises:
        InputError: a pair cannot be tokenized; the message names it.
    """
    tokenizer, window = load_tokenizer(model_folder), context_window(model_folder)
    summary: dict[str, Any] = {"tokenizer_vocabulary": len(tokenizer), "window": window}
    for split in splits:
        pairs = tokenize_pairs(tokenizer, read_parquet(layout.pairs(split)), view.tokens, window)
        summary[split] = write_tokens(pairs, tokenizer.eos_token_id, layout.tokens(split))
    write_json(layout.tokens_summary, summary)
    changed, total = (sum(summary[split][name] for split in splits) for name in ("prefix_changed", "pairs"))
    if changed:
        logger.warning(
            "the chat template writes %d of %d prompts otherwise once a response follows; a response is scored after "
            "the prompt that the policy generates from",
            *(changed, total),
        )


def context_window(model_folder: Path) -> int | None:
    """Tokens that the model was made to read; None where its configuration names no limit."""
    config = load_config(model_folder).get_text_config()
    window: int | None = getattr(config, "max_position_embeddings", None)
    return window


def write_tokens(pairs: Iterable[TokenizedPair], end_token: int, folder: Path) -> dict[str, Any]:
    """Write pairs to a folder, whole or not at all, and return its counts and its digest."""
    digest = hashlib.sha256(json.dumps(end_token).encode())
    count = _Counts()
    with whole_directory(folder) as temporary, tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        draft = f"{scratch}/draft.arrow"
        with ArrowWriter(path=draft, features=FEATURES) as writer:
            for pair in tqdm(pairs, desc="tokenizing pairs", mininterval=2):
                row = asdict(pair)
                digest.update(json.dumps(row, sort_keys=True).encode())
                count.add(pair)
                writer.write(row)
            writer.finalize()
        Dataset.from_file(draft).save_to_disk(str(temporary))
        summary = {**vars(count), "end_token": end_token, "digest": digest.hexdigest()}
        write_json(temporary / SUMMARY, summary)
    return summary


class _Counts:
    """What the pairs of one split are, told in tokens.json."""

    def __init__(self) -> None:
        self.pairs = 0
        self.tokens = 0  # prompt, chosen and rejected
        self.longest = 0  # tokens of the longest prompt with its longer response
        self.prompts_truncated = 0
        self.responses_truncated = 0
        self.prefix_changed = 0

    def add(self, pair: TokenizedPair) -> None:
        lengths = [len(side) for side in (pair.prompt, pair.chosen, pair.rejected)]
        self.pairs += 1
        self.tokens += sum(lengths)
        self.longest = max(self.longest, lengths[0] + max(lengths[1:]))
        self.prompts_truncated += pair.prompt_truncated
        self.responses_truncated += pair.chosen_truncated + pair.rejected_truncated
        self.prefix_changed += pair.prefix_changed
