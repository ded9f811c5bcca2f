"""Every command of README.md and docs is run, or listed with the reason why not.

A page that is added is found by itself. A new command fails `test_every_command_is_run_or_listed` until it stands in
one of the tables here; those of Snakemake and make need no row, for they are planned without being run.
"""

import gzip
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from mallowspo.cli import app
from mallowspo.experiments import load_experiment
from mallowspo.files import write_json, write_jsonl, write_parquet
from mallowspo.models import make_made_up
from tests.doc_commands import ROOT, Command, all_blocks, check_options, check_whole, commands, inline, pages
from tests.unit.test_lm_compare import items
from tests.unit.test_winrate import outputs
from tests.workflow.conftest import Checkout

#: As on the page -> as it is run here ("": as it stands), and something that it then says. Run in this order.
RUN = {
    "mallowspo new mine --pairs my.jsonl": (
        "mallowspo new newcomer --pairs my.jsonl --model my_model",
        "40 different pairs",
    ),
    "mallowspo new mine_longer --pairs my.jsonl --minutes 240": (
        "mallowspo new mine_longer --pairs my.jsonl --minutes 240 --model my_model",
        "snakemake --cores all --config experiments=mine_longer",
    ),
    "mallowspo new my_model_compared --pairs pairs.jsonl --model my_model": ("", "Wrote config/experiments"),
    "mallowspo model my_model_compared": ("", ""),
    "mallowspo model mine": ("", ""),
    "mallowspo pairs mine": ("", ""),
    "mallowspo dispersion --model DIR --pairs FILE": (
        "mallowspo dispersion --model my_model --pairs pairs.jsonl",
        "dispersion.parquet",
    ),
    "mallowspo dispersion --model my_model --pairs pairs.jsonl --max-pairs 50": ("", "10 left out"),
    "mallowspo winrate --annotations FILE --json": (
        "mallowspo winrate --annotations annotations.json.gz --json",
        '"n_total": 120',
    ),
    "mallowspo winrate --annotations annotations.json.gz --json": ("", '"win_rate": 75.0'),
    "mallowspo winrate --outputs ours.json --against theirs.json --judge reward:vader --out folder": ("", "120"),
    "mallowspo judge --judge NAME --labels FILE": (
        "mallowspo judge --judge reward:vowels --labels llmbar.jsonl.gz",
        "agreement with the labels",
    ),
    "mallowspo judge --judge logprob:path:FOLDER --labels llmbar.jsonl.gz --out folder": (
        "mallowspo judge --judge logprob:path:my_model --labels llmbar.jsonl.gz --out folder",
        "agreement with the labels",
    ),
    "mallowspo lm-compare ours/lm_eval.parquet theirs/lm_eval.parquet": ("", "Holm"),
}
#: Quick ones of every kind, which are run after those as they stand and need no row -> what each then says.
QUICK = {
    "mallowspo plan *": "hours in all",
    "mallowspo settings *": "max_prompt",
    "mallowspo methods*": "mallows_theta",
    "mallowspo schema*": "properties",
    "mallowspo fetch-data": "only from MALLOWSPO_SHARED_DATA",
}
#: Page and command, as a pattern -> why it is not run here. Options and arguments are checked all the same.
LISTED = {
    "docs/use_in_your_own_code.md: mallowspo * mine.yaml*": "run from the page by tests/unit/test_docs.py",
    "docs/adding_a_judge.md: mallowspo *results/judge/*": "run from the page by tests/unit/test_reward_model_docs.py",
    "docs/adding_a_judge.md: mallowspo * judge.yaml": "run from the page by tests/unit/test_reward_model_docs.py",
    "docs/evaluation.md: mallowspo evaluate *": "run from the page by tests/unit/test_evaluate.py",
    "README.md: mallowspo evaluate *": "asks the hub for arc_easy; that of docs/evaluation.md is run",
    "*: mallowspo bench *": "minutes; tests/unit/test_bench.py runs small ones",
    "*: mallowspo fetch-data *": "downloads; tests/unit/test_data_files.py, from a server of its own",
    "*: mallowspo compare *": "needs two finished experiments; tests/unit/test_between.py",
    "*: mallowspo excerpt *": "needs finished experiments; tests/unit/test_excerpt.py",
    "*: mallowspo ui-links *": "needs a tracked experiment; tests/unit/test_tracking.py",
    "*: mallowspo server*": "serves until it is stopped; tests/unit/test_server.py starts and stops it",
    "*: mallowspo track *": "needs a run; tests/unit/test_tracking.py, and seconds for MLflow's tables",
    "*: python -m tests.growth *": "minutes; tests/workflow/test_growth.py",
    "*: python -m webbrowser *": "opens a window",
    "*: pip install *": "an index of packages; the extras are checked",
    "*: pip-audit *": "asks an index for known weaknesses",
    "*: . .venv/bin/activate": "of the shell; the folder is what make setup makes",
    "*: export *": "of the shell",
    "*: cp *": "what is copied is there",
}
#: Programs whose commands are planned, not run, and so need no row.
PLANNED = ("snakemake", "make")
SNAKEMAKE_DRY_RUNS = """
import json, sys
from snakemake.cli import main
for words in json.load(sys.stdin):
    try:
        main(words)
    except SystemExit as ended:
        if ended.code:
            print("FAILED", " ".join(words), ended.code)
"""

FOUND = commands()


def quick(command: Command) -> str | None:
    """What it says, if it is quick."""
    return next((says for pattern, says in QUICK.items() if fnmatch(command.text, pattern)), None)


def row_of(command: Command) -> str | None:
    """Of LISTED."""
    return next((row for row in LISTED if fnmatch(f"{command.page}: {command.text}", row)), None)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A checkout with the models, data and experiments that the pages speak of, all made up."""
    folder = Checkout(tmp_path_factory.mktemp("docs")).folder
    make_made_up(folder / "my_model")
    pairs = [
        {"prompt": f"Number {n} is", "chosen": f" {n} indeed" + "!" * (n % 5), "rejected": " none"} for n in range(60)
    ]
    write_jsonl(folder / "pairs.jsonl", pairs)
    shutil.copy(ROOT / "config/pairs/kind_answers.jsonl", folder / "my.jsonl")
    sides = {"ours": outputs("ours "), "theirs": outputs("theirs ")}
    for name, rows in sides.items():
        write_json(folder / f"{name}.json", rows)
        write_parquet(folder / name / "lm_eval.parquet", items("t", one_in(2 if name == "ours" else 3)))
    annotations = [
        {"instruction": row["instruction"], "output_1": other["output"], "output_2": row["output"]}
        | {"generator_1": "theirs", "generator_2": "ours", "preference": 2 if n % 4 else 1}
        for n, (row, other) in enumerate(zip(*sides.values(), strict=True))
    ]
    (folder / "annotations.json.gz").write_bytes(gzip.compress(json.dumps(annotations).encode()))
    labels = [{"input": f"q{n}", "output_1": "a" * n, "output_2": "bcd", "label": 1 + n % 2} for n in range(1, 13)]
    lines = "".join(json.dumps(row) + "\n" for row in labels)
    (folder / "llmbar.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    write_experiments(folder)
    return folder


def one_in(count):
    import numpy as np

    return (np.arange(40) % count == 0).astype(float)


def write_experiments(folder: Path) -> None:
    """`mine`, and the two of docs/adding_a_judge.md, the second of which is put into a whole experiment."""
    experiments = folder / "config/experiments"
    smoke = yaml.safe_load((experiments / "smoke.yaml").read_text())
    mine = smoke | {"pairs": {"source": "path:my.jsonl"}}
    judge, comparison = (
        yaml.safe_load(block.text)
        for block in all_blocks()
        if (block.page, block.language) == ("docs/adding_a_judge.md", "yaml")
    )
    evaluation = smoke["evaluation"] | comparison["evaluation"]
    written = {"mine": mine, "judge": judge, "my_comparison": smoke | comparison | {"evaluation": evaluation}}
    for name, values in written.items():
        (experiments / f"{name}.yaml").write_text(yaml.safe_dump(values))
    shutil.copy(experiments / "mine.yaml", folder / "mine.yaml")


def test_every_command_is_run_or_listed():
    unlisted = [
        command.place
        for command in FOUND
        if command.words[0] not in PLANNED and not (command.text in RUN or quick(command) or row_of(command))
    ]
    assert not unlisted, "neither run nor listed in this file:\n" + "\n".join(unlisted)
    assert len(FOUND) > 60


def test_no_row_is_of_a_command_that_is_gone():
    texts = {command.text for command in FOUND}
    assert not [text for text in RUN if text not in texts]
    used = {row_of(command) for command in FOUND}
    assert not [row for row in LISTED if row not in used]


def test_every_call_of_mallowspo_is_written_rightly():
    wrong = []
    for command in FOUND:
        if command.words[0] == "mallowspo":
            try:
                check_whole(command.words)
            except ValueError as error:
                wrong.append(f"{command.place}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("mallowspo trian smoke", "no command 'trian'"),
        ("mallowspo train smoke --method dpo --sede 1", "--sede"),
        ("mallowspo train smoke --method dpo --seed one", "--seed"),
        ("mallowspo train smoke --method dpo", "--seed"),
        ("mallowspo bench trainning", "no command 'trainning'"),
        ("mallowspo report smoke twice", "twice"),
    ],
)
def test_a_call_that_is_written_wrongly_is_found(words, says):
    with pytest.raises(ValueError, match=says):
        check_whole(tuple(words.split()))


def test_commands_in_the_running_text_have_no_unknown_option():
    wrong, count = [], 0
    for command in inline():
        count += 1
        try:
            check_options(command.words)
        except ValueError as error:
            wrong.append(f"{command.place}: {error}")
    assert not wrong, "\n".join(wrong)
    assert count > 40


def test_commands_do_what_the_pages_say(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "200")
    quick_ones = {command.text: ("", says) for command in FOUND if (says := quick(command))}
    assert len(quick_ones) > 3
    for text, (instead, says) in {**RUN, **quick_ones}.items():
        done = CliRunner().invoke(app, shlex.split(instead or text)[1:])
        assert done.exit_code == 0, f"{text}: {done.exception or done.output}"
        assert says in done.output, f"{text}: {done.output}"
    for name in ("newcomer", "mine_longer", "my_model_compared"):
        load_experiment(name)


def test_snakemake_commands_can_be_planned(place):
    calls = {command.text: [*command.words[1:]] for command in FOUND if command.words[0] == "snakemake"}
    assert len(calls) >= 5
    asked = [[*words, *([] if "--cores" in words else ["--cores", "2"]), "--dry-run"] for words in calls.values()]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(
        [sys.executable, "-c", SNAKEMAKE_DRY_RUNS],
        **{"input": json.dumps(asked), "cwd": place, "env": environment, "capture_output": True, "text": True},
        check=False,
    )
    assert done.returncode == 0 and "FAILED" not in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    # Each has either jobs to do, or names what it was told to do other things with.
    assert done.stdout.count("Job stats:") + done.stderr.count("Job stats:") >= len(asked)


def test_targets_of_make_are_there():
    for command in FOUND:
        if command.words[0] == "make":
            done = subprocess.run(["make", "--dry-run", *command.words[1:]], cwd=ROOT, capture_output=True, check=False)
            assert done.returncode == 0, command.place


def test_what_other_commands_name_is_there():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for command in FOUND:
        program, *words = command.words
        if program == "python" and words[0] == "-m":
            assert importlib.util.find_spec(words[1]), command.place
        if program == "pip":
            named = re.findall(r"(?:mallowspo|\.)\[([a-z,]+)\]", command.text)
            assert {extra for each in named for extra in each.split(",")} <= set(extras), command.place
        if program in ("pip", "pip-audit"):
            files = [word for word in words if word.endswith(".txt")]
            assert all((ROOT / file).is_file() for file in files), command.place
        if program == "cp":
            assert (ROOT / words[0]).exists(), command.place


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere():
    broken = []
    for page, text in pages().items():
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", link):
                continue
            name, _, anchor = link.partition("#")
            target = ((ROOT / page).parent / name).resolve() if name else ROOT / page
            if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
                broken.append(f"{page}: {link}")
    assert not broken


def test_the_index_has_every_page():
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    missing = [file.name for file in (ROOT / "docs").glob("*.md") if f"({file.name}" not in index]
    assert missing == ["README.md"]
