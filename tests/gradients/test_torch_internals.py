"""What lies below torch's public API has a fallback above it: the same gradients, both ways."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import mtlcore
from mtlcore import MultiTask
from mtlcore.errors import FeaturesError
from mtlcore.gradients import torch_internals
from mtlcore.gradients.plan import PLANS
from support.jacobians import explicit, make, shared_gradient
from support.methods import Fixed
from support.shapes import SHAPES

PIECES = ("engine", "vmap", "saved", "hooks", "tables", "lists")
BOTH_WAYS = pytest.mark.parametrize("pieces", [(), ("lists",)], ids=["lists", "loop"])


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


@BOTH_WAYS
def test_lists_are_copied_and_added_in_place(without, pieces):
    without(*pieces)
    stored = torch.zeros(3, dtype=torch.float64)
    places, numbers = list(stored.split([2, 1])), [torch.tensor([1.0, 2.0]), torch.tensor([3.0]).half()]
    torch_internals.copy_in_place(places, numbers)
    assert stored.tolist() == [1.0, 2.0, 3.0]
    torch_internals.add_in_place(places, numbers)
    assert stored.tolist() == [2.0, 4.0, 6.0]


@BOTH_WAYS
def test_micro_batches_add_up(without, pieces):
    without(*pieces)
    work = make(SHAPES["wide_mlp"])
    weights = (1.0, -0.5, 2.0)
    mt = MultiTask(work.trunk, aggregator=Fixed(weights), gradients="sequential")
    mt.accumulate(work.evaluate()[0])
    mt.backward(work.evaluate()[0])
    jacobian, _ = explicit(make(SHAPES["wide_mlp"]))
    expected = 2 * jacobian.T @ torch.tensor(weights, dtype=torch.float64)
    torch.testing.assert_close(shared_gradient(work), expected, rtol=1e-9, atol=1e-12)


def test_the_tensor_behind_a_cast_is_found_where_saved_tensors_show_and_asked_for_where_not(without):
    trunk, head = nn.Linear(3, 2), nn.Linear(2, 1)
    mt = MultiTask(trunk, "upgrad", gradients="features")

    def step():
        z = trunk(torch.ones(4, 3))
        return mt.backward([head(z).square().mean(), head(z).mean()], features=z.double())

    assert step().gradient_source.startswith("features")
    without("saved")
    with pytest.raises(FeaturesError):
        step()


def test_what_a_function_saved_is_listed_until_it_is_freed(without):
    x = torch.ones(2, requires_grad=True)
    y = x.exp() * x
    assert any(torch.equal(t, x) for t in torch_internals.saved_tensors(y.grad_fn))
    y.sum().backward()
    assert list(torch_internals.saved_tensors(y.grad_fn)) == []
    without("saved")
    assert list(torch_internals.saved_tensors((x * x).grad_fn)) == []


def test_private_parts_of_torch_stand_in_one_file():
    package = Path(mtlcore.__file__).parent
    private = re.compile(r"\b_saved_|\btorch(\.\w+)*\._[a-z]|\btorch\._C\b|\._execution_engine\b|\bdistributed_c10d\b")
    files = [f for f in package.rglob("*.py") if f.name != "torch_internals.py"]
    found = {str(f.relative_to(package)) for f in files if private.search(f.read_text(encoding="utf-8"))}
    assert files
    assert found == set()


def test_the_first_step_of_a_process_draws_nothing_from_the_global_stream(monkeypatch):
    """Otherwise the first run of a process would be another one than the same run later."""
    monkeypatch.setattr(torch_internals, "available", {})
    before = torch.get_rng_state()
    assert all(torch_internals._has(piece) for piece in PIECES)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_feature_test_that_raises_counts_as_no():
    assert torch_internals._works(lambda: 1 / 0) is False
