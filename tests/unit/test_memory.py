"""The memory plan: its estimates against what is there, and its choices."""

import ctypes
import platform

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from mallowspo import memory
from mallowspo.head_chunks import KEEP
from mallowspo.models import load_model, make_made_up
from mallowspo.packing import Row, make_batch
from mallowspo.scoring import Scorer


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_made_up(folder)
    return Scorer(load_model(folder).train(), "float32")


def saved_by_autograd(scorer, rows):
    """Bytes of the tensors in the graph of a forward, found by walking it."""
    saved = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in scorer.model.parameters()}
    waiting, seen = [scorer(make_batch(rows)).logp.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [parent for parent, _ in node.next_functions]
        values = [getattr(node, name) for name in dir(node) if name.startswith("_saved")]
        for value in [*values, *getattr(node, "saved_tensors", ())]:  # the latter of functions in Python
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                if storage.data_ptr() not in weights:
                    saved[storage.data_ptr()] = storage.nbytes()
    return sum(saved.values())


def test_activations_of_a_token_are_what_autograd_keeps(scorer):
    _, each = memory._activations(scorer)
    few, many = (saved_by_autograd(scorer, [Row([7] * length, [3])]) for length in (200, 600))
    assert each == pytest.approx((many - few) / 400, rel=0.05)


def test_fixed_memory_is_weights_gradients_and_two_moments(scorer):
    weights = sum(parameter.numel() for parameter in scorer.model.parameters())
    assert memory.plan(scorer, 100, 1 << 40).fixed == 16 * weights + memory.PROCESS


def test_with_room_all_is_kept_and_without_it_is_computed_again(scorer):
    ample = memory.plan(scorer, 4000, 1 << 40)
    assert (ample.checkpointing, ample.softmax_kept) == (False, KEEP)
    tight = memory.plan(scorer, 4000, int((ample.fixed + ample.head + 0.9 * ample.activations) / memory.USED))
    assert tight.checkpointing and tight.activations < 0.9 * ample.activations  # one of two layers, and inputs
    between = memory.plan(scorer, 4000, int((ample.total - KEEP + 10_000) / memory.USED))
    assert not between.checkpointing and 0 < between.softmax_kept <= 10_000


def test_a_batch_that_cannot_fit_is_told(scorer, caplog):
    assert memory.plan(scorer, 10_000, memory.PROCESS).softmax_kept == 0
    assert "lower training.tokens_per_batch, or raise compute.memory_mb" in caplog.text


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc what is in use")
def test_layers_that_keep_products_alone_hold_what_the_plan_says():
    sizes = {"hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 6}
    config = GPTNeoXConfig(vocab_size=256, num_hidden_layers=12, max_position_embeddings=4096, **sizes)
    model = GPTNeoXForCausalLM(config)
    model.set_attn_implementation("sdpa")
    scorer = Scorer(model.train(), "float32")
    chosen = memory.plan(scorer, 2000, 1 << 40)
    whole = [held_after_forward(scorer, tokens) for tokens in (1000, 3000)]
    memory.apply(scorer, chosen)
    kept = [held_after_forward(scorer, tokens) for tokens in (1000, 3000)]
    assert chosen.activations == pytest.approx(
        kept[1] - kept[0], rel=0.2
    )  # of 2000 tokens; and one layer computed again
    assert kept[1] - kept[0] < 0.75 * (whole[1] - whole[0])


def held_after_forward(scorer, tokens):
    """Bytes that the graph of one row's forward holds, by the allocator's own count."""
    before = in_use()
    scores = scorer(make_batch([Row([7] * tokens, [3])]))
    held = in_use() - before
    del scores
    return held


class MallocInformation(ctypes.Structure):
    """What glibc's mallinfo2 gives."""

    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]


def in_use():
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = MallocInformation
    found = libc.mallinfo2()
    return found.uordblks + found.hblkhd  # of the heap, and mapped by itself
