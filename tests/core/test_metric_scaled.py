"""The optimizer's geometry under a ``GradScaler``: the same parameters as without, whatever else a step has."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

from mtlcore import MultiTask, create
from mtlcore.errors import ConfigurationError, NonFiniteError, TrainingWarning
from support.methods import Fixed

NAMES = ("a", "b", "c")
LATER = 2.0**127
"""A scale at which the gradients of these losses overflow in float32."""


class Work:
    """Three tasks that pull apart on batches of four; in float32, where an overflow is possible."""

    def __init__(self, optimizers="Adam", seed=0):
        torch.manual_seed(seed)
        self.trunk = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4))
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in NAMES)
        self.x, self.y = torch.randn(16, 5), torch.randn(3, 16, 1)
        self.draws = torch.Generator().manual_seed(seed)
        self.optimizers = self._made(optimizers)

    def _made(self, which):
        first, *rest = [*self.trunk.parameters(), *self.heads.parameters()]
        if which == "several":
            return [torch.optim.AdamW([first], lr=3e-3), torch.optim.SGD(rest, lr=2e-6, momentum=0.9)]
        if which == "fused":
            return [torch.optim.Adam([first, *rest], lr=1e-2, fused=True)]
        return [torch.optim.Adam([first, *rest], lr=1e-2)]

    def batch(self, present=NAMES):
        index = torch.randint(16, (4,), generator=self.draws)

        def evaluate():
            z = self.trunk(self.x[index])
            found = zip(NAMES, (3.0, -2.0, 9.0), self.heads, self.y)
            return {n: 99.0 * (c * h(z) - y[index]).square().mean() for n, c, h, y in found if n in present}, z

        return evaluate

    def parameters(self):
        return [p.detach().clone() for p in (*self.trunk.parameters(), *self.heads.parameters())]


def train(method, metric, scaler, way, optimizers="Adam", absent=False, steps=10):
    """Parameters after ``steps`` steps that were not skipped, and the reports of these."""
    work = Work(optimizers)
    mt = MultiTask(work.trunk, method, work.optimizers, metric=metric, taken=way == "step", tasks=NAMES)
    reports, turned = [], False
    for number in range(steps):
        present = [n for i, n in enumerate(NAMES) if not absent or i != number % 3]
        batches = [work.batch(present) for _ in range(max(mt.aggregator.batches, 2 if way == "accumulate" else 1))]
        while True:
            if scaler is not None and number == 4 and not turned:
                scaler.update(LATER)
                turned = True
            report = one_step(mt, work, batches, scaler, way)
            if not report.skipped:
                break
        reports.append(report)
    return work.parameters(), reports


def one_step(mt, work, batches, scaler, way):
    if way == "step":
        return mt.step(batches if len(batches) > 1 else batches[0], scaler=scaler)
    for optimizer in work.optimizers:
        optimizer.zero_grad()
    for batch in batches[:-1]:
        mt.accumulate(*batch(), scaler=scaler)
    report = mt.backward(*batches[-1](), scaler=scaler)
    for optimizer in work.optimizers:
        optimizer.step() if scaler is None else scaler.step(optimizer)
    if scaler is not None:
        scaler.update()
    if not report.skipped:
        mt.observe({n: v.detach() for n, v in batches[-1]()[0].items()})
    return report


def same(method, metric, way, **options):
    """To rounding: the scales are powers of two, but a direction may be computed from scaled rows."""
    expected, plain = train(method, metric, None, way, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=3)
    found, scaled = train(method, metric, scaler, way, **options)
    assert scaler.get_scale() != 2.0**16
    for p, q in zip(found, expected):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
    for one, other in zip(scaled, plain):
        torch.testing.assert_close(one.losses, other.losses, rtol=1e-5, atol=1e-6, equal_nan=True)
        if metric == "step":
            assert one.diagnostics["step_cosine"] == pytest.approx(other.diagnostics["step_cosine"], abs=1e-4)
        if way == "step":
            assert one.taken.min_cosine == pytest.approx(other.taken.min_cosine, abs=1e-3)
            for part, share in other.taken.shares.items():
                assert one.taken.shares[part] == pytest.approx(share, abs=1e-3)
    return scaled


# Weights from the Gramian, a state, a wrapped direction of rows, losses only, two looks, several batches, features.
KINDS = ["upgrad", "nash-mtl", "graddrop", "gradops", "ls", "famo", "modo", "bilb4mtl", "uw"]


@pytest.mark.parametrize("way", ["step", "backward"])
@pytest.mark.parametrize(("method", "metric"), [(m, g) for m in KINDS for g in ("optimizer", "step")])
def test_the_same_parameters_with_and_without_a_scaler(method, metric, way):
    aggregator = create("aggregator", method)
    if metric == "optimizer" and aggregator.needs == type(aggregator.needs).LOSSES:
        with pytest.raises(ConfigurationError, match="reads losses only"):
            train(aggregator, metric, None, way)
    elif way == "backward" and aggregator.batches > 1:
        with pytest.raises(ConfigurationError, match="several batches"):
            train(aggregator, metric, None, way)
    else:
        same(aggregator, metric, way)


@pytest.mark.parametrize("metric", ["optimizer", "step"])
@pytest.mark.parametrize("optimizers", ["several", "fused"])
@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("way", ["step", "backward", "accumulate"])
def test_with_several_optimizers_absent_tasks_and_micro_batches(metric, optimizers, absent, way):
    reports = same(create("aggregator", "upgrad"), metric, way, optimizers=optimizers, absent=absent)
    if metric == "step":
        assert any(r.diagnostics["step_rounds"] for r in reports), "nothing was added: a weak test"


@pytest.mark.parametrize("scale", [2.0**10, 1000.0])
@pytest.mark.parametrize("optimizers", ["Adam", "fused"])
def test_clipping_is_noticed_under_a_scaler_too(optimizers, scale):
    """Taking the scale out is no change; shortening is."""
    work = Work(optimizers)
    (optimizer,) = work.optimizers
    mt = MultiTask(work.trunk, "upgrad", optimizer, metric="step")
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mt.step(work.batch(), scaler=scaler)
        optimizer.zero_grad()
        mt.backward(*work.batch()(), scaler=scaler)
        mt.backward(*work.batch()(), scaler=scaler)  # adds to the first
        scaler.step(optimizer)
        scaler.update()
    optimizer.zero_grad()
    mt.backward(*work.batch()(), scaler=scaler)
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(work.trunk.parameters(), 1e-3)
    with pytest.warns(TrainingWarning, match=r"4 parameters.*clipped"):
        scaler.step(optimizer)
    scaler.update()


def test_an_overflow_is_no_change():
    """The scaler makes it a skipped step; nobody is told that gradients were clipped."""
    work = Work("fused")
    (optimizer,) = work.optimizers
    mt = MultiTask(work.trunk, "upgrad", optimizer, metric="step")
    scaler = torch.amp.GradScaler("cpu", init_scale=LATER)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mt.step(work.batch(), scaler=scaler).skipped
        scaler.update(8.0)
        assert not mt.step(work.batch(), scaler=scaler).skipped


@pytest.mark.parametrize("metric", ["euclidean", "step"])
def test_a_head_that_overflows_in_a_micro_batch_is_seen(metric):
    """The trunk's gradients are finite there; once the step counted as taken, and the optimizer had been skipped."""
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**16)):
        work = Work()
        broken = nn.Parameter(torch.zeros(()))
        mt = MultiTask(work.trunk, "upgrad", work.optimizers, metric=metric, tasks=NAMES)
        (first, z), (second, w) = (work.batch()() for _ in range(2))
        first["b"] = first["b"] + broken.abs().sqrt() * 0.0  # gradient 0 * inf
        mt.accumulate(first, z, scaler=scaler)
        if scaler is None:
            with pytest.raises(NonFiniteError, match=r"task 'b' .* outside of the trunk"):
                mt.backward(second, w)
        else:
            assert mt.backward(second, w, scaler=scaler).skipped


def test_an_overflow_in_another_independent_batch_is_a_skipped_step():
    """It ended in an error about losses that were not there."""
    work = Work()
    mt = MultiTask(work.trunk, "modo", work.optimizers, tasks=NAMES)
    scaler = torch.amp.GradScaler("cpu", init_scale=LATER)
    report = mt.step([work.batch() for _ in range(mt.aggregator.batches)], scaler=scaler)
    assert report.skipped
    assert bool(report.losses.isfinite().all())


@pytest.mark.parametrize("use_step", [False, True])
@pytest.mark.parametrize("metric", ["euclidean", "step"])
def test_weights_that_make_scaled_gradients_overflow_skip_the_step(metric, use_step):
    """The scaled gradients of the tasks are finite, their weighted sum is not. The scaler skips the optimizer; the
    method's state and the counter of steps used to move on."""
    work = Work()
    mt = MultiTask(work.trunk, Fixed((1e3, 1e3, 1e3)), work.optimizers, metric=metric, tasks=NAMES)
    batch = work.batch()
    losses, _ = batch()
    leaves = [*work.trunk.parameters(), *work.heads.parameters()]
    found = [torch.autograd.grad(v, leaves, retain_graph=True, allow_unused=True) for v in losses.values()]
    largest = max(float(g.abs().max()) for row in found for g in row if g is not None)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** (126 - math.ceil(math.log2(largest))))
    if use_step:
        report = mt.step(batch, scaler=scaler)
    else:
        report = mt.backward(*batch(), scaler=scaler)
        scaler.step(work.optimizers[0])
        scaler.update()
    assert report.skipped
    assert mt.state_dict()["step"] == 0
    assert not work.optimizers[0].state
