"""A whole comparison by an endpoint, tracked: the key is in no result, no log and no store."""

import logging
from pathlib import Path

import pytest

from mallowspo import tracking
from mallowspo.evaluation import alpaca
from mallowspo.files import read_json, read_jsonl, read_parquet, write_jsonl, write_text
from mallowspo.layout import REFERENCE
from tests.chat_endpoint import Endpoint, prefers_longer
from tests.made_up_results import write

KEY = "sk-test-fedcba9876543210"


def test_the_key_reaches_nothing_that_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    made = write(tmp_path / "results", ("dpo", "mallows_theta"), (0,), prompts=4, steps=2)
    # The made-up texts are of markup on purpose; here they must be told apart by what the endpoint is shown.
    for method in (REFERENCE, "dpo", "mallows_theta"):
        rows = read_jsonl(made.layout.samples(method, 0))
        named = [{**r, "instruction": r["prompt_id"], "output": f"{method} {n}" * (1 + n)} for n, r in enumerate(rows)]
        write_jsonl(made.layout.samples(method, 0), named)
    once = made.experiment.evaluation.alpaca.settings.model_copy(update={"asked_again_share": 0.0})
    changed = made.experiment.evaluation.alpaca.model_copy(update={"judge": "openai:tiny", "settings": once})
    evaluation = made.experiment.evaluation.model_copy(update={"alpaca": changed})
    experiment = made.experiment.model_copy(update={"evaluation": evaluation})
    endpoint = Endpoint()
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    try:
        for method in ("dpo", "mallows_theta"):
            alpaca.run(experiment.stage_view("alpaca"), made.layout, method, 0)
    finally:
        endpoint.close()
    assert endpoint.keys_seen == {f"Bearer {KEY}"} and set(endpoint.asked.values()) == {1}
    table = read_parquet(made.layout.scores("mallows_theta", 0) / "alpaca_against.parquet")
    ours, theirs = (
        {(r["prompt_id"], r["answer_index"]): r["output"] for r in read_jsonl(made.layout.samples(name, 0))}
        for name in ("mallows_theta", "dpo")
    )
    for row in table.to_dict("records"):
        key = (row["prompt_id"], row["answer_index"])
        assert row["value"] == pytest.approx(prefers_longer(ours[key], theirs[key]), abs=1e-9)
    assert read_json(made.layout.scores("dpo", 0) / "judge.json")["comparisons"][0]["tokens_in"] > 0
    for file in (made.layout.report, made.layout.tables / "main.csv", made.layout.figures / "curves.svg"):
        write_text(file, "text")
    tracking.run(experiment.stage_view("track"), made.layout, f"sqlite:///{tmp_path}/results/mlflow.db")
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "mlflow.db" for path in kept)
    assert not [path for path in kept if KEY.encode() in path.read_bytes()]
    assert KEY not in caplog.text
