"""The part of the page where a reader explores prompts: their data, and what the page embeds.

The page stays one file that asks for nothing outside. Its policy (Content-Security-Policy) lets one script run, the one
whose digest it names; texts of models lie in JSON that no browser takes for markup, and are put on the page as text.
"""

import base64
import hashlib
import math
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import pandas as pd
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from mallowspo.files import write_text
from mallowspo.layout import REFERENCE
from mallowspo.metric_names import is_benchmark, is_on_other_pairs
from mallowspo.report.effect_figure import prompt_dispersion
from mallowspo.report.results import Results, first_answers
from mallowspo.report.style import Look, csv
from mallowspo.report.words import metric_title, shown_text

#: Prompts on the page at most, and characters of all their texts together: a page must open on a telephone.
MOST_PROMPTS = 400
MOST_CHARACTERS = 1_500_000
#: Of a prompt, and of an answer.
TEXT_CHARACTERS = 600
#: Significant digits of a number on the page; tables/prompts.csv has ten.
DIGITS = 5


@dataclass(frozen=True)
class Explorer:
    """What the page embeds.

    Attributes:
        shown, total: prompts on the page, and test prompts with a dispersion.
        data: JSON, safe inside a <script>.
        script, style: JavaScript and CSS.
        policy: the script's source for a Content-Security-Policy.
    """

    shown: int
    total: int
    data: Markup
    script: Markup
    style: Markup
    policy: str


def explorer(results: Results, look: Look) -> Explorer | None:
    """The part for the page, and tables/prompts.csv with all prompts; None where no test prompt has a dispersion."""
    dispersion = prompt_dispersion(results)
    if dispersion.empty:
        return None
    metrics = [name for name in results.metrics() if not is_benchmark(name) and not is_on_other_pairs(name)]
    means = {name: _means(results, name) for name in metrics}
    write_text(results.layout.tables / "prompts.csv", csv(_numbers(results, dispersion, means)))
    texts_a_prompt = 1 + len(results.labels)
    most = max(1, min(MOST_PROMPTS, MOST_CHARACTERS // (TEXT_CHARACTERS * texts_a_prompt)))
    # Ids are digests: their first are a draw that nobody chose.
    chosen = sorted(dispersion.index)[:most]
    script = _own_file("explore.js")
    value = {
        "policies": [{"name": label, "colour": look.colour[label]} for label in results.labels],
        "outcomes": [metric_title(name) for name in metrics],
        "baseline": results.baseline if len(results.methods) > 1 else REFERENCE,
        "prompts": _prompts(results, dispersion, means, chosen),
    }
    return Explorer(
        shown=len(chosen),
        total=len(dispersion),
        data=htmlsafe_json_dumps(value, separators=(",", ":"), allow_nan=False),
        script=Markup(script),
        style=Markup(_own_file("explore.css")),
        policy=f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'",
    )


def _own_file(name: str) -> str:
    return files("mallowspo.report").joinpath(name).read_text(encoding="utf-8")


def _means(results: Results, metric: str) -> pd.DataFrame:
    """(prompts, labels): means over seeds; a label without the metric is missing."""
    tables = {label: table.mean(axis=1) for label, table in results.values[metric].items()}
    return pd.DataFrame(tables).reindex(columns=results.labels)


def _numbers(results: Results, dispersion: pd.Series, means: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """A row a prompt and policy."""
    parts = [
        pd.DataFrame({name: table[label].reindex(dispersion.index) for name, table in means.items()})
        .rename_axis("prompt_id")
        .reset_index()
        .assign(method=label, dispersion_index=dispersion.to_numpy())
        for label in results.labels
    ]
    return pd.concat(parts)[["prompt_id", "dispersion_index", "method", *means]]


def _prompts(
    results: Results, dispersion: pd.Series, means: dict[str, pd.DataFrame], chosen: list[str]
) -> list[dict[str, Any]]:
    """For each prompt: text, dispersion, values (outcomes, labels), first answer of every label."""
    seed = results.view.seeds[0]
    answers = first_answers(results.layout, results.labels, seed, set(chosen))
    prompts = dict(zip(results.prompts["prompt_id"], results.prompts["prompt"], strict=True))
    values = [table.reindex(chosen).to_numpy() for table in means.values()]
    return [
        {
            "text": shown_text(prompts[prompt_id], TEXT_CHARACTERS),
            "dispersion": _short(dispersion[prompt_id]),
            "values": [[_short(value) for value in table[position]] for table in values],
            "answers": [shown_text(answers[prompt_id][label]["output"], TEXT_CHARACTERS) for label in results.labels],
        }
        for position, prompt_id in enumerate(chosen)
    ]


def _short(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.{DIGITS}g}")
