"""Tokens on the disk: the same pairs when read again, from a map, and a digest of nothing but their content."""

import json

import numpy as np
import pytest

from mallowspo.errors import InputError
from mallowspo.experiments import load_experiment
from mallowspo.files import read_json, read_parquet, write_parquet
from mallowspo.layout import Layout
from mallowspo.models import byte_tokenizer, load_tokenizer, make_made_up
from mallowspo.pairs import prepared
from mallowspo.pairs.prepared import context_window, open_tokens, write_tokens
from mallowspo.pairs.tokens import TokenizedPair, tokenize_pairs
from mallowspo.settings import TokenSettings
from tests.made_up_run import experiment_file, write_pairs

CHAT = TokenSettings(template="chat", max_prompt=40, max_response=12)


def pair(number, **changes):
    values = {"prompt": [1, 5, number], "chosen": [7, 2], "rejected": [9], "chosen_truncated": False,
              "rejected_truncated": False, "prompt_truncated": number == 1, "header": 1}  # fmt: skip
    return TokenizedPair(**{"pair_id": f"p{number}", **values, **changes})


PAIRS = [pair(0), pair(1, chosen=[3] * 30), pair(2, prompt=[1], prefix_changed=True)]


@pytest.fixture
def stage(tmp_path):
    """The stage on made-up pairs: `run` with the experiment's settings changed, and the layout."""
    make_made_up(tmp_path / "model")
    experiment = load_experiment(str(experiment_file(tmp_path)))
    layout = Layout(str(tmp_path / "results"), "made_up")
    write_pairs(layout, 5)

    def run(**tokens):
        view = experiment.stage_view("tokens")
        view.tokens = TokenSettings.model_validate({**view.tokens.model_dump(), **tokens})
        prepared.run(view, layout, tmp_path / "model")
        return read_json(layout.tokens_summary)

    return run, layout, tmp_path / "model"


def test_what_was_written_is_read_back(tmp_path):
    summary = write_tokens(iter(PAIRS), 2, tmp_path / "tokens")
    found = open_tokens(tmp_path / "tokens")
    assert list(found) == PAIRS and found[-1] == PAIRS[2] and found[1:] == PAIRS[1:]
    assert found.pair_ids == ["p0", "p1", "p2"]
    assert found.lengths.tolist() == [[3, 2, 1], [3, 30, 1], [1, 2, 1]]
    assert found.lengths.dtype == np.int64
    assert (found.end_token, found.digest) == (2, summary["digest"])
    with pytest.raises(IndexError):
        found[3]


def test_counts(tmp_path):
    summary = write_tokens(PAIRS, 2, tmp_path / "tokens")
    del summary["digest"]
    assert summary == {
        "pairs": 3, "tokens": 44, "longest": 33, "prompts_truncated": 1, "responses_truncated": 0, "prefix_changed": 1,
        "end_token": 2,
    }  # fmt: skip


def test_rows_stay_on_the_disk(tmp_path):
    """A map of the file, not a copy: what the process holds does not grow with the file."""
    write_tokens((pair(number, chosen=[number] * 2000) for number in range(2000)), 2, tmp_path / "tokens")
    import pyarrow

    before = pyarrow.total_allocated_bytes()
    found = open_tokens(tmp_path / "tokens")
    assert found[1500].chosen == [1500] * 2000 and found.lengths[:, 1].tolist() == [2000] * 2000
    size = sum(file.stat().st_size for file in (tmp_path / "tokens").glob("*.arrow"))
    assert size > 16_000_000 > 1_000_000 > pyarrow.total_allocated_bytes() - before


def digest_of(pairs, folder, end=2):
    return write_tokens(pairs, end, folder)["digest"]


def test_the_digest_is_of_the_content(tmp_path):
    first = digest_of(PAIRS, tmp_path / "a")
    assert digest_of(iter(PAIRS), tmp_path / "elsewhere") == first
    others = [
        digest_of(PAIRS[:2], tmp_path / "b"),
        digest_of([PAIRS[1], PAIRS[0], PAIRS[2]], tmp_path / "c"),
        digest_of([pair(0, pair_id="other"), *PAIRS[1:]], tmp_path / "d"),
        digest_of([pair(0, rejected=[8]), *PAIRS[1:]], tmp_path / "e"),
        digest_of([pair(0, header=2), *PAIRS[1:]], tmp_path / "f"),
        # The border between prompt and response moves.
        digest_of([pair(0, prompt=[1, 5], chosen=[0, 7, 2]), *PAIRS[1:]], tmp_path / "g"),
        digest_of(PAIRS, tmp_path / "h", end=3),
    ]
    assert len({first, *others}) == 8


def test_the_stage_writes_both_splits_and_what_they_are(stage):
    run, layout, model = stage
    summary = run()
    expected = tokenize_pairs(load_tokenizer(model), read_parquet(layout.pairs("train")), TokenSettings(
        template="plain", max_prompt=64, max_response=32))  # fmt: skip
    assert list(open_tokens(layout.tokens("train"))) == list(expected)
    assert (summary["train"]["pairs"], summary["test"]["pairs"]) == (5, 4)
    assert (summary["tokenizer_vocabulary"], summary["window"]) == (259, 512)
    assert summary["train"]["digest"] == open_tokens(layout.tokens("train")).digest != summary["test"]["digest"]


@pytest.mark.parametrize("changes", [{"max_prompt": 9}, {"max_response": 9}, {"template": "chat"}])
def test_lengths_and_template_change_the_digest(stage, changes):
    run, _, _ = stage
    before = run()["train"]["digest"]
    assert run()["train"]["digest"] == before
    assert run(**changes)["train"]["digest"] != before


def test_the_models_window_cuts_prompts(stage):
    run, layout, model = stage
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 30}))
    assert context_window(model) == 30
    summary = run()
    assert summary["window"] == 30
    assert 0 < summary["train"]["prompts_truncated"] == sum(one.prompt_truncated for one in
                                                              open_tokens(layout.tokens("train")))  # fmt: skip
    assert summary["train"]["longest"] == 30
    assert open_tokens(layout.tokens("train")).lengths.min() >= 1


def test_a_template_that_changes_the_prompt_is_told_once_with_the_count(stage, caplog):
    run, _, model = stage
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content[:3] if messages[-1].role == 'assistant' else m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer.save_pretrained(model)
    summary = run(template="chat")
    told = [record.message for record in caplog.records if record.name.startswith("mallowspo")]
    assert len(told) == 1 and told[0].startswith("the chat template writes 9 of 9 prompts otherwise")
    assert (summary["train"]["prefix_changed"], summary["test"]["prefix_changed"]) == (5, 4)


def test_an_empty_prompt_is_named(stage):
    run, layout, _ = stage
    table = read_parquet(layout.pairs("test"))
    table.loc[2, "prompt"] = ""
    write_parquet(layout.pairs("test"), table)
    with pytest.raises(InputError, match=f"^pair {table['pair_id'][2]}: the prompt '' has no tokens"):
        run()


def test_missing_and_broken_folders_are_told(tmp_path):
    with pytest.raises(InputError, match="no such file; run the stage that writes it first"):
        open_tokens(tmp_path / "nowhere")
    write_tokens(PAIRS, 2, tmp_path / "tokens")
    (tmp_path / "tokens/state.json").unlink()
    with pytest.raises(InputError, match="tokens: no whole tokens .*run the stage tokens again"):
        open_tokens(tmp_path / "tokens")


def test_nothing_half_written_is_left(tmp_path):
    def breaks():
        yield PAIRS[0]
        raise InputError("stop")

    with pytest.raises(InputError, match="stop"):
        write_tokens(breaks(), 2, tmp_path / "tokens")
    assert list(tmp_path.iterdir()) == []
