"""Every method, source, detector and teleport on the device given by ``--device``: as on the processor.

Everything is compared in float64 with a run on the processor, so that only a missing or wrong transfer can differ.
"""

from __future__ import annotations

import contextlib
import copy
import functools

import pytest
import torch
from torch import nn

import mtlcore
from mtlbench.speed.measure import waits
from mtlcore import Brakes, MultiTask, Refresh
from mtlcore.errors import ConfigurationError
from mtlcore.snapshot import Noise
from support.methods import FixedOnRows
from support.teleport_nets import TASKS, problem

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

SOURCES = ("auto", "sequential", "threaded", "batched", "streaming", "features")
KINDS = ("mlp", "conv", "residual", "attention", "embedding", "gru", "plain")


@pytest.fixture(scope="module")
def device(request):
    return torch.device(request.config.getoption("--device"))


def made_on(device, kind, dropout=False):
    """The problem, moved. Without dropout, whose masks differ between devices."""
    made = problem(kind)
    for module in made.trunk.modules():
        if not dropout and isinstance(module, nn.Dropout):
            module.p = 0.0
        elif not dropout and isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    made.trunk.to(device)
    made.heads.to(device)
    return made


def trained(device, kind, method, steps=3, **options):
    """Parameters after some steps, and the last report."""
    made = made_on(device, kind)
    method = mtlcore.create("aggregator", method) if isinstance(method, str) else method
    optimizer = made.optimizer(torch.optim.SGD, lr=1e-3, momentum=0.9)
    mt = MultiTask(made.trunk, method, optimizer, heads=made.heads, **options)
    for step in range(steps):
        closures = [made.batch(step + i) for i in range(method.batches)]
        report = mt.step(closures if len(closures) > 1 else closures[0])
    return torch.cat([p.detach().flatten().cpu() for p in made.parameters()]), report


def outcome(device, *arguments, **options):
    """The same, or the error."""
    try:
        return trained(device, *arguments, **options)
    except ConfigurationError as error:
        return error


def assert_same(found, expected):
    if isinstance(expected, Exception):
        assert type(found) is type(expected)
        return
    torch.testing.assert_close(found[0], expected[0], rtol=1e-7, atol=1e-9)
    report, other = found[1], expected[1]
    for name in ("losses", "weights", "gramian"):
        mine, theirs = getattr(report, name), getattr(other, name)
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert mine.device.type == "cpu"
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", mtlcore.available("aggregator"))
def test_methods(device, name):
    assert_same(trained(device, "plain", name), trained("cpu", "plain", name))


@pytest.mark.parametrize(
    ("method", "teleport"),
    [(n, None) for n in mtlcore.available("aggregator")] + [("sum", n) for n in mtlcore.available("teleport")],
)
def test_where_the_device_is_the_default(device, method, teleport):
    made = made_on(device, "attention")
    batches = [made.batch(i) for i in range(4)]
    torch.set_default_device(device)
    try:
        optimizer = made.optimizer(torch.optim.SGD, lr=1e-3)
        mt = MultiTask(made.trunk, method, optimizer, teleport=teleport, heads=made.heads, probe=batches[3])
        for step in range(2):
            n = mt.aggregator.batches
            report = mt.step(batches[:n] if n > 1 else batches[step])
    finally:
        torch.set_default_device(None)
    assert report.losses.device.type == "cpu"
    assert all(torch.isfinite(p).all() for p in made.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", SOURCES)
def test_sources(device, source, kind):
    """A source that a network or device does not allow says so."""
    expected = outcome("cpu", kind, "upgrad", gradients="sequential" if source == "threaded" else source)
    found = outcome(device, kind, "upgrad", gradients=source)
    if source == "threaded" and device.type != "cpu":
        assert "whose queue is fed by one thread" in str(found)
    elif source == "threaded" and isinstance(found, ConfigurationError):
        assert "threaded" in str(found)
    elif isinstance(found, ConfigurationError) and not isinstance(expected, ConfigurationError):
        assert (source, kind, device.type) == ("batched", "gru", "cuda")  # cuDNN's recurrent nets know no vmap
        assert "cannot be differentiated for several tasks at once" in str(found)
    else:
        assert_same(found, expected)


def test_a_direction(device):
    method = FixedOnRows((0.5, 1.0, 2.0))
    assert_same(trained(device, "conv", method), trained("cpu", "conv", method))


def test_weights_kept_for_some_steps(device):
    options = {"steps": 5, "refresh": Refresh(every=3, drift=0.5)}
    assert_same(trained(device, "plain", "cagrad", **options), trained("cpu", "plain", "cagrad", **options))


@pytest.mark.parametrize("name", mtlcore.available("detector"))
def test_detectors(device, name):
    (_, found), (_, expected) = (trained(d, "plain", "sum", detector=name) for d in (device, "cpu"))
    assert found.conflict.pairs.device.type == found.conflict.dominated.device.type == "cpu"
    assert torch.equal(found.conflict.pairs, expected.conflict.pairs)
    assert torch.equal(found.conflict.dominated, expected.conflict.dominated)
    assert found.conflict.severity == pytest.approx(expected.conflict.severity, rel=1e-6)


@pytest.mark.parametrize("method", ["upgrad", "bilb4mtl", "famo"])
def test_tasks_that_are_absent_and_micro_batches(device, method):
    def without(task, batch):
        losses, z = batch()
        return {t: v for t, v in losses.items() if t != task}, z

    def run(where):
        made = made_on(where, "plain")
        optimizer = made.optimizer(torch.optim.SGD, lr=1e-3)
        mt = MultiTask(made.trunk, method, optimizer, tasks=TASKS)
        for step, missing in enumerate([None, "green", "red"]):
            report = mt.step(functools.partial(without, missing, made.batch(step)))
        if method == "upgrad":
            optimizer.zero_grad()
            mt.accumulate(*made.batch(7)())
            report = mt.backward(*made.batch(8)())
            optimizer.step()
        return torch.cat([p.detach().flatten().cpu() for p in made.parameters()]), report

    (found, report), (expected, other) = run(device), run("cpu")
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(report.weights, other.weights, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["bilb4mtl", "nash-mtl", "famo", "dwa"])
def test_a_checkpoint_goes_from_the_device_to_the_processor(device, name, tmp_path):
    def run(where, then):
        made = made_on(where, "plain")
        mt = MultiTask(made.trunk, name, made.optimizer(torch.optim.SGD, lr=1e-3))
        for step in range(3):
            mt.step(made.batch(step))
        torch.save([mt.state_dict(), made.trunk.state_dict(), made.heads.state_dict()], tmp_path / "run.pt")
        method, trunk, heads = torch.load(tmp_path / "run.pt", weights_only=True, map_location=then)
        made = made_on(then, "plain")
        made.trunk.load_state_dict(trunk)
        made.heads.load_state_dict(heads)
        mt = MultiTask(made.trunk, name, made.optimizer(torch.optim.SGD, lr=1e-3))
        mt.load_state_dict(method)
        return mt.step(made.batch(3)).weights

    torch.testing.assert_close(run(device, "cpu"), run("cpu", device), rtol=1e-6, atol=1e-9)


def everything(made, optimizer):
    """Bits of all that a teleport may disturb."""
    kept = [p.detach().clone() for p in made.parameters()]
    kept += [b.clone() for m in (made.trunk, made.heads) for b in m.buffers()]
    return kept + [v.clone() for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]


@pytest.mark.parametrize("kind", ["mlp", "conv", "residual", "attention", "embedding", "gru", "lstm", "plain"])
@pytest.mark.parametrize("name", mtlcore.available("teleport"))
def test_teleports(device, name, kind):
    """Accepted ones keep what they promise; a refused one leaves no trace, in the device's random stream either."""
    made = made_on(device, kind, dropout=True)
    optimizer = made.optimizer()
    for _ in range(2):
        optimizer.zero_grad()
        sum(made.batch(0)()[0].values()).backward()
        optimizer.step()
    options = {"heads": made.heads, "probe": made.batch(1), "brakes": Brakes()}
    mt = MultiTask(made.trunk, "sum", optimizer, teleport=name, tolerance=0.05, **options)
    report = mt.step(made.batch(0))
    assert report.teleport is not None
    assert all(p.device == torch.empty(0, device=device).device for p in made.parameters())
    if report.teleport.accepted:
        limit = 1e-9 if mtlcore.create("teleport", name).exact else 0.05
        assert max(map(abs, report.teleport.relative_loss_change.values())) <= limit

    def closure():
        raise KeyboardInterrupt

    teleporter, view = mt._run.teleporter, mtlcore.StepView(losses=[1.0, 1.0, 1.0], task_names=TASKS)
    before, noise = everything(made, optimizer), Noise()
    with contextlib.suppress(KeyboardInterrupt):  # it need not come so far: there may be nothing to move
        teleporter.attempt(
            trunk=made.trunk,
            heads=made.heads,
            closure=lambda: made.batch(0)(),
            probe=closure,
            view=view,
            optimizer=optimizer,
            generator=torch.Generator().manual_seed(0),
        )
    assert all(map(torch.equal, before, everything(made, optimizer)))
    assert noise.same_as(Noise())


def test_mixed_precision(device):
    """float32 weights, bfloat16 activations."""
    made = made_on(device, "mlp")
    made.trunk.float()
    made.heads.float()
    mt = MultiTask(made.trunk, "upgrad", made.optimizer(torch.optim.SGD, lr=1e-3))
    inputs = made.inputs
    made.inputs = lambda g, n: inputs(g, n).float()
    one, two = made.batch(0), made.batch(1)
    for closure in (one, two):
        with torch.autocast(device.type, torch.bfloat16):
            losses, z = closure()
        report = mt.backward(losses, z)
    assert torch.isfinite(report.gramian).all()
    assert all(torch.isfinite(p.grad).all() for p in made.trunk.parameters())


def test_tasks_on_two_devices(device):
    """A head that stayed on the processor."""
    made = made_on(device, "plain")
    made.heads["green"].cpu()
    mt = MultiTask(made.trunk, "upgrad")
    z = made.trunk(made.inputs(torch.Generator().manual_seed(0), 8).to(device))
    losses = {t: made.heads[t](z.cpu() if t == "green" else z).square().mean() for t in TASKS}
    report = mt.backward(losses, z)
    assert (report.weights > 0).all()
    assert all(p.grad is not None and p.grad.device == p.device for p in made.parameters())


def test_a_copy_of_a_run(device):
    made = made_on(device, "plain")
    mt = MultiTask(made.trunk, "nash-mtl")
    mt.backward(*made.batch(0)())
    again = copy.deepcopy(mt)
    assert again.state_dict()["step"] == 1


@pytest.mark.accelerator
@pytest.mark.parametrize("kind", ["mlp", "conv", "residual", "gru", "plain"])
@pytest.mark.parametrize(
    ("method", "source", "most"),
    [("sum", "auto", 2), ("bilb4mtl", "auto", 2), ("upgrad", "sequential", 1), ("gradops", "streaming", 1)],
)
def test_waits(device, method, source, most, kind):
    """Losses and Gramian come together, and nothing else is waited for. A loss-level method waits for the losses, and
    for the one number that tells whether its gradients are finite."""

    made = made_on(device, kind)
    for module in (made.trunk, made.heads):
        module.float()
    inputs = made.inputs
    made.inputs = lambda g, n: inputs(g, n).float()
    closure = made.batch(0)
    mt = MultiTask(made.trunk, method, gradients=source)
    for _ in range(3):
        mt.backward(*closure())
    losses, z = closure()
    counted = waits(lambda: mt.backward(losses, z), device)
    assert counted is not None
    assert counted <= most
