"""G = J J^T and d = J^T w, in blocks, thin and thick, whole and factored."""

from __future__ import annotations

import pytest
import torch

from mtlcore import linalg

SIZES = [(1, 7), (3, 2000), (300, 2000), (3, 100_003), (16, 9000), (17, 9001), (40, 20_000), (300, 700)]


@pytest.fixture(params=["processor", "accelerator"], autouse=True)
def where(request, monkeypatch):
    """The way of an accelerator, too, which need not be there for that."""
    monkeypatch.setattr(linalg, "_queued", lambda tensor: request.param == "accelerator")
    return request.param


def factored(cotangents, inputs, bias=False):
    return linalg.symmetric(linalg.factored_products([linalg.Factored(cotangents, inputs, bias)]))


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("k", "p"), SIZES)
def test_gramian_and_combination_are_exact(k, p, dtype):
    rows = draw(k, p).to(dtype)
    rows[-1] *= 1e-8
    exact = rows.double() @ rows.double().T
    got = linalg.gramian(rows)
    norms = exact.diagonal().sqrt()
    assert float(((got - exact).abs() / (norms[:, None] * norms)).max()) < 1e-13
    assert torch.equal(got, got.T)
    weights = draw(k).double()
    expected = rows.double().T @ weights
    torch.testing.assert_close(linalg.combine(rows, weights).double(), expected, rtol=1e-6, atol=1e-9)


def test_combination_of_opposing_rows_is_not_rounding():
    row = draw(1, 5000)
    rows = torch.cat([row, -row * (1 + 1e-6)])
    expected = rows[0].double() + rows[1].double()
    torch.testing.assert_close(linalg.combine(rows, torch.ones(2)).double(), expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("k", "n", "out", "inputs"), [(1, 1, 1, 1), (3, 8, 5, 16), (40, 30, 200, 64), (20, 16, 9, 16)])
@pytest.mark.parametrize("bias", [False, True])
def test_factored_gramian_equals_that_of_the_matrices(k, n, out, inputs, dtype, bias):
    d, a = draw(k, n, out).to(dtype), draw(n, inputs).to(dtype)
    matrices = torch.einsum("kno,ni->koi", d.double(), a.double()).flatten(1)
    if bias:
        matrices = torch.cat([matrices, d.double().sum(1)], 1)
    exact = matrices @ matrices.T
    got = factored(d, a, bias)
    norms = exact.diagonal().sqrt()
    assert float(((got - exact).abs() / (norms[:, None] * norms)).max()) < 100 * torch.finfo(dtype).eps
    assert torch.equal(got, got.T)


def _dependent(kind, n, inputs):
    a = draw(n, inputs)
    if kind == "twice":  # a batch that holds examples twice
        a[n // 2 :] = a[: n - n // 2]
    elif kind == "silent":  # dead units
        a = a.relu()
        a[1:] = 0
    elif kind == "rank two":
        a = draw(n, 2) @ draw(2, inputs)
    elif kind == "constant":
        a = 1 + 1e-7 * a
    elif kind == "scales":
        a *= 10.0 ** torch.linspace(-10, 10, n)[:, None]
    return a


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["twice", "silent", "rank two", "constant", "scales"])
@pytest.mark.parametrize("n", [4, 64])
@pytest.mark.parametrize("bias", [False, True])
def test_factored_gramian_of_dependent_inputs(kind, n, dtype, bias):
    """No full-rank factor is there to be found."""
    a, d = _dependent(kind, n, 2 * n).to(dtype), draw(3, n, 5).to(dtype)
    matrices = torch.einsum("kno,ni->koi", d.double(), a.double()).flatten(1)
    if bias:
        matrices = torch.cat([matrices, d.double().sum(1)], 1)
    exact = matrices @ matrices.T
    norms = exact.diagonal().sqrt()
    got = factored(d, a, bias)
    assert float(((got - exact).abs() / (norms[:, None] * norms)).max()) < 100 * torch.finfo(dtype).eps


@pytest.mark.parametrize("differ", ["cotangents", "inputs"])
def test_factored_gramian_where_the_sum_over_the_batch_cancels(differ):
    """Near a stationary point |g| is a small part of |D| |A|: its rounding is that of forming it, not the square.

    Where the inputs differ, a Cholesky in float32 of A A^T would come to its end, with all of g lost."""
    half, cotangents = draw(32, 128), draw(3, 32, 40)
    other_half = half * (1 + 3e-3 * draw(33, 128)[1:]) if differ == "inputs" else half
    change = 1e-4 * draw(3, 32, 1) if differ == "cotangents" else 0.0
    a = torch.cat([half, other_half])
    d = torch.cat([cotangents, -cotangents * (1 + change)], 1)
    matrices = torch.einsum("kno,ni->koi", d.double(), a.double()).flatten(1)
    exact = matrices @ matrices.T
    norms = exact.diagonal().sqrt()
    error = (factored(d, a) - exact).abs() / (norms[:, None] * norms)
    lost = float(d.norm() * a.norm() / exact.diagonal().sqrt().min())
    assert lost > 1e3
    assert float(error.max()) < lost * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("scales", [(1e-15, 1e-25, 1e-30), (1e15, 1e20, 1e22), (1e-30, 0.0, 1e22)])
def test_factored_gramian_at_the_ends_of_float32(scales):
    """The gradients fit into float32, their squares do not."""
    d, a = draw(3, 8, 5) * torch.tensor(scales)[:, None, None], draw(8, 16)
    matrices = torch.einsum("kno,ni->koi", d.double(), a.double()).flatten(1)
    exact = matrices @ matrices.T
    got = factored(d, a)
    norms = exact.diagonal().sqrt().clamp(min=1e-100)
    assert float(((got - exact).abs() / (norms[:, None] * norms)).max()) < 100 * torch.finfo(torch.float32).eps


def test_factored_gramian_of_nothing():
    got = factored(torch.randn(2, 4, 3), torch.zeros(4, 8))
    assert torch.equal(got, torch.zeros(2, 2, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_factored_gramian_of_several_layers_is_the_sum_of_theirs(scale):
    """Triangles are found together for layers of one batch: each keeps its own, also where one of them takes a QR, and
    where float32 cannot hold the squares of the only layer that a task depends on."""
    shapes = [(8, 5, 16), (8, 7, 20), (12, 5, 30), (8, 3, 40)]
    layers, exact = [], torch.zeros(3, 3, dtype=torch.float64)
    for i, (n, out, width) in enumerate(shapes):
        cotangents, inputs = draw(3, n, out) + i, draw(n, width) - i
        inputs[-1] = inputs[0] if i == 1 else inputs[-1]  # dependent: Cholesky may fail
        cotangents[2] *= scale if i == 3 else 0.0  # the last task reaches the last layer only
        layers.append(linalg.Factored(cotangents, inputs, bias=bool(i % 2)))
        full = torch.cat([inputs, torch.ones(n, 1)], 1) if i % 2 else inputs
        rows = (cotangents.double().transpose(1, 2) @ full.double()).flatten(1)
        exact += rows @ rows.T
    found = linalg.symmetric(linalg.factored_products(layers))
    norms = exact.diagonal().sqrt()
    assert float(((found - exact).abs() / (norms[:, None] * norms)).max()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_with_vectors_over_several_blocks(dtype):
    rows, vectors = torch.randn(3, 300_000, dtype=dtype), torch.randn(2, 300_000, dtype=dtype)
    found = linalg.across(rows, vectors)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, rows.double() @ vectors.double().T, rtol=1e-9, atol=1e-9)
