"""Stage "reference": one pass of the reference policy over every pair, into a table by pair_id.

Every method, seed and beta reads the table; the reference policy is never in memory while a policy trains.

The pass goes in parts of `PAIRS_PER_PART` pairs. Each is written whole to references/KEY/part-NNNNN.parquet, where
KEY is a digest of all that its numbers depend on: a killed pass goes on behind its last part, several processes share
one pass (`--shard`), and experiments with the same model and pairs share the parts. Two processes that compute the
same part write the same file. Parts may be deleted whenever no pass runs: tables do not depend on them any more.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from mallowspo.errors import InputError
from mallowspo.files import content_digest, digest, read_json, read_parquet, write_json, write_parquet
from mallowspo.layout import Layout
from mallowspo.models import load_model, resolve_device, resolve_precision
from mallowspo.pairs.prepared import PreparedPairs, open_tokens
from mallowspo.pairs.split import SPLITS
from mallowspo.provenance import code_digest
from mallowspo.reference import not_finite, score_table
from mallowspo.scoring import Scorer
from mallowspo.shard import Shard, missing_of

logger = logging.getLogger(__name__)

PAIRS_PER_PART = 256
#: Beside the parts: what their numbers depend on, and the vocabulary.
ORIGIN = "origin.json"


@dataclass(frozen=True)
class Part:
    """Some pairs of a split, and where what the reference says of them stands or will stand."""

    pairs: PreparedPairs
    start: int
    file: Path

    @property
    def is_there(self) -> bool:
        return self.file.exists() and (self.file.parent / ORIGIN).exists()


def run(
    view: Any,
    layout: Layout,
    model_folder: Path,
    device: str,
    shard: Shard | None = None,
    splits: Sequence[str] = SPLITS,
) -> None:
    """Compute the parts that are missing, of all or of a shard; without a shard, put the tables together.

    Raises:
        InputError: a pair's numbers are not finite.
    """
    device = resolve_device(device)
    precision = resolve_precision(view.model.precision, device)
    pairs = {split: open_tokens(layout.tokens(split)) for split in splits}
    origin = _origin(model_folder, precision, device)
    folders = {split: layout.reference_parts(_key(origin, pairs[split])) for split in splits}
    parts = {split: _parts(pairs[split], folders[split]) for split in splits}
    of_both = [part for split in splits for part in parts[split]]
    share, missing = missing_of(of_both, shard, lambda part: part.is_there, "parts of the reference pass")
    long = _long_pairs(pairs, view.reference.tokens_per_batch)
    if missing:
        scorer = Scorer(load_model(model_folder, device), precision)
        for folder in {part.file.parent for part in missing}:
            # V is the width of the output; models pad it beyond what the tokenizer knows.
            write_json(folder / ORIGIN, origin | {"vocabulary": scorer.vocabulary})
        for part in tqdm(missing, desc=f"scoring parts of {PAIRS_PER_PART} pairs", mininterval=2):
            write_parquet(part.file, _score_part(scorer, part, view.reference.tokens_per_batch))
    if shard:
        write_json(layout.reference_shard(shard.number, shard.count), {"parts": [str(part.file) for part in share]})
        return
    _assemble(layout, parts, read_json(folders[splits[0]] / ORIGIN), long)


def _origin(model_folder: Path, precision: str, device: str) -> dict[str, Any]:
    """All that the numbers depend on besides the pairs: the model's content, the arithmetic and the code.

    Of the weights as they are now; source.json says what they were when they were fetched.
    """
    files = sorted(model_folder.glob("*.safetensors"))
    return {
        "weights": {file.name: content_digest(file) for file in files},
        "config": content_digest(model_folder / "config.json"),
        "precision": precision,
        "device": device,
        "code": code_digest("reference"),
    }


def _key(origin: dict[str, Any], pairs: PreparedPairs) -> str:
    return digest([origin, pairs.digest, PAIRS_PER_PART], 24)


def _parts(pairs: PreparedPairs, folder: Path) -> list[Part]:
    starts = range(0, len(pairs), PAIRS_PER_PART)
    return [Part(pairs, start, folder / f"part-{number:05d}.parquet") for number, start in enumerate(starts)]


def _score_part(scorer: Scorer, part: Part, tokens_per_batch: int) -> pd.DataFrame:
    pairs = part.pairs[part.start : part.start + PAIRS_PER_PART]
    table = score_table(scorer, pairs, part.pairs.end_token, tokens_per_batch, what=None)
    broken = not_finite(table)
    if len(broken):
        raise InputError(
            f"pair {table['pair_id'][broken[0]]} (and {len(broken) - 1} more): the reference policy gives numbers that "
            "are not finite, because its products overflow; set model.precision: float32, or take another model"
        )
    return table


def _long_pairs(pairs: dict[str, PreparedPairs], tokens_per_batch: int) -> int:
    """How many pairs no batch has room for; told once."""
    long = sum(int((part.lengths.sum(axis=1) > tokens_per_batch).sum()) for part in pairs.values())
    if long:
        logger.warning("%d pairs are longer than reference.tokens_per_batch; each runs alone", long)
    return long


def _assemble(layout: Layout, parts: dict[str, list[Part]], origin: dict[str, Any], long: int) -> None:
    tokens = read_json(layout.tokens_summary)
    summary = {name: origin[name] for name in ("vocabulary", "precision", "device")}
    summary["tokenizer_vocabulary"] = tokens["tokenizer_vocabulary"]
    summary["longer_than_a_batch"] = long
    for split, scored in parts.items():
        table = pd.concat([read_parquet(part.file) for part in scored], ignore_index=True)
        write_parquet(layout.reference(split), table)
        summary[split] = {
            "pairs": len(table),
            "tokens": int(table["chosen_tokens"].sum() + table["rejected_tokens"].sum()),
            "parts": str(scored[0].file.parent),
        }
    write_json(layout.reference_summary, summary)
