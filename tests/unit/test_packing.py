"""Packed rows: which place sees which, what predicts what, and attention by segments against a dense mask."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from mallowspo.attention import attend_by_segments, packed_rule, segment_masks
from mallowspo.errors import InputError
from mallowspo.packing import Row, Segment, make_batch, pack, within_budget

tokens = st.integers(0, 6)
rows_strategy = st.lists(
    st.builds(
        Row,
        # Few different prompts, so that most are shared.
        st.sampled_from([[1], [2, 2], [1, 3, 5, 3], [1, 3, 5, 4, 6, 0, 1]]),
        st.lists(tokens, min_size=1, max_size=9),
        st.booleans(),
    ),
    min_size=1,
    max_size=7,
)


def causal(batch, head, query, key):
    return key <= query


def window_of_3(batch, head, query, key):
    return (key <= query) & (query - key < 3)


def test_two_answers_to_one_prompt_and_one_to_another():
    packing = pack([Row([7, 8], [1, 2, 3]), Row([9], [4], True), Row([7, 8], [5, 6], True)], multiple=4)
    assert packing.tokens.tolist() == [[7, 8, 1, 2, 5, 9, 0, 0]]  # 3, 6 and 4 predict nothing; two of filler
    assert packing.positions.tolist() == [[0, 1, 2, 3, 2, 0, 0, 1]]
    assert packing.segments == tuple(Segment(*s) for s in ((2, 0), (2, 2), (1, 2), (1, 0), (0, 1), (2, 0)))
    assert packing.rows.tolist() == [0, 0, 0, 1, 2, 2, 2]
    assert packing.targets.tolist() == [1, 2, 3, 4, 8, 5, 6]
    assert packing.places.tolist() == [2, 3, 4, 1, 1, 2, 3]
    assert packing.sources.tolist() == [1, 2, 3, 5, 0, 1, 4]


@given(rows=rows_strategy, multiple=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_each_source_sees_just_what_stands_before_its_target(rows, multiple):
    packing = pack(rows, multiple)
    size = packing.tokens.shape[1]
    assert size % multiple == 0
    prompts = {tuple(row.prompt) for row in rows}
    assert size - multiple < sum(map(len, prompts)) + sum(len(row.response) - 1 for row in rows) <= size
    assert packing.rows.bincount(minlength=len(rows)).tolist() == [row.scored for row in rows]
    for source, target, index, place in zip(
        packing.sources, packing.targets, packing.rows.tolist(), packing.places.tolist(), strict=True
    ):
        whole = [*rows[index].prompt, *rows[index].response]
        seen = packing.visible(source, torch.arange(size)).nonzero()[:, 0]
        assert packing.positions[0, seen].tolist() == list(range(place))
        assert packing.tokens[0, seen].tolist() == whole[:place]
        assert target == whole[place]


@given(rows=rows_strategy)
@settings(max_examples=30, deadline=None)
def test_a_batch_holds_its_rows(rows):
    # A prompt of one token has nothing to score.
    expected = [row._replace(score_prompt=row.score_prompt and len(row.prompt) > 1) for row in rows]
    assert make_batch(rows).rows() == expected
    assert make_batch(rows).response.sum(dim=1).tolist() == [row.scored for row in rows]


def test_empty_sides_are_refused():
    with pytest.raises(InputError, match="empty prompt or response"):
        make_batch([([1], [])])


def heads(packing, count, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (1, count, packing.tokens.shape[1], size)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("rule", [causal, window_of_3])
@given(rows=rows_strategy)
@settings(max_examples=20, deadline=None)
def test_segments_are_the_dense_mask(rule, rows):
    packing = pack(rows, 8)
    size = packing.tokens.shape[1]
    dense = create_mask(packed_rule(packing, rule), None, None, size, size, device="cpu")
    positions = packing.positions[0]
    places = torch.arange(size)
    assert torch.equal(
        dense[0, 0],
        packing.visible(places[:, None], places) & rule(None, None, positions[:, None], positions),
    )
    query, key, value = heads(packing, 4), heads(packing, 2, seed=1), heads(packing, 2, seed=2)
    found = attend_by_segments(query, key, value, segment_masks(packing, rule, torch.float64), scaling=0.3)
    expected = scaled_dot_product_attention(query, key, value, dense, scale=0.3, enable_gqa=True).transpose(1, 2)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)
    direction = heads(packing, 4, seed=3).detach().transpose(1, 2)
    for left, right in zip(
        torch.autograd.grad((found * direction).sum(), (query, key, value)),
        torch.autograd.grad((expected * direction).sum(), (query, key, value)),
        strict=True,
    ):
        assert torch.allclose(left, right, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("rule", [causal, window_of_3])
def test_the_block_mask_of_a_gpu_gives_the_same_attention(rule):
    rows = [Row([1, 2, 3], [4, 5]), Row([1, 2, 3], [6] * 70), Row([7] * 60, [1]), Row([7] * 60, [2] * 9)]
    packing = pack(rows, 128)
    size = packing.tokens.shape[1]
    block_mask = create_block_mask(packed_rule(packing, rule), None, None, size, size, device="cpu")
    query, key, value = (heads(packing, 4, size=16, seed=seed).detach().float() for seed in range(3))
    flex = flex_attention(query, key, value, block_mask=block_mask).transpose(1, 2)
    found = attend_by_segments(query, key, value, segment_masks(packing, rule, torch.float32), scaling=None)
    assert torch.allclose(found, flex, atol=1e-5)


def test_batches_fill_the_budget_and_a_longer_item_stands_alone():
    assert within_budget([5, 20, 3, 4, 1, 6], 10) == [[4, 2, 3], [0], [5], [1]]
    assert within_budget([5, 5], 10) == [[0, 1]]
    assert within_budget([], 10) == []


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 60))
def test_every_item_is_in_one_batch(tokens, budget):
    batches = within_budget(tokens, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(tokens)))
    assert all(sum(tokens[index] for index in batch) <= budget or len(batch) == 1 for batch in batches)
