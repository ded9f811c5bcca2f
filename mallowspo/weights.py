"""Stage "dispersion": from the reference table to each pair's dispersion index, weight and phi, and to the controls."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from mallowspo.dispersion import (
    ESTIMATORS,
    OFFICIAL_CONSTANT,
    ImpossibleValue,
    Index,
    Terms,
    bounded,
    calibration_constant,
    controls,
    dispersion,
    neutral_index,
    resolve_convention,
    weights,
)
from mallowspo.errors import InputError
from mallowspo.files import read_json, read_parquet, write_json, write_parquet
from mallowspo.layout import Layout

if TYPE_CHECKING:
    from mallowspo.reference import Pairs

Tables = dict[str, pd.DataFrame]


def run(view: Any, layout: Layout, model_folder: Path, device: str) -> None:
    """Write dispersion.parquet for both splits; the constant is calibrated on the training pairs alone.

    The model is loaded only for an estimator that asks it for more than the reference table holds.
    """
    reference = read_json(layout.reference_summary)
    tables = {split: read_parquet(layout.reference(split)) for split in ("train", "test")}
    if view.dispersion.estimator == "votes":
        tables = with_votes(tables, {split: read_parquet(layout.pairs(split)) for split in tables})
    elif view.dispersion.asks_the_model:
        # Only now: without it the stage needs no torch.
        from mallowspo.pairs.prepared import open_tokens

        pairs = {split: open_tokens(layout.tokens(split)) for split in tables}
        tables = with_columns_of_model(view, tables, pairs, model_folder, device)
    places = {split: str(layout.reference(split)) for split in tables}
    result, summary = weigh(tables, view.dispersion, reference, places)
    write_parquet(layout.dispersion, result)
    write_json(layout.dispersion_summary, summary)


def with_votes(tables: Tables, pairs: Tables) -> Tables:
    """The reference tables with the votes that the pairs carry, for the estimator "votes".

    Raises:
        InputError: a pair without votes.
    """
    return _joined(tables, {split: _votes(table, split) for split, table in pairs.items()})


def with_columns_of_model(
    view: Any, tables: Tables, pairs: Mapping[str, "Pairs"], model_folder: Path, device: str
) -> Tables:
    """The reference tables with what the estimator asks the reference policy besides."""
    from mallowspo.bigrams import bigram_columns
    from mallowspo.models import load_model, load_tokenizer, resolve_device, resolve_precision
    from mallowspo.sampled import sampled_columns
    from mallowspo.scoring import Scorer

    device = resolve_device(device)
    scorer = Scorer(load_model(model_folder, device), resolve_precision(view.model.precision, device))
    tokenizer = load_tokenizer(model_folder)
    if view.dispersion.estimator == "bigram":
        return _joined(tables, bigram_columns(scorer, tokenizer.bos_token_id, pairs))
    return _joined(tables, sampled_columns(view, scorer, tokenizer, pairs))


def _joined(tables: Tables, extra: Tables) -> Tables:
    return {split: table.merge(extra[split], on="pair_id", validate="one_to_one") for split, table in tables.items()}


def _votes(pairs: pd.DataFrame, split: str) -> pd.DataFrame:
    rows = []
    for pair_id, text in zip(pairs["pair_id"], pairs["meta"], strict=True):
        meta = json.loads(text)
        row = {name: meta.get(name) for name in ("votes_chosen", "votes_rejected")}
        if None in row.values():
            raise InputError(
                f"dispersion.estimator votes: pair {pair_id} of {split} has no votes_chosen and votes_rejected; "
                "give pairs as rows of prompt, a, b, votes_a, votes_b, or take another estimator"
            )
        rows.append({"pair_id": pair_id, **row})
    return pd.DataFrame(rows)


def weigh(
    tables: Tables, settings: Any, reference: dict[str, Any], places: dict[str, str]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """dispersion.parquet and dispersion.json.

    Args:
        tables: the reference table of every split; the constant is calibrated on "train".
        settings: `DispersionSettings`.
        reference: reference.json.
        places: where each table comes from, for messages.

    Raises:
        InputError: an impossible entropy or vote, with its file and pair; nothing to calibrate by.
    """
    chosen = (settings.first_token, settings.end_token, settings.header)
    convention = resolve_convention(settings.estimator, settings.convention, *chosen)
    terms = Terms(reference["vocabulary"], convention, settings.normaliser)
    indices = {
        split: bounded(_estimate(table, settings.estimator, terms, places[split]), settings.entropy_floor)
        for split, table in tables.items()
    }
    constant, neutral = _calibrate(indices["train"], settings.constant, places["train"])
    parts = [_part(split, tables[split], indices[split], constant, neutral, settings.seed) for split in tables]
    result = pd.concat(parts, ignore_index=True)
    normaliser = {"normaliser": settings.normaliser} if settings.estimator == "paper_sum" else {}
    summary: dict[str, Any] = {
        "estimator": settings.estimator,
        **normaliser,
        "convention": settings.convention,
        "counts": convention._asdict(),
        "constant": constant,
        "calibrated": settings.constant == "calibrated",
        "official_constant": OFFICIAL_CONSTANT,
        **_vocabularies(reference),
        **_cases(indices, len(result), settings.entropy_floor),
        **_spread(result, tables["train"]),
    }
    return result, summary


def _estimate(table: pd.DataFrame, estimator: str, terms: Terms, place: str) -> np.ndarray:
    try:
        return ESTIMATORS[estimator](table, terms)
    except ImpossibleValue as error:
        pair_id = table["pair_id"].iloc[error.position]
        more = f" (and {error.count - 1} more)" if error.count > 1 else ""
        raise InputError(
            f"{place}: pair {pair_id}{more}: {error}; delete the file and run its stage again, or mend the pair"
        ) from None
    except KeyError as error:
        raise InputError(f"{place}: no column {error}; delete the file and run its stage again") from None


def _calibrate(train: Index, constant: float | str, place: str) -> tuple[float, float]:
    """The constant, and the index that stands in where none is defined."""
    try:
        # Also where the constant is given: it tells when no pair has an index, or none a weight.
        calibrated = calibration_constant(train.values)
    except ValueError as error:
        raise InputError(f"{place}: {error}; take another dispersion.estimator") from None
    return calibrated if constant == "calibrated" else float(constant), neutral_index(train.values)


def _part(split: str, table: pd.DataFrame, index: Index, constant: float, neutral: float, seed: int) -> pd.DataFrame:
    values = np.where(np.isnan(index.values), neutral, index.values)
    weight = weights(values, constant)
    columns = {
        "pair_id": table["pair_id"],
        "split": split,
        "dispersion_index": values,
        "neg_log_index": weights(values, 1.0),
        "weight": weight,
        "phi": dispersion(weight),
        **{f"weight_{name}": control for name, control in controls(weight, mean_length(table), seed).items()},
    }
    if "sampled_variance" in table:
        columns["index_variance"] = table["sampled_variance"]
    return pd.DataFrame(columns)


def mean_length(table: pd.DataFrame) -> np.ndarray:
    """Mean number of tokens of a pair's two responses, (B,)."""
    return ((table["chosen_tokens"] + table["rejected_tokens"]) / 2).to_numpy(dtype=float)


def _vocabularies(reference: dict[str, Any]) -> dict[str, int]:
    """V, and the tokenizer's size where the model's output is wider or narrower."""
    sizes = {"vocabulary": int(reference["vocabulary"])}
    known = reference.get("tokenizer_vocabulary", sizes["vocabulary"])
    return sizes if known == sizes["vocabulary"] else {**sizes, "tokenizer_vocabulary": int(known)}


def _cases(indices: dict[str, Index], pairs: int, floor: float) -> dict[str, Any]:
    names = ("clamped", "above_one", "zero_weight", "undefined")
    counts = {name: sum(getattr(index, name) for index in indices.values()) for name in names}
    return {"pairs": pairs, "entropy_floor": floor, **counts}


def _spread(result: pd.DataFrame, reference_train: pd.DataFrame) -> dict[str, Any]:
    train = result.loc[result["split"] == "train", "weight"]
    test = result.loc[result["split"] == "test", "weight"]
    low, middle, high = (float(value) for value in np.quantile(train, [0.05, 0.5, 0.95]))
    lengths = mean_length(reference_train)
    varies = np.ptp(train) > 0 and np.ptp(lengths) > 0
    return {
        "weight": {"p05": low, "p50": middle, "p95": high},
        "mean_weight_train": float(train.mean()),
        "mean_weight_test": float(test.mean()) if len(test) else None,
        # How much of a weight is length: Spearman's rank correlation on the training pairs.
        "length_correlation": float(stats.spearmanr(train, lengths).statistic) if varies else None,
    }
