"""`mallowspo STAGE EXPERIMENT ...`: each rule of the workflow calls one of these, and a person can call it by hand.

Stages import what they need when they run, so that `mallowspo --help` answers at once.
"""

import errno
import importlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mallowspo import method_commands, settings_commands
from mallowspo.bench.commands import app as bench
from mallowspo.between import commands as between
from mallowspo.chains import located
from mallowspo.data_files import fetch_data
from mallowspo.errors import InputError
from mallowspo.evaluation import commands
from mallowspo.evaluation.settings import OtherPairsSettings
from mallowspo.excerpt import excerpt
from mallowspo.experiments import (
    dump_settings,
    experiment_file,
    load_comparison,
    load_experiment,
    load_workflow,
    read_yaml,
)
from mallowspo.files import write_json, write_text
from mallowspo.judges.names import is_a_model
from mallowspo.layout import REFERENCE, Layout
from mallowspo.model_files import trust_fetched
from mallowspo.new.command import new
from mallowspo.paper.commands import paper
from mallowspo.plan.command import plan
from mallowspo.plan.requests import Requests
from mallowspo.policies import Policy
from mallowspo.provenance import STAGE_MODULES
from mallowspo.settings import ComputeSettings, Experiment
from mallowspo.shard import Shard
from mallowspo.studies import commands as studies
from mallowspo.studies.settings import Study
from mallowspo.ui_links import ui_links
from mallowspo.visible import one_line


class InDataOrder(typer.core.TyperGroup):
    """Lists the commands in the order of the data, which is the order they are written in below."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)


app = typer.Typer(
    cls=InDataOrder,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="MallowsPO: from preference pairs to a comparison that holds up. Stages stand in the order of the data.",
)

ExperimentName = Annotated[str, typer.Argument(help="a name in config/experiments, or a path to a .yaml file")]
Results = Annotated[str, typer.Option(help="folder of all results")]
Method = Annotated[str, typer.Option(help="a label under `methods` of the experiment")]
PolicyName = Annotated[str, typer.Option(help=f"a label under `methods`, or '{REFERENCE}' for the untrained policy")]
AnyPolicy = Annotated[str, typer.Option(help=f"the same, or as in {REFERENCE}@temperature=0.7, LABEL@training=0.5")]
Seed = Annotated[int, typer.Option(help="training seed (0 for the untrained policy)")]
Split = Annotated[str, typer.Option(help="train or test")]
Store = Annotated[str | None, typer.Option(help="MLflow tracking URI; default: what config/config.yaml says")]
ShardText = Annotated[
    str | None, typer.Option("--shard", help="2/4: only the second quarter; without it what is missing, and the whole")
]
Threads = Annotated[int, typer.Option(help="torch threads; 0: what the experiment says")]


def _stage(name: str) -> Any:
    return importlib.import_module(STAGE_MODULES[name])


def _open(
    experiment: str, results: str, threads: int | None = None, gpus: int | None = 1
) -> tuple[Experiment, Layout, Path]:
    """Settings, paths and model folder of an experiment; if the stage computes, its threads set and its GPUs locked.

    Args:
        gpus: that the stage uses at most; None: all that the experiment asks for.
    """
    settings = load_comparison(experiment)
    layout = Layout(results, experiment_file(experiment).stem)
    trust_fetched(layout.model(settings.model.key), settings.model.trust_remote_code)
    if threads is not None:
        from mallowspo.models import use_threads

        _lock_gpus(settings.compute, gpus)
        use_threads(threads or settings.compute.threads)
    return settings, layout, layout.model(settings.model.key)


def _lock_gpus(compute: ComputeSettings, most: int | None = 1) -> None:
    from mallowspo.devices import claim

    if compute.device != "cpu":
        claim(compute.gpus if most is None else min(compute.gpus, most))


def _policy(name: str, settings: Experiment, layout: Layout, model_folder: Path, seed: int) -> tuple[Policy, Path]:
    """A policy by its name, and its folder."""
    policy = Policy.parse(name)
    if policy.training is not None:
        _known(name, settings, *dict.fromkeys(variant for variant, _ in settings.variants()))
        return policy, layout.kept(policy.label, seed) / f"{policy.training:g}"
    _known(policy.label, settings, REFERENCE)
    return policy, model_folder if policy.label == REFERENCE else layout.run(policy.label, seed) / "model"


app.command()(new)


@app.command()
def model(experiment: ExperimentName, results: Results = "results") -> None:
    """Fetch the initial policy (hub, folder, PyPI wheel) into one local folder."""
    settings = load_experiment(experiment)
    if settings.model is None:
        raise InputError(f"{experiment_file(experiment)}: has no model to fetch")
    chosen = settings.stage_view("model").model
    folder = Layout(results, experiment_file(experiment).stem).model(settings.model.key)
    source, trusted = located(chosen.source, results), bool(chosen.trust_remote_code)
    _stage("model").fetch(source, chosen.sha256, folder, trusted, chosen.quantized)


app.command("fetch-data")(fetch_data)


@app.command()
def sample(
    experiment: ExperimentName, split: Split = "train", results: Results = "results", threads: Threads = 0
) -> None:
    """Sample and judge answers for on-policy pairs."""
    settings, layout, folder = _open(experiment, results, threads)
    _stage("sample").run(settings.stage_view("sample"), layout, folder, split, settings.compute.device)


@app.command()
def pairs(experiment: ExperimentName, results: Results = "results") -> None:
    """Read, check and split preference pairs; write them with a data-health table."""
    settings, layout, folder = _open(experiment, results)
    _stage("pairs").run(settings.stage_view("pairs"), layout, folder)


@app.command()
def tokens(experiment: ExperimentName, results: Results = "results") -> None:
    """Turn the pairs into token ids, once for every stage that reads them."""
    settings, layout, folder = _open(experiment, results)
    _stage("tokens").run(settings.stage_view("tokens"), layout, folder)


@app.command()
def reference(
    experiment: ExperimentName,
    results: Results = "results",
    threads: Threads = 0,
    shard: ShardText = None,
) -> None:
    """Score every pair once with the reference policy: log-probabilities and entropies; goes on where it was killed."""
    settings, layout, folder = _open(experiment, results, threads)
    part = Shard.parse(shard) if shard else None
    _stage("reference").run(settings.stage_view("reference"), layout, folder, settings.compute.device, part)


@app.command()
def dispersion(
    experiment: Annotated[str | None, typer.Argument(help="an experiment, as in the other commands")] = None,
    model: Annotated[str | None, typer.Option(help="without an experiment: a model's folder or source")] = None,
    pairs: Annotated[str | None, typer.Option(help="without an experiment: a file or source of pairs")] = None,
    out: Annotated[str | None, typer.Option(help="folder for the table and its picture [default: dispersion]")] = None,
    template: Annotated[str | None, typer.Option(help="plain or chat [default: chat if the model has one]")] = None,
    estimator: Annotated[str | None, typer.Option(help="as in dispersion.estimator [default: entropy]")] = None,
    convention: Annotated[str | None, typer.Option(help="response_tokens or official [default: the first]")] = None,
    max_pairs: Annotated[int | None, typer.Option(help="a seeded draw of so many pairs [default: all]")] = None,
    sha256: Annotated[str | None, typer.Option(help="of the wheel of a pypi: model")] = None,
    results: Results = "results",
) -> None:
    """Turn the reference's entropies into each pair's dispersion index and weight; or do it for any MODEL and PAIRS."""
    options = {"template": template, "estimator": estimator, "convention": convention, "max_pairs": max_pairs}
    options |= {"sha256": sha256}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if experiment and (model or pairs or out or given):
        raise InputError(f"dispersion {experiment}: an experiment says all of it; leave out the other options")
    if experiment:
        settings, layout, folder = _open(experiment, results)
        _stage("dispersion").run(settings.stage_view("dispersion"), layout, folder, settings.compute.device)
        return
    if not (model and pairs):
        raise InputError("dispersion: give an EXPERIMENT, or both --model and --pairs")
    from mallowspo.dispersion_command import Request, run

    typer.echo("\n".join(run(Request(model, pairs, **given), Path(out or "dispersion"), results)))


@app.command("other-pairs")
def other_pairs(
    experiment: ExperimentName,
    name: Annotated[str, typer.Option("--set", help="a name under evaluation.other_pairs")],
    results: Results = "results",
    threads: Threads = 0,
) -> None:
    """Read, check and tokenize a further set of pairs, and score it once with the reference policy."""
    settings, layout, folder = _open(experiment, results, threads)
    chosen, view = _other_pairs(name, settings), settings.stage_view("other-pairs")
    _stage("other-pairs").run(view, chosen, layout.other_pairs(name), folder, settings.compute.device)


@app.command()
def train(
    experiment: ExperimentName,
    method: Method,
    seed: Seed,
    results: Results = "results",
    threads: Threads = 0,
    live: Annotated[bool, typer.Option(help="also send the curves to the MLflow store while training")] = False,
    store: Store = None,
) -> None:
    """Train one policy by one method and seed; goes on from its last checkpoint if it was killed."""
    settings, layout, folder = _open(experiment, results, threads, gpus=None)
    _known(method, settings)
    if settings.compute.processes > 1:
        from mallowspo.launch import launch, was_launched

        if not was_launched():
            launch(sys.argv[1:], settings.compute.processes, settings.compute.device)
            return
    view = settings.stage_view("train")
    live_store = (store or _workflow(results).store) if live else None
    _stage("train").run(
        view,
        *(settings.methods[method], method, seed, layout, folder),
        *(settings.compute.device, Requests(settings, results, 1).of("train", method).memory_mb, live_store),
        sharded=settings.compute.sharded,
    )


@app.command()
def generate(
    experiment: ExperimentName,
    method: AnyPolicy,
    seed: Seed = 0,
    results: Results = "results",
    threads: Threads = 0,
    shard: ShardText = None,
) -> None:
    """Sample a policy's answers to the test prompts; goes on where it was killed."""
    settings, layout, folder = _open(experiment, results, threads)
    policy, policy_folder = _policy(method, settings, layout, folder, seed)
    part = Shard.parse(shard) if shard else None
    view = settings.stage_view("generate")
    if policy.temperature is not None:
        view.generation = view.generation.model_copy(update={"temperature": policy.temperature})
    _stage("generate").run(view, layout, policy_folder, method, seed, settings.compute.device, part)


@app.command()
def score(
    experiment: ExperimentName,
    method: AnyPolicy,
    seed: Seed = 0,
    results: Results = "results",
    threads: Threads = 0,
    pairs: Annotated[str | None, typer.Option(help="a set of evaluation.other_pairs: its pairs alone")] = None,
    second_judge: Annotated[bool, typer.Option("--second-judge", help="its rewards alone")] = False,
    signals: Annotated[bool, typer.Option("--signals", help="each held-out pair's own beta alone")] = False,
    shard: ShardText = None,
) -> None:
    """Reward and KL to the reference of each answer; implicit reward of each held-out pair."""
    settings, layout, folder = _open(experiment, results)
    if not second_judge or is_a_model(settings.evaluation.second_judge or ""):  # else torch is not needed
        _open(experiment, results, threads)
    _, policy_folder = _policy(method, settings, layout, folder, seed)
    view, device = settings.stage_view("score"), settings.compute.device
    part = Shard.parse(shard) if shard else None
    if part and (second_judge or signals):
        raise InputError("--shard: the second judge's rewards and the pairs' own betas are one job; leave it out")
    if pairs:
        _other_pairs(pairs, settings)
        _stage("score").run_pairs(view, layout.other_pairs(pairs), policy_folder, method, seed, device, part)
    elif second_judge and not settings.evaluation.second_judge:
        raise InputError(f"--second-judge: {experiment} has no evaluation.second_judge")
    elif second_judge:
        _stage("second-score").run(settings.stage_view("second-score"), layout, method, seed)
    elif signals:
        _known(method, settings)
        _stage("signals").run(view, settings.methods[method], layout, folder, policy_folder, method, seed, device)
    else:
        _stage("score").run(view, layout, folder, policy_folder, method, seed, device, part)


@app.command()
def alpaca(
    experiment: ExperimentName, method: Method, seed: Seed, results: Results = "results", threads: Threads = 0
) -> None:
    """Win rates against the reference's, the baseline's and published answers, by AlpacaEval's own code."""
    settings, layout, _ = _open(experiment, results)
    _known(method, settings)
    if settings.evaluation.alpaca.judge:  # else rewards on file are compared, and torch is not needed
        _open(experiment, results, threads)
    _stage("alpaca").run(settings.stage_view("alpaca"), layout, method, seed)


@app.command("lm-eval")
def lm_eval(
    experiment: ExperimentName,
    method: PolicyName,
    seed: Seed = 0,
    results: Results = "results",
    threads: Threads = 0,
    shard: ShardText = None,
) -> None:
    """Tasks of lm-evaluation-harness, with standard errors; goes on with the next task where it was killed."""
    settings, layout, folder = _open(experiment, results, threads)
    _known(method, settings, REFERENCE)
    _, policy = _policy(method, settings, layout, folder, seed)
    part = Shard.parse(shard) if shard else None
    view = settings.stage_view("lm-eval")
    _stage("lm-eval").run(view, layout, policy, method, seed, settings.compute.device, shard=part)


app.command()(between.compare)


@app.command()
def report(experiment: ExperimentName, results: Results = "results") -> None:
    """Tables, figures and report.html, from the files alone."""
    settings, layout, _ = _open(experiment, results)
    text = dump_settings(settings)
    write_text(layout.settings, text)
    _stage("report").run(settings.stage_view("report"), layout, text)


app.command()(excerpt)


@app.command()
def track(
    experiment: ExperimentName,
    results: Results = "results",
    store: Store = None,
) -> None:
    """Make the MLflow store whole from the files; calling it again adds nothing twice."""
    settings = load_experiment(experiment)
    layout = Layout(results, experiment_file(experiment).stem)
    uri = store or _workflow(results).store
    if isinstance(settings, Study):
        _stage("track").track_study(layout, uri)
    else:
        _stage("track").run(settings.stage_view("track"), layout, uri)


app.command("ui-links")(ui_links)


@app.command()
def server(
    results: Results = "results",
    host: Annotated[str, typer.Option(help="address to listen on; 0.0.0.0: every one")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TCP port")] = 5000,
    workers: Annotated[int, typer.Option(min=1, help="processes")] = 2,
    auth: Annotated[bool, typer.Option(help="ask for user and password (pip install 'mallowspo[auth]')")] = False,
) -> None:
    """Start the MLflow server that jobs and users share. Its store: MLFLOW_BACKEND_STORE_URI, else the workflow's."""
    from mallowspo.tracking import server as stage

    store = os.environ.get("MLFLOW_BACKEND_STORE_URI") or _workflow(results).store
    stage.run(store, Path(results) / "mlartifacts", host, port, workers, auth)


app.command("reward-model")(studies.reward_model)
app.command()(studies.study)
app.command()(paper)


app.command()(method_commands.methods)


app.command()(commands.winrate)


@app.command()
def judge(
    experiment: Annotated[str | None, typer.Argument(help="an experiment whose evaluation has judge_labels")] = None,
    name: Annotated[str | None, typer.Option("--judge", help="or a judge, such as logprob:path:FOLDER")] = None,
    labels: Annotated[str | None, typer.Option(help="and JSONL of input, output_1, output_2, label (1 or 2)")] = None,
    judge_settings: Annotated[str | None, typer.Option(help="YAML file of the judge's settings")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for judge.json and the judgements")] = None,
    asked_again: Annotated[int, typer.Option(help="pairs asked twice, to see whether the judge repeats itself")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    results: Results = "results",
    threads: Threads = 0,
) -> None:
    """Measure a judge on pairs with human labels: agreement, taste for position and length, flips."""
    from mallowspo.judges import labels as stage

    if experiment and not (name or labels):
        settings, layout, _ = _open(experiment, results, threads)
        stage.run(settings.stage_view("judge"), layout)
        return
    if experiment or not (name and labels):
        raise InputError("judge: give an EXPERIMENT, or both --judge and --labels")
    found = stage.judge_labels(name, labels, commands.judge_settings_of(judge_settings), out, asked_again)
    typer.echo(json.dumps(found, indent=2) if as_json else stage.told(found))


app.command(epilog=commands.EXAMPLE)(commands.evaluate)
app.command("lm-compare")(commands.lm_compare)


app.command("method-figures")(method_commands.method_figures)
app.command()(plan)


app.command()(settings_commands.settings)
app.command()(settings_commands.schema)
app.add_typer(bench, name="bench")


def _known(method: str, settings: Experiment, *also: str) -> None:
    names = [*settings.methods, *also]
    if method not in names:
        raise InputError(f"--method {method}: the experiment has {', '.join(names)}")


def _other_pairs(name: str, settings: Experiment) -> OtherPairsSettings:
    sets = settings.evaluation.other_pairs
    if name not in sets:
        raise InputError(f"'{name}' is no set under evaluation.other_pairs; there are: {', '.join(sets) or 'none'}")
    return sets[name]


def _workflow(results: str) -> Any:
    file = Path("config/config.yaml")
    values = read_yaml(file) if file.exists() else {}
    return load_workflow({**values, "results": results})


def main() -> None:
    """Run a command; bad input ends with its one line and status 2."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "httpx2", "absl", "urllib3", "filelock", "fontTools"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except InputError as error:
        launcher = os.environ.get("TORCHELASTIC_ERROR_FILE")
        if launcher:  # of several processes' errors it tells one
            write_json(launcher, {"message": str(error)})
        else:
            typer.echo(f"mallowspo: {one_line(str(error))}", err=True)
        sys.exit(2)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        typer.echo(f"mallowspo: the disk is full ({error.filename or 'results'}); make room and run again", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
