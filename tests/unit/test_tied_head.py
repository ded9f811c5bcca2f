"""One gradient for embeddings and head: who has it, and its values."""

import copy

import pytest
import torch
from torch import nn

from mallowspo import tied_head
from mallowspo.scoring import Scorer
from tests.unit.test_fused_layer import gradients
from tests.unit.test_packed_scoring import PACKED, build

TOKENS = torch.tensor([[3, 1, 3, 0, 2]])


@pytest.mark.parametrize("padding", [None, 1])
def test_it_is_the_sum_of_both_gradients(padding):
    torch.manual_seed(0)
    embedding = nn.Embedding(5, 4, padding_idx=padding).double()
    twin = copy.deepcopy(embedding)
    through_rows, through_head = torch.randn(1, 5, 4).double(), torch.randn(5, 4).double()

    embedded, head = tied_head.apart(embedding.weight, TOKENS, padding)
    assert torch.equal(embedded, twin(TOKENS)) and torch.equal(head, twin.weight)
    ((embedded * through_rows).sum() + (head * through_head).sum()).backward()
    ((twin(TOKENS) * through_rows).sum() + (twin.weight * through_head).sum()).backward()
    torch.testing.assert_close(embedding.weight.grad, twin.weight.grad, rtol=1e-14, atol=1e-14)
    if padding is not None:
        assert torch.equal(embedding.weight.grad[padding], through_head[padding])


def test_who_has_it():
    tied = build(PACKED["llama"])
    assert Scorer(tied, "float32").tied
    apart = copy.deepcopy(tied)
    apart.lm_head.weight = nn.Parameter(apart.lm_head.weight.detach().clone())
    assert Scorer(apart, "float32").fused and not Scorer(apart, "float32").tied

    class Scaled(nn.Embedding):
        def forward(self, tokens):
            return 2 * super().forward(tokens)

    tied.model.embed_tokens.__class__ = Scaled
    scorer = Scorer(tied, "float32")
    assert scorer.fused and not scorer.tied


def test_a_model_has_the_gradients_that_it_has_without(monkeypatch):
    model = build(PACKED["llama"])
    model.model.embed_tokens.padding_idx = 30  # a token of a response
    found = gradients(Scorer(model, "float32"))
    monkeypatch.setattr(tied_head, "applies", lambda causal: False)
    scorer = Scorer(model, "float32")
    assert not scorer.tied
    expected = gradients(scorer)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6 * float(value.abs().max()))
    only_head = expected["model.embed_tokens.weight"][30]
    model.model.embed_tokens.padding_idx = None
    assert not torch.allclose(gradients(scorer)["model.embed_tokens.weight"][30], only_head)
