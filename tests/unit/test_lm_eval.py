"""lm-eval's own code on a made-up model and on tasks that the tests can work out themselves."""

import json
import math
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mallowspo.errors import InputError
from mallowspo.evaluation import lm_eval
from mallowspo.evaluation.lm_groups import with_groups
from mallowspo.evaluation.settings import LmEvalSettings
from mallowspo.files import read_json, read_parquet, write_jsonl
from mallowspo.layout import Layout
from mallowspo.models import load_model, load_tokenizer, make_made_up
from mallowspo.shard import Shard

TASKS = Path(__file__).parents[2] / "config" / "tasks"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_made_up(folder)
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(str(tmp_path), "experiment")


def view(*tasks: str, **settings: Any) -> SimpleNamespace:
    chosen = LmEvalSettings(**{"tasks": list(tasks), "include_path": str(TASKS), **settings})
    return SimpleNamespace(model=SimpleNamespace(precision="float32"), evaluation=SimpleNamespace(lm_eval=chosen))


def no_connection(*_: Any) -> None:
    raise AssertionError("a task on local data opened a connection")


def log_probability(model: Any, tokenizer: Any, context: str, ending: str) -> float:
    """Summed over the ending's tokens, in nats; the made-up tokenizer has one token a byte."""
    tokens = tokenizer(context + ending, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(tokens).logits[0, :-1].log_softmax(-1)
    each = logits.gather(1, tokens[0, 1:, None])[:, 0]
    return float(each[-len(ending.encode()) :].sum())


def test_items_metric_and_standard_error(
    model_folder: Path, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket.socket, "connect", no_connection)
    monkeypatch.setattr(socket, "getaddrinfo", no_connection)
    lm_eval.run(view("plain_sense", limit=12), layout, model_folder, "dpo", 3, "cpu")

    items = read_parquet(layout.scores("dpo", 3) / "lm_eval.parquet")
    assert list(items["doc_id"]) == list(range(12)) and set(items["task"]) == {"plain_sense"}
    model, tokenizer = load_model(model_folder), load_tokenizer(model_folder)
    for right, line in zip(items["value"], (TASKS / "plain_sense.jsonl").read_text().splitlines(), strict=False):
        item = json.loads(line)
        scores = [log_probability(model, tokenizer, item["start"], " " + ending) for ending in item["endings"]]
        assert right == float(scores.index(max(scores)) == item["label"])

    result = read_json(layout.scores("dpo", 3) / "lm_eval.json")
    share = items["value"].mean()
    assert 0 < share < 1, "else the standard error tests nothing"
    assert result["results"]["plain_sense"]["acc"]["value"] == pytest.approx(share)
    expected = math.sqrt(share * (1 - share) / 11)
    assert result["results"]["plain_sense"]["acc"]["stderr"] == pytest.approx(expected)
    assert result["items"] == {"plain_sense": 12} and result["not_per_item"] == []
    assert result["settings"]["limit"] == 12 and result["settings"]["precision"] == "float32"


def test_both_tasks_of_the_project_run_together_and_are_balanced(model_folder: Path, layout: Layout) -> None:
    lm_eval.run(view("review_sentiment", "plain_sense", limit=2), layout, model_folder, "reference", 0, "cpu")
    result = read_json(layout.scores("reference", 0) / "lm_eval.json")
    assert result["items"] == {"review_sentiment": 2, "plain_sense": 2}
    for task, size in (("review_sentiment", 80), ("plain_sense", 60)):
        items = [json.loads(line) for line in (TASKS / f"{task}.jsonl").read_text().splitlines()]
        assert len(items) == size and sum(item["label"] for item in items) == size / 2


def test_evaluating_again_gives_the_same_items(model_folder: Path, layout: Layout) -> None:
    for seed, batch_size in ((0, 8), (1, 3)):
        settings = view("review_sentiment", limit=5, num_fewshot=2, batch_size=batch_size)
        lm_eval.run(settings, layout, model_folder, "dpo", seed, "cpu")
    first, second = (read_parquet(layout.scores("dpo", seed) / "lm_eval.parquet") for seed in (0, 1))
    assert first.equals(second)
    assert read_json(layout.scores("dpo", 0) / "lm_eval.json")["settings"]["num_fewshot"] == {"review_sentiment": 2}


def test_unknown_task_names_the_nearest(
    model_folder: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The list of lm-eval's own tasks takes half a minute to read; two stand for them here.
    from lm_eval import tasks
    from lm_eval.tasks import _index

    for name in ("hellaswag", "winogrande"):
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\ndataset_path: json\n")
    build, own_tasks = _index.TaskIndex.build, Path(tasks.__file__).parent

    def small(paths: list[Path], **options: Any) -> Any:
        return build([tmp_path if path == own_tasks else path for path in paths], **options)

    monkeypatch.setattr(_index.TaskIndex, "build", staticmethod(small))
    with pytest.raises(InputError, match="unknown task 'reviews_sentiment'; did you mean 'review_sentiment'"):
        lm_eval.run(view("reviews_sentiment"), layout, model_folder, "dpo", 0, "cpu")
    with pytest.raises(InputError, match="unknown task 'helaswag'; did you mean 'hellaswag'"):
        lm_eval.run(view("review_sentiment", "helaswag"), layout, model_folder, "dpo", 0, "cpu")


def write_task(folder: Path, **changes: Any) -> None:
    """A task with data named by an absolute path, as lm-eval's own documentation does it."""
    folder.mkdir()
    (folder / "items.jsonl").write_text(
        "".join(json.dumps({"text": f"{n} and", "label": n % 2}) + "\n" for n in range(6))
    )
    task = {
        "task": "own",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "items.jsonl")}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": ["one", "two"],
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}],
        **changes,
    }
    (folder / "own.yaml").write_text(json.dumps(task))


def test_a_metric_of_the_whole_set_is_kept_and_named(
    model_folder: Path, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lm_eval, "BOOTSTRAP", 20)
    write_task(tmp_path / "tasks", metric_list=[{"metric": "acc"}, {"metric": "f1", "aggregation": "f1"}])
    lm_eval.run(view("own"), layout, model_folder, "dpo", 0, "cpu", tmp_path / "tasks")
    result = read_json(layout.scores("dpo", 0) / "lm_eval.json")
    assert set(result["results"]["own"]) == {"acc", "f1"}
    assert isinstance(result["results"]["own"]["f1"]["stderr"], float)
    assert result["not_per_item"] == ["own/f1"]
    assert set(read_parquet(layout.scores("dpo", 0) / "lm_eval.parquet")["metric"]) == {"acc"}
    assert result["settings"]["include_path"] == str(tmp_path / "tasks")


def test_settings_that_lm_eval_would_ignore(model_folder: Path, layout: Layout, tmp_path: Path) -> None:
    write_task(tmp_path / "tasks", num_fewshot=0)
    with pytest.raises(InputError, match="task 'own' fixes 0 in its own file and ignores 2"):
        lm_eval.run(view("own", num_fewshot=2), layout, model_folder, "dpo", 0, "cpu", tmp_path / "tasks")
    assert not layout.scores("dpo", 0).exists()


def test_data_that_is_not_there(model_folder: Path, layout: Layout, tmp_path: Path) -> None:
    write_task(tmp_path / "tasks")
    (tmp_path / "tasks" / "items.jsonl").unlink()
    with pytest.raises(InputError, match=r"the data of \['own'\] could not be read"):
        lm_eval.run(view("own"), layout, model_folder, "dpo", 0, "cpu", tmp_path / "tasks")


def test_a_folder_that_is_not_there(model_folder: Path, layout: Layout, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere' is no folder"):
        lm_eval.run(view("own"), layout, model_folder, "dpo", 0, "cpu", tmp_path / "nowhere")


def test_chat_template(model_folder: Path, layout: Layout, tmp_path: Path) -> None:
    lm_eval.run(view("review_sentiment", limit=4, chat_template=True), layout, model_folder, "dpo", 0, "cpu")
    assert read_json(layout.scores("dpo", 0) / "lm_eval.json")["settings"]["chat_template"] is True
    make_made_up(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="has no chat template"):
        lm_eval.run(view("review_sentiment", chat_template=True), layout, tmp_path / "model", "dpo", 0, "cpu")


def items_of(layout: Layout, seed: int) -> Any:
    return read_parquet(layout.scores("dpo", seed) / "lm_eval.parquet")


def test_a_killed_stage_goes_on_with_the_next_task(
    model_folder: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = view("review_sentiment", "plain_sense", limit=3)
    evaluate, evaluated = lm_eval._evaluate, []

    def killed(model: Any, name: str, *rest: Any) -> dict[str, Any]:
        evaluated.append(name)
        if len(evaluated) == 2:
            raise KeyboardInterrupt
        return evaluate(model, name, *rest)

    monkeypatch.setattr(lm_eval, "_evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        lm_eval.run(settings, layout, model_folder, "dpo", 0, "cpu")
    assert not (layout.scores("dpo", 0) / "lm_eval.json").exists()
    lm_eval.run(settings, layout, model_folder, "dpo", 0, "cpu")
    lm_eval.run(settings, layout, model_folder, "dpo", 0, "cpu")
    assert evaluated == ["review_sentiment", "plain_sense", "plain_sense"]
    lm_eval.run(settings, layout, model_folder, "dpo", 1, "cpu")
    assert items_of(layout, 0).equals(items_of(layout, 1))
    assert read_json(layout.scores("dpo", 0) / "lm_eval.json") == read_json(layout.scores("dpo", 1) / "lm_eval.json")

    def remembered(model: Any, name: str, *rest: Any) -> dict[str, Any]:
        evaluated.append(name)
        return evaluate(model, name, *rest)

    monkeypatch.setattr(lm_eval, "_evaluate", remembered)
    for changed in ({"limit": 2}, {"limit": 3, "chat_template": True}, {"limit": 3, "num_fewshot": 1}):
        lm_eval.run(view("plain_sense", **changed), layout, model_folder, "dpo", 0, "cpu")
    assert evaluated[5:] == ["plain_sense"] * 3, "other settings are other numbers"


def test_shards_share_the_tasks(model_folder: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = view("review_sentiment", "plain_sense", limit=3)
    for number in (1, 2):
        lm_eval.run(settings, layout, model_folder, "dpo", 0, "cpu", shard=Shard(number, 2))
        assert len(list((layout.scores("dpo", 0) / "lm_eval_parts").iterdir())) == number
    assert not (layout.scores("dpo", 0) / "lm_eval.json").exists()
    lm_eval.run(settings, layout, model_folder, "dpo", 1, "cpu")
    monkeypatch.setattr(lm_eval, "_wrap", None)  # all parts are there: no model is needed
    lm_eval.run(settings, layout, model_folder, "dpo", 0, "cpu")
    assert items_of(layout, 0).equals(items_of(layout, 1))


def test_functions_of_a_task_are_known_by_their_code_in_every_process() -> None:
    from lm_eval import tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(Path(tasks.__file__).parent / "winogrande" / "default.yaml")
    told = lm_eval._in_words({"fewshot_config": config, "other": [len]})
    assert told["fewshot_config"]["doc_to_text"].startswith("def doc_to_text(doc)")
    assert " at 0x" not in str(told)


def test_a_group_is_put_together_as_lm_eval_does(model_folder: Path, layout: Layout, tmp_path: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    folder = tmp_path / "tasks"
    folder.mkdir()
    for file in TASKS.iterdir():
        if file.is_file():
            (folder / file.name).write_text(file.read_text())
    group = {
        "group": "both",
        "task": ["review_sentiment", "plain_sense"],
        "aggregate_metric_list": [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}],
    }
    (folder / "both.yaml").write_text(json.dumps(group))
    (folder / "bare.yaml").write_text(json.dumps({"group": "bare", "task": ["plain_sense"]}))
    lm_eval.run(view("both", limit=7), layout, model_folder, "dpo", 0, "cpu", folder)
    result = read_json(layout.scores("dpo", 0) / "lm_eval.json")
    model = lm_eval._wrap(model_folder, LmEvalSettings(tasks=["both"]), "float32", "cpu")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    expected = simple_evaluate(model=model, tasks=["both"], task_manager=manager, limit=7, bootstrap_iters=100)
    for name in ("both", "review_sentiment", "plain_sense"):
        numbers = expected["results"][name]
        found = result["results"][name]["acc"]
        assert (found["value"], found["stderr"]) == (numbers["acc,none"], numbers["acc_stderr,none"])
    assert result["items"]["both"] == 14 and result["groups"] == {
        "both": {"tasks": ["review_sentiment", "plain_sense"], "weights": {"acc": "items"}}
    }
    together = with_groups(items_of(layout, 0), result["groups"])
    own = together[together["name"] == "both/acc"]["value"]
    assert own.mean() == pytest.approx(result["results"]["both"]["acc"]["value"])
    with pytest.raises(InputError, match="task 'plain_sense' is in both 'both' and 'bare'; name one"):
        lm_eval.run(view("both", "bare"), layout, model_folder, "dpo", 0, "cpu", folder)


def arc_rows(count: int) -> list[dict[str, Any]]:
    """Items in the columns of lm-eval's own arc_easy."""
    return [
        {
            "id": f"q{n}",
            "question": f"Which is {n}?",
            "choices": {"text": [f"{n}", f"{n + 1}", "none"], "label": ["A", "B", "C"]},
            "answerKey": "ABC"[n % 3],
        }
        for n in range(count)
    ]


def test_a_task_of_lm_eval_on_local_data(
    model_folder: Path, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket.socket, "connect", no_connection)
    monkeypatch.setattr(socket, "getaddrinfo", no_connection)
    write_jsonl(tmp_path / "arc.jsonl", arc_rows(6))
    data = {"arc_easy": {"test": str(tmp_path / "arc.jsonl")}}
    lm_eval.run(view("arc_easy", data=data), layout, model_folder, "dpo", 0, "cpu")
    items = items_of(layout, 0)
    assert set(items["metric"]) == {"acc", "acc_norm"} and set(items["task"]) == {"arc_easy"}
    model, tokenizer = load_model(model_folder), load_tokenizer(model_folder)
    for row, right in zip(arc_rows(6), items[items["metric"] == "acc"]["value"], strict=True):
        asked = f"Question: {row['question']}\nAnswer:"
        scores = [log_probability(model, tokenizer, asked, f" {text}") for text in row["choices"]["text"]]
        assert right == float("ABC"[scores.index(max(scores))] == row["answerKey"])


def test_examples_from_the_same_file_leave_the_item_out(
    model_folder: Path, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "arc.jsonl", arc_rows(4))
    asked: list[list[str]] = []
    evaluate = lm_eval._evaluate

    def remember(model: Any, name: str, task: Any, settings: Any) -> dict[str, Any]:
        found = evaluate(model, name, task, settings)
        asked.append(list(dict.fromkeys(instance.args[0] for instance in task.instances)))
        return found

    monkeypatch.setattr(lm_eval, "_evaluate", remember)
    data = {"arc_easy": {"test": str(tmp_path / "arc.jsonl")}}
    lm_eval.run(view("arc_easy", data=data, num_fewshot=3), layout, model_folder, "dpo", 0, "cpu")
    assert len(asked[0]) == 4
    for row, prompt in zip(arc_rows(4), asked[0], strict=True):
        assert prompt.count(row["question"]) == 1 and prompt.count("Question:") == 4
    write_jsonl(tmp_path / "examples.jsonl", [{**row, "question": "Known?"} for row in arc_rows(3)])
    data["arc_easy"]["fewshot"] = str(tmp_path / "examples.jsonl")
    lm_eval.run(view("arc_easy", data=data, num_fewshot=3), layout, model_folder, "dpo", 0, "cpu")
    assert all(prompt.count("Known?") == 3 for prompt in asked[1])


def test_local_data_that_nothing_reads(model_folder: Path, layout: Layout, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "arc.jsonl", arc_rows(4))
    for task, says in (
        ("arc_easie", "lm-eval has no task 'arc_easie'"),
        ("arc_easy", r"no task of \['plain_sense'\] is 'arc_easy'"),
    ):
        with pytest.raises(InputError, match=says):
            settings = view("plain_sense", data={task: {"test": str(tmp_path / "arc.jsonl")}})
            lm_eval.run(settings, layout, model_folder, "dpo", 0, "cpu")
    with pytest.raises(InputError, match="nowhere.jsonl: no such file"):
        settings = view("arc_easy", data={"arc_easy": {"test": str(tmp_path / "nowhere.jsonl")}})
        lm_eval.run(settings, layout, model_folder, "dpo", 0, "cpu")


@pytest.mark.parametrize("group", ["openllm", "leaderboard"])
def test_the_papers_lists_are_lm_evals_groups_and_say_when_the_hub_is_out_of_reach(
    model_folder: Path, layout: Layout, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    from lm_eval import tasks
    from lm_eval.tasks import _index

    # All of lm-eval's tasks take half a minute to read; these folders hold the lists and the first of their tasks.
    own_tasks, build = Path(tasks.__file__).parent, _index.TaskIndex.build
    few = [own_tasks / name for name in ("benchmarks", "leaderboard", "arc")]

    def small(paths: list[Path], **options: Any) -> Any:
        return build([part for path in paths for part in (few if path == own_tasks else [path])], **options)

    def out_of_reach(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(_index.TaskIndex, "build", staticmethod(small))
    monkeypatch.setattr(datasets, "load_dataset", out_of_reach)
    with pytest.raises(InputError, match=rf"the data of \['{group}'\] could not be read \(Couldn't reach the hub\)"):
        lm_eval.run(view(group, include_path=None), layout, model_folder, "dpo", 0, "cpu")
