"""The gradients in .grad are those of the mathematics, on every architecture and through every source."""

from __future__ import annotations

import pytest
import torch

from mtlcore import MultiTask, StepView
from mtlcore.linalg import gramian
from support.architectures import ARCHITECTURES, build, gradients
from support.methods import Fixed, FixedOnLosses, FixedOnRows


def explicit(name, dtype):
    """Reference: one plain autograd.grad per task on a network of its own."""
    work = build(name, dtype)
    losses, _ = work.evaluate()
    shared = [p for p in work.trunk.parameters() if p.requires_grad]
    every = work.parameters()
    per_task = []
    for loss in losses.values():
        found = torch.autograd.grad(loss, [p for p in every if p.requires_grad], retain_graph=True, allow_unused=True)
        per_task.append(dict(zip([id(p) for p in every if p.requires_grad], found)))
    jacobian = torch.stack(
        [
            torch.cat([(torch.zeros_like(p) if g[id(p)] is None else g[id(p)]).flatten() for p in shared])
            for g in per_task
        ]
    )
    ids = {id(p) for p in shared}
    heads = [
        None if id(p) in ids or all(g.get(id(p)) is None for g in per_task) else [g.get(id(p)) for g in per_task]
        for p in every
    ]
    return jacobian, heads


@pytest.mark.parametrize("with_features", [True, False])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sum_is_bit_for_bit_plain_backward(name, with_features):
    plain, ours = build(name), build(name)
    sum(plain.evaluate()[0].values()).backward()
    losses, z = ours.evaluate()
    mt = MultiTask(ours.trunk, aggregator=FixedOnLosses((1.0,) * len(losses)))
    mt.backward(losses, features=z if with_features else None)
    for a, b in zip(gradients(plain.parameters()), gradients(ours.parameters())):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


@pytest.mark.parametrize("method", [FixedOnLosses, Fixed, FixedOnRows])
@pytest.mark.parametrize("with_features", [True, False])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_give_jacobian_transposed_times_weights(name, with_features, method):
    jacobian, heads = explicit(name, torch.float64)
    work = build(name, torch.float64)
    losses, z = work.evaluate()
    weights = torch.linspace(0.5, 2.0, len(losses), dtype=torch.float64)
    report = MultiTask(work.trunk, aggregator=method(tuple(weights.tolist()))).backward(
        losses, features=z if with_features else None
    )
    shared = [p for p in work.trunk.parameters() if p.requires_grad]
    got = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in shared])
    torch.testing.assert_close(got, jacobian.T @ weights, rtol=1e-9, atol=1e-12 * float(jacobian.abs().max()))
    if report.gramian is not None:
        torch.testing.assert_close(report.gramian, jacobian @ jacobian.T, rtol=1e-9, atol=0.0)
    for p, per_task in zip(work.parameters(), heads):
        if per_task is not None:
            # A method on losses weights whole losses; one on gradients leaves the heads' own gradients alone.
            factor = weights if method is FixedOnLosses else torch.ones_like(weights)
            expected = sum(f * g for f, g in zip(factor, per_task) if g is not None)
            torch.testing.assert_close(p.grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n != "several_features"])
def test_features_source_gives_the_exact_combination_of_its_weights(name):
    jacobian, heads = explicit(name, torch.float64)
    work = build(name, torch.float64)
    losses, z = work.evaluate()
    weights = torch.linspace(0.5, 2.0, len(losses), dtype=torch.float64)
    MultiTask(work.trunk, aggregator=Fixed(tuple(weights.tolist())), gradients="features").backward(losses, features=z)
    got = torch.cat([p.grad.flatten() for p in work.trunk.parameters() if p.requires_grad])
    torch.testing.assert_close(got, jacobian.T @ weights, rtol=1e-9, atol=1e-12 * float(jacobian.abs().max()))
    for p, per_task in zip(work.parameters(), heads):
        if per_task is not None:
            torch.testing.assert_close(p.grad, sum(g for g in per_task if g is not None), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtypes(dtype):
    """A trunk in reduced precision: rows in float32, Gramian in float64, gradients in the parameters' dtype."""
    work = build("mlp")
    work.trunk.to(dtype)
    x = torch.randn(10, 6, generator=torch.Generator().manual_seed(3)).to(dtype)
    z = work.trunk(x)
    losses = {f"t{i}": h(z.float()).square().mean() for i, h in enumerate(work.heads)}
    parameters = list(work.trunk.parameters())
    rows = [torch.autograd.grad(v, parameters, retain_graph=True) for v in losses.values()]
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).double()
    weights = (1.0, -2.0, 0.5)
    report = MultiTask(work.trunk, aggregator=Fixed(weights)).backward(losses, features=z)
    assert report.gramian.dtype == torch.float64
    assert all(p.grad.dtype == dtype for p in parameters)
    # The rows are exact in float32 or wider, so the Gramian is exact; the direction is rounded once, to dtype.
    torch.testing.assert_close(report.gramian, jacobian @ jacobian.T, rtol=1e-12, atol=0.0)
    got = torch.cat([p.grad.flatten() for p in parameters]).double()
    expected = jacobian.T @ torch.tensor(weights, dtype=torch.float64)
    bound = torch.finfo(dtype).eps * jacobian.abs().T @ torch.tensor(weights, dtype=torch.float64).abs()
    assert bool(((got - expected).abs() <= bound + 1e-30).all())


def test_gramian_of_float32_rows_is_exact_to_float64():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(1, 100_003, generator=generator)
    rows = torch.cat([base, base + 1e-4 * torch.randn(1, 100_003, generator=generator)])
    exact = rows.double() @ rows.double().T
    # The angle between the rows is 1e-4: float32 accumulation would lose it (1 - cos = 5e-9).
    got = gramian(rows)
    torch.testing.assert_close(got, exact, rtol=1e-13, atol=0.0)
    sine = 1 - got[0, 1] ** 2 / (got[0, 0] * got[1, 1])
    assert 0.5e-8 < float(sine) < 2e-8


def test_gradients_accumulate_like_backward():
    once, twice = build("mlp", torch.float64), build("mlp", torch.float64)
    for method in (Fixed, FixedOnLosses):
        for work, n in ((once, 1), (twice, 2)):
            for p in work.parameters():
                p.grad = None
            mt = MultiTask(work.trunk, aggregator=method((1.0, 2.0, 3.0)))
            for _ in range(n):
                losses, z = work.evaluate()
                mt.backward(losses, features=z)
        for a, b in zip(gradients(once.parameters()), gradients(twice.parameters())):
            torch.testing.assert_close(2 * a, b)


def test_hundreds_of_tasks():
    trunk = torch.nn.Linear(5, 4)
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    z = trunk(x)
    losses = [(z * (i + 1)).square().mean() for i in range(300)]
    report = MultiTask(trunk, aggregator=Fixed((1.0,) * 300)).backward(losses, features=z)
    assert report.gramian.shape == (300, 300)


def test_input_that_requires_gradients_gets_its_own():
    trunk, head = torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)
    for features in (True, False):
        x = torch.ones(2, 3, requires_grad=True)
        reference = torch.ones(2, 3, requires_grad=True)
        (head(trunk(reference)).sum() + trunk(reference).square().sum()).backward()
        z = trunk(x)
        losses = [head(z).sum(), z.square().sum()]
        MultiTask(trunk, aggregator=Fixed((1.0, 1.0))).backward(losses, features=z if features else None)
        torch.testing.assert_close(x.grad, reference.grad)


def test_sparse_embedding_gradients():
    trunk = torch.nn.Embedding(7, 3, sparse=True)
    z = trunk(torch.tensor([1, 4, 4]))
    report = MultiTask(trunk, aggregator=Fixed((1.0, 1.0))).backward([z.sum(), z.square().sum()], features=z)
    assert report.gramian[0, 0] == 3 * (1 + 4)  # row 1 once, row 4 twice: 3 * (1^2 + 2^2)
    assert trunk.weight.grad[4].abs().sum() > 0


def test_view_is_read_only():
    view = StepView(losses=torch.ones(2), jacobian=torch.eye(2))
    view.gramian.zero_()
    view.losses.zero_()
    view.present.zero_()
    assert torch.equal(view.gramian, torch.eye(2, dtype=torch.float64))
    assert float(view.losses.sum()) == 2.0
    assert bool(view.present.all())
    with pytest.raises(AttributeError, match="immutable"):
        view.losses = torch.zeros(2)
