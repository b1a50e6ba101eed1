"""An error, NaN or Ctrl-C at any moment of a step leaves everything as before it, or as after it."""

from __future__ import annotations

import contextlib
import copy
import signal
import sys
import time

import pytest
import torch
from torch import nn

from mtlcore import MultiTask
from mtlcore.errors import ConfigurationError, NonFiniteError
from mtlcore.snapshot import interrupts
from mtlcore.step import alone

INTERRUPTS = 25


class World:
    """A network with dropout and batch norms, its optimizer and its run."""

    def __init__(self, method, **options):
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 8))
        self.trunk.append(nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(3))
        self.x, self.y = torch.randn(16, 6), torch.randn(3, 16, 1)
        self.optimizer = torch.optim.Adam([*self.trunk.parameters(), *self.heads.parameters()], lr=0.01)
        self.mt = MultiTask(self.trunk, method, self.optimizer, heads=self.heads, **options)
        self.calls, self.fail_at, self.bad = 0, None, None

    def closure(self):
        self.calls += 1
        z = self.trunk(self.x)
        losses = {f"t{i}": (h(z) - self.y[i]).square().mean() for i, h in enumerate(self.heads)}
        if self.calls == self.fail_at:
            if self.bad == "nan":
                losses["t1"] = losses["t1"] * float("nan")
            else:
                raise self.bad
        return losses, z

    def step(self):
        return self.mt.step(self.closure)

    def picture(self):
        """Everything that a step may change, as comparable values."""
        tensors = [*self.trunk.state_dict().values(), *self.heads.state_dict().values()]
        grads = [p.grad for p in (*self.trunk.parameters(), *self.heads.parameters())]
        history = [v for s in self.optimizer.state.values() for v in s.values()]
        run = self.mt.state_dict()
        return (
            [t.tolist() for t in tensors],
            [None if g is None else g.tolist() for g in grads],
            [torch.as_tensor(v).tolist() for v in history],
            {k: v for k, v in run.items() if k != "state"},
            None if run["state"] is None else {k: v.tolist() for k, v in run["state"].items()},
            torch.get_rng_state().tolist(),
            torch.is_grad_enabled(),
            [m.training for m in (*self.trunk.modules(), *self.heads.modules())],
        )

    def twin(self):
        """A copy with a life of its own."""
        out = copy.deepcopy(self)
        for mine, its in zip((*self.trunk.parameters(), *self.heads.parameters()), out.parameters()):
            its.grad = None if mine.grad is None else mine.grad.clone()
        return out

    def parameters(self):
        return (*self.trunk.parameters(), *self.heads.parameters())


CASES = {
    "upgrad": {},
    "famo": {},
    "uw": {},
    "cagrad": {"detector": "cosine"},
    "mgda": {"teleport": "relu-rescaling"},
    "bilb4mtl-double-loop": {},
}


def world(case):
    return World(case, **CASES[case])


# An interrupt that arrives in a callback of a weak reference is dropped by Python itself: the step then ends as usual.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("case", CASES)
def test_timed_interrupts_leave_one_of_two_pictures(case):
    """157 of 159 left neither."""
    w = world(case)
    for _ in range(2):
        w.step()
    neither, elapsed = [], 0.0
    twin = w.twin()
    noise = torch.get_rng_state()
    started = time.perf_counter()
    twin.step()
    elapsed = time.perf_counter() - started
    after = twin.picture()
    torch.set_rng_state(noise)
    before = w.picture()

    armed = []

    def interrupt(number, frame):
        if armed:
            armed.clear()
            signal.default_int_handler(number, frame)  # as Ctrl-C does: a raise statement would be somebody's code

    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        for i in range(INTERRUPTS):
            trial = w.twin()
            torch.set_rng_state(noise)
            try:
                armed.append(True)
                signal.setitimer(signal.ITIMER_REAL, max(1e-5, elapsed * (i + 0.5) / INTERRUPTS))
                trial.step()
                armed.clear()
            except KeyboardInterrupt:
                pass
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            picture = trial.picture()
            if picture not in (before, after):
                neither.append((i, [a == b for a, b in zip(picture, before)], [a == b for a, b in zip(picture, after)]))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # one that is still running would meet the old handler
        signal.signal(signal.SIGALRM, old)
    assert not neither


def interrupted_at(trial, event):
    """One step with an interrupt at the given line of those that enter and leave contexts, where a timed one seldom
    arrives. False if the step has fewer such lines."""
    places, seen = {contextlib.__file__, interrupts.__file__, alone.__file__}, 0

    def watch(frame, what, _):
        nonlocal seen
        if frame.f_code.co_filename not in places:
            return None
        if what in ("line", "return"):
            seen += 1
            if seen == event + 1:
                signal.raise_signal(signal.SIGALRM)
        return watch

    sys.settrace(watch)
    try:
        trial.step()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return seen > event


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("case", "stride"),
    [("mgda", 3), *(pytest.param(case, 1, marks=pytest.mark.slow) for case in CASES)],
)
def test_interrupts_between_two_contexts_leave_one_of_two_pictures(case, stride):
    """A generator that an interrupt left open ended when it was collected, after the rollback; a signal that came while
    handlers were put back left the others held."""
    w = world(case)
    for _ in range(2):
        w.step()
    noise = torch.get_rng_state()
    twin = w.twin()
    twin.step()
    after = twin.picture()
    torch.set_rng_state(noise)
    before = w.picture()
    old = signal.signal(signal.SIGALRM, signal.default_int_handler)
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    neither, event = [], 0
    try:
        while True:
            trial = w.twin()
            torch.set_rng_state(noise)
            arrived = interrupted_at(trial, event)
            assert handlers == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)], event
            assert not trial.mt._run.turn.taken.locked(), event
            if not arrived:
                break
            if trial.picture() not in (before, after):
                neither.append(event)
            event += stride
    finally:
        signal.signal(signal.SIGALRM, old)
    assert not neither
    assert event > 20, "the step enters contexts"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bad", [ValueError("mine"), "nan", KeyboardInterrupt()], ids=["error", "nan", "ctrl-c"])
def test_whatever_a_closure_does_at_whichever_call(case, bad):
    w = world(case)
    w.step()
    twin = w.twin()
    noise, n = torch.get_rng_state(), twin.calls
    twin.step()
    calls = twin.calls - n
    torch.set_rng_state(noise)
    before = w.picture()
    for call in range(1, calls + 1):
        trial = w.twin()
        torch.set_rng_state(noise)
        trial.fail_at, trial.bad = trial.calls + call, bad
        try:
            trial.step()
        except (ValueError, NonFiniteError, KeyboardInterrupt) as error:
            notes = getattr(error, "__notes__", ["as before the step: nothing was changed"])
        else:
            continue  # a call that may fail, as a trial of a teleport
        assert trial.picture() == before, f"call {call} of {calls}"
        assert "as before the step: nothing was changed" in notes[-1]


def test_an_optimizer_that_refuses():
    class Refuses(torch.optim.SGD):
        def step(self, closure=None):
            raise RuntimeError("no")

    w = world("upgrad")
    w.mt.optimizer = Refuses(w.trunk.parameters(), lr=0.1)
    before = w.picture()
    with pytest.raises(RuntimeError, match="no"):
        w.step()
    assert w.picture() == before


@pytest.mark.parametrize("case", ["upgrad", "famo"])
def test_an_optimizer_that_fails_half_way(case):
    """With a copy (a second look) all is as before; without one, the error does not claim so."""

    class Half(torch.optim.SGD):
        def step(self, closure=None):
            self.param_groups[0]["params"][0].data.add_(1.0)
            raise RuntimeError("half way")

    w = world(case)
    w.mt.optimizer = Half(w.parameters(), lr=0.1)
    before = w.picture()
    with pytest.raises(RuntimeError, match="half way") as caught:
        w.step()
    assert (w.picture() == before) is (case == "famo")
    assert w.picture()[3:] == before[3:], "the method's state, counters and random streams"
    for note in getattr(caught.value, "__notes__", ())[-1:]:
        assert ("nothing was changed" in note) is (case == "famo")
        assert ("may have moved" in note) is (case == "upgrad")


@pytest.mark.parametrize("case", ["famo", "upgrad", "bilb4mtl-double-loop", "mgda"])
def test_a_closure_that_differentiates(case):
    """A PINN's residual is made of derivatives: famo, the double loop and teleports evaluated it without gradients."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(1, 16), nn.ReLU() if case == "mgda" else nn.Tanh(), nn.Linear(16, 16), nn.ReLU())
    heads = nn.ModuleList(nn.Linear(16, 1) for _ in range(2))
    x = torch.linspace(0, 1, 16)[:, None]

    def closure():
        at = x.clone().requires_grad_()
        z = trunk(at)
        u = heads[0](z)
        (slope,) = torch.autograd.grad(u.sum(), at, create_graph=True)
        return {"residual": (slope + u).square().mean(), "data": (heads[1](z) - x).square().mean()}

    optimizer = torch.optim.Adam([*trunk.parameters(), *heads.parameters()], lr=0.01)
    mt = MultiTask(trunk, case, optimizer, heads=heads, teleport="relu-rescaling" if case == "mgda" else None)
    first = mt.step(closure)
    for _ in range(5):
        report = mt.step(closure)
    assert report.losses.isfinite().all()
    assert float(report.losses.sum()) < float(first.losses.sum()) * 1.5
    assert torch.is_grad_enabled()


# --- the second look, by hand ---------------------------------------------------------------------------------------


def test_backward_and_observe_are_a_step():
    w, other = world("famo"), world("famo")
    for model in (w, other):
        model.trunk[3].p = 0.0
        model.trunk.eval()
    for _ in range(4):
        w.step()
        other.optimizer.zero_grad()
        other.mt.backward(*other.closure())
        other.optimizer.step()
        other.mt.observe(other.closure()[0])
    assert w.picture()[4] == other.picture()[4]
    assert w.picture()[0] == other.picture()[0]


def test_a_second_look_that_is_forgotten_is_named():
    w = world("famo")
    w.mt.backward(*w.closure())
    with pytest.raises(ConfigurationError, match="call observe"):
        w.mt.backward(*w.closure())
    resumed = world("famo")
    resumed.mt.load_state_dict(w.mt.state_dict())
    resumed.mt.observe(w.closure()[0])
    resumed.mt.backward(*resumed.closure())
    with pytest.raises(ConfigurationError, match="follows a backward"):
        world("famo").mt.observe(w.closure()[0])
    world("upgrad").mt.observe(w.closure()[0])  # nothing to do for a method that looks once


def test_a_second_look_at_nan_changes_nothing():
    w = world("famo")
    w.mt.backward(*w.closure())
    before = w.picture()
    losses = w.closure()[0]
    w.trunk[1].num_batches_tracked -= 1
    with pytest.raises(NonFiniteError, match="after the step the loss of task 't1'"):
        w.mt.observe({**losses, "t1": losses["t1"] * float("nan")})
    assert w.picture()[4] == before[4]
    w.mt.observe(losses)


@pytest.mark.parametrize("how", ["step", "backward"])
def test_a_method_that_hangs_can_be_stopped(how, monkeypatch):
    """A step held signals back while it asked the method: no Ctrl-C and no time limit reached one that hung."""
    w = world("upgrad")
    before, stopped = w.picture(), [True]

    def hangs(*_):
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        time.sleep(5)
        stopped.append(False)
        raise AssertionError("nobody stopped it")

    monkeypatch.setattr(type(w.mt.aggregator), "aggregate", hangs)
    old = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            w.step() if how == "step" else w.mt.backward(*w.closure())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert stopped == [True]
    if how == "step":
        assert w.picture() == before
