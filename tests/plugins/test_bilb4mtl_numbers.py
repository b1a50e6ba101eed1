"""BiLB4MTL on floats of every size: nothing overflows into an exception, ties are exact, Adam is Adam."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch

import mtlcore
from mtlcore import StepView
from mtlcore.errors import ConfigurationError, LossError
from mtlplugins import adam
from mtlplugins.aggregators.bilb4mtl.discrepancy import KINDS, discrepancy
from mtlplugins.aggregators.bilb4mtl.squash import squash, unsquash
from mtlplugins.vectors import mask, matrix, put, take, tensor, tensors

EXTREMES = [1e-300, 1e-12, 1.0, 1e12, 1e300]


@pytest.mark.parametrize("normalisation", ["rescaled", "log"])  # Adam cannot square 1e300 as it is
@pytest.mark.parametrize("start", [0, 2, 4])
def test_losses_of_any_size_give_finite_weights(normalisation: str, start: int) -> None:
    o = mtlcore.create("aggregator", "bilb4mtl", normalisation=normalisation, discrepancy="all-pairs")
    state = o.init(2)
    for step, other in enumerate(EXTREMES):
        # The first task keeps its reference, and goes from there to every size.
        first = EXTREMES[start] if step == 0 else other
        losses = torch.tensor([first, EXTREMES[start]], dtype=torch.float64)
        if normalisation == "rescaled" and not 1e-290 < first / EXTREMES[start] < 1e290:
            continue  # the ratio itself is the normalised loss
        answer = o.aggregate(StepView(losses=losses, step=step), state)
        state = answer.state
        assert bool(torch.isfinite(answer.weights).all()), (first, answer.weights)
        assert bool(torch.isfinite(state["router"][0]).all())
        assert math.isfinite(answer.diagnostics["lower"])


@pytest.mark.parametrize(("name", "options"), [
    ("uw", {}), ("imtl-l", {}), ("famo", {}), ("stch", {}),
    ("bilb4mtl", {"normalisation": "identical"}), ("bilb4mtl", {}), ("bilb4mtl", {"normalisation": "log"}),
])  # fmt: skip
def test_losses_that_no_float_can_square_leave_a_finite_state(name: str, options: dict) -> None:
    """An infinite second moment would stop Adam for ever; one that is zero would make steps of any size."""
    o = mtlcore.create("aggregator", name, **options)
    for losses in ([1.0, 1e200, 1.0, 1.0], [1e-200, 1e-200, 1e-200], [1e200, 1e200]):
        state = o.init(2)
        for step, loss in enumerate(losses):
            answer = o.aggregate(StepView(losses=[loss, 0.5 * loss], step=step), state)
            state = o.observe(StepView(losses=[0.9 * loss, 0.4 * loss], step=step), answer.state)
            assert bool(answer.weights.isfinite().all())
            assert all(bool(v.isfinite().all()) for v in state.values() if v.is_floating_point())
            if "router" in state:
                assert float(state["router"][0].abs().max()) < 1.1


@pytest.mark.parametrize(("name", "options"), [
    ("si", {}), ("gls", {}), ("famo", {}), ("stch", {}), ("bilb4mtl", {"normalisation": "log"}), ("bilb4mtl", {}),
])  # fmt: skip
def test_losses_whose_reciprocal_is_no_float_are_named(name: str, options: dict) -> None:
    o = mtlcore.create("aggregator", name, **options)
    with pytest.raises(LossError, match=r"'task1' \(1e-310\) is too small"):
        o.aggregate(StepView(losses=[1.0, 1e-310]), o.init(2))


def test_a_loss_too_large_beside_its_first_one_is_named() -> None:
    o = mtlcore.create("aggregator", "bilb4mtl")
    state = o.aggregate(StepView(losses=[1.0, 1e-200]), o.init(2)).state
    with pytest.raises(LossError, match="'task1'.*first one"):
        o.aggregate(StepView(losses=[1.0, 1e200], step=1), state)


def test_a_quotient_beyond_the_floats_still_has_a_logarithm() -> None:
    o = mtlcore.create("aggregator", "bilb4mtl", normalisation="log", lamb=0.0)
    state = o.aggregate(StepView(losses=torch.tensor([1e300, 1e-300], dtype=torch.float64)), o.init(2)).state
    after = StepView(losses=torch.tensor([1e-300, 1e300], dtype=torch.float64), step=1)
    assert o.aggregate(after, state).diagnostics["lower"] == pytest.approx(0.0, abs=1e-9)  # -1381.6 + 1381.6


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "relu-sigmoid"])
def test_scores_of_any_size_give_sigma_between_0_and_1(kind: str) -> None:
    scores = [-1e308, -1e4, -700.0, 0.0, 700.0, 1e4, 1e308]
    sigma, raw = squash(kind, scores, None, None)
    assert all(0.0 <= s <= 1.0 for s in sigma)
    assert sigma == sorted(sigma)
    assert all(math.isfinite(g) for g in unsquash(kind, scores, sigma, raw, [1.0] * len(scores)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 3, 7, 100])
def test_discrepancy_is_the_sum_of_differences_written_out(kind: str, n: int) -> None:
    draw = random.Random(n)
    for values in ([draw.random() for _ in range(n)], [float(draw.randrange(3)) for _ in range(n)], [0.7] * n):
        found, pull = discrepancy(kind, values)
        pairs = {
            "adjacent": list(itertools.pairwise(range(n))),
            "all-pairs": list(itertools.combinations(range(n), 2)),
            "sorted-adjacent": list(itertools.pairwise(sorted(range(n), key=values.__getitem__))),
        }[kind]
        factor = 2.0 / n if kind == "all-pairs" else 1.0
        assert found == pytest.approx(factor * sum(abs(values[i] - values[j]) for i, j in pairs), rel=1e-12)
        if kind != "sorted-adjacent":  # of which ties allow several subgradients
            signs = [0.0] * n
            for i, j in pairs:
                sign = (values[i] > values[j]) - (values[i] < values[j])
                signs[i] += factor * sign
                signs[j] -= factor * sign
            assert pull == pytest.approx(signs, rel=1e-12)
        assert sum(p * v for p, v in zip(pull, values)) == pytest.approx(found, abs=1e-9)  # Euler: f is homogeneous
        if len(set(values)) == 1:
            assert (found, pull) == (0.0, [0.0] * n)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.0)])
def test_adam_on_lists_is_adam_on_arrays(betas: tuple[float, float]) -> None:
    generator = np.random.default_rng(0)
    parameters, moments = generator.normal(size=5), adam.fresh(5)[adam.KEY]
    moments[2, 2] = 7.0  # entries that have taken different numbers of steps
    few, few_moments = parameters.tolist(), moments.tolist()
    for scale in (1.0, 1e-200, 0.0, 1e200):
        gradient = scale * generator.normal(size=5)
        options = {"lr": 0.1, "beta1": betas[0], "beta2": betas[1], "eps": 0.0}
        with np.errstate(over="ignore"):
            parameters, moments = adam.step(parameters, gradient, moments, **options)
        few, *few_moments = adam.step_few(few, gradient.tolist(), few_moments, **options)
        np.testing.assert_allclose(few, parameters, rtol=1e-13)
        for row in range(3):
            np.testing.assert_allclose(few_moments[row], moments[row], rtol=1e-13)


def test_adam_without_memory_stands_still_where_there_is_no_gradient() -> None:
    """beta2 = eps = 0: the first moment still moves, and there is nothing to divide it by."""
    options = {"lr": 0.1, "beta1": 0.9, "beta2": 0.0, "eps": 0.0}
    parameters, moments = adam.step(np.ones(2), np.array([1.0, 2.0]), adam.fresh(2)[adam.KEY], **options)
    moved, _ = adam.step(parameters, np.array([0.0, 2.0]), moments, **options)
    few, *_ = adam.step_few(parameters.tolist(), [0.0, 2.0], moments.tolist(), **options)
    assert moved[0] == few[0] == parameters[0]
    assert moved[1] == pytest.approx(few[1]) == pytest.approx(parameters[1] - 0.1)
    # At a new reference every logarithm is exactly zero, and so is the gradient.
    method = mtlcore.create("aggregator", "bilb4mtl", normalisation="log", log_reference_every=3, beta2=0.0)
    state = method.init(2)
    for step in range(7):
        state = method.aggregate(StepView(losses=[0.9**step, 2 * 0.8**step], step=step), state).state
        assert float(state["router"][0].abs().max()) < 2.0


def test_vectors_of_some_tasks() -> None:
    view = StepView(losses=torch.ones(4)).restricted(torch.tensor([False, True, False, True]))
    full = [1.0, 2.0, 3.0, 4.0]
    assert take(full, view) == [2.0, 4.0]
    assert put(full, view, [5.0, 6.0]) == [1.0, 5.0, 3.0, 6.0]
    assert full == [1.0, 2.0, 3.0, 4.0], "written to"
    assert tensor([]).shape == (0,)
    assert torch.equal(tensor([1.5, 2.0]), torch.tensor([1.5, 2.0], dtype=torch.float64))
    assert torch.equal(matrix([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64))
    parts = tensors(a=[1.0, 2.0], none=[], b=[3.0])
    assert {name: part.tolist() for name, part in parts.items()} == {"a": [1.0, 2.0], "none": [], "b": [3.0]}
    assert {part.dtype for part in parts.values()} == {torch.float64}
    assert torch.equal(mask([True, False]), torch.tensor([True, False]))


def test_weights_that_could_only_be_zero_are_refused() -> None:
    """Divided by their sum they would be no numbers at all, and only in the middle of a training."""
    with pytest.raises(ConfigurationError, match="clamp_high"):
        mtlcore.create("aggregator", "bilb4mtl", clamp_high=0.0)
