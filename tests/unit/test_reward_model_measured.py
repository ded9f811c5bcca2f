"""How good a reward model is, in numbers, on its page and on the reports of what it judges; and its settings."""

import math

import numpy as np
import pandas as pd
import pytest
import yaml

from mallowspo.errors import InputError
from mallowspo.experiments import load_study
from mallowspo.files import write_json, write_parquet
from mallowspo.inference import estimate
from mallowspo.judges.names import model_of
from mallowspo.layout import Layout
from mallowspo.plan.command import make_case
from mallowspo.report.measured_judge import how_good, judge_sentences
from mallowspo.reward_model import measure

VALUES = {
    "kind": "reward_model",
    "title": "A judge",
    "model": {"source": "made_up:two_layers"},
    "pairs": {"source": "hub:somebody/pairs@main"},
    "training": {"learning_rate": 1e-5, "pairs_per_step": 4},
}
ON_POLICY = {"source": "on_policy:x.jsonl", "on_policy": {"judge": "reward:vader", "sampling": {"answers": 2}}}


def write(folder, **changes):
    file = folder / "judge.yaml"
    file.write_text(yaml.safe_dump({**VALUES, **changes}))
    return str(file)


def pairs(count, prompts):
    rows = [
        {
            "pair_id": f"pair {number}",
            "prompt_id": f"prompt {number % prompts}",
            "prompt": "Was it?",
            "chosen": "yes" * (1 + number % 3),
            "rejected": "no" * (1 + number % 2),
        }
        for number in range(count)
    ]
    return pd.DataFrame(rows)


def test_accuracy_is_a_mean_over_prompts_with_the_packages_interval():
    table = pairs(40, prompts=10)
    margins = np.where(table.index % 4 == 0, -1.0, 2.0)
    margins[3] = 0.0  # a tie counts half
    scored = measure.with_rewards(table, margins, np.zeros(40))
    found = measure.measured(scored, table, 0.95).set_index("measure")
    right = pd.Series(0.5 + 0.5 * np.sign(margins)).groupby(table["prompt_id"]).mean()
    expected = estimate(right, 0.95)
    row = found.loc[measure.ALL_PAIRS]
    assert (row["value"], row["low"], row["high"]) == pytest.approx((expected.mean, expected.low, expected.high))
    assert (row["n"], row["unit"]) == (10, "prompts")
    loss = pd.Series(np.log1p(np.exp(-margins))).groupby(table["prompt_id"]).mean().mean()
    assert found.loc[measure.LOSS, "value"] == pytest.approx(loss)
    assert found.loc[measure.LOSS, "compare"] == pytest.approx(math.log(2))


def test_a_model_that_goes_by_length_alone_is_found_out():
    table = pairs(60, prompts=60)
    table["chosen"] = ["a" * (5 + number % 7) for number in range(60)]
    table["rejected"] = ["b" * (8 - number % 5) for number in range(60)]
    lengths = [table[side].str.len().to_numpy(dtype=float) for side in ("chosen", "rejected")]
    found = measure.measured(measure.with_rewards(table, *lengths), table, 0.95).set_index("measure")
    assert found.loc[measure.FAVOURS_LENGTH, "value"] == 1.0
    assert 0 < found.loc[measure.FAVOURS_LENGTH, "compare"] < 1, "what the chosen answers do"
    assert found.loc[measure.LONGER, "value"] == 1.0 and found.loc[measure.SHORTER, "value"] == 0.0


def test_a_slope_like_that_of_any_judge():
    table, draw = pairs(2000, prompts=2000), np.random.default_rng(1)
    table["chosen"] = ["a" * int(n) for n in draw.integers(5, 50, 2000)]
    table["rejected"] = ["b" * int(n) for n in draw.integers(5, 50, 2000)]
    ratio = np.log(table["chosen"].str.len() / table["rejected"].str.len())
    scored = measure.with_rewards(table, 2 * ratio + draw.logistic(size=2000), np.zeros(2000))
    row = measure.measured(scored, table, 0.95).set_index("measure").loc[measure.SLOPE]
    assert row["low"] < 2 < row["high"] and row["value"] == pytest.approx(2, abs=0.3)
    assert abs(row["compare"]) < 0.3, "the chosen answers have none"


def leave(results, accuracy=0.641, prompts=("a", "b")):
    """What a reward model's experiment leaves for the reports of others."""
    place = Layout(str(results), "judge")
    numbers = {"accuracy": accuracy, "accuracy_low": 0.61, "accuracy_high": 0.672, "pairs": 413, "confidence": 0.95}
    write_json(place.study, {"kind": "reward_model", "numbers": numbers})
    write_parquet(place.pairs("train"), pd.DataFrame({"prompt_id": prompts}))
    return f"reward:path:{place.reward_model}"


def test_the_report_says_how_good_its_judge_is_and_whether_it_was_kept_apart(tmp_path):
    judge, layout = leave(tmp_path), Layout(str(tmp_path), "comparison")
    for split, prompts in (("train", ["c"]), ("test", ["d", "e"])):
        write_parquet(layout.pairs(split), pd.DataFrame({"prompt_id": prompts}))
    write_parquet(layout.prompts, pd.DataFrame({"prompt_id": ["d", "e"]}))
    assert how_good(judge) == "prefers the chosen answer on 64.1 [61.0, 67.2] % of 413 held-out pairs (95% interval)"
    assert judge_sentences(judge, layout).endswith("Of this comparison's prompts it was trained on none.")
    leave(tmp_path, prompts=("c", "e", "x"))
    assert "it was trained on 2, so keep them apart (pairs.split.share)" in judge_sentences(judge, layout)
    for other in ("reward:vader", f"reward:path:{tmp_path}/elsewhere/model", f"logprob:path:{tmp_path}/x", None):
        assert how_good(other) == judge_sentences(other, layout) == ""


def test_folders_in_the_names_of_judges():
    assert model_of("reward:path:results/judge/model") == "results/judge/model"
    assert model_of("reward:path:some folder#logit=1") == model_of("logprob:path:some folder") == "some folder"
    assert [model_of(name) for name in ("reward:vader", "reward:hub:a@b", "openai:gpt", None)] == [None] * 4
    assert Layout.of_reward_model("results/judge/model") == Layout("results", "judge")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seeds": 3}, "seeds: unknown key; did you mean 'seed'?"),
        ({"training": {"learning_rate": 1e-5, "pairs_per_step": 4, "lora": {}}}, "training.lora: unknown key"),
        ({"model": None}, "model: "),
        ({"tokens": {"template": "chat", "max_prompt": 5}}, "tokens.max_prompt: unknown key"),
        (
            {
                "pairs": {
                    "source": "on_policy:x.jsonl",
                    "on_policy": {"judge": "reward:vader", "sampling": {"answers": 2}},
                }
            },
            "a reward model is trained on pairs of hub: or path:",
        ),
    ],
    ids=str,
)
def test_wrong_settings_are_told_in_one_line(tmp_path, changes, says):
    with pytest.raises(InputError) as caught:
        load_study(write(tmp_path, **changes))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_the_training_depends_on_no_word_of_the_page(tmp_path):
    plain = load_study(write(tmp_path))
    for changes, same in (
        ({"title": "Another", "question": "Why?", "confidence": 0.9}, True),
        ({"compute": {"minutes": 7}}, True),
        ({"seed": 5}, False),
        ({"tokens": {"template": "plain"}}, False),
        ({"training": {**VALUES["training"], "epochs": 2}}, False),
    ):
        other = load_study(write(tmp_path, **changes))
        assert (other.stage_digest("reward-model") == plain.stage_digest("reward-model")) is same
    assert plain.stage_digest("model") != plain.stage_digest("study") != plain.stage_digest("reward-model")


def test_a_plan_says_that_it_plans_no_study(tmp_path):
    with pytest.raises(
        InputError, match=r"a study \(kind: reward_model\) is not planned; its jobs ask for its compute"
    ):
        make_case(write(tmp_path))
