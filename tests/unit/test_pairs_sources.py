"""Files of every kind, whole and broken; the hub without a network; files of prompts."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from mallowspo.errors import InputError
from mallowspo.files import digest
from mallowspo.pairs.sources import pinned, read_prompts, read_rows
from mallowspo.settings import OnPolicySettings, PairsSettings, SamplingSettings

ROWS = [{"prompt": f"ask {n}", "chosen": "yes\nNA", "rejected": "None, \u2028 nö"} for n in range(1, 4)]
PROMPTS_FILE = Path(__file__).parents[2] / "config" / "prompts" / "reviews.jsonl"


def write(path, rows=ROWS):
    """Write rows in the kind that the file's name says."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        pd.DataFrame(rows).to_parquet(path)
        return path
    text = {
        "jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        "json": json.dumps(rows),
        "csv": pd.DataFrame(rows).to_csv(index=False),
    }[kind]
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(path):
    return read_rows(PairsSettings(source=f"path:{path}"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.csv", "a.csv.gz", "a.parquet"])
def test_every_kind_of_file_gives_the_same_numbered_rows(tmp_path, name):
    assert read(write(tmp_path / name)) == list(enumerate(ROWS, start=1))


def test_path_is_relative_to_the_current_folder(tmp_path, monkeypatch):
    write(tmp_path / "a.jsonl")
    monkeypatch.chdir(tmp_path)
    assert len(read("a.jsonl")) == 3


def test_parquet_messages_come_back_as_lists(tmp_path):
    messages = [{"role": "user", "content": "hi"}]
    assert read(write(tmp_path / "a.parquet", [{"prompt": messages}])) == [(1, {"prompt": messages})]


def test_row_number_of_jsonl_is_its_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    assert read(tmp_path / "a.jsonl") == [(1, {"a": 1}), (3, {"a": 2})]


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl: no such file \(relative paths start at .*mend pairs\.source"):
        read(tmp_path / "none.jsonl")


def test_unknown_kind_is_named(tmp_path):
    with pytest.raises(InputError, match=r"a\.txt: unknown kind of file; expected \.jsonl"):
        read(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.jsonl", r"a\.jsonl: after row 2: not whole JSONL"),
        ("a.json", r"a\.json: after row 0: not whole JSON"),
        ("a.csv", r"a\.csv: after row 2: not whole CSV"),
        ("a.parquet", r"a\.parquet: cannot be read"),
        ("a.jsonl.gz", r"a\.jsonl\.gz: gzip data is cut off or damaged after row \d"),
        ("a.csv.gz", r"a\.csv\.gz: gzip data is cut off or damaged after row \d"),
    ],
)
def test_truncated_file_is_named(tmp_path, name, message):
    path = write(tmp_path / name)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_damaged_gzip_is_named(tmp_path):
    path = write(tmp_path / "a.jsonl.gz")
    content = bytearray(path.read_bytes())
    content[30] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.jsonl\.gz: .*after row \d"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n[2]\n', r"row 2 is no object with columns, but '\[2\]'"),
        ("a.csv", b"chosen,rejected\na,b,c\n", "row 1 has more values than the header has columns"),
        ("a.jsonl", b'{"a": "\xff"}\n', "after row 0: not whole JSONL .*utf-8"),
    ],
)
def test_content_that_is_no_table_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path / name)


def test_csv_row_that_is_too_short_has_a_missing_value(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\na,b\n")
    assert read(tmp_path / "a.csv") == [(1, {"prompt": "a", "chosen": "b", "rejected": None})]


def read_hub(place, home):
    """What reading `hub:PLACE` prints, offline, in a process of its own: the switch is read when the library loads."""
    code = (
        "import sys\n"
        "from mallowspo.settings import PairsSettings\n"
        "from mallowspo.pairs.sources import read_rows\n"
        "from mallowspo.errors import InputError\n"
        "try:\n    print(read_rows(PairsSettings(source='hub:' + sys.argv[1])))\n"
        "except InputError as error:\n    print(error)\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "PATH": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, place]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip()


def test_hub_without_a_network_is_one_line_that_says_what_to_do(tmp_path):
    [line] = read_hub("nobody/nothing@abc", tmp_path).splitlines()
    assert line.startswith("pairs.source 'hub:nobody/nothing@abc', split 'train': could not be loaded (")
    assert line.endswith("download the file elsewhere and use path:FILE")


def test_hub_rows_are_numbered_from_one(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "train.jsonl", [{"chosen": "b", "rejected": [1, 2]}])
    assert read_hub(f"{folder}@main", tmp_path) == "[(1, {'chosen': 'b', 'rejected': [1, 2]})]"


def prompts_settings(path, **changes):
    on_policy = OnPolicySettings(judge="reward:vowels", sampling=SamplingSettings(answers=2))
    return PairsSettings(source=f"on_policy:{path}", on_policy=on_policy, **changes)


def test_prompts_are_split_by_their_column_and_limited(tmp_path):
    rows = [{"prompt": f"p{n}", "split": "test" if n % 3 == 0 else "train"} for n in range(12)]
    path = write(tmp_path / "p.jsonl", rows)
    table = read_prompts(prompts_settings(path, split={"column": "split"}, max_train=5))
    assert dict(table["split"].value_counts()) == {"train": 5, "test": 4}
    assert set(table.loc[table["split"] == "test", "prompt"]) == {"p0", "p3", "p6", "p9"}
    first = table.iloc[0]
    messages = [{"role": "user", "content": first["prompt"]}]
    assert json.loads(first["messages"]) == messages
    assert first["prompt_id"] == digest(messages)


def test_prompts_without_a_column_are_split_by_draw(tmp_path):
    path = write(tmp_path / "p.jsonl", [{"prompt": f"p{n}"} for n in range(200)])
    table = read_prompts(prompts_settings(path, split={"test_fraction": 0.3}))
    assert len(table) == 200
    assert abs((table["split"] == "test").mean() - 0.3) < 0.13  # 4 standard errors


def test_prompts_may_be_messages(tmp_path):
    messages = [{"role": "user", "content": "why?"}]
    path = write(tmp_path / "p.jsonl", [{"prompt": messages}])
    assert read_prompts(prompts_settings(path))["prompt"].tolist() == ["why?"]
    assert read_prompts(prompts_settings(path), "plain")["prompt"].tolist() == ["\n\nHuman: why?\n\nAssistant:"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": ""}, "row 2: prompt is empty; mend or remove the row"),
        ({"text": "a"}, "row 2: prompt is missing; mend or remove the row"),
        ({"prompt": "a"}, "row 2 repeats the prompt of row 1"),
    ],
)
def test_prompts_that_cannot_be_used_are_named(tmp_path, row, message):
    path = write(tmp_path / "p.jsonl", [{"prompt": "a"}, row])
    with pytest.raises(InputError, match=message):
        read_prompts(prompts_settings(path))


def test_the_prompts_that_come_with_the_project():
    table = read_prompts(prompts_settings(PROMPTS_FILE, split={"column": "split"}))
    counts = table["split"].value_counts()
    assert counts["train"] >= 160
    assert counts["test"] >= 80
    assert table["prompt"].str.strip().eq(table["prompt"]).all()
    assert table["prompt"].str.split().str.len().between(3, 10).all()


TEXTS = [{"text": f"word{n} two three four five\nsix seven eight nine {n}"} for n in range(30)]


def test_a_text_is_cut_into_a_beginning_and_what_goes_on(tmp_path):
    path = write(tmp_path / "t.jsonl", TEXTS)
    rows = read_rows(PairsSettings(source=f"path:{path}", texts={"least_words": 2, "most_words": 6}))
    for (number, row), text in zip(rows, TEXTS, strict=True):
        assert row["prompt"] + row["chosen"] == text["text"] and row["chosen"][0].isspace()
        assert row["rejected"] == rows[number % 30][1]["chosen"], "how the next one goes on"
    lengths = [len(row["prompt"].split()) for _, row in rows]
    assert set(lengths) == {2, 3, 4, 5, 6}
    again = read_rows(PairsSettings(source=f"path:{path}", texts={"least_words": 2, "most_words": 6}))
    assert again == rows


def test_prompts_are_the_beginnings_of_texts_and_those_that_begin_alike_are_told(tmp_path, caplog):
    path = write(tmp_path / "t.jsonl", [*TEXTS, {"text": TEXTS[0]["text"] + " more"}])
    settings = prompts_settings(path, texts={"least_words": 3, "most_words": 3})
    with caplog.at_level("INFO"):
        table = read_prompts(settings)
    assert table["prompt"].tolist() == [f"word{n} two three" for n in range(30)]
    assert "1 of 31 texts begin as another one does and give no further prompt" in caplog.text


def test_a_text_of_too_few_words_is_named(tmp_path):
    path = write(tmp_path / "t.jsonl", [{"text": "one two three"}, {"text": "one two"}, {"other": "a"}])
    texts = {"least_words": 2, "most_words": 2}
    (_, good), (_, short), (_, none) = read_rows(PairsSettings(source=f"path:{path}", texts=texts))
    assert (good["prompt"], good["chosen"]) == ("one two", " three")
    assert short["prompt"] is short["chosen"] is none["prompt"] is None
    with pytest.raises(InputError, match="row 2: prompt is missing"):
        read_prompts(prompts_settings(path, texts=texts))
    with pytest.raises(ValueError, match="most_words must be at least least_words"):
        PairsSettings(source=f"path:{path}", texts={"least_words": 3, "most_words": 2})


def test_prompts_of_the_hub_need_a_revision():
    settings = prompts_settings("hub:nobody/nothing")
    with pytest.raises(InputError, match=r"on_policy:hub:nobody/nothing.*Write hub:nobody/nothing@REVISION"):
        pinned(settings)


def test_the_instructions_that_come_with_the_project():
    table = read_prompts(prompts_settings(PROMPTS_FILE.with_name("instructions.jsonl"), split={"column": "split"}))
    assert table["split"].value_counts().to_dict() == {"train": 107, "test": 105}
    assert table["prompt"].str.strip().eq(table["prompt"]).all() and table["prompt"].str.len().max() < 120
