"""Stage "generate": parts that outlive a kill, shares of several processes, the chat template used once."""

import sys
from types import SimpleNamespace

import pytest

from mallowspo import generation, vllm_generation
from mallowspo.errors import InputError
from mallowspo.evaluation import answers
from mallowspo.files import read_jsonl
from mallowspo.layout import REFERENCE
from mallowspo.models import load_tokenizer
from mallowspo.settings import TokenSettings
from mallowspo.shard import Shard
from tests.made_up_run import prepare


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("run"))


@pytest.fixture
def stage(prepared, tmp_path, monkeypatch):
    """Runs the stage on four prompts with two answers each, in parts of one prompt; returns the rows."""
    experiment, layout, folder = prepared
    here = SimpleNamespace(
        prompts=layout.prompts,
        samples=lambda method, seed: tmp_path / method / str(seed) / "answers.jsonl",
        answer_parts=lambda method, seed, key: tmp_path / method / str(seed) / "parts" / key,
    )
    monkeypatch.setattr(answers, "ANSWERS_PER_PART", 2)
    view = experiment.stage_view("generate")

    def run(seed=0, shard=None, **settings):
        view.generation = experiment.generation.model_copy(update={"answers": 2, **settings})
        answers.run(view, here, folder, REFERENCE, seed, "cpu", shard)
        file = here.samples(REFERENCE, seed)
        return read_jsonl(file) if file.exists() else None

    run.folder = tmp_path
    return run


@pytest.fixture
def sampled(monkeypatch):
    """Names of the prompts that were sampled, call by call."""
    calls = []

    def spied(model, tokenizer, prompts, sampling, names, what=None, real=generation.sample_answers):
        calls.append(names)
        return real(model, tokenizer, prompts, sampling, names, what)

    monkeypatch.setattr(generation, "sample_answers", spied)
    return calls


def test_answers_come_in_the_order_of_the_prompts(stage, prepared):
    rows = stage()
    _, layout, folder = prepared
    ids = answers.read_parquet(layout.prompts)["prompt_id"].tolist()
    assert [(row["prompt_id"], row["answer_index"]) for row in rows] == [(name, i) for name in ids for i in (0, 1)]
    end = load_tokenizer(folder).eos_token_id
    for row in rows:
        assert row["finish_reason"] == ("stop" if row["token_ids"][-1] == end else "length")
        assert (row["generator"], row["tokens"]) == (REFERENCE, len(row["token_ids"]))


def test_shards_and_batches_give_the_same_answers(stage, sampled):
    whole = stage(seed=0)
    assert [len(names) for names in sampled] == [1, 1, 1, 1]
    sampled.clear()
    for number in (1, 2, 3):
        assert stage(seed=1, shard=Shard(number, 3), batch_size=1) is None
    assert stage(seed=1, batch_size=7) == whole
    assert len(sampled) == 4


def test_a_killed_stage_goes_on_behind_its_last_part(stage, sampled, monkeypatch):
    whole = stage(seed=0)
    sampled.clear()
    write = answers.write_jsonl

    def killed(path, rows):
        if path.name == "part-00002.jsonl":
            raise KeyboardInterrupt
        write(path, rows)

    monkeypatch.setattr(answers, "write_jsonl", killed)
    with pytest.raises(KeyboardInterrupt):
        stage(seed=1)
    monkeypatch.setattr(answers, "write_jsonl", write)
    assert stage(seed=1) == whole
    assert len(sampled) == 3 + 2


def test_other_settings_share_no_part(stage, sampled):
    first = stage()
    assert stage() == first and len(sampled) == 4
    assert stage(temperature=0.5) != first and len(sampled) == 8
    assert len(list((stage.folder / REFERENCE / "0" / "parts").iterdir())) == 2


def test_the_chat_template_is_used_once(prepared):
    _, layout, folder = prepared
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    view = SimpleNamespace(tokens=TokenSettings(template="chat"))
    for prompt in answers._prompts(view, layout, tokenizer):
        chat = [{"role": "user", "content": prompt.text}]
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        assert prompt.token_ids.count(tokenizer.bos_token_id) == 1
        assert prompt.token_ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(prompt.token_ids, skip_special_tokens=True) == text.removeprefix(tokenizer.bos_token)


def test_vllm_is_refused_where_it_cannot_run(stage, monkeypatch):
    with pytest.raises(InputError, match=r"'vllm' needs a GPU and torch sees none; set it to transformers"):
        stage(engine="vllm")
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match=r"vLLM cannot be imported .*; pip install 'mallowspo\[vllm\]'"):
        vllm_generation.open_policy(stage.folder, "cuda", "bfloat16")


def test_what_vllm_is_asked_and_how_its_answers_are_taken(stage, prepared, monkeypatch):
    """A stand-in with vLLM's names: requests by token ids, one seed an answer, the end token put back."""
    _, _, folder = prepared
    end = load_tokenizer(folder).eos_token_id
    asked = []

    class StandIn:
        def __init__(self, **options):
            assert options == {"model": str(folder), "dtype": "float32", "generation_config": "vllm"}

        def generate(self, requests, parameters, use_tqdm):
            asked.extend(zip(requests, parameters, strict=True))
            reasons = ("stop", "length")
            return [
                SimpleNamespace(outputs=[SimpleNamespace(token_ids=(65, 66), finish_reason=reasons[at % 2])])
                for at in range(len(requests))
            ]

    module = SimpleNamespace(LLM=StandIn, SamplingParams=SimpleNamespace)
    monkeypatch.setattr(vllm_generation, "_vllm", lambda: module)
    policy = vllm_generation.open_policy(folder, "cuda", "float32")
    sampling = generation.SamplingSettings(answers=2, max_new_tokens=5, temperature=0.5)
    tokenizer = load_tokenizer(folder)
    found = vllm_generation.sample_answers(policy, tokenizer, [[5, 6], [7]], sampling, ["a", "b"])
    assert [(a.prompt_index, a.answer_index, a.finish_reason) for a in found] == [
        (0, 0, "stop"), (0, 1, "length"), (1, 0, "stop"), (1, 1, "length"),
    ]  # fmt: skip
    assert found[0].token_ids == [65, 66, end] and found[1].token_ids == [65, 66]
    assert [request["prompt_token_ids"] for request, _ in asked] == [[5, 6], [5, 6], [7], [7]]
    assert len({parameters.seed for _, parameters in asked}) == 4
    assert {(p.temperature, p.top_p, p.max_tokens) for _, p in asked} == {(0.5, 1.0, 5)}


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/0"])
def test_a_shard_is_a_number_of_a_count(text):
    with pytest.raises(InputError, match="give NUMBER/COUNT"):
        Shard.parse(text)


def test_shards_share_all_parts():
    parts = list(range(10))
    assert sorted(part for number in (1, 2, 3) for part in Shard(number, 3).of(parts)) == parts
