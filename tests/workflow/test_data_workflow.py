"""Data files in the workflow: fetched before they are read, from a folder or an address; absent sets are left out."""

import hashlib
import json

import yaml

from tests.workflow.conftest import Checkout


def with_file(checkout, url=None):
    """The smoke experiment, whose further pairs are a file of the list, which lies in a folder of one's own."""
    own, name = checkout.folder / "own", "endings.jsonl"
    own.mkdir()
    content = (checkout.folder / "config/pairs/plain_endings.jsonl").read_bytes()
    (own / name).write_bytes(content)
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), "licence": "none", "what": "endings"}
    (checkout.folder / "config/data.yaml").write_text(yaml.safe_dump({name: entry | ({"url": url} if url else {})}))
    file = checkout.folder / "config/experiments/smoke.yaml"
    values = yaml.safe_load(file.read_text())
    values["evaluation"]["other_pairs"]["endings"] |= {"source": f"path:data/{name}", "where_absent": "skip"}
    file.write_text(yaml.safe_dump(values))
    return own


def test_a_file_is_fetched_before_it_is_read_and_once(tmp_path, monkeypatch):
    checkout = Checkout(tmp_path)
    monkeypatch.setenv("MALLOWSPO_SHARED_DATA", str(with_file(checkout)))
    planned = checkout.planned("smoke")
    assert planned["fetch_data"] == planned["other_pairs"] == 1
    done = checkout.snakemake("data/endings.jsonl")
    assert done.returncode == 0, done.stderr[-2000:]
    rows = (tmp_path / "data/endings.jsonl").read_text().splitlines()
    assert len(rows) == 16 and json.loads(rows[0])["prompt"]
    assert "fetch_data" not in checkout.planned("smoke")


def test_a_set_without_its_file_is_left_out_aloud(tmp_path, monkeypatch):
    checkout = Checkout(tmp_path)
    with_file(checkout)
    monkeypatch.delenv("MALLOWSPO_SHARED_DATA", raising=False)
    planned = checkout.planned("smoke")
    assert not {"fetch_data", "other_pairs", "score_other_pairs"} & set(planned) and "compare" in planned
    said = checkout.snakemake("--dry-run").stderr
    assert "mallowspo: smoke: evaluation.other_pairs.endings is left out: path:data/endings.jsonl" in said


def test_a_file_with_an_address_is_planned_without_a_network(tmp_path, monkeypatch):
    checkout = Checkout(tmp_path)
    with_file(checkout, url="http://127.0.0.1:9/endings.jsonl")
    monkeypatch.delenv("MALLOWSPO_SHARED_DATA", raising=False)
    assert checkout.planned("smoke")["fetch_data"] == 1
    failed = checkout.snakemake("data/endings.jsonl")
    assert failed.returncode != 0 and not (tmp_path / "data/endings.jsonl").exists()
    log = (tmp_path / "results/logs/fetch_data-endings.jsonl.log").read_text()
    assert "data/endings.jsonl: could not be downloaded from http://127.0.0.1:9/endings.jsonl" in log
