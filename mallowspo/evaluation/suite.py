"""`mallowspo evaluate`: win rate, benchmarks, preference accuracy and KL of any model folder, without an experiment."""

import importlib.metadata
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.markup import escape
from rich.table import Table

from mallowspo.errors import InputError
from mallowspo.evaluation.kl import K1, K3, K3_BY_TOKEN, kl_columns
from mallowspo.evaluation.outputs import generator_of, read_outputs, read_rows
from mallowspo.evaluation.pair_accuracy import accuracy_by_group, pair_facts
from mallowspo.evaluation.settings import LmEvalSettings
from mallowspo.evaluation.suite_phases import Phases
from mallowspo.evaluation.winrate import LENGTH_CONTROLLED, Compared, Side, compare, provenance
from mallowspo.files import digest, read_json, read_jsonl, sha256_file, write_json, write_parquet
from mallowspo.inference import estimate
from mallowspo.judges.judge import Judge, judge_digest
from mallowspo.judges.labels import judge_labels
from mallowspo.judges.open import open_judge
from mallowspo.judges.settings import JudgeSettings
from mallowspo.layout import REFERENCE
from mallowspo.model_files import is_model_folder
from mallowspo.provenance import code_digest
from mallowspo.report.words import ABSENT, count, number
from mallowspo.sections import nearest
from mallowspo.settings import SamplingSettings

POLICY = "policy"
#: What each part of the suite needs; a tuple inside: one of them.
NEEDS: dict[str, tuple[str | tuple[str, ...], ...]] = {
    "alpaca": ("judge", ("against", "reference"), ("prompts", "against")),
    "lm": ("tasks",),
    "pairs": ("reference", "pairs"),
    "kl": ("reference", ("prompts", "against")),
}
#: What only some parts read: giving it without one of them is a mistake.
READ_BY = {"judge": ["alpaca"], "judge_settings": ["alpaca"], "labels": ["alpaca"], "difficulty": ["alpaca"],
           "tasks": ["lm"], "include_path": ["lm"], "limit": ["lm"], "pairs": ["pairs"], "prompts": ["alpaca", "kl"],
           "against": ["alpaca", "kl"], "max_prompts": ["alpaca", "kl"], "max_pairs": ["pairs"]}  # fmt: skip
COLUMNS = ["part", "measure", "value", "standard_error", "ci_low", "ci_high", "n", "note"]
Z = 1.959963984540054  # of a 95 % interval


@dataclass(frozen=True)
class Request:
    """The command's options."""

    model: Path
    suite: tuple[str, ...]
    out: Path
    judge: str | None = None
    judge_settings: JudgeSettings | None = None
    labels: str | None = None
    reference: Path | None = None
    prompts: str | None = None
    against: str | None = None
    pairs: str | None = None
    tasks: tuple[str, ...] = ()
    include_path: str | None = None
    limit: int | None = None
    max_prompts: int | None = None
    max_pairs: int | None = None
    max_new_tokens: int = 512
    seed: int = 0
    template: str | None = None
    beta: float = 0.1
    difficulty: str | None = None
    device: str = "auto"


def run(request: Request) -> pd.DataFrame:
    """Do what is not done yet, and write results.json.

    Returns:
        COLUMNS, one row a measure; intervals are 95 %, over prompts or items. Shares lie between 0 and 1, win rates are
        percent, log-probabilities nats.

    Raises:
        InputError: an option is missing, unknown or read by no part; or what a phase needs is not there.
    """
    _check(request)
    sampling = SamplingSettings(max_new_tokens=request.max_new_tokens, seed=request.seed)
    phases = Phases(request.model, request.out, request.template, sampling, request.device)
    if {"pairs", "kl"} & set(request.suite):
        phases.check_same_tokens(_folder(request.reference))
    rows: list[dict[str, Any]] = []
    if {"alpaca", "kl"} & set(request.suite):
        file = request.prompts or str(request.against)
        given = read_rows(file, ()) if request.prompts else read_outputs(file)
        prompts = phases.write_prompts(given[: request.max_prompts], file)
        answers = phases.answer(request.model, POLICY)
        rows += _answer_rows(answers)
    if "alpaca" in request.suite:
        rows += _alpaca(request, phases, prompts, answers)
    if "lm" in request.suite:
        rows += _lm(request, phases)
    if "pairs" in request.suite:
        pairs = phases.read_pairs(str(request.pairs), request.max_pairs)
        tables = {POLICY: phases.score_pairs(request.model, POLICY)}
    # The policy's part first, so that each model is loaded once.
    if "kl" in request.suite:
        policy = phases.token_logp(request.model, POLICY, answers)
        rows += _kl(policy, phases.token_logp(_folder(request.reference), REFERENCE, answers))
    if "pairs" in request.suite:
        tables[REFERENCE] = phases.score_pairs(_folder(request.reference), REFERENCE)
        rows += _pairs(request, pairs, tables, len(read_jsonl(phases.layout.unusable_rows)))
    found = pd.DataFrame(rows, columns=COLUMNS)
    _write(request, phases, found)
    return found


def table(found: pd.DataFrame, title: str) -> Table:
    """What the command prints."""
    shown = Table(title=escape(title), title_justify="left")
    for column in ("part", "measure", "value", "± s.e.", "95 % interval", "n", "note"):
        shown.add_column(column, justify="right" if column in ("value", "± s.e.", "95 % interval", "n") else "left")
    for row in found.to_dict("records"):
        # Some intervals of shares begin at 0 but for rounding.
        low, high = (round(row[bound], 12) for bound in ("ci_low", "ci_high"))
        bounds = f"{number(low)} to {number(high)}" if not math.isnan(low) else ABSENT
        texts = [row["part"], escape(row["measure"]), number(row["value"]), number(row["standard_error"]), bounds]
        shown.add_row(*texts, count(row["n"]), escape(row["note"]))
    return shown


def _check(request: Request) -> None:
    if not request.suite:
        raise InputError(f"--suite: name some of {', '.join(NEEDS)}, with commas between")
    for part in request.suite:
        if part not in NEEDS:
            raise InputError(f"--suite {part}: no such part; {nearest(part, NEEDS)}")
        for needed in NEEDS[part]:
            names = (needed,) if isinstance(needed, str) else needed
            if not any(getattr(request, name) for name in names):
                options = " or ".join(f"--{name}" for name in names)
                raise InputError(f"--suite {part}: needs {options}")
    for name, parts in READ_BY.items():
        if getattr(request, name) and not set(parts) & set(request.suite):
            raise InputError(f"--{name.replace('_', '-')}: only --suite {' or '.join(parts)} reads it; leave it out")
    for folder in (request.model, request.reference):
        if folder is not None and not is_model_folder(folder):
            raise InputError(f"{folder}: no config.json there; give a model's folder in the Hugging Face layout")


def _folder(folder: Path | None) -> Path:
    assert folder is not None  # `_check` has seen to it
    return folder


def _answer_rows(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    lengths = [float(row["tokens"]) for row in answers]
    complete = [float(row["complete"]) for row in answers]
    return [_mean("answers", "length, tokens", lengths), _mean("answers", "share that ends by itself", complete)]


def _alpaca(
    request: Request, phases: Phases, prompts: Sequence[str], answers: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Win rates against published outputs, or against the reference's own answers."""
    if request.against:
        outputs = read_outputs(request.against)
        name = generator_of(outputs, Path(request.against).name)
        asked = set(prompts)
        theirs = Side(name, [row for row in outputs if row["instruction"] in asked])
    else:
        theirs = Side(REFERENCE, phases.answer(_folder(request.reference), REFERENCE))
    ours = Side(request.model.resolve().name, answers)
    settings = request.judge_settings or JudgeSettings()
    judge = open_judge(str(request.judge), settings)
    folder = request.out / "alpaca"
    sides = [[(row["instruction"], row["output"]) for row in side.rows] for side in (ours, theirs)]
    depends = {
        "sides": digest([ours.name, theirs.name, *sides]),
        "judge": judge_digest(judge),
        "settings": settings.model_dump(),
        "difficulty": request.difficulty and sha256_file(request.difficulty),
        "code": code_digest("alpaca"),
    }

    def work() -> None:
        found: Compared = compare(ours, theirs, judge, settings, request.out / "judgements", request.difficulty)
        write_json(folder / "judge.json", {**found.beside_the_judge(), **provenance(judge, settings)})
        write_json(folder / "winrate.json", {"generator": ours.name, "against": theirs.name, **found.summary()})

    phases.do("alpaca", depends, [folder / "winrate.json", folder / "judge.json"], work)
    rows = _alpaca_rows(read_json(folder / "judge.json"), theirs.name)
    return [*rows, *_on_labels(request, phases, judge, settings)] if request.labels else rows


def _on_labels(request: Request, phases: Phases, judge: Judge, settings: JudgeSettings) -> list[dict[str, Any]]:
    """How far the judge agrees with people, on pairs that they have labelled."""
    labels, folder = str(request.labels), request.out / "labels"
    depends = {"judge": judge_digest(judge), "settings": settings.model_dump(), "labels": sha256_file(labels)}
    depends["code"] = code_digest("judge")

    def work() -> None:
        judge_labels(judge, labels, settings, folder)

    phases.do("labels", depends, [folder / "judge.json"], work)
    found = read_json(folder / "judge.json")
    return [_rate("judge agrees with people", found["agreement"]) | {"note": Path(labels).name}]


def _alpaca_rows(judged: dict[str, Any], against: str) -> list[dict[str, Any]]:
    error = judged["standard_error"]
    rows = [_row("alpaca", f"win rate against {against}, %", judged["win_rate"], error, judged["n_total"], 0, 100)]
    for name, title in zip(LENGTH_CONTROLLED, ("LC", "LC (approx.)"), strict=True):
        if judged[name] is not None:
            rows.append(_row("alpaca", f"{title} against {against}, %", judged[name], None, judged["n_total"]))
    rows[0]["note"] = f"judge {judged['judge']}, {'both orders' if judged['orders'] == 'both' else 'one order'}"
    titles = {"prefer_first": "judge prefers what is shown first", "flips": "judge flips"}
    titles |= {"length_slope": "judge's length slope", "self_consistency": "judge agrees with itself"}
    rows += [_rate(title, judged[name]) for name, title in titles.items() if judged[name]["value"] is not None]
    return rows


def _rate(title: str, measured: dict[str, Any]) -> dict[str, Any]:
    """A measure of the judge."""
    bounds = {f"ci_{end}": math.nan if measured[end] is None else measured[end] for end in ("low", "high")}
    row = _row("alpaca", title, measured["value"], None, measured["n"])
    return row | bounds | {"note": measured.get("note", "")}


def _lm(request: Request, phases: Phases) -> list[dict[str, Any]]:
    settings = LmEvalSettings(tasks=list(request.tasks), include_path=request.include_path, limit=request.limit)
    found, items = phases.tasks(settings, POLICY)
    shares = {key: values.between(0, 1).all() for key, values in items.groupby(["task", "metric"])["value"]}
    rows = []
    for task, metrics in found["results"].items():
        for metric, numbers in metrics.items():
            shots = found["settings"]["num_fewshot"].get(task)
            bounds = (0, 1) if shares.get((task, metric)) else (-math.inf, math.inf)
            row = _row("lm", f"{task}/{metric}", numbers["value"], numbers["stderr"], found["items"][task], *bounds)
            rows.append(row | {"note": "" if shots is None else f"{shots}-shot"})
    return rows


def _kl(policy: pd.Series, reference: pd.Series) -> list[dict[str, Any]]:
    """Of whole answers, by `mallowspo.evaluation.kl`'s estimators of the same number."""
    sides = [[np.asarray(table[key], dtype=float) for key in policy.index] for table in (policy, reference)]
    found = kl_columns(*sides)
    titles = {K1: "log-ratio", K3: "k3", K3_BY_TOKEN: "k3 by token"}
    return [_mean("kl", f"KL to the reference, {title} (nats)", found[name]) for name, title in titles.items()]


def _pairs(
    request: Request, pairs: pd.DataFrame, tables: dict[str, pd.DataFrame], unusable: int
) -> list[dict[str, Any]]:
    policy, reference = (tables[name].loc[pairs["pair_id"]] for name in (POLICY, REFERENCE))
    change = {side: policy[f"{side}_logp"] - reference[f"{side}_logp"] for side in ("chosen", "rejected")}
    margins = {POLICY: pd.DataFrame({request.seed: change["chosen"] - change["rejected"]})}
    facts = pair_facts(pairs, reference.reset_index(), None)
    found = accuracy_by_group(margins, facts, {POLICY: request.beta})
    write_parquet(request.out / "accuracy_by_group.parquet", found)
    rows = []
    for group in found.to_dict("records"):
        name = "" if group["by"] == "all" else f", {group['by']} {group['group']}"
        for metric, title in (("accuracy", "accuracy"), ("margin", "margin (nats)"),
                              ("calibration_error", f"calibration error at beta {request.beta:g}")):  # fmt: skip
            row = _row("pairs", title + name, group[metric], None, group["pairs"])
            row |= {"ci_low": group[f"{metric}_low"], "ci_high": group[f"{metric}_high"]}
            if metric == "calibration_error":
                row["note"] = f"if calibrated {number(group['calibration_error_if_calibrated'])}"
            rows.append(row)
    rows[0]["note"] = f"{unusable} rows unusable" if unusable else ""
    # All of it is in the file; the table shows accuracy alone of each group.
    return [row for row in rows if "," not in row["measure"] or row["measure"].startswith("accuracy")]


def _mean(part: str, measure: str, values: Iterable[float]) -> dict[str, Any]:
    found = estimate(list(values))
    error = float(np.std(list(values), ddof=1)) / math.sqrt(found.n) if found.n > 1 else math.nan
    row = _row(part, measure, found.mean, error, found.n)
    return row | {"ci_low": found.low, "ci_high": found.high}


def _row(
    part: str,
    measure: str,
    value: float,
    error: float | None,
    n: int,
    lowest: float = -math.inf,
    highest: float = math.inf,
) -> dict[str, Any]:
    spread = math.nan if error is None else error
    bounds = {"ci_low": max(lowest, value - Z * spread), "ci_high": min(highest, value + Z * spread)}
    if math.isnan(spread):
        bounds = dict.fromkeys(bounds, math.nan)
    return {"part": part, "measure": measure, "value": value, "standard_error": spread, **bounds, "n": n, "note": ""}


def _write(request: Request, phases: Phases, found: pd.DataFrame) -> None:
    """results.json: the rows, the options, and what the models were."""
    rows = [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
        for row in found.to_dict("records")
    ]
    options = asdict(request) | {"judge_settings": (request.judge_settings or JudgeSettings()).model_dump()}
    asked = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
    models = {str(folder): phases.content(folder) for folder in (request.model, request.reference) if folder}
    versions = ("mallowspo", "torch", "transformers", "alpaca_eval", "lm_eval", "scikit-learn")
    write_json(
        request.out / "results.json",
        {
            "results": rows,
            "settings": {**asked, "tokens": phases.view.tokens.model_dump(), "device": phases.device},
            "models": models,
            "versions": {name: importlib.metadata.version(name) for name in versions},
        },
    )
