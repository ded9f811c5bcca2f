"""Files appear whole or not at all."""

import math

import pandas as pd
import pytest

from mallowspo import files
from mallowspo.errors import InputError


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_reads_back(tmp_path):
    files.write_json(tmp_path / "a.json", {"é": [1, None]})
    files.write_jsonl(tmp_path / "deep/b.jsonl", [{"x": 1}, {"x": "a\u2028b\u0085"}])
    files.write_parquet(tmp_path / "c.parquet", pd.DataFrame({"x": [1.5]}))
    assert files.read_json(tmp_path / "a.json") == {"é": [1, None]}
    assert files.read_jsonl(tmp_path / "deep/b.jsonl") == [{"x": 1}, {"x": "a\u2028b\u0085"}]
    assert files.read_parquet(tmp_path / "c.parquet")["x"].tolist() == [1.5]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, 1)
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(path, math.nan)
    assert files.read_json(path) == 1
    assert leftovers(tmp_path) == ["a.json"]


@pytest.mark.parametrize("fails_in", ["write", "sync"])
def test_a_full_disk_is_told_and_nothing_half_written_stays(tmp_path, monkeypatch, fails_in):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    if fails_in == "write":
        monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    else:
        monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(InputError, match=r"c.parquet: could not be written \(No space left on device\)"):
        files.write_parquet(tmp_path / "c.parquet", pd.DataFrame({"x": [1]}))
    assert leftovers(tmp_path) == []


def test_a_folder_appears_only_when_its_block_ends_well(tmp_path):
    with pytest.raises(RuntimeError), files.whole_directory(tmp_path / "model") as temporary:
        (temporary / "half").write_text("")
        raise RuntimeError
    assert leftovers(tmp_path) == []
    for content in ("old", "new"):
        with files.whole_directory(tmp_path / "model") as temporary:
            (temporary / content).write_text("")
    assert leftovers(tmp_path / "model") == ["new"]


def test_broken_files_are_named(tmp_path):
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.jsonl").write_text('{"x": 1}\n{"x": \n')
    (tmp_path / "c.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match=r"a.json: not JSON"):
        files.read_json(tmp_path / "a.json")
    with pytest.raises(InputError, match=r"b.jsonl: line 2 is not JSON"):
        files.read_jsonl(tmp_path / "b.jsonl")
    with pytest.raises(InputError, match=r"c.parquet: not a whole Parquet file"):
        files.read_parquet(tmp_path / "c.parquet")
    for read in (files.read_json, files.read_jsonl, files.read_parquet):
        with pytest.raises(InputError, match="no such file"):
            read(tmp_path / "missing")


def test_digest_ignores_key_order_only():
    assert files.digest({"a": 1, "b": [1, 2]}) == files.digest({"b": [1, 2], "a": 1})
    assert files.digest([1, 2]) != files.digest([2, 1])
