"""The bench: made-up pairs have their stated lengths, operations are counted whole, both sides train alike."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast
from typer.testing import CliRunner

from mallowspo.bench import generation, processes, scaling, training, worker
from mallowspo.bench.data import WORDS, from_file, made_up
from mallowspo.bench.figures import Side, headline, spread
from mallowspo.bench.lengths import SETS, SHARES, draw
from mallowspo.bench.operations import counting
from mallowspo.bench.options import Options
from mallowspo.bench.tables import scaling_tables, training_tables
from mallowspo.bench.training import count_training_flops
from mallowspo.bench.with_trl import CANDIDATES
from mallowspo.cli import app
from mallowspo.errors import InputError
from mallowspo.files import read_json, write_json
from mallowspo.models import byte_tokenizer, fetch


def here(task, name, folder):
    """In place of a process: what it would read and write goes through JSON all the same."""
    result = worker.measure(json.loads(json.dumps(task)))
    return json.loads(json.dumps({**result, "process_seconds": 1.0}, allow_nan=False))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench") / "model"
    fetch("made_up:two_layers", None, folder)
    return folder


@pytest.mark.parametrize("name", SETS)
def test_drawn_lengths_have_the_stated_quantiles(name):
    drawn = np.array(draw(SETS[name], 400, 10_000, seed=3))
    for column, quantiles in zip(drawn.T, SETS[name].sides, strict=True):
        found = np.quantile(column, SHARES[1:-1])
        assert found == pytest.approx(quantiles[1:-1], rel=0.06, abs=1.5)


def test_few_pairs_have_the_stated_sizes():
    """Eight pairs with long answers: about 3,800 tokens in the issue's set."""
    sizes = [sum(2 * p + c + r for p, c, r in draw(SETS["short_prompt"], 8, 512, seed)) for seed in range(20)]
    assert np.mean(sizes) == pytest.approx(3802, rel=0.05)
    assert np.std(sizes) < 0.1 * np.mean(sizes)
    sizes = [sum(2 * p + c + r for p, c, r in draw(SETS["multi_turn"], 8, 512, seed)) for seed in range(20)]
    assert np.mean(sizes) == pytest.approx(2515, rel=0.05)  # of HH harmless


def test_no_pair_is_longer_than_the_window():
    for prompt, chosen, rejected in draw(SETS["multi_turn"], 200, 128, seed=0):
        assert prompt + max(chosen, rejected) <= 128
        assert min(prompt, chosen, rejected) >= 2


def test_made_up_pairs_are_as_long_as_drawn_and_the_same_for_a_seed():
    tokenizer, lengths = byte_tokenizer(), SETS["short_prompt"]
    data = made_up("short_prompt", lengths, 12, 300, 5, tokenizer)
    again = made_up("short_prompt", lengths, 12, 300, 5, tokenizer)
    assert data.table.equals(again.table)
    assert not data.table.equals(made_up("short_prompt", lengths, 12, 300, 6, tokenizer).table)
    for pair, (prompt, chosen, rejected) in zip(data.tokens, draw(lengths, 12, 300, 5), strict=True):
        # The marks of the dialogue and one word are the least that a prompt can be.
        assert len(pair.prompt) == pytest.approx(max(prompt, 22), abs=2)
        assert len(pair.chosen) == pytest.approx(chosen, abs=2)
        assert len(pair.rejected) == pytest.approx(rejected, abs=2)
        assert pair.chosen[-1] == tokenizer.eos_token_id
    assert len(set(data.table["pair_id"])) == 12


def test_pairs_of_a_file_that_do_not_fit_are_left_out_and_counted(tmp_path):
    rows = [{"prompt": f"Number {n}", "chosen": " yes" * (1 + 30 * (n % 2)), "rejected": " no"} for n in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = from_file(tmp_path / "pairs.jsonl", 4, 40, "plain", 0, byte_tokenizer())
    assert (len(data.tokens), data.left_out) == (4, 4)
    assert all(len(pair.prompt) + len(pair.chosen) <= 40 for pair in data.tokens)
    with pytest.raises(InputError, match="4 of 8 usable pairs fit into 40 tokens, 5 are wanted"):
        from_file(tmp_path / "pairs.jsonl", 5, 40, "plain", 0, byte_tokenizer())


def test_operations_of_attention_on_a_processor_are_counted():
    heads = [torch.randn(2, 4, length, 16, requires_grad=True) for length in (8, 24, 24)]
    with counting() as counter:
        output = torch.nn.functional.scaled_dot_product_attention(*heads)
    product = 2 * 2 * 4 * 8 * 24 * 16  # batch, heads, queries, keys, dimensions
    assert counter.get_total_flops() == 2 * product
    with counting() as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 5 * product


def test_operations_of_a_model_are_those_of_its_formula():
    """Forward and backward of a Llama: 6 a weight and token, and attention's."""
    hidden, inner, layers, vocabulary, length = 32, 48, 3, 40, 10
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = AutoModelForCausalLM.from_config(config)
    tokens = torch.arange(length)[None]
    with counting() as counter:
        model(input_ids=tokens).logits.sum().backward()
    layer = 2 * hidden * hidden + 2 * hidden * hidden // 2 + 3 * hidden * inner
    attention = 7 * 2 * length * length * hidden  # two products forward, five backward
    positions = 3 * 2 * length * (hidden // 4 // 2)  # the angles of the rotary embedding, a product in transformers
    products = 6 * length * (layers * layer + hidden * vocabulary) + layers * attention
    assert counter.get_total_flops() == pytest.approx(products, abs=positions)


def test_median_and_spread():
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}


@pytest.fixture(scope="module")
def found(model, tmp_path_factory):
    pytest.importorskip("trl", reason="TRL is the extra `bench`")
    options = Options(
        *(str(model), ("multi_turn",)),
        **{"number_of_pairs": 4, "batch": 2, "steps": 2, "max_length": 96},
        **{"threads": 1, "repeats": 1, "learning_rate": 1e-3},
    )
    told = []
    result = training.run(options, tmp_path_factory.mktemp("work"), here, told.append)
    assert len(told) == training.measurements(options)
    return result


def test_both_sides_train_alike(found):
    assert found["max_abs_loss_difference"] < 1e-4
    (round_,) = found["runs"]["multi_turn"]["rounds"]
    losses = round_["ours"]["training"]["losses"]
    assert len(losses) == 2
    assert losses[0] == pytest.approx(np.log(2), abs=1e-6)
    assert abs(losses[1] - losses[0]) > 1e-3  # they learn, so that being alike says something
    assert round_["ours"]["training"]["pairs"] == round_["trl"]["training"]["pairs"]
    assert sorted(pair for step in round_["ours"]["training"]["pairs"] for pair in step) == [0, 1, 2, 3]
    assert round_["trl"]["training"]["real_tokens"] == found["sets"]["multi_turn"]["data"]["real_tokens"]


def test_adapters_begin_equal_on_both_sides(model, tmp_path):
    """Else the losses of a training with --lora could not be compared."""
    pytest.importorskip("trl", reason="TRL is the extra `bench`")
    sizes = {"number_of_pairs": 4, "batch": 2, "steps": 2, "max_length": 96, "threads": 1}
    options = Options(str(model), ("multi_turn",), lora=True, learning_rate=1e-2, **sizes)
    (data,) = training.sets_of_pairs(options)
    bench = training.SetBench(data, options, tmp_path, here, lambda what: None)
    ours = bench.ours("adapters").training
    bench.order = ours["pairs"]
    theirs = bench.trl("adapters", "no checkpointing").training
    assert abs(ours["losses"][1] - np.log(2)) > 1e-3
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=1e-4)


def test_every_figure_is_there(found):
    for what in ("speedup", "processor_speedup", "memory_ratio", "flops_ratio"):
        assert found[f"{what}_multi_turn"] > 0
        assert found[f"{what}_best_multi_turn"] > 0
    assert found["speedup_multi_turn_without_reference"] > found["speedup_multi_turn"]
    assert found["flops_ratio_multi_turn_without_reference"] < found["flops_ratio_multi_turn"]
    assert set(found["fraction_of_peak_multi_turn"]) == {"ours", "trl", "trl_best"}
    trials = found["runs"]["multi_turn"]["trials"]
    assert set(trials) == set(CANDIDATES)
    assert "sets padding_free back" in trials["no checkpointing, padding-free"]["refused"]
    timed = {key: value["seconds"] for key, value in trials.items() if "seconds" in value}
    assert found["sets"]["multi_turn"]["best"] == min(timed, key=timed.get)
    assert found["matmul_peak_gflops"]["float32"] > 1
    assert found["machine"]["versions"]["trl"]
    assert len(training_tables(found)) == 1


def test_speedups_are_their_median_over_ours(found):
    figures = found["sets"]["multi_turn"]
    (round_,) = found["runs"]["multi_turn"]["rounds"]
    ours = round_["ours"]["reference"]["wall_seconds"] + round_["ours"]["training"]["wall_seconds"]
    assert figures["speedup"] == pytest.approx(round_["trl"]["training"]["wall_seconds"] / ours)
    ours_alone = round_["ours"]["training"]["wall_seconds"]
    assert figures["speedup_without_reference"] == pytest.approx(round_["trl"]["training"]["wall_seconds"] / ours_alone)
    last = [round_[side]["training"]["step_seconds"] for side in ("trl", "ours")]  # one pass: all of the steps
    assert figures["speedup_last_pass"] == pytest.approx(sum(last[0]) / sum(last[1]))
    names = headline({"multi_turn": figures, "short_prompt": figures})
    wanted = ("speedup", "speedup_best", "memory_ratio")
    assert {f"{what}_{name}" for what in wanted for name in SETS} <= set(names)
    assert names["speedup_best_short_prompt_last_pass"] == figures["speedup_best_last_pass"]
    assert names["speedup_best_short_prompt_without_reference"] == figures["speedup_best_without_reference"]


def test_the_last_pass_stands_for_all():
    """Two passes over four pairs, the first with cold memory."""
    training = {"step_seconds": [9.0, 7.0, 2.0, 3.0], "pairs": [[0, 1], [2, 3], [3, 0], [1, 2]], "wall_seconds": 21.5}
    assert Side({"wall_seconds": 4.0}, training, 2).last_pass == 10.0
    once = {**training, "step_seconds": [9.0, 7.0], "pairs": [[0, 1], [2, 3]]}
    assert Side({"wall_seconds": 4.0}, once, 2).last_pass == 16.0


def test_a_trial_counts_a_pass_made_beforehand_once():
    training = {"pairs": [[0, 1], [2, 3]], "wall_seconds": 6.0, "reference_wall_seconds": 5.0}
    assert Side(None, training, 2).expected(8) == 4 * 6.0 + 5.0
    assert Side(None, training, 2).expected(2) == Side(None, training, 2).wall


def test_a_named_setting_of_trl_is_not_looked_for():
    with pytest.raises(InputError, match="--trl-best no checkpoint: no such setting.*no checkpointing"):
        Options("model", trl_best="no checkpoint")
    searched, named = Options("model"), Options("model", trl_best="no checkpointing")
    assert training.measurements(searched) - training.measurements(named) == 2 * len(CANDIDATES)


def smollm2_in_small(folder):
    """A random Llama a quarter as wide as SmolLM2-135M, with as large a head beside its body, and one token a word."""
    words = ["<unk>", "<eos>", "Human:", "Assistant:", *WORDS]
    words_alone = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    words_alone.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words_alone, eos_token="<eos>", pad_token="<eos>", unk_token="<unk>"
    )
    config = LlamaConfig(
        vocab_size=1640,
        hidden_size=144,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        eos_token_id=1,
        pad_token_id=1,
    )
    tokenizer.save_pretrained(folder)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    write_json(folder / "source.json", {"source": "test"})
    return tokenizer


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """Operations of both sides on the multi-turn set, lengths a quarter too: attention keeps its share."""
    pytest.importorskip("trl", reason="TRL is the extra `bench`")
    work = tmp_path_factory.mktemp("counted")
    lengths = SETS["multi_turn"].scaled(1 / 4)
    data = made_up("multi_turn", lengths, 32, 128, 1, smollm2_in_small(work / "model"))
    options = Options(str(work / "model"), number_of_pairs=32, max_length=128, steps=8, threads=1)
    sides = {
        candidate: count_training_flops(data, options, work / str(number), here, candidate)
        for number, candidate in enumerate(("defaults", "no checkpointing"))
    }
    return sides, data


def test_ours_needs_three_tenths_of_the_operations_of_trl(counted):
    sides, data = counted
    assert data.real_tokens == pytest.approx(32 * 315 / 4, rel=0.1)
    ratio = sides["defaults"]["ours"].operations / sides["defaults"]["trl"].operations
    assert 0.15 < ratio <= 0.30


def test_checkpointing_is_counted_as_the_forward_that_it_repeats(counted):
    """TRL's default is forward, reference, forward again, and a backward of two: 5 to 4, but for the head."""
    sides, _ = counted
    with_it, without = (sides[name]["trl"].operations for name in ("defaults", "no checkpointing"))
    assert 1.15 < with_it / without < 1.25


def test_our_training_is_counted_forward_and_backward(counted):
    """Every place of a packed row passes the body, and every response token the head, three products each: forward and
    two backward. The softmax is kept, so no logit is computed twice. A row is filled up to a multiple of eight."""
    sides, data = counted
    hidden, inner, layers, vocabulary = 144, 384, 4, 1640
    layer = 2 * hidden * hidden + 2 * hidden * hidden // 3 + 3 * hidden * inner
    body = head = attention = 0
    for pair in data.tokens:
        prompt, responses = len(pair.prompt), (len(pair.chosen) - 1, len(pair.rejected) - 1)
        body += prompt + sum(responses)
        head += sum(responses) + 2
        attention += 7 * 2 * hidden * (prompt * prompt + sum(length * (prompt + length) for length in responses))
    expected = 6 * (body * layers * layer + head * hidden * vocabulary) + layers * attention
    assert sides["defaults"]["ours"].training["operations"] == pytest.approx(expected, rel=0.02)


def run_command(monkeypatch, tmp_path, model, *arguments):
    """`mallowspo bench ...` with measurements in this process; what it wrote to --json, and what it printed."""
    monkeypatch.setattr(processes, "run", here)
    where = ["--model", str(model), "--threads", "1", "--json", str(tmp_path / "found.json")]
    done = CliRunner().invoke(app, ["bench", *arguments, *where], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return read_json(tmp_path / "found.json"), done.output


SMALL = ("--sets", "multi_turn", "--number-of-pairs", "4", "--batch", "2", "--max-length", "96")


def test_reference_pass_and_plain_forward_agree(monkeypatch, tmp_path, model):
    found, printed = run_command(monkeypatch, tmp_path, model, "reference", *SMALL, "--repeats", "1")
    assert found["max_abs_logp_difference"] < 1e-3
    runs, data = found["sets"]["multi_turn"]["runs"], found["sets"]["multi_turn"]["data"]
    assert found["tokens_per_second_multi_turn"] == data["real_tokens"] / runs["ours"][0]["wall_seconds"]
    assert found["speedup_reference_multi_turn"] == pytest.approx(
        runs["plain"][0]["wall_seconds"] / runs["ours"][0]["wall_seconds"]
    )
    assert "multi_turn" in printed


def test_sampling_and_generate_answer_alike(monkeypatch, tmp_path, model):
    """Greedy answers are the same tokens; the ratio is of tokens a second, round by round, each side first in turn."""
    arguments = ("generation", "--number-of-prompts", "5", "--batch", "2", "--max-new-tokens", "6", "--repeats", "2")
    found, printed = run_command(monkeypatch, tmp_path, model, *arguments)
    greedy, sampled = found["laws"]["greedy"], found["laws"]["sampled"]
    assert greedy["equal_answers"] == 1.0 and sampled["equal_answers"] < 0.5
    assert greedy["runs"][0]["ours"]["tokens"] == greedy["runs"][0]["generate"]["tokens"] <= 30
    assert [list(one) for one in sampled["runs"]] == [["ours", "generate"], ["generate", "ours"]]
    rates = [{side: part["tokens"] / part["wall_seconds"] for side, part in one.items()} for one in sampled["runs"]]
    ratios = [one["ours"] / one["generate"] for one in rates]
    assert sampled["speedup_by_round"] == pytest.approx(ratios)
    assert found["speedup_generation_sampled"] == pytest.approx(np.median(ratios))
    assert found["prompts"]["number"] == 5 and "model.generate" in " ".join(printed.split())
    assert "answers" not in sampled["runs"][0]["ours"]


def test_prompts_of_a_file_and_options_that_cannot_be(model, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"instruction": f"Why {n}?"}) + "\n" for n in range(6)))
    options = {"file": file, "prompts": 4}
    drawn, again, other = (
        generation.token_ids(generation.GenerationOptions(str(model), **options, seed=seed)) for seed in (1, 1, 2)
    )
    assert drawn == again != other and len(drawn) == 4
    with pytest.raises(InputError, match="holds 6 prompts, 7 are wanted; lower --number-of-prompts"):
        generation.token_ids(generation.GenerationOptions(str(model), file=file, prompts=7))
    file.write_text(json.dumps({"text": "Why?"}))
    with pytest.raises(InputError, match="row 0: prompt is missing; every row needs instruction or prompt"):
        generation.token_ids(generation.GenerationOptions(str(model), file=file, prompts=1))
    for wrong, says in (({"dtype": "int8"}, "--dtype int8"), ({"max_new_tokens": 0}, "--max-new-tokens 0: must be 1")):
        with pytest.raises(InputError, match=says):
            generation.GenerationOptions("model", **wrong)


def test_a_comparison_counts_every_training_of_both_sides(monkeypatch, tmp_path, model):
    pytest.importorskip("trl", reason="TRL is the extra `bench`")
    arguments = ("comparison", *SMALL, "--methods", "dpo,mallows_theta", "--seeds", "1,2,3")
    found, printed = run_command(monkeypatch, tmp_path, model, *arguments)
    trainings, theirs = found["runs"]["ours"]["trainings"], found["runs"]["trl"]
    assert (len(trainings), len(theirs)) == (6, 3)
    # Methods differ, seeds draw the pairs in other orders.
    assert len({tuple(one["losses"]) for one in trainings}) == 6
    assert found["seconds_without_starting"]["trl"] == pytest.approx(2 * sum(one["wall_seconds"] for one in theirs))
    assert found["speedup_comparison"] == found["seconds"]["trl"] / found["seconds"]["ours"]
    assert "also those that TRL does not have" in " ".join(printed.split())


def test_memory_of_a_token_is_told_apart_from_what_is_there_anyway():
    """Of 1,000 bytes and 12 a token and entry of the vocabulary, 12 is the slope; of ours, which has none, 0."""
    table = [
        {
            "vocabulary": size,
            "length": length,
            "sides": {
                "plain": {"added_bytes": 1000 + 12 * size * length + 50 * length},
                "ours": {"added_bytes": 700 * size + 50 * length},
            },
        }
        for size in (100, 900, 500)
        for length in (64, 128)
    ]
    assert scaling.memory_slope(table, "plain", (64, 128)) == pytest.approx(12)
    assert scaling.memory_slope(table, "ours", (64, 128)) == 0


def test_scaling_goes_through_every_size(tmp_path):
    sizes = scaling.Sizes((16, 32), (64, 128), (1, 2), vocabulary=64, length=16, few_and_many=(16, 32))
    told = []
    found = scaling.run(sizes, 1, "cpu", tmp_path, here, told.append)
    assert len(told) == scaling.measurements(sizes)
    assert [point["length"] for point in found["tables"]["length"]] == [16, 32]
    assert [(point["vocabulary"], point["length"]) for point in found["tables"]["vocabulary"]] == [
        *((64, 16), (64, 32), (128, 16), (128, 32))
    ]
    assert all(point["sides"][side]["seconds"] > 0 for point in found["tables"]["rows"] for side in scaling.SIDES)
    assert len(scaling_tables(found)) == 4


def test_a_measurement_is_a_process_of_its_own(tmp_path):
    task = {"kind": "matmul", "size": 64, "dtype": "float32", "device": "cpu", "threads": 1}
    found = processes.run(task, "product", tmp_path)
    assert found["gflops"] > 0.01
    assert 1e8 < found["peak_memory_bytes"] < 2e9
    with pytest.raises(InputError, match=r"bench: measurement 'broken' failed \(.*nonsense.*\); .*broken.log"):
        processes.run({**task, "kind": "nonsense"}, "broken", tmp_path)


def test_without_trl_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'mallowspo\[bench\]' -c constraints.txt"):
        CliRunner().invoke(app, ["bench", "training", "--against", "trl"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("training", "--against", "other"), "--against other: known: trl"),
        (("reference", "--sets", "multi_tern"), "--sets multi_tern: no such set; did you mean 'multi_turn'"),
        (("reference", "--dtype", "int8"), "--dtype int8: known: float32, bfloat16"),
        (("reference", "--number-of-pairs", "6"), "--number-of-pairs 6: must be a multiple of --batch 4"),
        (("reference", "--batch", "0"), "--batch 0: must be 1 or more"),
        (("scaling", "--rows", "1,x"), "'1,x': expected whole numbers above 0"),
    ],
)
def test_a_wrong_argument_is_told_before_anything_is_fetched(arguments, message):
    with pytest.raises(InputError) as error:
        CliRunner().invoke(app, ["bench", *arguments], catch_exceptions=False)
    assert message in str(error.value)
