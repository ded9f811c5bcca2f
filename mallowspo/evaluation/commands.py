"""`mallowspo evaluate` and `mallowspo lm-compare`: any model folder, outside the workflow."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mallowspo.experiments import read_yaml, validate

EXAMPLE = (
    "Example: mallowspo evaluate --model my_model --suite alpaca,pairs,kl --reference my_reference "
    "--prompts instructions.jsonl --judge reward:vader --pairs pairs.jsonl --out evaluation"
)


def evaluate(
    model: Annotated[Path, typer.Option(help="folder of any causal model in the Hugging Face layout")],
    out: Annotated[Path, typer.Option(help="folder of all files; a killed evaluation goes on there")],
    suite: Annotated[
        str, typer.Option(help="alpaca: win rate; lm: benchmarks; pairs: implicit rewards; kl: to the reference")
    ] = "alpaca,lm,pairs,kl",
    reference: Annotated[
        Path | None, typer.Option(help="the model that it was made from; pairs and kl need it")
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(help="JSON or JSONL, plain or .gz, of `instruction` or `prompt`; default: of --against"),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="published outputs: FILE or hub:ID@REVISION!FILE; default: the reference's own")
    ] = None,
    judge: Annotated[str | None, typer.Option(help="who compares, such as reward:vader or openai:MODEL")] = None,
    judge_settings: Annotated[str | None, typer.Option(help="YAML file of the judge's settings")] = None,
    difficulty: Annotated[str | None, typer.Option(help="df_gamed.csv of the hub, for the official LC")] = None,
    pairs: Annotated[str | None, typer.Option(help="preference pairs: FILE or hub:ID@REVISION")] = None,
    beta: Annotated[float, typer.Option(help="of the calibration of the pairs' implicit rewards")] = 0.1,
    tasks: Annotated[str, typer.Option(help="tasks or groups of lm-eval, with commas between")] = "",
    include_path: Annotated[str | None, typer.Option(help="folder of task files of one's own")] = None,
    limit: Annotated[int | None, typer.Option(help="items of each task; default: all")] = None,
    max_prompts: Annotated[int | None, typer.Option(help="the first so many prompts; default: all")] = None,
    max_pairs: Annotated[int | None, typer.Option(help="a seeded draw of so many pairs; default: all")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="of an answer; temperature 1, top-p 1")] = 512,
    template: Annotated[str | None, typer.Option(help="plain or chat; default: chat if the model has one")] = None,
    seed: Annotated[int, typer.Option(help="of the answers")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    threads: Annotated[int, typer.Option(help="torch threads; 0: the cores")] = 0,
) -> None:
    """Evaluate any model folder, without an experiment: one table, and results.json; goes on where it was killed."""
    from rich.console import Console

    from mallowspo.evaluation import suite as stage
    from mallowspo.judges.settings import JudgeSettings
    from mallowspo.models import use_threads

    use_threads(threads or "auto")
    settings = validate(JudgeSettings, read_yaml(judge_settings), judge_settings) if judge_settings else None
    request = stage.Request(
        model=model,
        suite=_names(suite),
        out=out,
        judge=judge,
        judge_settings=settings,
        reference=reference,
        prompts=prompts,
        against=against,
        pairs=pairs,
        tasks=_names(tasks),
        include_path=include_path,
        limit=limit,
        max_prompts=max_prompts,
        max_pairs=max_pairs,
        max_new_tokens=max_new_tokens,
        seed=seed,
        template=template,
        beta=beta,
        difficulty=difficulty,
        device=device,
    )
    found = stage.run(request)
    Console(width=None if sys.stdout.isatty() else 140).print(stage.table(found, str(model)))


def lm_compare(
    ours: Annotated[Path, typer.Argument(help="lm_eval.parquet of one model")],
    theirs: Annotated[Path, typer.Argument(help="lm_eval.parquet of another")],
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON list")] = False,
) -> None:
    """Two models on the same benchmark items, paired: McNemar's test, or that of the paired differences."""
    from mallowspo.evaluation import lm_compare as stage

    found = stage.compare_files(ours, theirs)
    typer.echo(found.to_json(orient="records", indent=2) if as_json else stage.told(found, (str(ours), str(theirs))))


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
