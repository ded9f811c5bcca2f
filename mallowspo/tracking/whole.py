"""Make the store whole from one experiment's files: one parent run, and a child for every (method, seed)."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from mallowspo import __version__
from mallowspo.errors import InputError
from mallowspo.experiments import load_comparison
from mallowspo.files import read_parquet, sha256_file, write_json
from mallowspo.layout import Layout
from mallowspo.settings import Experiment
from mallowspo.tracking.contents import TIMING, RunContents, read_run
from mallowspo.tracking.findings import experiment_metrics, experiment_tags
from mallowspo.tracking.links import VIEW_TAG, view_state
from mallowspo.tracking.store import connect, hide_credentials, http_limits, prepare_store, sqlite_file, store_errors
from mallowspo.visible import visible

KIND, DIGEST, METHOD, SEED = "mallowspo.kind", "mallowspo.digest", "mallowspo.method", "mallowspo.seed"
SUPERSEDED, PARENT = "mallowspo.superseded", "mlflow.parentRunId"
#: The results folder that a run is a copy of: several users' results of one name may share a store.
RESULTS = "mallowspo.results"
#: What MLflow takes in one call.
METRICS_A_CALL = 1000


def run(view: Any, layout: Layout, store_uri: str, timeout: float = 60.0) -> None:
    """Stage "track": bring the store to what the files say, and write tracked.json.

    Called again, it adds what is missing and doubles nothing. A run that is no longer part of the results
    (another digest, or other values under the same digest) is kept and tagged mallowspo.superseded = true.

    Args:
        view: holds `title`.
        layout: where the results are.
        store_uri: see `prepare_store`.
        timeout: seconds to wait for a locked sqlite file.

    Raises:
        InputError: a result file is missing, or the store cannot be reached or written; one line says which,
            and what to do. tracked.json is then not written.
    """
    experiment = load_comparison(str(layout.settings))
    for needed in (layout.report, layout.figures, layout.tables):
        if not needed.exists():
            raise InputError(f"{needed}: no such file or folder; run the stage report first")
    children = [read_run(layout, experiment, method, seed) for method, seed in experiment.runs()]
    with open_store(layout, store_uri, timeout, f"every metric is in {layout.root}") as client:
        written = _Writer(client, layout, store_uri).write(view.title, experiment, children)
    write_json(layout.tracked, {"store": hide_credentials(store_uri), **written})


@contextmanager
def open_store(layout: Layout, store_uri: str, timeout: float, kept: str) -> Iterator[Any]:
    """An MLflow client of a store that is ready, for one writer of these results at a time.

    Args:
        timeout: seconds to wait for the store and for another writer.
        kept: where the numbers are, for the message of a store that fails.

    Raises:
        InputError: the store cannot be reached or written.
    """
    advice = f"nothing is lost: {kept}; once the store answers, `mallowspo track {layout.experiment}` makes it whole"
    try:
        prepare_store(store_uri, timeout)
    except InputError as error:
        raise InputError(f"{error}; {advice}") from None
    with (
        store_errors(store_uri, advice),
        http_limits(timeout=30, retries=3),
        FileLock(layout.tracked.with_name(".tracked.lock"), timeout=timeout),
    ):
        yield connect(store_uri)


def experiment_id(client: Any, layout: Layout, store_uri: str) -> str:
    """The MLflow experiment of these results, made when it is not there.

    Without a server the client itself writes artifacts, so it says where: beside the sqlite file, or in the results
    folder. MLflow's own default is the current folder.
    """
    from mlflow.exceptions import MlflowException

    name = f"mallowspo/{layout.experiment}"
    found = client.get_experiment_by_name(name)
    if found is None:
        file = sqlite_file(store_uri)
        folder = file.parent if file else Path(layout.results).resolve()
        served = store_uri.startswith("http")
        try:
            return str(client.create_experiment(name, None if served else (folder / "mlartifacts").as_uri()))
        except MlflowException as error:
            # Another process made it in the meantime.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    if found.lifecycle_stage == "deleted":
        raise InputError(
            f"tracking store {hide_credentials(store_uri)}: experiment '{name}' is in its trash; "
            f"restore it (mlflow experiments restore --experiment-id {found.experiment_id})"
        )
    return str(found.experiment_id)


def all_runs(client: Any, experiment: str) -> list[Any]:
    """Every run of an MLflow experiment that is not deleted, oldest first."""
    runs: list[Any] = []
    token = None
    while True:
        page = client.search_runs([experiment], order_by=["attributes.start_time ASC"], page_token=token)
        runs.extend(page)
        token = page.token
        if not token:
            return runs


def child_tags(method: str, seed: int, digest: str) -> dict[str, str]:
    """The tags by which a training run is found again."""
    return {KIND: "training", METHOD: method, SEED: str(seed), DIGEST: digest}


def results_tag(layout: Layout) -> dict[str, str]:
    """The tag that says whose run it is."""
    return {RESULTS: str(Path(layout.results).resolve())}


def is_ours(run: Any, layout: Layout) -> bool:
    """Whether a run belongs to these results; one without the tag, from an older version, does."""
    (place,) = results_tag(layout).values()
    return bool(run.data.tags.get(RESULTS, place) == place)


def stored_curves(client: Any, run: Any) -> dict[str, dict[int, float]]:
    """What the store holds of a run's curves: metric -> step -> value."""
    keys = [key for key in run.data.metrics if key.startswith("train/")]
    return {key: {m.step: m.value for m in client.get_metric_history(run.info.run_id, key)} for key in keys}


def log_metrics(client: Any, run_id: str, metrics: Iterable[tuple[str, float, int, int]]) -> None:
    """Log (metric, value, milliseconds since 1970, step) in as few calls as MLflow allows."""
    from mlflow.entities import Metric

    entities = [Metric(*metric) for metric in metrics]
    for begin in range(0, len(entities), METRICS_A_CALL):
        client.log_batch(run_id, metrics=entities[begin : begin + METRICS_A_CALL], synchronous=True)


def set_tags(client: Any, run: Any, tags: dict[str, str]) -> None:
    """Set the tags that a run does not have yet."""
    from mlflow.entities import RunTag

    changed = [RunTag(key, value) for key, value in tags.items() if run.data.tags.get(key) != value]
    if changed:
        client.log_batch(run.info.run_id, tags=changed, synchronous=True)


def finish(client: Any, run: Any, ended: int) -> None:
    """End a run at `ended` (milliseconds since 1970), if it has not ended."""
    if run.info.status != "FINISHED":
        client.set_terminated(run.info.run_id, "FINISHED", ended)


def mark_superseded(client: Any, runs: list[Any], present: set[str], layout: Layout) -> None:
    """Tag the runs of these results that are no part of them any more; another user's are left alone."""
    for run in runs:
        if KIND in run.data.tags and run.info.run_id not in present and is_ours(run, layout):
            set_tags(client, run, {SUPERSEDED: "true"})


class _Writer:
    """One pass over the store."""

    def __init__(self, client: Any, layout: Layout, store_uri: str) -> None:
        self.client = client
        self.layout = layout
        self.experiment = experiment_id(client, layout, store_uri)
        self.runs = all_runs(client, self.experiment)

    def write(self, title: str, experiment: Experiment, children: list[RunContents]) -> dict[str, Any]:
        """Everything; returns what tracked.json says."""
        parent = self._parent(title, experiment)
        data = self._data_set(experiment)
        ids = {f"{child.method}/{child.seed}": self._child(parent, child, data) for child in children}
        mark_superseded(self.client, self.runs, {parent, *ids.values()}, self.layout)
        self._view(children)
        return {
            "experiment_id": self.experiment,
            "parent_run_id": parent,
            "children": ids,
            "metrics": {
                f"{child.method}/{child.seed}": {
                    "curves": sum(len(steps) for steps in child.curves.values()),
                    "evaluation": len(child.evaluation),
                    "not_finite": child.not_finite,
                }
                for child in children
            },
        }

    def _view(self, children: list[RunContents]) -> None:
        """The columns that `mallowspo ui-links` shows."""
        state = view_state(name for child in children for name in child.evaluation)
        if self.client.get_experiment(self.experiment).tags.get(VIEW_TAG) != state:
            self.client.set_experiment_tag(self.experiment, VIEW_TAG, state)

    def _with_tags(self, tags: dict[str, str]) -> list[Any]:
        """Runs with these tags, our own first: an equal run of another results folder (a moved one, say) will do."""
        found = [run for run in self.runs if tags.items() <= run.data.tags.items()]
        return sorted(found, key=lambda run: not is_ours(run, self.layout))

    def _parent(self, title: str, experiment: Experiment) -> str:
        tags = {KIND: "experiment", DIGEST: experiment.identity}
        found = self._with_tags(tags)
        run = found[0] if found else self.client.create_run(self.experiment, tags=tags, run_name=self.layout.experiment)
        run_id: str = run.info.run_id
        described = {"mlflow.note.content": visible(title), "mallowspo.version": __version__}
        described |= experiment_tags(experiment.evaluation, self.layout)
        set_tags(self.client, run, {**described, **results_tag(self.layout), SUPERSEDED: "false"})
        now = int(time.time() * 1000)
        metrics, stored = experiment_metrics(experiment.evaluation, self.layout), run.data.metrics
        changed = [(key, value, now, 0) for key, value in metrics.items() if stored.get(key) != value]
        log_metrics(self.client, run_id, changed)
        for file in (self.layout.settings, self.layout.report):
            self.client.log_artifact(run_id, str(file))
        self.client.log_artifacts(run_id, str(self.layout.figures), "figures")
        self.client.log_artifacts(run_id, str(self.layout.tables), "tables")
        finish(self.client, run, now)
        return run_id

    def _data_set(self, experiment: Experiment) -> Any:
        """The training pairs as MLflow's data set, with the digest of the file."""
        from mlflow.data.pandas_dataset import from_pandas
        from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]
        from mlflow.entities import Dataset, DatasetInput, InputTag

        path = self.layout.pairs("train")
        data = from_pandas(
            read_parquet(path),
            source=LocalArtifactDatasetSource(str(path.resolve())),
            name=experiment.pairs.source[:200],
            digest=sha256_file(path)[:16],
        )
        return DatasetInput(Dataset(**data.to_dict()), [InputTag("mlflow.data.context", "training")])

    def _child(self, parent: str, child: RunContents, data: Any) -> str:
        from mlflow.entities import Param

        run, stored = self._find_child(child)
        run_id: str = run.info.run_id
        missing = [
            (key, value, child.started + (child.ended - child.started) * step // max(1, child.steps), step)
            for key, steps in child.curves.items()
            for step, value in steps.items()
            if step not in stored.get(key, {})
        ]
        now = int(time.time() * 1000)
        missing += [
            (key, value, now, child.steps)
            for key, value in child.evaluation.items()
            if run.data.metrics.get(key) != value
        ]
        params = [Param(key, value) for key, value in child.params.items() if key not in run.data.params]
        if params:
            self.client.log_batch(run_id, params=params, synchronous=True)
        log_metrics(self.client, run_id, missing)
        set_tags(self.client, run, {**child.tags, **results_tag(self.layout), PARENT: parent, SUPERSEDED: "false"})
        name_data(self.client, run_id, data)
        for file in child.files:
            self.client.log_artifact(run_id, str(file))
        finish(self.client, run, child.ended)
        return run_id

    def _find_child(self, child: RunContents) -> tuple[Any, dict[str, dict[int, float]]]:
        """The child's run and its curves as stored; a new run if there is none, or only one that says otherwise."""
        tags = child_tags(child.method, child.seed, child.digest)
        for run in self._with_tags(tags):
            stored = stored_curves(self.client, run)
            same_curves = all(
                child.curves.get(key, {}).get(step) == value
                for key, steps in stored.items()
                if key not in TIMING
                for step, value in steps.items()
            )
            same_params = all(child.params.get(key, value) == value for key, value in run.data.params.items())
            if same_curves and same_params:
                return run, stored
        name = f"{child.method} seed={child.seed}"
        return self.client.create_run(self.experiment, start_time=child.started, tags=tags, run_name=name), {}


def name_data(client: Any, run_id: str, data: Any) -> None:
    """Note a run's data set.

    MLflow looks whether the experiment has it and adds it if not: of two writers at once one fails, and finds it then.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.log_inputs(run_id, [data])
    except MlflowException as error:
        if "unique constraint" not in str(error).lower():
            raise
        client.log_inputs(run_id, [data])
