"""The shared MLflow store under jobs on Slurm, while its server and its PostgreSQL stop and start."""

import math
import re
import shutil
import subprocess
import time

import pytest

from mallowspo.files import read_json, read_jsonl, write_json, write_text
from mallowspo.layout import Layout
from mallowspo.tracking.contents import curve_values
from tests import made_up_results
from tests.slurm.cluster import HERE, Workflow, ask, environment, job_state, wait_until
from tests.slurm.prepared import write_settings

WRITERS, ROWS = 8, 200
#: Steps enough that a training outlives two stops of the store, and their seconds.
LONG, STOPPED = 1500, 5


def write_results(folder, methods, seeds, steps=12):
    """A made-up experiment with everything that `mallowspo track` reads."""
    made = made_up_results.write(folder, methods, seeds, lm_eval=False, prompts=4, steps=steps)
    write_text(made.layout.report, "<p>A report</p>")
    write_text(made.layout.tables / "main.csv", "method\n")
    write_text(made.layout.figures / "curves.svg", "<svg/>")
    return made.layout


def in_files(layout, runs):
    """The curves of metrics.jsonl, in the shape of `Database.curves`."""
    found = {}
    for method, seed in runs:
        for row in read_jsonl(layout.run(method, seed) / "metrics.jsonl"):
            for key, value in curve_values(row)[0].items():
                found.setdefault((method, seed), {}).setdefault(key, []).append((int(row["step"]), value))
    return found


def count(curves):
    return sum(len(steps) for keys in curves.values() for steps in keys.values())


def same(stored, files):
    """Every step of every curve once, with the same value."""
    return stored.keys() == files.keys() and all(
        stored[run].keys() == files[run].keys()
        and all(
            a[0] == b[0] and math.isclose(a[1], b[1], rel_tol=1e-12)
            for key in files[run]
            for a, b in zip(stored[run][key], files[run][key], strict=True)
        )
        for run in files
    )


def submit(folder, command, *options):
    """A Slurm job of one command; returns its id."""
    variables = environment()
    words = ["sbatch", "--parsable", "--export=ALL", "--mem=1500", f"--output={folder}/job-%A_%a.said", *options]
    done = subprocess.run(
        [*words, "--chdir", str(folder), "--wrap", command], env=variables, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def track(layout, experiment, server, folder):
    """`mallowspo track`, as a user types it."""
    words = ["mallowspo", "track", experiment, "--results", layout.results, "--store", server.uri]
    return subprocess.Popen(words, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def ended(process):
    said = process.communicate(timeout=240)[0].decode()
    assert process.returncode == 0, said


def test_eight_jobs_log_at_once_while_the_server_restarts(slurm, server, database, tmp_path, tell):
    seeds = tuple(range(1, WRITERS + 1))
    layout = write_results(tmp_path / "results", ("dpo",), seeds, ROWS)
    expected = in_files(layout, [("dpo", seed) for seed in seeds])
    command = f"python {HERE / 'live_writer.py'} results $SLURM_ARRAY_TASK_ID {server.uri}"
    job = submit(tmp_path, command, f"--array=1-{WRITERS}")
    wait_until(lambda: count(database.curves("made_up")) > count(expected) / 4, 180, "a quarter has arrived")
    server.stop()
    before = count(database.curves("made_up"))
    assert before < count(expected)
    time.sleep(5)
    server.start()
    wait_until(lambda: set(job_state(job).split()) == {"COMPLETED"}, 240, "the eight jobs ended")
    live = count(database.curves("made_up"))
    warned = sorted(warning for log in tmp_path.glob("job-*.said") for warning in _warnings(log))
    assert warned
    wait_until(server.answers, 120, "the server is back")
    ended(track(layout, _experiment(tmp_path, layout), server, tmp_path))
    stored = database.curves("made_up")
    assert same(stored, expected)
    tell(
        f"{WRITERS} jobs log at once, the server restarted in the middle",
        f"{WRITERS} x {ROWS} steps of {len(expected['dpo', 1])} metrics; {before:,} were stored when it stopped, "
        f"{live:,} when the jobs ended",
        f"one line in the log of each job that noticed ({len(warned)} of {WRITERS}): `{warned[0]}`",
        f"nothing: after `mallowspo track` the store holds each of {count(stored):,} metrics once, as in the files",
        "by itself; `mallowspo track` brought the rest",
    )  # fmt: skip


def _warnings(log):
    """The warnings of live curves in a job's log, cut short."""
    return [f"live curves: {rest[:110]}..." for rest in re.findall(r"WARNING.* live curves: (.*)", log.read_text())]


def _experiment(folder, layout):
    """The experiment's file, by which `mallowspo track` is called."""
    file = folder / "made_up.yaml"
    shutil.copy(layout.settings, file)
    return str(file)


@pytest.fixture
def long_training(slurm, server, prepared, tmp_path):
    """A real training that logs live to the server, as a Slurm job."""
    folder = tmp_path / "long"
    flow = Workflow(folder, prepared)
    write_settings(folder, LONG)
    command = "mallowspo train faults --method undisturbed --seed 1 --live --store " + server.uri
    flow.job = submit(folder, command)
    yield flow
    ask("scancel", flow.job)


def test_server_and_database_stop_while_a_training_runs(long_training, server, database, tell):
    flow = long_training

    def stored():
        return count(database.curves("faults"))

    wait_until(lambda: stored() > 0, 180, "the first metrics are stored")
    steps = flow.steps("undisturbed")
    database.stop()
    time.sleep(STOPPED)
    assert flow.steps("undisturbed") > steps
    database.start()
    before = stored()
    wait_until(lambda: stored() > before, 120, "metrics are stored again")
    server.stop()
    time.sleep(STOPPED)
    assert job_state(flow.job) == "RUNNING", "the training is too short for this test"
    server.start()
    wait_until(lambda: job_state(flow.job) == "COMPLETED", 400, "the training ended")
    live = stored()
    layout = Layout(str(flow.folder / "results"), "faults")
    _finish(layout, flow)
    wait_until(server.answers, 120, "the server is back")
    ended(track(layout, "faults", server, flow.folder))
    expected = in_files(layout, [("undisturbed", 1)])
    assert same(database.curves("faults"), expected)
    (log,) = flow.folder.glob(f"job-{flow.job}_*.said")
    (said,) = _warnings(log)
    tell(
        "MLflow's PostgreSQL, then its server, stopped during a training",
        f"{STOPPED} s each; the training went on; {live:,} of {count(expected):,} metrics were stored when it ended",
        f"one line in the stage's log: `{said}`",
        "nothing: after `mallowspo track` store and files hold the same metrics",
        "by itself; `mallowspo track` brought the rest",
    )  # fmt: skip


def _finish(layout, flow):
    """What `track` reads besides the training, made up: the other stages are not what is tried here."""
    made = write_results(flow.folder / "other", ("undisturbed",), (1,))
    for name in ("scores", "tables", "figures"):
        shutil.copytree(made.root / name, layout.root / name)
    shutil.copy(made.report, layout.report)
    shutil.copy(made.settings, layout.settings)


def test_two_users_share_a_store(slurm, server, database, tmp_path, tell):
    layouts = [write_results(tmp_path / user / "results", ("dpo",), (21, 22)) for user in ("one", "two")]
    summary = layouts[1].run("dpo", 22) / "summary.json"
    write_json(summary, read_json(summary) | {"digest": "the second user's own"})
    files = [_experiment(tmp_path / user, layout) for user, layout in zip(("one", "two"), layouts, strict=True)]
    for _ in range(2):
        pairs = zip(layouts, files, strict=True)
        for process in [track(layout, file, server, tmp_path) for layout, file in pairs]:
            ended(process)
    found = [read_json(layout.tracked)["children"] for layout in layouts]
    assert found[0]["dpo/22"] != found[1]["dpo/22"]
    own = {run for children in found for run in children.values()}
    superseded = database.rows("SELECT run_uuid FROM tags WHERE key = 'mallowspo.superseded' AND value = 'true'")
    assert not own & {run for (run,) in superseded}
    tell(
        "two users' workflows on one store", "both tracked an experiment of one name, at the same time, twice",
        "both, under one MLflow experiment; the tag `mallowspo.results` says whose",
        "nothing: neither superseded a run of the other", "nobody did anything",
    )  # fmt: skip


def test_the_password_is_in_no_file(server, database, tmp_path_factory):
    told = [file for file in tmp_path_factory.getbasetemp().rglob("*") if file.is_file() and not file.is_symlink()]
    secret = database.password.encode()
    assert [file for file in told if secret in file.read_bytes()] == []
