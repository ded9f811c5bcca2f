"""AlpacaEval's own code: its head-to-head, its win rate, its length-controlled win rate."""

import math
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pandas as pd
import yaml

from mallowspo.errors import InputError
from mallowspo.evaluation.outputs import read_rows
from mallowspo.files import digest, sha256_file
from mallowspo.layout import REFERENCE

#: (instruction, answer shown first, answer shown second) -> 1 the first is better, 2 the second, 1.5 a tie.
Prefer = Callable[[str, str, str], float]

#: What AlpacaEval fills in for the judge. Unit separators, because answers may hold any printable text.
TEMPLATE = "{instruction}\x1f{output_1}\x1f{output_2}"

#: Below so many comparisons a length-controlled win rate means nothing.
FEWEST_FOR_LENGTH_CONTROL = 100
#: Digest of the list of AlpacaEval's 805 instructions, in their order: its difficulties go by position.
INSTRUCTIONS = "e4356cd997a280af"
#: sha256 of df_gamed.csv as a third party quotes it; another file is used, and its digest is in the result.
DIFFICULTY_SHA256 = "97aeec3f1c7de6dee6fd31fe66f1702623f4614c3efe1c6fc5f4927cd5fd674d"
_DIFFICULTY_COLUMNS = ["model", "preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline"]


class HeadToHead(NamedTuple):
    """What AlpacaEval found."""

    numbers: dict[str, Any]  # win_rate and standard_error in percent, n_wins, n_wins_base, n_draws, n_total, ...
    wins: dict[str, float]  # of each instruction P(the row's answer is better), 0 to 1
    annotations: list[dict[str, Any]]  # its own, in the order of the rows


def head_to_head(
    rows: Sequence[dict[str, str]],
    others: Sequence[dict[str, str]],
    prefer: Prefer,
    name: str,
    generator: str,
    other_generator: str = REFERENCE,
) -> HeadToHead:
    """AlpacaEval's own win rate of one answer to each instruction against another's.

    Args:
        rows, others: `instruction` and `output` each; the same instructions on both sides, each once.
        prefer: called once a comparison, in the order that AlpacaEval chose, and never for equal answers (a tie).
        name: the judge's name in AlpacaEval's configuration.
        generator, other_generator: who wrote `rows` and `others`.

    Raises:
        InputError: when the judge gives no preference for some rows, or when AlpacaEval counted another number of
            comparisons than there are answers; the instructions are named.
    """
    leaderboard, annotations = _call_alpacaeval(rows, others, prefer, name, generator, other_generator)
    numbers = {str(key): plain(value) for key, value in leaderboard.loc[generator].items()}
    found = {row["instruction"]: row for row in annotations}
    if len({len(rows), len(others), len(found), numbers["n_total"]}) > 1:
        missing = [row["instruction"][:60] for row in rows if row["instruction"] not in found]
        raise InputError(
            f"AlpacaEval counted {numbers['n_total']} comparisons of {len(found)} instructions for {len(rows)} answers "
            f"and {len(others)} reference answers (without a match: {missing[:3]}); "
            "every instruction must be there once on both sides"
        )
    ordered = [found[row["instruction"]] for row in rows]
    wins = {row["instruction"]: float(row["preference"]) - 1 for row in ordered}
    return HeadToHead(numbers, wins, ordered)


def win_rate(annotations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """AlpacaEval's win rate of stored annotations: win_rate and standard_error in percent, counts, n_total."""
    from alpaca_eval.metrics import get_winrate

    return {str(key): plain(value) for key, value in get_winrate(list(annotations)).items()}


def length_controlled(annotations: Sequence[dict[str, Any]], difficulty: str | Path | None) -> dict[str, Any]:
    """AlpacaEval's length-controlled win rate, in percent: what the judge would say of answers of equal lengths.

    The official one (Dubois et al. 2024) also knows how hard each of AlpacaEval's 805 instructions is, from the hub's
    df_gamed.csv, and goes by position. Without that file, or for other instructions, the same code fits length alone
    (its "length_controlled_minimal"), and the number is approximate. The two have different keys.

    Args:
        annotations: AlpacaEval's, all of them, in the order of the instructions.
        difficulty: df_gamed.csv.

    Returns:
        `kind` "official" with lc_winrate_official, lc_standard_error and sha256 of the file; or `kind` "approximate"
        with lc_winrate_approximate; or `kind` None. `why` says why it is not the official one.
    """
    why = _not_official(annotations, difficulty)
    if difficulty is not None and why is None:
        numbers = _length_controlled(annotations, "length_controlled_v1", Path(difficulty))
        return {
            "kind": "official",
            "lc_winrate_official": plain(numbers["length_controlled_winrate"]),
            "lc_standard_error": plain(numbers["lc_standard_error"]),
            "difficulty_sha256": sha256_file(difficulty),
            "difficulty_as_published": sha256_file(difficulty) == DIFFICULTY_SHA256,
        }
    why = why or "AlpacaEval's df_gamed.csv is not given"
    impossible = _no_length_control(annotations)
    if impossible:
        return {"kind": None, "why": impossible}
    with tempfile.TemporaryDirectory() as folder:
        # AlpacaEval reads the file even for the model that does not use it.
        unused = Path(folder) / "unused.csv"
        values = [["none", 0.5, index, 0.0, 0.0, False] for index in range(len(annotations))]
        pd.DataFrame(values, columns=_DIFFICULTY_COLUMNS).to_csv(unused, index=False)
        numbers = _length_controlled(annotations, "length_controlled_minimal", unused)
    return {"kind": "approximate", "lc_winrate_approximate": plain(numbers["length_controlled_winrate"]), "why": why}


def plain(value: Any) -> Any:
    """A number that JSON can hold; AlpacaEval's standard error of a single comparison is NaN."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and math.isnan(value) else value


def _call_alpacaeval(
    rows: Sequence[dict[str, str]],
    others: Sequence[dict[str, str]],
    prefer: Prefer,
    name: str,
    generator: str,
    other_generator: str,
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Its leaderboard (one row, named `generator`) and its annotation of each instruction."""
    from alpaca_eval import evaluate

    with tempfile.TemporaryDirectory() as folder:
        template, config = Path(folder) / "template.txt", Path(folder) / "configs.yaml"
        template.write_text(TEMPLATE, encoding="utf-8")
        config.write_text(yaml.safe_dump({name: {"prompt_template": str(template)}}), encoding="utf-8")
        result: tuple[pd.DataFrame, list[dict[str, Any]]] = evaluate(
            model_outputs=[_row(row, generator) for row in rows],
            reference_outputs=[_row(row, other_generator) for row in others],
            annotators_config=str(config),
            name=generator,
            fn_completions=_completions(rows, others, prefer, name),
            fn_completion_parser=lambda preference: [preference],
            fn_metric="get_winrate",
            sort_by="win_rate",
            precomputed_leaderboard=None,
            output_path=None,
            # Its cache knows a judge by its name alone, and is written once in 128 rows: judgements are kept here.
            caching_path=None,
            is_return_instead_of_print=True,
        )
    return result


def _row(row: dict[str, str], generator: str) -> dict[str, str]:
    return {"instruction": row["instruction"], "output": row["output"], "generator": generator}


def _completions(
    rows: Sequence[dict[str, str]], others: Sequence[dict[str, str]], prefer: Prefer, name: str
) -> Callable[..., dict[str, list[float]]]:
    """The judge as AlpacaEval calls it: from prompts (its filled-in template) to preferences.

    Splitting a prompt into its three texts would be wrong for a text that holds the separator or "{output_2}":
    AlpacaEval fills in by replacing, so such a text changes the prompt. So its own function writes every prompt that
    can come, in both orders, and the texts are looked up.
    """
    from alpaca_eval.utils import make_prompts

    against = {row["instruction"]: row["output"] for row in others}
    pairs = [(row["instruction"], row["output"], against.get(row["instruction"], "")) for row in rows]
    both_orders = pairs + [(instruction, second, first) for instruction, first, second in pairs]
    prompts, _ = make_prompts(pd.DataFrame(both_orders, columns=["instruction", "output_1", "output_2"]), TEMPLATE)
    shown = dict(zip(prompts, both_orders, strict=True))

    def complete(prompts: list[str], **_: Any) -> dict[str, list[float]]:
        preferences = [prefer(*shown[prompt]) for prompt in prompts]
        # AlpacaEval would leave out what it cannot read, and give a win rate over the rest.
        failed = [
            shown[p][0][:60] for p, preference in zip(prompts, preferences, strict=True) if not 1 <= preference <= 2
        ]
        if failed:
            raise InputError(
                f"judge '{name}' gave no preference from 1 to 2 for {len(failed)} of {len(prompts)} instructions, "
                f"among them {sorted(failed)[:3]}; mend the judge"
            )
        free = [0.0] * len(prompts)
        return {"completions": preferences, "price_per_example": free, "time_per_example": free}

    return complete


def _length_controlled(annotations: Sequence[dict[str, Any]], model: str, difficulty: Path) -> dict[str, Any]:
    """AlpacaEval's function, which would fetch the difficulties from the hub."""
    import sklearn
    from alpaca_eval.metrics import glm_winrate

    table = pd.DataFrame(list(annotations))[["preference", "output_1", "output_2", "generator_1", "generator_2"]]
    with (
        mock.patch.object(glm_winrate, "hf_hub_download", lambda **_: str(difficulty)),
        sklearn.config_context(enable_metadata_routing=True),  # it sets this for good
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", FutureWarning)
        numbers: dict[str, Any] = glm_winrate.get_length_controlled_winrate(
            table, glm_name=model, save_weights_dir=None, is_add_glm_preference_inplace=False
        )
    return numbers


def _not_official(annotations: Sequence[dict[str, Any]], difficulty: str | Path | None) -> str | None:
    """Why this is no official length-controlled win rate, if so."""
    if difficulty is None:
        return None
    if digest([row["instruction"] for row in annotations]) != INSTRUCTIONS:
        return "these are not AlpacaEval's 805 instructions in their order"
    columns = list(pd.read_csv(difficulty, nrows=1).columns) if Path(difficulty).exists() else None
    if columns is None or not set(_DIFFICULTY_COLUMNS) <= set(columns):
        raise InputError(f"{difficulty}: {'no such file' if columns is None else 'is not df_gamed.csv'}; get it from "
                         "the data set tatsu-lab/alpaca_eval on the hub")  # fmt: skip
    return None


def _no_length_control(annotations: Sequence[dict[str, Any]]) -> str | None:
    """Why no length-controlled win rate can be had, if so."""
    if len(annotations) < FEWEST_FOR_LENGTH_CONTROL:
        return f"below {FEWEST_FOR_LENGTH_CONTROL} comparisons a length-controlled win rate means nothing"
    lengths = np.array([len(row["output_1"]) - len(row["output_2"]) for row in annotations])
    return None if lengths.std() > 0 else "all pairs differ in length by the same: there is nothing to control for"


def read_annotations(path: str | Path) -> list[dict[str, Any]]:
    """AlpacaEval's annotations from a JSON, JSONL or .gz file.

    Raises:
        InputError: a row without a preference from 1 to 2 (or 0, a tie): AlpacaEval would leave it out in silence.
    """
    rows = read_rows(path, ("instruction", "output_1", "output_2", "preference"))
    for number, row in enumerate(rows):
        if not isinstance(row["preference"], int | float) or not (
            row["preference"] == 0 or 1 <= row["preference"] <= 2
        ):
            raise InputError(
                f"{path}: row {number}: preference {row['preference']!r} is not from 1 to 2; judge it again"
            )
    return [{"generator_1": "output_1", "generator_2": "output_2", **row} for row in rows]
