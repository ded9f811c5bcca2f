"""What Slurm, its administrator and its users can do to a training under way, each done to a real one.

Eight trainings with the same settings run as Slurm jobs under four snakemakes; each is frozen (SIGSTOP) in the middle
of its steps and struck. Whatever happens, it must end with the bits of the one that nothing happened to. While they
are tried again, the user's own command runs beside them: every stage of the smoke experiment as a job.
"""

import errno
import os
import re
import signal
import subprocess
import time
from types import SimpleNamespace

import pandas as pd
import pytest

from mallowspo.files import read_json
from mallowspo.plan.retries import MORE_MEMORY, MORE_TIME
from tests.slurm.cluster import (
    Asked,
    Workflow,
    ask,
    cancel_jobs_below,
    end_processes_below,
    environment,
    job_state,
    run_script,
    wait_until,
)
from tests.slurm.prepared import CHECKPOINT_EVERY, MEMORY_MB, MINUTES, STEPS, shorten_smoke, write_settings

#: Struck once so many steps are done: between two checkpoints.
STRUCK_AT = 2 * CHECKPOINT_EVERY + CHECKPOINT_EVERY // 2
TOGETHER = ("undisturbed", "killed", "cancelled", "over_time", "drained")
NOTHING = "nothing: metrics and model have the bits of an undisturbed run"
QUICK = ("--slurm-init-seconds-before-status-checks", "1")
#: Less than Python and torch take, and with one retry's more enough.
TOO_LITTLE_MB = 400
#: Whether the smoke experiment runs with all its methods and temperatures, which takes minutes more.
WHOLE_SMOKE = bool(os.environ.get("MALLOWSPO_WHOLE_SMOKE"))
SMOKE_METHODS = ["reference", *(["dpo", "mallows_theta", "mallows_phi"] if WHOLE_SMOKE else ["mallows_theta"])]
#: Rules whose jobs share a Slurm job: `groups` of the profile.
GROUPS = (("pairs", "tokens"), ("compare", "report", "track"))


@pytest.fixture(scope="module")
def trainings(slurm, prepared, tmp_path_factory):
    """All eight started, and the six that are to be struck from outside frozen."""
    folder = tmp_path_factory.mktemp("faults")
    names = ("together", "abandoned", "disk_full", "over_memory")
    # results/ of one is a small disk of its own, where this machine lets us mount one.
    disk = folder / "disk_full/results"
    disk.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "faults", disk], check=False).returncode == 0
    flows = {name: Workflow(folder / name, prepared) for name in names}
    write_settings(flows["over_memory"].folder, memory_mb=TOO_LITTLE_MB)
    flows["smoke"] = Workflow(folder / "smoke")
    if not WHOLE_SMOKE:
        shorten_smoke(flows["smoke"].folder)
    all_of = SimpleNamespace(**flows, mounted=mounted, started={}, struck={}, done_before={})
    try:
        for name in names:
            if name == "disk_full" and not mounted:
                continue
            flow, labels = flows[name], TOGETHER if name == "together" else [name]
            all_of.started[name] = flow.start(*map(flow.target, labels), *QUICK)
        waiting = dict.fromkeys(TOGETHER[1:], flows["together"])
        waiting |= {name: flows[name] for name in ("abandoned", "disk_full") if name in all_of.started}
        wait_until(lambda: _catch(waiting, all_of), 400, f"frozen in the middle: {', '.join(waiting)}", every=0.05)
        yield all_of
    finally:
        cancel_jobs_below(folder)
        for process in all_of.started.values():
            process.kill()
            process.wait()
        end_processes_below(folder)
        if mounted:
            wait_until(lambda: subprocess.run(["umount", disk], check=False).returncode == 0, 20, "the disk is free")


def _catch(waiting, all_of):
    for label, flow in list(waiting.items()):
        process = flow.caught(label, STRUCK_AT)
        if process:
            all_of.struck[label], all_of.done_before[label] = process, flow.steps(label)
            del waiting[label]
    return not waiting


@pytest.fixture(scope="module")
def struck(trainings):
    """The faults, one after the other, without waiting for what comes of each."""
    process = trainings.struck
    trainings.seen_without_controller = _restart_the_controller(process)
    ask("scontrol", "update", f"nodename={process['drained'].node}", "state=drain", "reason=test")
    trainings.before_the_drain = int(max(_jobs(), key=int))
    process["drained"].send(signal.SIGCONT)
    process["killed"].send(signal.SIGKILL)
    ask("scancel", process["cancelled"].job)
    ask("scontrol", "update", f"jobid={process['over_time'].job}", "timelimit=1")
    trainings.started["abandoned"].kill()
    if trainings.mounted:
        _fill(trainings.disk_full.folder / "results/filler")
        process["disk_full"].send(signal.SIGCONT)
    trainings.smoke_began = time.monotonic()
    trainings.started["smoke"] = trainings.smoke.start(*QUICK, experiments="smoke")
    yield trainings
    ask("scontrol", "update", f"nodename={process['drained'].node}", "state=resume")


def _restart_the_controller(process):
    """Stop it for ten seconds while jobs run; returns what squeue said in between."""
    run_script("slurm_loopback.sh", "stop", "controller")
    try:
        end = time.monotonic() + 10  # Snakemake asks for its jobs in this time
        said = subprocess.run(["squeue"], capture_output=True, text=True, env=environment(), check=False)
        assert said.returncode != 0
        time.sleep(max(end - time.monotonic(), 0))
    finally:
        run_script("slurm_loopback.sh", "start", "controller")
    assert all(one.alive and job_state(one.job) == "RUNNING" for one in process.values())
    return said.stderr.strip().splitlines()[-1]


def _jobs():
    """Job id -> node, of every job that Slurm remembers; no node before it runs."""
    lines = ask("squeue", "--noheader", "--states=all", "--format=%A %N").splitlines()
    return {job: "".join(node) for job, *node in map(str.split, lines)}


def _fill(file):
    """Write until the disk is full."""
    with file.open("wb", buffering=0) as handle:
        try:
            while True:
                handle.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC


def finished(flow, label, seconds=300):
    """Wait for the training's summary; a snakemake that gave up is told with its logs."""
    try:
        wait_until((flow.run(label) / "summary.json").exists, seconds, f"{label} ended")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{flow.tail()}") from None
    return read_json(flow.run(label) / "summary.json")


def went_on_with_the_same_bits(trainings, flow, label):
    """Ended, went on from the last checkpoint before the fault, and nothing differs; tells how it went on."""
    summary = finished(flow, label)
    finished(trainings.together, "undisturbed")
    assert flow.result(label) == trainings.together.result("undisturbed")
    assert summary["steps"] == STEPS
    done = trainings.done_before[label]
    checkpoint = done // CHECKPOINT_EVERY * CHECKPOINT_EVERY
    assert summary["resumed_from_step"] == [checkpoint]
    return f"from its checkpoint of step {checkpoint}; {done - checkpoint} steps were done again"


def failed_as(flow, job, state):
    """What snakemake said of a job that failed."""
    lines = wait_until(lambda: flow.lines(f"'{job}' failed", state), 240, f"snakemake tells that {job} is {state}")
    said = lines[0].removeprefix("message: ").split(". Detailed")[0]
    return f"Snakemake: `{said.replace(job, 'JOB')}`"


def test_two_trainings_on_a_node_have_two_gpus(trainings):
    places = [(process.node, process.gpu) for process in trainings.struck.values()]
    assert all(node and gpu for node, gpu in places)
    assert len(set(places)) == len(places)


def test_a_full_disk_is_told_and_the_training_goes_on(struck, tell):
    if not struck.mounted:
        pytest.skip("a small disk cannot be mounted here")
    flow = struck.disk_full
    log = flow.folder / "results/faults/logs/train-disk_full-1.log"
    seen = failed_as(flow, struck.struck["disk_full"].job, "FAILED")
    said = [line for line in log.read_text().splitlines() if line.startswith("mallowspo:")] if log.exists() else []
    (flow.folder / "results/filler").unlink()
    went_on = went_on_with_the_same_bits(struck, flow, "disk_full")
    told = f"; the stage's log: `{said[-1]}`" if said else "; the stage's log is empty, as it lies on the full disk"
    tell(
        "disk full in results/", "the training ended with its last whole checkpoint; room was made before the next try",
        seen + told, NOTHING, went_on,
    )  # fmt: skip


def test_a_killed_snakemake_is_started_again(struck, tell):
    flow, one = struck.abandoned, struck.struck["abandoned"]
    assert one.alive and job_state(one.job) == "RUNNING"
    assert flow.start(flow.target("abandoned"), *QUICK).wait(120) != 0
    assert flow.lines("Directory cannot be locked")
    ask("scancel", one.job)
    wait_until(lambda: not one.alive, 30, "the abandoned job is gone")
    assert flow.start("--unlock").wait(120) == 0
    struck.started["abandoned"] = flow.start(flow.target("abandoned"), *QUICK)
    went_on = went_on_with_the_same_bits(struck, flow, "abandoned")
    assert struck.started["abandoned"].wait(120) == 0
    tell(
        "snakemake killed (kill -9), started again",
        "its job ran on; the second snakemake was kept out; `scancel JOB`, `snakemake --unlock`, and the same command",
        "`Error: Directory cannot be locked`", NOTHING, went_on,
    )  # fmt: skip


def test_a_restarted_controller_disturbs_nothing(struck, tell):
    finished(struck.together, "undisturbed")
    assert not struck.together.lines("failed", struck.struck["drained"].job)
    tell(
        "slurmctld restarted",
        "stopped for 10 s while six trainings ran; all ran on, and it knew them again",
        f"nothing in Snakemake; squeue in between: `{struck.seen_without_controller}`",
        "nothing", "nobody did anything",
    )  # fmt: skip


def test_a_drained_node_finishes_its_job(struck, tell):
    one = struck.struck["drained"]
    summary = finished(struck.together, "drained")
    assert summary["resumed_from_step"] == []
    assert struck.together.result("drained") == struck.together.result("undisturbed")
    wait_until(lambda: job_state(one.job) == "COMPLETED", 30, "the job on the drained node is completed")
    finished(struck.together, "killed")
    later = {node for job, node in _jobs().items() if int(job) > struck.before_the_drain and node}
    assert later == {"n1", "n2"} - {one.node}
    tell(
        "node drained", "its training ran to its end there; every new job went to the other node",
        "`drng`, then `drain`, in sinfo", "nothing", "nobody did anything",
    )  # fmt: skip


def test_a_killed_training_goes_on(struck, tell):
    seen = failed_as(struck.together, struck.struck["killed"].job, "FAILED")
    went_on = went_on_with_the_same_bits(struck, struck.together, "killed")
    assert struck.together.asked("killed") == [Asked(MEMORY_MB, MINUTES)] * 2
    tell("job killed (SIGKILL)", "the job failed; `retries` sent it again", seen, NOTHING, went_on)


def test_a_cancelled_training_goes_on(struck, tell):
    seen = failed_as(struck.together, struck.struck["cancelled"].job, "CANCELLED")
    went_on = went_on_with_the_same_bits(struck, struck.together, "cancelled")
    tell("scancel from outside", "the job was cancelled; `retries` sent it again", seen, NOTHING, went_on)


def test_a_training_over_its_time_goes_on(struck, tell):
    seen = failed_as(struck.together, struck.struck["over_time"].job, "TIMEOUT")
    went_on = went_on_with_the_same_bits(struck, struck.together, "over_time")
    # The limit of the first attempt was cut by hand, when it hung.
    asked = struck.together.asked("over_time")
    assert asked == [Asked(MEMORY_MB, 1), Asked(MEMORY_MB, MINUTES * MORE_TIME)]
    tell(
        "over its time", "it hung; Slurm ended it at its limit; `retries` sent it again",
        seen, NOTHING,
        f"{went_on}; more time and no more memory: {_in_words(asked)}",
    )  # fmt: skip


def test_a_training_over_its_memory_is_sent_again_with_more(struck, tell):
    flow = struck.over_memory
    lines = wait_until(lambda: flow.lines("failed, SLURM status is"), 240, "the first attempt failed")
    state = lines[0].split("status is: '")[1].split("'")[0]
    assert state in ("OUT_OF_MEMORY", "FAILED", "CANCELLED")  # the first with cgroups, which this cluster has not
    finished(flow, "over_memory")
    finished(struck.together, "undisturbed")
    assert flow.result("over_memory") == struck.together.result("undisturbed")
    asked = flow.asked("over_memory")
    assert asked[:2] == [Asked(TOO_LITTLE_MB, MINUTES), Asked(round(TOO_LITTLE_MB * MORE_MEMORY), MINUTES)]
    tell(
        "over its memory", "Slurm killed it while it started; `retries` sent it again, with more",
        f"Snakemake: `SLURM-job 'JOB' failed, SLURM status is: '{state}'`; the job's log, in `results/logs/slurm`: "
        f"`{_killed_for_memory(flow)}`",
        NOTHING,
        f"from the beginning: it had no checkpoint yet; more memory and no more time: {_in_words(asked)}",
    )  # fmt: skip


def _in_words(attempts):
    return ", then ".join(f"{asked.memory_mb} MB and {asked.minutes} min" for asked in attempts)


def _killed_for_memory(flow):
    """What Slurm wrote into the log of the job's first attempt."""
    files = sorted((flow.folder / "results/logs/slurm/rule_train").rglob("*.log"), key=lambda file: int(file.stem))
    (line, *_) = re.findall(r"error: (StepId=.* exceeded memory limit.*)", files[0].read_text())
    return line


def test_the_smoke_experiment_as_typed(struck, tell):
    flow = struck.smoke
    assert struck.started["smoke"].wait(900) == 0, flow.tail()
    seconds = time.monotonic() - struck.smoke_began
    table = pd.read_csv(flow.folder / "results/smoke/tables/main.csv")
    assert table["method"].tolist() == SMOKE_METHODS
    assert (flow.folder / "results/smoke/report.html").exists()
    assert (flow.folder / "results/smoke/tracked.json").exists()
    jobs = len(flow.lines("has been submitted with SLURM jobid"))
    benchmarks = len(list((flow.folder / "results").glob("**/benchmarks/*.tsv"))) + 1  # the model's lies elsewhere
    assert jobs == benchmarks - sum(len(group) - 1 for group in GROUPS)
    assert flow.start("--dry-run", experiments="smoke").wait(120) == 0
    assert flow.lines("Nothing to be done")
    kind = "whole" if WHOLE_SMOKE else "with one method"
    tell(
        f"none: `snakemake --cores all --profile slurm` as typed, experiment smoke ({kind}), beside all of this",
        f"{jobs} Slurm jobs in {seconds:.0f} s", "its report; again: `Nothing to be done`", "nothing", "",
    )  # fmt: skip


def test_no_snakemake_gave_up(struck):
    for name, process in struck.started.items():
        assert process.wait(120) == 0, f"{name}\n{getattr(struck, name).tail()}"
