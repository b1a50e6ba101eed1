"""Every source on every architecture: Gramian, direction and heads are those of the explicit Jacobian."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from mtlcore import MultiTask
from mtlcore.errors import ConfigurationError
from mtlcore.gradients import graph
from mtlcore.gradients.batch import Batch
from mtlcore.gradients.jacobian import Stored, collect
from mtlcore.gradients.plan import PLANS
from mtlcore.gradients.rows import Factors, Matrix, Table, Whole
from mtlcore.gradients.storage import Storage
from mtlcore.gradients.task_gradients import Answer
from mtlcore.presence import Presence
from support.architectures import ARCHITECTURES
from support.jacobians import explicit, make, shared_gradient
from support.methods import Fixed, FixedOnRows
from support.shapes import ODD, SHAPES

EVERY = {**ARCHITECTURES, **SHAPES}
SOURCES = {
    "sequential": PLANS["sequential"],
    "batched": PLANS["batched"],
    "batched in twos": dataclasses.replace(PLANS["batched"], tasks=2),
    "streaming": PLANS["streaming"],
    "streaming together": PLANS["streaming-together"],
    "streaming in twos": dataclasses.replace(PLANS["streaming-together"], tasks=2),
    "streaming in blocks": dataclasses.replace(PLANS["streaming"], name="in blocks"),
}


def found_by(source, batch):
    """So little memory, for blocks, that every parameter is cut."""
    plan = SOURCES[source]
    return collect(plan, batch, Storage(), most=7 * len(batch.losses) if plan.name == "in blocks" else None)


def forced(work, method, source):
    mt = MultiTask(work.trunk, aggregator=method, gradients="streaming" if "streaming" in source else "sequential")
    mt._run.planner.run = lambda plan, batch, keep_graph=False: found_by(source, batch)
    return mt


def problem_of(work, with_features=True):
    losses, z = work.evaluate()
    features = () if not with_features else tuple(z.values()) if isinstance(z, dict) else (z,)
    shared = tuple(p for p in work.trunk.parameters() if p.requires_grad)
    return Batch(Presence.of(tuple(losses)), tuple(losses.values()), features, shared)


def allows_together(work, with_features):
    """One task needs no vmap and no separate heads."""
    from mtlcore.gradients.front import Front

    return Front(problem_of(work, with_features)).separated


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("with_features", [True, False])
@pytest.mark.parametrize("name", EVERY)
def test_equals_the_explicit_jacobian(name, with_features, source):
    jacobian, heads = explicit(make(EVERY[name]))
    work = make(EVERY[name])
    weights = torch.linspace(0.5, 2.0, len(jacobian), dtype=torch.float64) * (-1.0) ** torch.arange(len(jacobian))
    mt = forced(work, Fixed(tuple(weights.tolist())), source)
    together = "batched" in source or source in ("streaming together", "streaming in twos")
    if together and not allows_together(make(EVERY[name]), with_features):
        losses, z = work.evaluate()
        with pytest.raises(ConfigurationError, match='use gradients="sequential"'):
            mt.backward(losses, features=z if with_features else None)
        return
    losses, z = work.evaluate()
    report = mt.backward(losses, features=z if with_features else None)
    norms = jacobian.norm(dim=1)
    error = (report.gramian - jacobian @ jacobian.T).abs() / (norms[:, None] * norms[None, :])
    assert float(error.max()) < 1e-12
    assert torch.equal(report.gramian, report.gramian.T)
    scale = float((weights.abs() * norms).sum())
    assert float((shared_gradient(work) - jacobian.T @ weights).norm()) < 1e-12 * scale
    for i, per_task in heads.items():
        expected = [g for g in per_task if g is not None]
        got = work.parameters()[i].grad
        assert (got is None) == (not expected)
        if expected:
            torch.testing.assert_close(got, sum(expected), rtol=1e-10, atol=1e-13)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", ODD)
def test_odd_trunks_are_right_or_refused(name, source):
    jacobian, _ = explicit(make(ODD[name]))
    work = make(ODD[name])
    mt = forced(work, Fixed((1.0, -2.0, 0.5)), source)
    losses, z = work.evaluate()
    together = "batched" in source or source in ("streaming together", "streaming in twos")
    if together and name == "sparse_matrix":
        with pytest.raises(ConfigurationError, match="vmap"):
            mt.backward(losses, features=z)
        return
    report = mt.backward(losses, features=z)
    tolerance = 1e-5 if name == "two_precisions" else 1e-12
    norms = jacobian.norm(dim=1)
    error = (report.gramian - jacobian @ jacobian.T).abs() / (norms[:, None] * norms[None, :])
    assert float(error.max()) < tolerance
    direction = jacobian.T @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    assert float((shared_gradient(work) - direction).norm()) < tolerance * float(norms.sum()) * 2


def test_a_transposed_weight_that_is_a_feature_itself():
    """Its gradient has a part that passes no product."""
    layer = nn.Linear(40, 8).double()
    x = torch.randn(4, 40, dtype=torch.float64)
    z, w = layer(x), layer.weight.t()
    losses = {"a": z.square().mean(), "b": (z.sum() + w.square().sum()) / 10, "c": w.abs().sum()}
    (expected,) = torch.autograd.grad(sum(losses.values()), [layer.weight], retain_graph=True)
    MultiTask(layer, aggregator=Fixed((1.0, 1.0, 1.0)), gradients="streaming").backward(losses, features=(z, w))
    torch.testing.assert_close(layer.weight.grad, expected)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("source", ["sequential", "batched", "streaming"])
@pytest.mark.parametrize("name", ["wide_mlp", "small_image_convolutions", "embedding_with_padding", "several_features"])
def test_rows_equal_the_explicit_jacobian(name, source):
    jacobian, _ = explicit(make(EVERY[name]))
    work = make(EVERY[name])
    if source == "batched" and name == "several_features":
        # One feature tensor is computed from the other: refused by name, never silently wrong.
        with pytest.raises(ConfigurationError, match="none computed from another"):
            found_by(source, problem_of(work))
        return
    found = found_by(source, problem_of(work))
    torch.testing.assert_close(found.rows(), jacobian, rtol=1e-10, atol=1e-13 * float(jacobian.abs().max()))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("source", ["sequential", "batched", "streaming together", "streaming in twos"])
@pytest.mark.parametrize("name", EVERY)
def test_products_with_vectors_equal_those_of_the_explicit_jacobian(name, source):
    """Also of parts that are stored as factors, and after the gradients were written."""
    jacobian, _ = explicit(make(EVERY[name]))
    work = make(EVERY[name])
    if "sequential" not in source and not allows_together(make(EVERY[name]), True):
        return
    found = found_by(source, problem_of(work))
    vectors = torch.randn(2, jacobian.shape[1], dtype=torch.float64)
    found.write(Answer(torch.ones(len(jacobian), dtype=torch.float64)))
    scale = jacobian.norm(dim=1, keepdim=True) * vectors.norm(dim=1)
    assert float(((found.across(vectors) - jacobian @ vectors.T).abs() / scale).max()) < 1e-12


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(source, dtype):
    work = make(SHAPES["wide_mlp"], torch.float32)
    work.trunk.to(dtype)
    x = torch.randn(4, 40, generator=torch.Generator().manual_seed(3)).to(dtype)
    z = work.trunk(x)
    losses = {f"t{i}": h(z.float()).square().mean() for i, h in enumerate(work.heads)}
    report = forced(work, Fixed((1.0, -2.0, 0.5)), source).backward(losses, features=z)
    rows = []
    z = work.trunk(x)
    for h in work.heads:
        found = torch.autograd.grad(h(z.float()).square().mean(), list(work.trunk.parameters()), retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in found]).double())
    expected = torch.stack(rows)
    tolerance = 8 * torch.finfo(dtype).eps
    norms = expected.norm(dim=1)
    error = (report.gramian - expected @ expected.T).abs() / (norms[:, None] * norms[None, :])
    assert float(error.max()) < tolerance
    direction = expected.T @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    assert float((shared_gradient(work).double() - direction).norm()) < tolerance * float(norms.sum()) * 2
    assert all(p.grad.dtype == dtype for p in work.trunk.parameters())


FORMS = {
    "wide_mlp": {"0.weight": Factors, "0.bias": Factors, "2.weight": Factors},
    "mlp": {"0.weight": Matrix, "0.bias": Whole, "2.weight": Matrix},
    "same_weight_thrice": {"layer.weight": Factors, "layer.bias": Factors},
    "same_weight_both_ways": {"layer.weight": Whole},
    "weight_read_elsewhere": {"layer.weight": Whole},
    "raw_matrices": {"a": Factors, "shift": Factors, "b": Factors},
    "scaled_addmm": {"a": Whole, "shift": Whole},
    "scaled_bias": {"a": Factors, "shift": Whole},
    "unusual_biases": {
        "before": Factors,
        "shared": Whole,
        "one": Whole,
        "rows": Whole,
        "read": Whole,
        "sometimes": Whole,
        **{f"w.{i}": Factors for i in range(7)},
    },
    "frozen_biases_and_weights": {"0.weight": Factors, "2.bias": Whole},
    "bias_hook": {"0.weight": Factors, "0.bias": Whole},
    "small_image_convolutions": {"0.weight": Factors, "0.bias": Factors, "4.weight": Whole, "4.bias": Whole},
    "convolution_twice": {"layer.weight": Factors},
    "other_convolutions": {"0.weight": Whole, "2.weight": Whole, "4.weight": Factors},
    "embedding_looked_up_twice": {"words.weight": Table},
    "embedding_with_padding": {"words.weight": Table},
    "embedding_scaled_by_frequency": {"words.weight": Whole},
    "parameter_hook": {"0.weight": Whole, "2.weight": Factors},
    "gru": {"weight_hh_l0": Matrix, "weight_ih_l0": Matrix},
    "tied_weights": {"0.weight": Whole},
}


@pytest.mark.parametrize("name", FORMS)
def test_each_weight_takes_the_form_it_should(name):
    """Equality alone would also hold if nothing were ever factored."""
    work = make(EVERY[name])
    # For a task alone, weights that are not factored are left to autograd.
    together = PLANS["streaming-together"] if Matrix in FORMS[name].values() else PLANS["streaming"]
    found = collect(dataclasses.replace(together, capped=False), problem_of(work), Storage())
    assert isinstance(found, Stored)
    names = {id(p): n for n, p in work.trunk.named_parameters()}
    forms = {names[id(t)]: type(part) for part in found._parts for t in part.parameters}
    assert {n: forms[n] for n in FORMS[name]} == FORMS[name]


def test_uses_of_a_weight_are_counted_edge_by_edge():
    work = make(SHAPES["same_weight_thrice"])
    uses = graph.uses([work.evaluate()[1]])
    assert [u.kind for u in uses[id(work.trunk.layer.weight)]] == ["linear"] * 3
    assert [u.kind for u in uses[id(work.trunk.layer.bias)]] == ["bias"] * 3
    work = make(SHAPES["weight_read_elsewhere"])
    assert graph.uses([work.evaluate()[1]])[id(work.trunk.layer.weight)] is None


def test_streaming_keeps_no_rows_for_a_method_that_reads_them():
    work = make(SHAPES["wide_mlp"])
    losses, z = work.evaluate()
    with pytest.raises(ConfigurationError, match="provides GRAMIAN"):
        MultiTask(work.trunk, aggregator=FixedOnRows((1.0,) * 3), gradients="streaming").backward(losses, features=z)


def test_tiny_gradients_that_cancel_over_the_batch_are_exact():
    """|g| is 1e-7 of |D| |A| here: products of the form D (A A^T) D would lose half of the digits."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 8, bias=False).double()
    x = torch.randn(2, 64, dtype=torch.float64)
    x[1] = x[0] + 1e-7 * x[1]
    z = layer(x)
    seeds = [torch.randn(8, dtype=torch.float64) for _ in range(3)]
    losses = [((z[0] - z[1]) * s).sum() for s in seeds]
    expected = torch.stack([torch.autograd.grad(loss, layer.weight, retain_graph=True)[0].flatten() for loss in losses])
    report = MultiTask(layer, aggregator=Fixed((1.0,) * 3), gradients="streaming").backward(losses, features=z)
    torch.testing.assert_close(report.gramian, expected @ expected.T, rtol=1e-7, atol=0.0)


def test_gradients_accumulate_in_place_like_backward():
    work = make(SHAPES["wide_mlp"])
    for source in SOURCES:
        for p in work.parameters():
            p.grad = torch.ones_like(p)
        kept = work.trunk[0].weight.grad
        losses, z = work.evaluate()
        forced(work, Fixed((0.0,) * 3), source).backward(losses, features=z)
        assert work.trunk[0].weight.grad is kept
        assert torch.equal(kept, torch.ones_like(kept))


def test_the_graph_is_freed_like_backward_frees_it():
    for source in SOURCES:
        work = make(SHAPES["wide_mlp"])
        losses, z = work.evaluate()
        forced(work, Fixed((1.0,) * 3), source).backward(losses, features=z)
        for loss in losses.values():
            with pytest.raises(RuntimeError, match="second time"):
                loss.backward()
