"""The commands of `mallowspo bench`. What measures is imported when a command runs."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from mallowspo.bench.options import MODEL, Options, model_folder, require_trl
from mallowspo.errors import InputError

app = typer.Typer(no_args_is_help=True, help="Measure speed and memory, against TRL and against plain scoring.")

Against = Annotated[str, typer.Option(help="the other side; known: trl")]
Model = Annotated[str, typer.Option(help="a model's folder or source, as in an experiment's model.source")]
Sha256 = Annotated[str | None, typer.Option(help="of the wheel of a pypi: model; the default model's is known")]
Pairs = Annotated[Path | None, typer.Option(help="a file of real pairs; default: made-up pairs of stated lengths")]
Template = Annotated[str, typer.Option(help="of the file's pairs: plain or chat")]
Sets = Annotated[str, typer.Option(help="made-up sets, with commas: multi_turn, short_prompt")]
Methods = Annotated[str, typer.Option(help="methods to compare, with commas")]
Number = Annotated[int, typer.Option(help="pairs of each set")]
Batch = Annotated[int, typer.Option(help="pairs of an optimizer step; TRL's batch")]
Steps = Annotated[int | None, typer.Option(help="optimizer steps of a training [default: once over the pairs]")]
MaxLength = Annotated[int, typer.Option(help="tokens of prompt and response; longer pairs are left out")]
TokensPerBatch = Annotated[int, typer.Option(help="of our side, as in the settings")]
Memory = Annotated[int, typer.Option(help="of our side, as compute.memory_mb in the settings")]
Dtype = Annotated[str, typer.Option(help="of the matrix products: float32 or bfloat16")]
Lora = Annotated[bool, typer.Option("--lora", help="train adapters of rank 16 on all linear layers")]
Threads = Annotated[int, typer.Option(help="torch threads")]
Device = Annotated[str, typer.Option(help="cpu or cuda")]
Repeats = Annotated[int, typer.Option(help="rounds; the median counts")]
Seed = Annotated[int, typer.Option(help="of pairs and trainings")]
TrlBest = Annotated[str | None, typer.Option(help="the setting that counts as TRL's best [default: looked for]")]
Json = Annotated[Path | None, typer.Option("--json", help="write every figure and every measurement here")]
Out = Annotated[Path | None, typer.Option(help="keep the files of the measurements here")]

#: Arguments of the commands that become `Options`.
OPTIONS = {*Options.__annotations__, "pairs", "seed"} - {"model"}


@app.command()
def training(
    against: Against = "trl",
    model: Model = MODEL,
    sha256: Sha256 = None,
    pairs: Pairs = None,
    template: Template = "plain",
    sets: Sets = "multi_turn,short_prompt",
    number_of_pairs: Number = 16,
    batch: Batch = 4,
    steps: Steps = None,
    max_length: MaxLength = 512,
    tokens_per_batch: TokensPerBatch = 1024,
    memory_mb: Memory = 8000,
    dtype: Dtype = "float32",
    lora: Lora = False,
    threads: Threads = 2,
    device: Device = "cpu",
    repeats: Repeats = 3,
    seed: Seed = 1,
    trl_best: TrlBest = None,
    json: Json = None,
    out: Out = None,
) -> None:
    """Train with this package and with TRL in turn: seconds, memory, operations, losses."""
    chosen = {key: value for key, value in locals().items() if key in OPTIONS}
    _check_against(against)
    with _work(out) as work:
        options = _options(chosen, model, sha256, work)
        from mallowspo.bench import processes, tables
        from mallowspo.bench import training as bench

        with _progress(bench.measurements(options)) as tell:
            found = bench.run(options, work, processes.run, tell)
        _finish(found, tables.training_tables(found), json)


@app.command()
def comparison(
    against: Against = "trl",
    methods: Methods = "dpo,ipo,simpo,mallows_theta,mallows_phi,mallows_ipo",
    seeds: Annotated[str, typer.Option(help="of the trainings, with commas")] = "1,2",
    model: Model = MODEL,
    sha256: Sha256 = None,
    pairs: Pairs = None,
    template: Template = "plain",
    sets: Sets = "multi_turn",
    number_of_pairs: Number = 16,
    batch: Batch = 4,
    steps: Steps = None,
    max_length: MaxLength = 512,
    tokens_per_batch: TokensPerBatch = 1024,
    memory_mb: Memory = 8000,
    dtype: Dtype = "float32",
    lora: Lora = False,
    threads: Threads = 2,
    device: Device = "cpu",
    json: Json = None,
    out: Out = None,
) -> None:
    """A whole comparison: reference pass, dispersion and every method and seed, against as many trainings of TRL."""
    chosen = {key: value for key, value in locals().items() if key in OPTIONS}
    _check_against(against)
    with _work(out) as work:
        options = _options(chosen, model, sha256, work)
        from mallowspo.bench import comparison as bench
        from mallowspo.bench import processes, tables

        names = _names(methods)
        with _progress(bench.measurements(options, names)) as tell:
            found = bench.run(options, names, work, processes.run, tell)
        _finish(found, tables.comparison_tables(found), json)


@app.command()
def reference(
    model: Model = MODEL,
    sha256: Sha256 = None,
    pairs: Pairs = None,
    template: Template = "plain",
    sets: Sets = "multi_turn,short_prompt",
    number_of_pairs: Number = 16,
    batch: Batch = 4,
    max_length: MaxLength = 512,
    dtype: Dtype = "float32",
    threads: Threads = 2,
    device: Device = "cpu",
    repeats: Repeats = 3,
    seed: Seed = 1,
    json: Json = None,
    out: Out = None,
) -> None:
    """Score pairs with the reference pass and with a plain padded forward: tokens a second."""
    chosen = {key: value for key, value in locals().items() if key in OPTIONS}
    with _work(out) as work:
        options = _options(chosen, model, sha256, work)
        from mallowspo.bench import processes, tables
        from mallowspo.bench import reference as bench

        with _progress(bench.measurements(options)) as tell:
            found = bench.run(options, work, processes.run, tell)
        _finish(found, tables.reference_tables(found), json)


@app.command()
def generation(
    model: Model = MODEL,
    sha256: Sha256 = None,
    file: Annotated[
        Path | None, typer.Option("--prompts", help="JSON or JSONL of `instruction` or `prompt`; default: made-up ones")
    ] = None,
    prompts: Annotated[int, typer.Option("--number-of-prompts", help="prompts to answer")] = 32,
    batch: Annotated[int, typer.Option(help="prompts answered at a time")] = 16,
    max_new_tokens: Annotated[int, typer.Option(help="tokens of an answer at most")] = 128,
    dtype: Annotated[str, typer.Option(help="of weights and products: float32 or bfloat16")] = "float32",
    threads: Threads = 2,
    device: Device = "cpu",
    repeats: Repeats = 3,
    seed: Annotated[int, typer.Option(help="of prompts and answers")] = 1,
    json: Json = None,
    out: Out = None,
) -> None:
    """Answer prompts with our sampling and with model.generate in turn, sampled and greedy: tokens a second."""
    from mallowspo.bench import generation as bench
    from mallowspo.bench import processes, tables

    sizes = (file, prompts, batch, max_new_tokens, dtype, threads, device, repeats, seed)
    options = bench.GenerationOptions(model, *sizes)
    with _work(out) as work:
        options = replace(options, model=str(model_folder(model, sha256, work)))
        with _progress(bench.measurements(options)) as tell:
            found = bench.run(options, work, processes.run, tell)
        _finish(found, tables.generation_tables(found), json)


@app.command()
def scaling(
    lengths: Annotated[str, typer.Option(help="tokens of a row")] = "128,256,512,1024,2048,4096",
    vocabularies: Annotated[str, typer.Option(help="sizes of the vocabulary")] = "1024,4096,16384,65536",
    rows: Annotated[str, typer.Option(help="rows of a batch")] = "1,2,4,8",
    threads: Threads = 2,
    device: Device = "cpu",
    json: Json = None,
    out: Out = None,
) -> None:
    """Score, forward and backward, on small random models of growing size: seconds and memory."""
    from mallowspo.bench import processes, tables
    from mallowspo.bench import scaling as bench

    sizes = bench.Sizes(_numbers(lengths), _numbers(vocabularies), _numbers(rows))
    with _work(out) as work, _progress(bench.measurements(sizes)) as tell:
        found = bench.run(sizes, threads, device, work, processes.run, tell)
    _finish(found, tables.scaling_tables(found), json)


def _options(chosen: dict[str, Any], model: str, sha256: str | None, work: Path) -> Options:
    """From the command's arguments; checked before the model is fetched."""
    batch, pairs = chosen["batch"], chosen["number_of_pairs"]
    values = {key: value for key, value in chosen.items() if key in Options.__annotations__}
    values |= {"sets": _names(chosen["sets"]), "file": chosen["pairs"]}
    values["seeds"] = _numbers(chosen["seeds"]) if "seeds" in chosen else (chosen["seed"],)
    values["steps"] = chosen.get("steps") or max(1, pairs // max(1, batch))
    options = Options(model, **values)
    return replace(options, model=str(model_folder(model, sha256, work)))


def _check_against(against: str) -> None:
    if against != "trl":
        raise InputError(f"--against {against}: known: trl")
    require_trl()


def _numbers(text: str) -> tuple[int, ...]:
    """Raises:
    InputError: something other than whole numbers above 0, with commas between them.
    """
    names = _names(text)
    if not names or not all(name.isdecimal() and int(name) for name in names):
        raise InputError(f"{text!r}: expected whole numbers above 0, with commas between them")
    return tuple(int(name) for name in names)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


@contextmanager
def _work(out: Path | None) -> Iterator[Path]:
    """The folder of a bench's files: kept where the user named it or a measurement failed, else removed."""
    if out:
        out.mkdir(parents=True, exist_ok=True)
        yield out.resolve()
        return
    folder = Path(tempfile.mkdtemp(prefix="mallowspo-bench-"))
    yield folder
    shutil.rmtree(folder)


@contextmanager
def _progress(measurements: int) -> Iterator[Callable[[str], None]]:
    """A bar on the terminal; what it gives is told what is measured next."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=measurements, completed=-1)
        yield lambda what: progress.update(task, description=what, advance=1)
        progress.update(task, advance=1)


def _finish(found: dict[str, Any], tables: list[Any], json: Path | None) -> None:
    from rich.console import Console

    from mallowspo.files import write_json

    for table in tables:
        Console().print(table)
    if json:
        write_json(json, found)
