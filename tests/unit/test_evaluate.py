"""`mallowspo evaluate` on made-up models: its numbers by hand, and nothing lost or judged twice after a real kill."""

import json
import math
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from mallowspo.cli import app
from mallowspo.errors import InputError
from mallowspo.evaluation import answers, suite, suite_phases
from mallowspo.evaluation.suite import Request
from mallowspo.files import read_json, read_jsonl, read_parquet, write_jsonl
from mallowspo.judges.settings import JudgeSettings
from mallowspo.models import load_model, load_tokenizer, make_made_up
from tests.chat_endpoint import Endpoint

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "config" / "tasks"


def make_policy(reference: Path, folder: Path) -> None:
    """The reference with noise on every weight."""
    model = load_model(reference)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for values in model.parameters():
            values.add_(0.05 * torch.randn_like(values))
    model.save_pretrained(folder)
    load_tokenizer(reference).save_pretrained(folder)


def pairs(count: int) -> list[dict[str, str]]:
    return [
        {
            "prompt": f"Say {n}",
            "chosen": f"It is {n}." + "!" * (n % 4),
            "rejected": f"No {n * n}",
            "domain": "ab"[n % 2],
        }
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models, instructions and pairs."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("place")
    make_made_up(folder / "my_reference")
    make_policy(folder / "my_reference", folder / "my_model")
    (folder / "my_reference" / "source.json").write_text('{"source": "of another program"}')
    write_jsonl(folder / "instructions.jsonl", [{"instruction": f"Tell me of {n}"} for n in range(8)])
    write_jsonl(folder / "pairs.jsonl", pairs(12))
    return folder


def request(place: Path, out: Path, *parts: str, **changes: Any) -> Request:
    given: dict[str, Any] = {"model": place / "my_model", "out": out, "suite": parts, "max_new_tokens": 12}
    if {"pairs", "kl"} & set(parts):
        given["reference"] = place / "my_reference"
    if {"alpaca", "kl"} & set(parts):
        given["prompts"] = str(place / "instructions.jsonl")
    if "alpaca" in parts:
        given["judge"] = "reward:vowels"
    if "pairs" in parts:
        given["pairs"] = str(place / "pairs.jsonl")
    if "lm" in parts:
        given |= {"tasks": ("review_sentiment", "plain_sense"), "include_path": str(TASKS), "limit": 4}
    return Request(**{**given, **changes})


def token_logp(model: Any, ids: list[int], response: list[int]) -> torch.Tensor:
    with torch.no_grad():
        law = model(torch.tensor([[*ids, *response]])).logits[0].double().log_softmax(-1)
    return torch.stack([law[len(ids) - 1 + place, token] for place, token in enumerate(response)])


def test_kl_and_pairs_are_the_plain_numbers(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite_phases, "resolve_precision", lambda *_: "float32")
    found = suite.run(request(place, tmp_path, "kl", "pairs", template="plain", beta=0.5)).set_index("measure")
    tokenizer = load_tokenizer(place / "my_model")
    policy, reference = (load_model(place / name).double() for name in ("my_model", "my_reference"))

    ratios, low_variance = [], []
    for row in read_jsonl(tmp_path / "samples/policy/seed=0/answers.jsonl"):
        ids = tokenizer(row["instruction"])["input_ids"]
        change = token_logp(policy, ids, row["token_ids"]) - token_logp(reference, ids, row["token_ids"])
        ratios.append(float(change.sum()))
        low_variance.append(float(((-change).exp() - 1 + change).sum()))
    assert len(ratios) == 8 and max(map(abs, ratios)) > 0.01
    kl = found.loc["KL to the reference, log-ratio (nats)"]
    assert kl["value"] == pytest.approx(sum(ratios) / 8, abs=1e-4) and kl["n"] == 8
    error = torch.tensor(ratios).double().std() / math.sqrt(8)
    assert kl["standard_error"] == pytest.approx(float(error), abs=1e-4)
    assert found.loc["KL to the reference, k3 by token (nats)", "value"] == pytest.approx(
        sum(low_variance) / 8, abs=1e-4
    )

    margins = []
    for row in pairs(12):
        ids = tokenizer(row["prompt"])["input_ids"]
        sides = []
        for side in ("chosen", "rejected"):
            response = [*tokenizer(row[side], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            sides.append(float((token_logp(policy, ids, response) - token_logp(reference, ids, response)).sum()))
        margins.append(sides[0] - sides[1])
    assert found.loc["margin (nats)", "value"] == pytest.approx(sum(margins) / 12, abs=1e-4)
    assert found.loc["accuracy", "value"] == pytest.approx(sum(margin > 0 for margin in margins) / 12)
    assert found.loc["accuracy", "n"] == 12
    groups = read_parquet(tmp_path / "accuracy_by_group.parquet")
    assert set(groups["by"]) == {"all", "source", "length_ratio", "dispersion"} and set(groups["beta"]) == {0.5}


def test_what_is_there_is_not_done_again(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request(place, tmp_path, "alpaca", "lm", "pairs", "kl")
    first = suite.run(asked)
    made = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("phases/*.json")}
    assert len(made) == 9

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a phase that is done was done again")

    for module, name in ((answers, "run"), (suite_phases, "Scorer"), (suite_phases.lm_eval, "run"), (suite, "compare")):
        monkeypatch.setattr(module, name, never)
    assert suite.run(asked).equals(first)
    assert {file: file.stat().st_mtime_ns for file in made} == made
    with pytest.raises(AssertionError):
        suite.run(request(place, tmp_path, "alpaca", "kl", max_new_tokens=13))


def test_published_outputs_and_a_model_against_itself(place: Path, tmp_path: Path) -> None:
    suite.run(request(place, tmp_path, "kl"))
    own = read_jsonl(tmp_path / "samples/policy/seed=0/answers.jsonl")
    rows = [{"instruction": row["instruction"], "output": row["output"], "generator": "other"} for row in own]
    write_jsonl(tmp_path / "outputs.jsonl", rows)
    asked = request(place, tmp_path, "alpaca", prompts=None, against=str(tmp_path / "outputs.jsonl"), max_prompts=8)
    found = suite.run(asked).set_index("measure")
    assert found.loc["win rate against other, %", "value"] == 50
    assert found.loc["win rate against other, %", "n"] == 8
    assert found.loc["win rate against other, %", "note"] == "judge reward:vowels, both orders"


def test_the_judge_is_measured_on_labels(place: Path, tmp_path: Path) -> None:
    labels = [{"input": f"i{n}", "output_1": "aaa", "output_2": "bbb", "label": 1 + (n == 0)} for n in range(4)]
    write_jsonl(tmp_path / "labels.jsonl", labels)
    asked = request(
        place, tmp_path / "out", "alpaca", reference=place / "my_reference", labels=str(tmp_path / "labels.jsonl")
    )
    rows = suite.run(asked).set_index("measure")
    people = rows.loc["judge agrees with people"]
    assert (people["value"], people["n"], people["note"]) == (0.75, 4, "labels.jsonl")
    assert people["ci_low"] < 0.75 < people["ci_high"]
    assert (rows.loc["judge agrees with itself", "value"], rows.loc["judge agrees with itself", "note"]) == (
        1.0,
        "deterministic",
    )
    again = suite.run(asked).set_index("measure")
    assert again.equals(rows) and read_json(tmp_path / "out/phases/labels.json")["depends_on"]["labels"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"suite": ("alpacca",)}, "--suite alpacca: no such part; did you mean 'alpaca'"),
        ({"suite": ("kl",), "reference": None}, "--suite kl: needs --reference"),
        ({"suite": ("pairs",), "pairs": None}, "--suite pairs: needs --pairs"),
        ({"suite": ("lm",), "tasks": ()}, "--suite lm: needs --tasks"),
        ({"suite": ("alpaca",), "judge": "reward:vowels"}, "--suite alpaca: needs --against or --reference"),
        ({"suite": ("lm",), "tasks": ("t",), "judge": "reward:vowels"}, "--judge: only --suite alpaca reads it"),
        ({"suite": ("lm",), "tasks": ("t",), "model": Path("nowhere")}, "nowhere: no config.json there"),
        ({"suite": ("kl",), "max_new_tokens": 512}, "--max-new-tokens 512: the model reads 512 tokens"),
    ],
)
def test_what_is_missing_or_read_by_no_part_is_told(
    place: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    base = request(place, tmp_path, *(part for part in changes["suite"] if part in ("kl", "pairs")))
    with pytest.raises(InputError, match=says):
        suite.run(Request(**{**vars(base), **changes}))
    assert not (tmp_path / "results.json").exists()


def test_a_draw_of_pairs(place: Path, tmp_path: Path) -> None:
    found = suite.run(request(place, tmp_path, "pairs", max_pairs=5)).set_index("measure")
    assert found.loc["accuracy", "n"] == 5 and len(read_parquet(tmp_path / "pairs/test.parquet")) == 5


def test_prompts_that_cannot_be_used(place: Path, tmp_path: Path) -> None:
    for rows, says in (
        ([{"text": "a"}], "row 0: prompt is missing; every row needs instruction or prompt"),
        ([{"prompt": "a"}, {"instruction": "a"}], "row 1: prompt 'a' appears twice"),
    ):
        write_jsonl(tmp_path / "prompts.jsonl", rows)
        with pytest.raises(InputError, match=says):
            suite.run(request(place, tmp_path / "out", "kl", prompts=str(tmp_path / "prompts.jsonl")))


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    server = Endpoint()
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    yield server
    server.close()


def kill_when(asked: Request, reached: Callable[[], bool]) -> None:
    """Run in a process of its own, and kill it with SIGKILL as soon as `reached`."""
    # Not forked: torch's threads, where the parent has any, do not live on in the child.
    process = multiprocessing.get_context("spawn").Process(target=suite.run, args=(asked,))
    process.start()
    assert process.pid is not None
    deadline = time.monotonic() + 120
    while not reached():
        assert process.is_alive() and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_killed_in_every_phase_it_goes_on_and_judges_nothing_twice(
    place: Path, tmp_path: Path, endpoint: Endpoint
) -> None:
    changes = {
        "judge": "openai:tiny",
        "judge_settings": JudgeSettings(concurrency=1, first_wait_seconds=0.02),
        "reference": place / "my_reference",
    }
    parts = ("alpaca", "lm", "pairs", "kl")
    undisturbed = suite.run(request(place, tmp_path / "undisturbed", *parts, **changes))
    expected = dict(endpoint.asked)
    # One pair in twenty is shown again, to see whether the judge agrees with itself: here one.
    assert sorted(expected.values())[-2:] == [1, 2] and len(expected) >= 10
    asked_in_all = sum(expected.values())
    endpoint.asked.clear()
    endpoint.answered.clear()

    out, endpoint.delay = tmp_path / "out", 0.05
    asked = request(place, out, *parts, **changes)

    def judged() -> list[Path]:
        return list((out / "judgements").glob("*.jsonl"))

    def there(pattern: str) -> Callable[[], bool]:
        return lambda: any(out.glob(pattern))

    kill_when(asked, there("pairs/test_prompts.parquet"))  # while answers are sampled
    assert not (out / "phases/answers-policy.json").exists()
    kill_when(asked, lambda: sum(endpoint.answered.values()) >= 5)  # while the endpoint judges
    assert not (out / "phases/alpaca.json").exists() and 0 < len(read_jsonl(judged()[0])) < len(expected)
    kill_when(asked, there("scores/policy/seed=0/lm_eval_parts/*.json"))  # between two tasks
    kill_when(asked, there("pairs/policy.parquet"))
    kill_when(asked, there("kl/policy.parquet"))
    found = suite.run(asked)
    assert found.equals(undisturbed)
    rows = read_jsonl(judged()[0])
    assert len({row["key"] for row in rows}) == len(rows) == asked_in_all
    # What was under way at the kill, one request, may be asked again; everything else once.
    assert set(endpoint.asked) == set(expected) and sum(endpoint.asked.values()) <= asked_in_all + 1
    one, other = (read_json(folder / "results.json") for folder in (out, tmp_path / "undisturbed"))
    assert one["results"] == other["results"] and one["models"] == other["models"]


def test_the_command_of_the_page(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    shutil.copytree(TASKS, place / "config" / "tasks", ignore=shutil.ignore_patterns("__pycache__"))
    page = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^```bash\n(mallowspo evaluate .*?)^```", page, re.DOTALL | re.MULTILINE)
    arguments = shlex.split(command.replace("\\\n", " "))[1:]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    for shown in ("win rate against reference, %", "review_sentiment/acc", "accuracy", "KL to the reference, k3"):
        assert shown in done.stdout
    results = read_json(place / "evaluation/results.json")
    assert {row["part"] for row in results["results"]} == {"answers", "alpaca", "lm", "pairs", "kl"}
    assert results["settings"]["tokens"]["template"] == "chat"
    json.dumps(results, allow_nan=False)


def test_the_help_shows_an_example() -> None:
    shown = CliRunner().invoke(app, ["evaluate", "--help"], env={"COLUMNS": "200"}).stdout
    assert "Example: mallowspo evaluate --model my_model" in shown and "goes on where it was killed" in shown
