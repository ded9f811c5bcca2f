"""A comparison whose judge another experiment of the same run trains: the judge comes first."""

import yaml

from tests.workflow.conftest import Checkout

JUDGE = {
    "kind": "reward_model",
    "title": "A judge",
    "model": {"source": "made_up:two_layers"},
    "pairs": {"source": "path:config/pairs/plain_endings.jsonl", "split": {"share": {"of": 3, "parts": [3]}}},
    "training": {"learning_rate": 1e-3, "pairs_per_step": 2},
}


def judged(checkout):
    """The smoke experiment with that judge, and the judge's own file."""
    folder = checkout.folder / "config/experiments"
    values = yaml.safe_load((folder / "smoke.yaml").read_text())
    values["evaluation"]["judge"] = "reward:path:results/judge/model"
    (folder / "judged.yaml").write_text(yaml.safe_dump(values))
    (folder / "judge.yaml").write_text(yaml.safe_dump(JUDGE))


def test_the_judge_is_trained_before_it_is_asked(tmp_path):
    checkout = Checkout(tmp_path)
    judged(checkout)
    plain = checkout.planned("smoke")
    both = checkout.planned("judge,judged")
    assert both == {**plain, "reward_model": 1, "study": 1, "track_study": 1}
    alone = checkout.planned("judged")
    assert alone == {**plain, "reward_model": 1, "study": 1}, "it comes by itself, untracked"
    (checkout.folder / "config/experiments/judge.yaml").rename(checkout.folder / "judge.yaml")
    lacking = checkout.snakemake("--dry-run", experiments="judged")
    assert lacking.returncode != 0 and "results/judge/model" in lacking.stderr + lacking.stdout
