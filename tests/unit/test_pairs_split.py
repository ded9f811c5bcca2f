"""Split by prompt: nothing but the prompt's id and the seed decides."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mallowspo.errors import InputError
from mallowspo.pairs.split import assign_splits, draw_prompts, unit_draw
from mallowspo.settings import PairsSettings, SplitSettings

NAMES = st.lists(st.text(alphabet="abcdef", min_size=1, max_size=6), unique=True, min_size=1, max_size=30)


def rows(names, **columns):
    return {name: [(number, dict(columns))] for number, name in enumerate(names, start=1)}


@given(NAMES, st.randoms(use_true_random=False), st.integers(0, 5))
def test_split_and_limits_do_not_depend_on_the_order_of_rows(names, random, seed):
    settings = SplitSettings(test_fraction=0.4, seed=seed)
    pairs = PairsSettings(source="path:x.jsonl", split=settings, max_train=3, max_test=2)
    shuffled = random.sample(names, len(names))
    first = assign_splits(rows(names), settings, "x")
    second = assign_splits(rows(shuffled), settings, "x")
    assert first == second
    assert draw_prompts(first, pairs) == draw_prompts(second, pairs)


@given(NAMES, st.text(alphabet="xyz", min_size=1))
def test_another_prompt_moves_none(names, newcomer):
    settings = SplitSettings(test_fraction=0.4)
    before = assign_splits(rows(names), settings, "x")
    after = assign_splits(rows([newcomer, *names]), settings, "x")
    assert {name: after[name] for name in names} == before


def test_share_follows_the_fraction_and_another_seed_splits_otherwise():
    names = [str(number) for number in range(2000)]
    splits = [assign_splits(rows(names), SplitSettings(test_fraction=0.25, seed=seed), "x") for seed in (0, 1)]
    for split in splits:
        share = list(split.values()).count("test") / 2000
        assert abs(share - 0.25) < 0.04  # 4 standard errors
    assert splits[0] != splits[1]


def test_draws_are_uniform_and_purposes_are_independent():
    pairs = [(unit_draw(0, "split", str(n)), unit_draw(0, "limit", str(n))) for n in range(4000)]
    assert all(0 <= value < 1 for pair in pairs for value in pair)
    low = [limit for split, limit in pairs if split < 0.1]
    assert abs(sum(low) / len(low) - 0.5) < 0.06  # 4 standard errors of the mean of 400 uniform draws


def test_limits_keep_that_many_prompts_of_each_split():
    splits = {f"a{n}": "train" for n in range(20)} | {f"b{n}": "test" for n in range(10)}
    kept = draw_prompts(splits, PairsSettings(source="path:x.jsonl", max_train=7, max_test=4))
    assert sorted(name[0] for name in kept) == ["a"] * 7 + ["b"] * 4
    fewer = draw_prompts(splits, PairsSettings(source="path:x.jsonl", max_train=5, max_test=4))
    assert fewer < kept  # a smaller limit keeps a part of what a larger one keeps
    assert draw_prompts(splits, PairsSettings(source="path:x.jsonl")) == set(splits)


def drawn(names, parts, of=3, seed=0, **settings):
    """The prompts that a file takes which names these parts of a source."""
    split = SplitSettings(share={"of": of, "parts": parts} if parts else None, seed=seed)
    pairs = PairsSettings(source="path:x.jsonl", split=split, **settings)
    return draw_prompts(assign_splits(rows(names), split, "x"), pairs)


@given(NAMES, st.integers(0, 5), st.integers(0, 5))
def test_other_parts_of_a_source_share_no_prompt_whatever_the_seeds(names, seed, other_seed):
    policies, judge = drawn(names, [1, 2], seed=seed), drawn(names, [3], seed=other_seed)
    assert not policies & judge
    assert policies | judge == drawn(names, None) == set(names)
    assert drawn(names[1:], [3]) == drawn(names, [3]) - {names[0]}, "other prompts move none"


def test_parts_are_of_equal_size_and_limits_count_within_them():
    names = [str(number) for number in range(3000)]
    sizes = [len(drawn(names, [part])) for part in (1, 2, 3)]
    assert sum(sizes) == 3000 and all(abs(size - 1000) < 104 for size in sizes)  # 4 standard errors
    few = drawn(names, [2], max_train=30, max_test=20)
    assert len(few) == 50 and few < drawn(names, [2])


@pytest.mark.parametrize("parts", [[0], [4], [2, 1], [1, 1], []])
def test_parts_that_there_are_not(parts):
    with pytest.raises(ValueError, match=r"parts must rise from 1 to 3|at least 1 item"):
        SplitSettings(share={"of": 3, "parts": parts})


def test_a_named_column_decides():
    named = {"p": [(1, {"part": "train"})], "q": [(2, {"part": "test"}), (3, {"part": "test"})]}
    assert assign_splits(named, SplitSettings(column="part"), "x") == {"p": "train", "q": "test"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([{"part": "train"}, {"part": "test"}], "f: row 2: its prompt is in both train and test by column 'part'"),
        ([{"part": "dev"}], "f: row 1: column 'part' is 'dev'; expected train or test"),
        ([{"chosen": "a", "rejected": "b"}], "f: row 1: no column 'part'.*there are chosen, rejected"),
    ],
)
def test_a_named_column_that_cannot_decide_is_an_error(values, message):
    numbered = {"p": list(enumerate(values, start=1))}
    with pytest.raises(InputError, match=message):
        assign_splits(numbered, SplitSettings(column="part"), "f")
