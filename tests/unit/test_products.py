"""Products by oneDNN: values, gradients, and bits that depend on nothing beside them."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from mallowspo import output_head, products, recompute
from mallowspo.bench.operations import counting

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this build of PyTorch has no oneDNN product"
)


@pytest.fixture
def always(monkeypatch):
    """As on a processor where oneDNN is the faster library."""
    monkeypatch.setattr(products, "faster", lambda: True)


def layers(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(24, 40), nn.SiLU(), nn.Linear(40, 16, bias=False))


def test_values_and_gradients_are_those_of_float64(always):
    model = layers()
    exact = copy.deepcopy(model).double()
    products.use(model)
    assert [type(layer) for layer in model[::2]] == [products.LinearProduct] * 2
    inputs = torch.randn(3, 9, 24, requires_grad=True)
    expected = inputs.detach().double().requires_grad_()
    (model(inputs) ** 2).sum().backward()
    (exact(expected) ** 2).sum().backward()
    torch.testing.assert_close(inputs.grad.double(), expected.grad, rtol=1e-5, atol=1e-5)
    for found, value in zip(model.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(found.grad.double(), value.grad, rtol=1e-5, atol=1e-5)


def test_a_row_has_the_same_bits_whatever_rows_stand_beside_it(always):
    rows, weight = torch.randn(300, 96), torch.randn(64, 96)
    whole = products.product(rows, weight)
    for count in (2, 7, 8, 9, 64, 299):
        assert torch.equal(products.product(rows[:count], weight), whole[:count])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert torch.equal(products.product(rows, weight), whole)
    torch.set_num_threads(threads)


def test_factors_with_gaps_are_copied_first(always):
    """oneDNN takes them too, a thousand times slower."""
    wide, weight = torch.randn(64, 96), torch.randn(96, 40)
    expected = wide[:, 10:50].double() @ weight[10:50].double()
    torch.testing.assert_close(
        products.product(wide[:, 10:50], weight[10:50].T).double(), expected, rtol=1e-5, atol=1e-5
    )
    assert products._dense(wide[:, 10:50]).is_contiguous()
    assert products._dense(weight.T).data_ptr() == weight.data_ptr()


@pytest.mark.parametrize("shape", [(3, 7), (1, 5), (5, 1), (300, 64)])
def test_a_transposed_factor_is_laid_out_by_rows(shape):
    matrix = torch.randn(shape[0] + 2, shape[1])[2:]  # not from the beginning of its memory
    found = products._by_rows(matrix.T)
    assert found.is_contiguous() and torch.equal(found, matrix.T)
    assert products._by_rows(matrix).data_ptr() == matrix.data_ptr()
    assert torch.equal(products._by_rows(matrix[:, ::2]), matrix[:, ::2])


def test_only_float32_on_a_processor_and_outside_autocast(always, monkeypatch):
    calls = []
    monkeypatch.setattr(products, "product", lambda *given: calls.append(given))
    layer = nn.Linear(8, 8)
    products.use(nn.ModuleList([layer]))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(4, 8)).dtype == torch.bfloat16
    assert copy.deepcopy(layer).double()(torch.randn(4, 8).double()).dtype == torch.float64
    assert not calls and not products.applies(torch.randn(2).double())


@pytest.mark.parametrize("onednn", [True, False])
def test_both_libraries_give_a_layer_its_values(onednn, monkeypatch):
    monkeypatch.setattr(products, "faster", lambda: onednn)
    model = nn.Sequential(*layers(), Conv1D(7, 16))
    exact = copy.deepcopy(model).double()
    products.use(model)
    assert [type(layer) for layer in model[::2]] == [products.LinearProduct] * 2
    assert type(model[3]) is products.TransposedProduct
    inputs = torch.randn(9, 24)
    (model(inputs) ** 2).sum().backward()
    (exact(inputs.double()) ** 2).sum().backward()
    for found, value in zip(model.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(found.grad.double(), value.grad, rtol=1e-5, atol=1e-5)


def test_saved_and_copied_like_any_linear_layer(always, tmp_path):
    model = layers()
    products.use(model)
    twin = copy.deepcopy(model)
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        model[0].weight.zero_()
    assert twin[0].weight.abs().sum() > 0  # a copy has weights of its own
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight"]


def test_its_operations_are_counted_and_a_layer_that_keeps_products_runs_them_once(always):
    model = layers()
    products.use(model)
    inputs = torch.randn(10, 24, requires_grad=True)
    forward = 2 * 10 * (24 * 40 + 40 * 16)
    with counting() as counter:
        checkpoint(model, inputs, use_reentrant=False, context_fn=recompute.contexts).sum().backward()
    assert counter.get_total_flops() == 3 * forward


def test_the_heads_gradient_is_summed_in_parts(always, monkeypatch):
    """oneDNN adds one term after the other: the longer the sum, the more it rounds."""

    def off(terms):
        monkeypatch.setattr(output_head, "TERMS", terms)
        total = torch.zeros(40, 24)
        output_head._add_product(total, slope, head)
        return float((total - exact).norm() / exact.norm())

    generator = torch.Generator().manual_seed(0)
    slope, head = torch.rand(40, 4096, generator=generator), torch.rand(4096, 24, generator=generator)
    exact = slope.double() @ head.double()
    assert off(output_head.TERMS) < off(4096) / 2
