"""One run in the store for a study: its settings as params, its numbers as metrics, its page and files as artifacts."""

import time
from typing import Any

from mallowspo import __version__
from mallowspo.errors import InputError
from mallowspo.experiments import load_study
from mallowspo.files import digest, read_json, write_json
from mallowspo.layout import Layout
from mallowspo.studies.settings import Study
from mallowspo.tracking.contents import metric_name
from mallowspo.tracking.store import hide_credentials
from mallowspo.tracking.whole import (
    DIGEST,
    KIND,
    SUPERSEDED,
    all_runs,
    experiment_id,
    finish,
    log_metrics,
    mark_superseded,
    open_store,
    results_tag,
    set_tags,
)
from mallowspo.visible import visible


def run(layout: Layout, store_uri: str, timeout: float = 60.0) -> None:
    """Stage "track" of a study: bring the store to what the files say, and write tracked.json.

    Called again, it adds nothing. The same settings with other numbers are another run; the older one is kept and
    tagged mallowspo.superseded = true.

    Raises:
        InputError: a result file is missing, or the store cannot be reached or written; tracked.json is not written.
    """
    for needed in (layout.settings, layout.report, layout.study):
        if not needed.exists():
            raise InputError(f"{needed}: no such file; run mallowspo study {layout.experiment} first")
    study, found = load_study(str(layout.settings)), read_json(layout.study)
    with open_store(layout, store_uri, timeout, f"every number is in {layout.study}") as client:
        experiment = experiment_id(client, layout, store_uri)
        run_id = _write(client, experiment, layout, study, found)
    record = {"experiment_id": experiment, "run_id": run_id, "metrics": len(found["numbers"])}
    write_json(layout.tracked, {"store": hide_credentials(store_uri), **record})


def _write(client: Any, experiment: str, layout: Layout, study: Study, found: dict[str, Any]) -> str:
    runs = all_runs(client, experiment)
    tags = {KIND: "study", DIGEST: digest([study.identity, found["numbers"]])}
    same = [run for run in runs if tags.items() <= run.data.tags.items()]
    run = same[0] if same else client.create_run(experiment, tags=tags, run_name=layout.experiment)
    run_id: str = run.info.run_id
    now = int(time.time() * 1000)
    _log_params(client, run, study)
    metrics = {metric_name(name): value for name, value in found["numbers"].items()}
    log_metrics(client, run_id, [(key, value, now, 0) for key, value in metrics.items() if key not in run.data.metrics])
    described = {"mallowspo.version": __version__, "mallowspo.git_commit": str(found["environment"]["git_commit"])}
    described |= {"mlflow.note.content": visible(study.title), **results_tag(layout), SUPERSEDED: "false"}
    set_tags(client, run, described)
    for file in (layout.settings, layout.report, layout.study):
        client.log_artifact(run_id, str(file))
    for folder in (layout.figures, layout.tables):
        client.log_artifacts(run_id, str(folder), folder.name)
    finish(client, run, now)
    mark_superseded(client, runs, {run_id}, layout)
    return run_id


def _log_params(client: Any, run: Any, study: Study) -> None:
    """The settings that a result depends on, one param a leaf, in dotted names."""
    from mlflow.entities import Param

    values = _leaves(study.model_dump(exclude={"title", "question", "compute"}))
    # A value that is too long ends an MLflow call; 500 characters are what every store takes.
    missing = [Param(key, str(value)[:500]) for key, value in values.items() if key not in run.data.params]
    if missing:
        client.log_batch(run.info.run_id, params=missing, synchronous=True)


def _leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= _leaves(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found
