"""`mallowspo excerpt`: of finished experiments what fits in a repository or an appendix, and reads there.

A folder an experiment: README.md with the finding, its numbers and what made them; settings.yaml; tables; figures. No
models, answers or prompts. Of the page of the paper's claims (`paper`) its tables and figures.
"""

from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

import typer

from mallowspo.errors import InputError
from mallowspo.experiments import load_experiment
from mallowspo.files import read_json, whole_directory, write_bytes, write_text
from mallowspo.layout import Layout
from mallowspo.paper import FOLDER as PAPER
from mallowspo.settings import Experiment
from mallowspo.studies.settings import Study

#: Tables that README.md shows beside the main ones, where an experiment is made for them.
DESIGNED_TABLES = ("selection", "equal_kl", "factorial", "signals")
#: Tables of the page of the paper that README.md shows.
PAPER_TABLES = ("claims", "tests", "differs")
#: A longer table is named in README.md, and not shown.
MOST_ROWS = 40
#: A larger table is no excerpt; README.md names it.
MOST_BYTES = 200_000
#: Of environment.json.
VERSIONS = ("torch", "transformers", "alpaca_eval", "lm_eval", "mlflow", "snakemake")


def excerpt(
    experiments: Annotated[list[str], typer.Argument(help="finished experiments below the results folder, or paper")],
    out: Annotated[Path, typer.Option(help="folder; each experiment gets one of its name there, anew")],
    figures: Annotated[str, typer.Option(help="figures by name, such as frontier,win_rate*; default: all")] = "*",
    results: Annotated[str, typer.Option(help="folder of all results")] = "results",
) -> None:
    """What of finished experiments fits in a repository or an appendix: findings, tables, figures, settings."""
    for name in experiments:
        typer.echo(run(Layout(results, name), out / name, figures.split(",")))


def run(layout: Layout, target: Path, figures: list[str]) -> Path:
    """Write the excerpt of one experiment.

    Args:
        target: its folder; an older one is replaced once the new one is whole.
        figures: names, or patterns of them; one that fits nothing in this experiment chooses nothing here.

    Raises:
        InputError: the experiment is not finished, or the page of the paper is not made.
    """
    chosen = [f for f in sorted(layout.figures.glob("*.svg")) if any(fnmatch(f.stem, name) for name in figures)]
    page = _page_of_paper(layout, chosen) if layout.experiment == PAPER else _page_of_experiment(layout, chosen)
    tables = sorted(layout.tables.glob("*.csv"))
    larger = [table.name for table in tables if table.stat().st_size > MOST_BYTES]
    page += f"Left out, larger than {MOST_BYTES // 1000} kB: {', '.join(larger)}.\n" if larger else ""
    with whole_directory(target) as folder:
        for figure in chosen:
            write_bytes(folder / "figures" / figure.name, figure.read_bytes())
        for table in tables:
            if table.name not in larger:
                write_bytes(folder / "tables" / table.name, table.read_bytes())
        if layout.settings.exists():
            write_bytes(folder / "settings.yaml", layout.settings.read_bytes())
        write_text(folder / "README.md", page)
    return target


def _page_of_paper(layout: Layout, figures: list[Path]) -> str:
    files = [layout.tables / f"{name}.md" for name in PAPER_TABLES]
    if not all(file.exists() for file in files):
        raise InputError(f"{layout.root}: no page of the paper's claims; run mallowspo paper")
    tables = [file.read_text(encoding="utf-8") for file in files]
    return _page("The paper, claim by claim", [], tables, figures, [_commands(layout, "paper")])


def _page_of_experiment(layout: Layout, figures: list[Path]) -> str:
    if not (layout.settings.exists() and layout.report.exists()):
        raise InputError(f"{layout.root}: not finished; run snakemake --config experiments={layout.experiment}")
    settings = load_experiment(str(layout.settings))
    if isinstance(settings, Study):
        study = read_json(layout.study)
        (headline, *sentences), environment = study["findings"], study["environment"]
        tables = [file.read_text(encoding="utf-8") for file in sorted(layout.tables.glob("*.md"))]
    else:
        headline, sentences, tables = _of_comparison(settings, layout)
        method, seed = settings.runs()[0]
        environment = read_json(layout.run(method, seed) / "environment.json")
    words = [settings.question, f"**{headline}**", "\n".join(f"- {sentence}" for sentence in sentences)]
    commands = _commands(layout, f"--config experiments={layout.experiment}")
    return _page(settings.title, words, tables, figures, [commands, _made(settings, layout, environment)])


def _of_comparison(settings: Experiment, layout: Layout) -> tuple[str, list[str], list[str]]:
    """What the report says first, what it warns of, and its main tables."""
    from mallowspo.report import summary, tables
    from mallowspo.report.results import read_results
    from mallowspo.report.table import Table, markdown

    results = read_results(settings.stage_view("report"), layout, layout.settings.read_text(encoding="utf-8"))
    shown = [markdown(tables.main_table(results))]
    for baseline, view in tables.comparison_views(results, tables.comparison_table(results)).items():
        columns = view.shown[["Metric", "Method", "Difference", "Holm p", "Detectable", "n", "Seeds"]]
        differences = columns.rename(columns={"Difference": f"Minus {baseline}"})
        if len(differences) > MOST_ROWS:
            shown.append(
                f"Minus {baseline}: {len(differences)} rows in [tables/comparison.csv](tables/comparison.csv)."
            )
            continue
        shown.append(markdown(Table(view.name, view.numbers, differences, view.text_columns)))
    designed = [layout.tables / f"{name}.md" for name in DESIGNED_TABLES]
    shown += [file.read_text(encoding="utf-8") for file in designed if file.exists()]
    return summary.headline(results), summary.cautions(results), shown


def _page(title: str, words: list[str], tables: list[str], figures: list[Path], made: list[str]) -> str:
    from mallowspo.report.table import markdown_text

    parts = [f"# {markdown_text(title)}", *words, *(table.rstrip() for table in tables)]
    parts += [f"![{figure.stem.replace('_', ' ')}](figures/{figure.name})" for figure in figures]
    return "\n\n".join([*parts, "## What made it", *made, "The numbers are in [tables](tables)."]) + "\n"


def _commands(layout: Layout, target: str) -> str:
    return f"    snakemake --cores all {target}\n    mallowspo excerpt {layout.experiment} --out FOLDER"


def _made(settings: Experiment | Study, layout: Layout, environment: dict[str, Any]) -> str:
    import pandas as pd

    jobs = [pd.read_csv(file, sep="\t")["s"].sum() for file in layout.root.glob("benchmarks/*.tsv")]
    known = environment["versions"]
    versions = ", ".join(f"{name} {known[name]}" for name in VERSIONS if known.get(name))
    lines = [
        f"[settings](settings.yaml) {settings.identity}, commit {environment['git_commit']}",
        f"Python {environment['python']}, {versions}",
        f"{environment['gpu'] or environment['processor']}, {environment['platform'].partition('-')[0]}",
        f"{len(jobs)} jobs of {sum(jobs) / 60:.0f} minutes in all, some side by side",
    ]
    return "\n".join(f"- {line}" for line in lines)
