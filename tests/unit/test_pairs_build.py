"""Stage "pairs" as a whole: what it writes, what it lists, where it stops."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from mallowspo.errors import InputError
from mallowspo.files import digest, read_json, read_jsonl, read_parquet, write_jsonl
from mallowspo.layout import Layout
from mallowspo.models import byte_tokenizer, load_tokenizer
from mallowspo.pairs.answers import best_against_worst
from mallowspo.pairs.build import run
from mallowspo.pairs.formats import EMPTY_ANSWER, NO_PREFERENCE, Candidate
from mallowspo.pairs.sources import read_rows
from mallowspo.pairs.tokens import tokenize_pairs
from mallowspo.settings import OnPolicySettings, PairsSettings, SamplingSettings, TokenSettings

SHARED = os.environ.get("MALLOWSPO_SHARED_DATA")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def layout(tmp_path):
    return Layout(str(tmp_path / "results"), "e")


def good(number, **changes):
    return {"prompt": f"ask {number}", "chosen": "yes", "rejected": "no", **changes}


def build(rows, layout, tokenizer_folder, template="plain", max_response=20, **pairs):
    path = Path(layout.results).parent / "rows.jsonl"
    write_jsonl(path, rows)
    tokens = TokenSettings(template=template, max_prompt=24, max_response=max_response)
    view = SimpleNamespace(pairs=PairsSettings(source=f"path:{path}", **pairs), tokens=tokens)
    run(view, layout, tokenizer_folder)
    return pd.concat([read_parquet(layout.pairs(split)).assign(split=split) for split in ("train", "test")])


def health(layout):
    return {(check["check"], check["split"]): check for check in read_json(layout.data_health)}


def test_table_has_every_column_and_no_prompt_in_both_splits(layout, tokenizer_folder):
    rows = [good(n // 2, rejected=f"no {n}", rater=n) for n in range(80)]
    table = build(rows, layout, tokenizer_folder, split={"test_fraction": 0.3})
    assert len(table) == 80
    assert table["pair_id"].is_unique
    assert table.groupby("prompt_id")["split"].nunique().eq(1).all()
    assert set(table["split"]) == {"train", "test"}
    row = table[table["rejected"] == "no 7"].iloc[0]
    messages = [{"role": "user", "content": "ask 3"}]
    assert (row["prompt"], row["chosen"], row["prompt_id"]) == ("ask 3", "yes", digest(messages))
    assert json.loads(row["messages"]) == messages
    assert json.loads(row["meta"]) == {"chosen_complete": True, "rejected_complete": True, "rater": 7}
    prompts = read_parquet(layout.prompts)
    assert prompts.columns.tolist() == ["prompt_id", "prompt", "messages"]
    assert prompts["prompt_id"].is_unique
    assert set(prompts["prompt_id"]) == set(table.loc[table["split"] == "test", "prompt_id"])
    assert health(layout)["prompts in both splits", "all"]["count"] == 0


def test_votes_are_read_counted_and_listed(layout, tokenizer_folder):
    rows = [{"prompt": f"ask {n}", "a": "yes", "b": "no", "votes_a": n % 4, "votes_b": 1} for n in range(40)]
    rows.append({"prompt": "ask", "a": "yes", "b": "no", "votes_a": 0, "votes_b": 0})
    table = build(rows, layout, tokenizer_folder, split={"test_fraction": 0.3})
    assert (table["chosen"].eq("no").sum(), table["chosen"].eq("yes").sum()) == (10, 20)
    meta = [json.loads(text) for text in table["meta"]]
    assert {(row["votes_chosen"], row["votes_rejected"]) for row in meta} == {(1, 0), (2, 1), (3, 1)}
    listed = read_jsonl(layout.unusable_rows)
    assert [row["reason"] for row in listed if row["row"] == 2] == ["the votes are tied, 1 to 1"]
    assert listed[-1] | {"file": ""} == {"file": "", "row": 41, "kind": "wrong format",
                                        "reason": "votes_a and votes_b sum to 0: nobody voted"}  # fmt: skip
    # Ties say something of the people; only the last row counts against max_unusable_share.
    assert (health(layout)["no preference", "all"]["count"], health(layout)["wrong format", "all"]["count"]) == (10, 1)


def test_order_of_rows_changes_no_split_and_no_id(layout, tokenizer_folder):
    rows = [good(n) for n in range(40)]
    first = build(rows, layout, tokenizer_folder, max_train=20, max_test=2)
    second = build(rows[::-1], layout, tokenizer_folder, max_train=20, max_test=2)
    assert dict(zip(first["pair_id"], first["split"], strict=True)) == dict(
        zip(second["pair_id"], second["split"], strict=True)
    )
    assert health(layout)["left out by share, max_train and max_test", "all"]["count"] == 40 - len(first)


def test_what_is_written_can_be_tokenized(layout, tokenizer_folder):
    rows = [
        {"chosen": f"\n\nHuman: q{n}\n\nAssistant: yes", "rejected": f"\n\nHuman: q{n}\n\nAssistant: no"}
        for n in range(30)
    ]
    table = build(rows, layout, tokenizer_folder, template="chat")
    tokenizer = load_tokenizer(tokenizer_folder)
    pairs = list(tokenize_pairs(tokenizer, table, TokenSettings(template="chat")))
    assert {tokenizer.decode(pair.rejected) for pair in pairs} == {"no" + tokenizer.eos_token}
    asked = [json.loads(messages) for messages in table["messages"]]
    rendered = [tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False) for turns in asked]
    assert [tokenizer.decode(pair.prompt) for pair in pairs] == rendered


def test_unusable_rows_and_duplicates_are_listed_with_their_number(layout, tokenizer_folder):
    rows = [good(n) for n in range(40)]
    bad = [
        {"prompt": "a", "rejected": "no"},
        good("b", rejected="yes"),
        good("c", chosen=""),
        good("d", chosen=" " * 30 + "yes"),
        good("e", chosen="x" * 20 + "1", rejected="x" * 20 + "2"),
        good(3),
        good("f", chosen=5),
    ]
    table = build(rows + bad, layout, tokenizer_folder, max_unusable_share=0.2)
    listed = read_jsonl(layout.unusable_rows)
    assert [(item["row"], item["kind"], item["reason"]) for item in listed] == [
        (41, "missing or empty", "chosen is missing"),
        (42, "equal sides", "chosen equals rejected"),
        (43, "missing or empty", "chosen is empty"),
        (44, "missing or empty", "chosen is cut to nothing but white space by tokens.max_response = 20"),
        (45, "equal sides", "the sides are equal within tokens.max_response = 20"),
        (46, "duplicate", "the same pair as row 4"),
        (47, "wrong format", "chosen is a value of type int and rejected is text; expected two texts"),
    ]
    assert all(item["file"].endswith("rows.jsonl") for item in listed)
    assert len(table) == 40
    checks = health(layout)
    counts = {name: checks[name, "all"]["count"] for name in ("rows read", "missing or empty", "equal sides", "usable")}
    assert counts == {"rows read": 47, "missing or empty": 3, "equal sides": 2, "usable": 40}
    assert checks["duplicate", "all"]["count"] == 1
    assert checks["wrong format", "all"]["share"] == pytest.approx(1 / 47)


def test_health_counts_cuts_and_lengths(layout, tokenizer_folder):
    rows = [good(n, part="train" if n < 3 else "test") for n in range(10, 40)]
    rows += [good(n, part="train") for n in (1, 2, 3)]
    rows[0] |= {"chosen": "y" * 25}
    rows[1] |= {"prompt": "p" * 30, "rejected_complete": False}
    build(rows, layout, tokenizer_folder, split={"column": "part"})
    checks = health(layout)
    assert (checks["pairs", "train"]["count"], checks["pairs", "test"]["count"]) == (3, 30)
    assert checks["chosen truncated", "test"]["count"] == 1
    assert checks["chosen truncated", "test"]["share"] == pytest.approx(1 / 30)
    assert checks["chosen truncated", "train"]["count"] == 0
    assert checks["prompt truncated", "all"]["count"] == 1
    assert checks["chosen without EOS", "all"]["count"] == 1  # the cut one
    assert checks["rejected without EOS", "all"]["count"] == 1  # the incomplete one
    assert checks["double BOS", "all"]["count"] == 0
    assert checks["prompt tokens, median", "train"]["count"] == len("ask 1")
    assert checks["chosen tokens, median", "all"]["count"] == len("yes") + 1
    assert checks["rejected tokens, 95th percentile", "all"]["count"] == len("no") + 1
    assert checks["chosen tokens, median", "all"]["share"] is None


def test_too_many_unusable_rows_stop_after_they_are_listed(layout, tokenizer_folder):
    rows = [good(n) for n in range(8)] + [good(8, chosen=""), good(9, rejected=None)]
    message = (
        r"rows\.jsonl: 2 of 10 rows \(20\.0%\) cannot be used, pairs\.max_unusable_share is 10\.0%; "
        r"row 9: chosen is empty; row 10: rejected is missing; all are listed in .*unusable\.jsonl"
    )
    with pytest.raises(InputError, match=message):
        build(rows, layout, tokenizer_folder, max_unusable_share=0.1)
    assert [item["row"] for item in read_jsonl(layout.unusable_rows)] == [9, 10]
    assert not layout.pairs("train").exists()


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([], {}, "holds no rows"),
        ([good(1, chosen="")], {"max_unusable_share": 1.0}, "no pair is left; row 1: chosen is empty"),
        ([good(n) for n in range(5)], {"split": {"test_fraction": 1e-9}}, "no pair is left for test; mend pairs.split"),
    ],
)
def test_no_pairs_is_an_error(layout, tokenizer_folder, rows, settings, message):
    with pytest.raises(InputError, match=message):
        build(rows, layout, tokenizer_folder, **settings)


def test_tokenizer_without_eos_stops_before_the_rows_are_read(layout, tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "no_eos")
    with pytest.raises(InputError, match="no EOS token"):
        build([], layout, tmp_path / "no_eos")


def test_tokenizer_without_pad_builds_the_same_pairs(layout, tokenizer_folder, tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "no_pad")
    rows = [good(n) for n in range(40)]
    pd.testing.assert_frame_equal(build(rows, layout, tmp_path / "no_pad"), build(rows, layout, tokenizer_folder))


def answers(name, *outputs):
    """Rows of an answers file: (text, reward) or (text, reward, complete) for each answer to one prompt."""
    messages = [{"role": "user", "content": name}]
    shared = {"prompt_id": digest(messages), "prompt": name, "messages": json.dumps(messages)}
    return [
        {**shared, "answer_index": i, "output": o[0], "reward": o[1], "complete": o[2:] != (False,), "tokens": 3}
        for i, o in enumerate(outputs)
    ]


def test_the_best_answer_is_chosen_against_the_worst():
    rows = answers("p", ("mid", 0.5), ("top", 0.9, False), ("low", -1.0), ("also top", 0.9), ("also low", -1.0))
    [(row, pair)] = best_against_worst(rows, 0.0)
    assert isinstance(pair, Candidate)
    assert (row, pair.prompt, pair.chosen, pair.rejected) == (1, "p", "top", "low")
    assert pair.meta == {
        "chosen_complete": False,
        "chosen_reward": 0.9,
        "chosen_answer_index": 1,
        "rejected_complete": True,
        "rejected_reward": -1.0,
        "rejected_answer_index": 2,
    }
    [(_, reordered)] = best_against_worst(rows[::-1], 0.0)
    assert reordered == pair


@pytest.mark.parametrize(
    ("outputs", "gap", "reason"),
    [
        ([("a", 0.5), ("b", 0.5)], 0.0, "best and worst reward differ by 0, not more than 0"),
        ([("a", 0.5), ("b", 0.25)], 0.25, "best and worst reward differ by 0.25, not more than 0.25"),
        ([("a", 0.5), ("a", 0.25)], 0.0, "best and worst answer are the same text"),
        ([("a", 0.5), ("b", 0.2), ("", 0.9)], 0.4, "best and worst reward differ by 0.3, not more than 0.4"),
    ],
)
def test_prompts_without_a_preference_say_why(outputs, gap, reason):
    problems = [problem for _, problem in best_against_worst(answers("p", *outputs), gap)]
    assert [str(problem) for problem in problems if problem.kind == NO_PREFERENCE] == [reason]


def test_answers_without_text_are_listed_and_never_a_side():
    outcomes = best_against_worst(answers("p", (" ", 1.0), ("b", 0.2), ("c", 0.1)), 0.0)
    pair = next(outcome for _, outcome in outcomes if isinstance(outcome, Candidate))
    [(row, problem)] = [item for item in outcomes if not isinstance(item[1], Candidate)]
    assert (pair.chosen, pair.rejected) == ("b", "c")
    assert (row, problem.kind) == (1, EMPTY_ANSWER)
    assert "answer 0 to prompt" in str(problem)


def build_on_policy(layout, tokenizer_folder, train, test, **changes):
    write_jsonl(layout.answers("train"), train)
    write_jsonl(layout.answers("test"), test)
    on_policy = OnPolicySettings(judge="reward:vowels", sampling=SamplingSettings(answers=3), minimum_gap=0.1)
    pairs = PairsSettings(source="on_policy:prompts.jsonl", on_policy=on_policy, **changes)
    view = SimpleNamespace(pairs=pairs, tokens=TokenSettings(template="plain", max_response=20))
    run(view, layout, tokenizer_folder)


def test_on_policy_prompts_without_preference_are_listed_and_not_held_against_the_data(layout, tokenizer_folder):
    train = answers("one", (" a", 1.0), (" b", 0.0), (" c", 0.5, False)) + answers("two", (" a", 0.0), (" b", 0.0))
    test = answers("three", (" a", 0.0), (" b", 1.0)) + answers("four", (" a", 0.05), (" b", 0.0), ("", 1.0))
    build_on_policy(layout, tokenizer_folder, train, test, max_unusable_share=0.0)
    [pair] = read_parquet(layout.pairs("train")).to_dict("records")
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == ("one", " a", " b")
    assert read_parquet(layout.pairs("test"))["chosen"].tolist() == [" b"]
    assert read_parquet(layout.prompts)["prompt"].tolist() == ["three", "four"]
    listed = [(Path(item["file"]).name, item["row"], item["kind"]) for item in read_jsonl(layout.unusable_rows)]
    assert sorted(listed) == [
        ("test.jsonl", 3, NO_PREFERENCE),
        ("test.jsonl", 5, EMPTY_ANSWER),
        ("train.jsonl", 4, NO_PREFERENCE),
    ]
    checks = health(layout)
    counts = {name: checks[name, "all"]["count"] for name in ("rows read", NO_PREFERENCE, EMPTY_ANSWER, "usable")}
    assert counts == {"rows read": 4, NO_PREFERENCE: 2, EMPTY_ANSWER: 1, "usable": 2}


def test_on_policy_prompt_in_both_splits_is_an_error(layout, tokenizer_folder):
    test = answers("one", (" c", 0.0), (" d", 1.0))
    with pytest.raises(InputError, match="1 prompts are in both train and test"):
        build_on_policy(layout, tokenizer_folder, answers("one", (" a", 1.0), (" b", 0.0)), test)


@pytest.mark.skipif(SHARED is None, reason="MALLOWSPO_SHARED_DATA names no folder of real data")
def test_real_dialogues_keep_to_the_threshold(layout, tokenizer_folder):
    source = next(Path(SHARED).glob("hh_*.jsonl.gz"))
    pairs = PairsSettings(source=f"path:{source}", max_unusable_share=0.01)
    view = SimpleNamespace(pairs=pairs, tokens=TokenSettings(template="chat", max_prompt=2000, max_response=2000))
    run(view, layout, tokenizer_folder)
    checks = health(layout)
    assert checks["rows read", "all"]["count"] == len(read_rows(pairs))
    assert checks["usable", "all"]["share"] > 0.99
    assert checks["prompts in both splits", "all"]["count"] == 0
