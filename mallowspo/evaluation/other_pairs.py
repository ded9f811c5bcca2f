"""Stage "other-pairs": a further set of pairs, on which every policy's implicit reward is measured too.

It lies in other_pairs/NAME/, laid out like an experiment whose pairs all are test pairs: the same checks, tokens and
reference pass as the experiment's own. Stage "score" writes other_pairs/NAME/scores/METHOD/seed=S/pairs.parquet.
"""

import logging
from pathlib import Path
from typing import Any

import pandas as pd

from mallowspo import reference_pass
from mallowspo.errors import InputError
from mallowspo.evaluation.settings import OtherPairsSettings
from mallowspo.files import write_jsonl, write_parquet
from mallowspo.layout import Layout
from mallowspo.models import load_tokenizer
from mallowspo.pairs import prepared
from mallowspo.pairs.build import Usable, check_rows, read_source, stop_if_too_many
from mallowspo.pairs.sources import pinned
from mallowspo.pairs.split import unit_draw
from mallowspo.pairs.tokens import check_tokenizer
from mallowspo.settings import PairsSettings

logger = logging.getLogger(__name__)


def run(view: Any, settings: OtherPairsSettings, layout: Layout, model_folder: Path, device: str) -> None:
    """Write pairs/test.parquet, pairs/unusable.jsonl, tokens/test/ and reference/test.parquet of the set.

    Args:
        view: .model.precision, .tokens, .reference.tokens_per_batch of the experiment.
        layout: of the set, from `Layout.other_pairs`.

    Raises:
        InputError: the source cannot be read, or more rows than `max_unusable_share` cannot be used.
    """
    write_parquet(layout.pairs("test"), _pairs(view, settings, layout, model_folder))
    prepared.run(view, layout, model_folder, splits=("test",))
    reference_pass.run(view, layout, model_folder, device, splits=("test",))


def draw_pairs(usable: list[Usable], most: int | None, seed: int) -> pd.DataFrame:
    """At most so many pairs, by a draw that goes by their ids and the seed."""
    drawn = sorted((item.pair for item in usable), key=lambda pair: unit_draw(seed, "limit", pair["pair_id"]))
    return pd.DataFrame(drawn[:most])


def _pairs(view: Any, settings: OtherPairsSettings, layout: Layout, model_folder: Path) -> pd.DataFrame:
    tokenizer = load_tokenizer(model_folder)
    check_tokenizer(tokenizer, view.tokens)
    try:
        source = pinned(PairsSettings(**settings.model_dump(exclude={"max_pairs", "seed", "where_absent"})))
        reads = read_source(source, view.tokens.template)
        usable, listed = check_rows(reads, tokenizer, source.source, view.tokens)
        write_jsonl(layout.unusable_rows, listed)
        stop_if_too_many(source, len(reads), len(usable), listed, layout.unusable_rows)
    except InputError as error:
        raise InputError(f"evaluation.other_pairs: {error}") from None
    found = draw_pairs(usable, settings.max_pairs, settings.seed)
    logger.info("%d of %d usable pairs of %s; %d rows unusable", len(found), len(usable), source.source, len(listed))
    return found
