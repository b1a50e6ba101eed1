"""What lies below torch's public API has a fallback above it: the same gradients, both ways."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mtlcore import MultiTask
from mtlcore.gradients import torch_internals
from mtlcore.gradients.plan import PLANS
from support.jacobians import explicit, make, shared_gradient
from support.methods import Fixed
from support.shapes import SHAPES

PIECES = ("engine", "vmap", "saved", "hooks", "tables")


@pytest.fixture
def without(monkeypatch):
    def switch_off(*pieces):
        for piece in pieces:
            monkeypatch.setitem(torch_internals.available, piece, False)

    return switch_off


def test_this_torch_has_every_piece():
    """Otherwise the fallbacks would be all that is tested."""
    assert all(torch_internals._has(piece) for piece in PIECES)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("pieces", [*((p,) for p in PIECES), PIECES], ids="-".join)
@pytest.mark.parametrize("source", [s for s in PLANS if s not in ("losses", "features")])
@pytest.mark.parametrize("shape", ["wide_mlp", "embedding_looked_up_twice", "small_image_convolutions"])
def test_gradients_are_the_same_without(without, shape, source, pieces):
    jacobian, _ = explicit(make(SHAPES[shape]))
    without(*pieces)
    work = make(SHAPES[shape])
    weights = (1.0, -0.5, 2.0)
    losses, z = work.evaluate()
    if "hooks" in pieces and PLANS[source].together:
        with pytest.raises(ValueError, match="several tasks at once needs features"):
            MultiTask(work.trunk, aggregator=Fixed(weights), gradients=source).backward(losses, features=z)
        return
    report = MultiTask(work.trunk, aggregator=Fixed(weights), gradients=source).backward(losses, features=z)
    expected = jacobian.T @ torch.tensor(weights, dtype=torch.float64)
    torch.testing.assert_close(shared_gradient(work), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(report.gramian, jacobian @ jacobian.T, rtol=1e-9, atol=1e-15)


def test_the_public_backward_pass_fills_all_leaves(without):
    without(*PIECES)
    layer = nn.Linear(3, 2)
    loss = layer(torch.ones(4, 3)).square().mean()
    expected = torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True)
    MultiTask(layer, "sum").backward([loss])
    assert all(torch.equal(p.grad, g) for p, g in zip(layer.parameters(), expected))


def test_the_first_step_of_a_process_draws_nothing_from_the_global_stream(monkeypatch):
    """Otherwise the first run of a process would be another one than the same run later."""
    monkeypatch.setattr(torch_internals, "available", {})
    before = torch.get_rng_state()
    assert all(torch_internals._has(piece) for piece in ("engine", "vmap", "saved", "hooks", "tables"))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_feature_test_that_raises_counts_as_no():
    assert torch_internals._works(lambda: 1 / 0) is False
