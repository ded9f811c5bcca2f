"""`mallowspo evaluate`, `winrate` and `lm-compare`: any model folder and any files, outside the workflow."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mallowspo.errors import InputError
from mallowspo.experiments import read_yaml, validate

EXAMPLE = (
    "Example: mallowspo evaluate --model my_model --suite alpaca,pairs,kl --reference my_reference "
    "--prompts instructions.jsonl --judge reward:vader --pairs pairs.jsonl --out evaluation"
)


BOTH, WINS, PAIRS, LM = "For alpaca and kl", "For alpaca", "For pairs", "For lm"


def _option(text: str, panel: str) -> Any:
    return typer.Option(help=text, rich_help_panel=panel)


def evaluate(
    model: Annotated[Path, typer.Option(help="folder of any causal model in the Hugging Face layout")],
    out: Annotated[Path, typer.Option(help="folder of all files; a killed evaluation goes on there")],
    suite: Annotated[
        str, typer.Option(help="alpaca: win rate; lm: benchmarks; pairs: implicit rewards; kl: to the reference")
    ] = "alpaca,lm,pairs,kl",
    reference: Annotated[
        Path | None,
        typer.Option(help="folder of the model that it was made from: pairs and kl need it, alpaca if no --against"),
    ] = None,
    prompts: Annotated[
        str | None, _option("JSON or JSONL, plain or .gz, of `instruction` or `prompt`; default: of --against", BOTH)
    ] = None,
    max_prompts: Annotated[int | None, _option("the first so many prompts; default: all", BOTH)] = None,
    max_new_tokens: Annotated[int, _option("of an answer; temperature 1, top-p 1", BOTH)] = 512,
    seed: Annotated[int, _option("of the answers", BOTH)] = 0,
    judge: Annotated[
        str | None,
        _option("who compares, such as reward:vader, logprob:path:FOLDER or openai:MODEL", WINS),
    ] = None,
    judge_settings: Annotated[str | None, _option("YAML file of the judge's settings, such as a budget", WINS)] = None,
    against: Annotated[
        str | None, _option("published outputs: FILE or hub:ID@REVISION!FILE; default: the reference's own", WINS)
    ] = None,
    labels: Annotated[
        str | None, _option("pairs labelled by people (input, output_1, output_2, label): measures the judge", WINS)
    ] = None,
    difficulty: Annotated[str | None, _option("df_gamed.csv of the hub, for the official LC", WINS)] = None,
    tasks: Annotated[str, _option("tasks or groups of lm-eval, with commas between, such as openllm", LM)] = "",
    include_path: Annotated[str | None, _option("folder of task files of one's own", LM)] = None,
    limit: Annotated[int | None, _option("items of each task; default: all", LM)] = None,
    pairs: Annotated[str | None, _option("preference pairs: FILE or hub:ID@REVISION", PAIRS)] = None,
    beta: Annotated[float, _option("of the calibration of the pairs' implicit rewards", PAIRS)] = 0.1,
    max_pairs: Annotated[int | None, _option("a seeded draw of so many pairs; default: all", PAIRS)] = None,
    template: Annotated[str | None, typer.Option(help="plain or chat; default: chat if the model has one")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    threads: Annotated[int, typer.Option(help="torch threads; 0: the cores")] = 0,
) -> None:
    """Evaluate any model folder, without an experiment: one table, and results.json; goes on where it was killed.

    Name in --suite what you want; each part needs the options of its own panel below.
    """
    from rich.console import Console

    from mallowspo.evaluation import suite as stage
    from mallowspo.models import use_threads

    use_threads(threads or "auto")
    settings = judge_settings_of(judge_settings) if judge_settings else None
    request = stage.Request(
        model=model,
        suite=_names(suite),
        out=out,
        judge=judge,
        judge_settings=settings,
        labels=labels,
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


def winrate(
    annotations: Annotated[str | None, typer.Option(help="AlpacaEval's annotations, JSON or .gz")] = None,
    outputs: Annotated[str | None, typer.Option(help="or outputs to judge: FILE, or hub:ID@REVISION!FILE")] = None,
    against: Annotated[str | None, typer.Option(help="the outputs that they are compared with")] = None,
    judge: Annotated[str | None, typer.Option(help="who compares, such as reward:vader or openai:MODEL")] = None,
    judge_settings: Annotated[str | None, typer.Option(help="YAML file of the judge's settings")] = None,
    difficulty: Annotated[str | None, typer.Option(help="df_gamed.csv of the hub, for the official LC")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for annotations, judgements and numbers")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Win rate and length-controlled win rate, of stored annotations or of two files of outputs."""
    from mallowspo.evaluation import winrate as stage

    if annotations and not (outputs or against or judge):
        found = stage.of_annotations(annotations, difficulty)
    elif outputs and against and judge and not annotations:
        found = stage.of_outputs(outputs, against, judge, judge_settings_of(judge_settings), out, difficulty)
    else:
        raise InputError("winrate: give --annotations, or all of --outputs, --against and --judge")
    typer.echo(json.dumps(stage.printed(found), indent=2) if as_json else stage.told(found))


def judge_settings_of(file: str | None) -> Any:
    """What a YAML file says, or the defaults."""
    from mallowspo.judges.settings import JudgeSettings

    return validate(JudgeSettings, read_yaml(file), file) if file else JudgeSettings()


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
