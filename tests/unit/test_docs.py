"""The pages of docs: their code runs as it stands, and their names and numbers are the code's."""

import json
import math
import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import mallowspo.dispersion
import mallowspo.mallows
import mallowspo.objectives
from mallowspo.cli import app
from mallowspo.files import read_json, read_parquet
from mallowspo.methods import CHOICES
from mallowspo.models import load_model, load_tokenizer, make_made_up
from mallowspo.objectives import LINKS
from mallowspo.scoring import Scorer, make_batch

DOCS = Path(__file__).parents[2] / "docs"
WORDS = ["good", "bad", "film", "great", "awful", "plot", "actor", "scene"]


def blocks(page, language):
    return re.findall(
        rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def made_up_pairs(count):
    rows = []
    for number in range(count):
        word, other = WORDS[number % 8], WORDS[(number * 3 + 1) % 8]
        rows.append({"prompt": f"Number {number} was", "chosen": f" a {word} film", "rejected": f" {other} {word} and"})
    return rows


def padded(tokenizer, rows, side):
    """Token ids and response mask of a side, and the (prompt, response) rows they were made from."""
    pairs = [
        (tokenizer(row["prompt"])["input_ids"], tokenizer(row[side], add_special_tokens=False)["input_ids"])
        for row in rows
    ]
    batch = make_batch(pairs)
    return batch.tokens, batch.response.float(), batch


def test_the_loop_of_the_page_runs(tmp_path):
    make_made_up(tmp_path)
    tokenizer, policy, reference = load_tokenizer(tmp_path), load_model(tmp_path), load_model(tmp_path)
    batches, own = [], []
    for start in (0, 4, 8):
        rows, batch = made_up_pairs(12)[start : start + 4], {}
        for side in ("chosen", "rejected"):
            batch[side], batch[f"{side}_mask"], scored = padded(tokenizer, rows, side)
            own.append(Scorer(reference, "float32")(scored, want_entropy=True))
        batches.append(batch)
    names = {"policy": policy, "reference": reference, "batches": batches}
    names["optimizer"] = torch.optim.SGD(policy.parameters(), lr=0.1)
    (code,) = blocks("use_in_your_own_code.md", "python")
    assert code.count("# +") == 15
    before = [parameter.clone() for parameter in policy.parameters()]
    exec(compile(code, "use_in_your_own_code.md", "exec"), names)
    # Its log-probabilities and entropies are those of the kernel that the stages share.
    for batch, chosen in zip(batches, own[::2], strict=True):
        assert torch.allclose(batch["chosen_reference"], chosen.logp, atol=1e-3)
        assert torch.allclose(batch["chosen_entropy"], chosen.entropy, atol=1e-3)
    assert names["weight"].mean().item() == pytest.approx(1, abs=1e-6)
    assert names["weight"].std() > 0
    assert names["losses"][0] == pytest.approx(math.log(2), abs=1e-5)
    assert names["losses"][-1] != names["losses"][0]
    assert any(not torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


def test_the_commands_of_the_page_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_made_up(tmp_path / "my_model")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made_up_pairs(40)))
    (settings,) = blocks("use_in_your_own_code.md", "yaml")
    (tmp_path / "mine.yaml").write_text(settings)
    (commands,) = blocks("use_in_your_own_code.md", "bash")
    for command in commands.splitlines():
        program, *arguments = shlex.split(command)
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert (program, done.exit_code) == ("mallowspo", 0), command
    run = tmp_path / "results/mine/runs/mallows_theta/seed=1"
    pairs = len(read_parquet(tmp_path / "results/mine/pairs/train.parquet"))
    summary = read_json(run / "summary.json")
    assert summary["pairs"] == pairs > 30
    assert summary["step0_loss"] == pytest.approx(math.log(2), abs=1e-4)
    load_model(run / "model")


def test_the_method_page_names_what_there_is():
    text = (DOCS / "method.md").read_text(encoding="utf-8")
    modules = {name: getattr(mallowspo, name) for name in ("mallows", "objectives", "dispersion")}
    named = set(re.findall(r"\b(mallows|objectives|dispersion)\.([A-Za-z_]{4,})\b", text))
    settings = {"yaml", "json", "estimator", "constant"}
    missing = [
        f"{module}.{name}" for module, name in named if name not in settings and not hasattr(modules[module], name)
    ]
    assert len(named) > 15
    assert not missing
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (DOCS / link).exists()


def test_the_method_pages_table_of_smoothings_is_right():
    """Push at s = 0 as a multiple of Mallows-theta's, which is w / 2."""
    text = (DOCS / "method.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)`.*\| ([\d./ ]+) \|$", text, re.MULTILINE))
    assert {*rows, "none"} == set(CHOICES["smoothing"])
    for smoothing, printed in rows.items():
        for phi, value in zip((0.2, math.exp(-0.5), 0.95), printed.split("/"), strict=True):
            weight = torch.tensor(-2 * math.log(phi), dtype=torch.float64)
            s = torch.tensor(1e-9, dtype=torch.float64, requires_grad=True)
            LINKS["mallows_phi"](s, weight, smoothing=smoothing).backward()
            digits = len(value.strip().split(".")[1])
            assert -s.grad.item() / (weight.item() / 2) == pytest.approx(float(value), abs=0.51 * 10**-digits)
