"""One snapshot for all: what is saved comes back bit for bit, and a Ctrl-C waits where it must."""

from __future__ import annotations

import os
import random
import signal
import threading

import numpy as np
import pytest
import torch
from torch import nn

from mtlcore import trajectory
from mtlcore.snapshot import Buffers, Gradients, History, Noise, Parameters, Snapshot, Structure, interrupts_held


def draws():
    return torch.rand(3).tolist(), np.random.rand(2).tolist(), random.random()


def test_noise_comes_back():
    noise = Noise()
    first = draws()
    assert not noise.same_as(Noise())
    noise.restore()
    assert noise.same_as(Noise())
    assert draws() == first


class Forgetful(nn.Module):
    """A forward that writes a buffer in place, replaces one, adds one, counts and keeps what it saw."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("seen", torch.zeros(3))
        self.calls = 0

    def forward(self, x):
        self.seen = self.seen + 1.0
        self.calls += 1
        self.last = x
        self.register_buffer("cache", x[0].clone())
        return self.norm(x)


def test_what_a_forward_leaves_behind_is_taken_back():
    net, seen = Forgetful(), None
    seen, before = net.seen, {k: v.clone() for k, v in net.state_dict().items()}
    saved = Buffers([net])
    for _ in range(2):
        net(torch.randn(4, 3)).sum().backward()
        net.eval()
        saved.restore()
        after = net.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[k], after[k]) for k in before)
        assert net.seen is seen
        assert (net.calls, net.training, hasattr(net, "last")) == (0, True, False)


def test_a_graph_survives_the_way_back():
    weight = nn.Parameter(torch.randn(3, 3))
    loss = (weight @ weight).sum()
    with Snapshot(parameters=[weight]).restored():
        weight.data.add_(1.0)
    loss.backward()
    assert torch.allclose(weight.grad, torch.autograd.grad((weight @ weight).sum(), weight)[0])


def test_lazy_modules_are_left_out():
    net = nn.Sequential(nn.LazyLinear(2), nn.LazyBatchNorm1d())
    Snapshot(modules=[net], parameters=net.parameters(), gradients=net.parameters()).restore()
    net(torch.randn(4, 3))
    assert net[0].weight.shape == (2, 3)


def test_structure_comes_back():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    saved = Structure(net.modules())
    net[0].register_forward_hook(lambda *args: None)
    net[0] = nn.Linear(2, 2)
    net.extra = 1
    saved.restore()
    assert len(net) == 2
    assert not net[0]._forward_hooks
    assert not hasattr(net, "extra")


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "ASGD": lambda p: torch.optim.ASGD(p),
    "tensor lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps", [0, 2])
def test_a_run_goes_on_as_if_the_step_had_not_been(name, steps):
    """Whatever lies between: parameters, history, options and gradients are those of before, and so is what follows."""
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    optimizer = OPTIMIZERS[name](net.parameters())
    x = torch.randn(5, 3)

    def step():
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()
        return [p.detach().clone() for p in net.parameters()]

    for _ in range(steps):
        step()
    before = Snapshot(parameters=net.parameters(), gradients=net.parameters(), optimizer=optimizer)
    once = step()
    optimizer.param_groups[0]["weight_decay"] = 1.0
    if isinstance(lr := optimizer.param_groups[0]["lr"], torch.Tensor):
        lr.mul_(2.0)
    step()
    before.restore()
    assert all(map(torch.equal, once, step()))
    before.restore()
    assert all(map(torch.equal, once, step()))


def test_the_past_that_awaits_a_step_comes_back():
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    weight.grad = torch.ones(2)
    optimizer.step()
    trajectory.reuse(optimizer, [weight], 0.5)
    saved = History(optimizer)
    optimizer.step()
    saved.restore()
    assert trajectory.waiting(optimizer) == {weight: 0.5}


def test_several_optimizers_and_wrapped_ones():
    class Wrapped(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer = optimizer

    weights = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    plain = [torch.optim.SGD([w], lr=0.1, momentum=0.9) for w in weights]
    saved = History([plain[0], Wrapped(plain[1])])
    for weight, optimizer in zip(weights, plain):
        weight.grad = torch.ones(2)
        optimizer.step()
    saved.restore()
    assert not any(optimizer.state for optimizer in plain)


def test_gradients_are_the_same_objects():
    weight = nn.Parameter(torch.ones(2))
    weight.grad = grad = torch.ones(2)
    copied, before = Gradients([weight]), Snapshot(gradients=[weight])

    def fails():
        with before.all_or_nothing():
            before.take_gradients()
            weight.grad = torch.zeros(2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert weight.grad is grad
    weight.grad.zero_()
    copied.restore()
    assert torch.equal(weight.grad, torch.ones(2))


def test_all_or_nothing():
    weight = nn.Parameter(torch.ones(2))
    before = Snapshot(parameters=[weight])
    with before.all_or_nothing():
        weight.data.zero_()
    assert not weight.any()

    def stopped():
        with before.all_or_nothing():
            torch.set_grad_enabled(False)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert weight.all()
    assert torch.is_grad_enabled()


def test_one_part_that_fails_does_not_keep_the_others():
    good, bad = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    before = Snapshot(parameters=[bad, good])
    bad.data, good.data = torch.zeros(3), torch.zeros(2)
    with pytest.raises(RuntimeError):
        before.restore()
    assert good.all()


def test_an_expanded_buffer():
    buffer = torch.ones(1).expand(3)
    Parameters([buffer]).restore()


# --- Ctrl-C ---------------------------------------------------------------------------------------------------------


def test_an_interrupt_waits_for_the_end():
    done = []

    def nested():
        with interrupts_held():
            with interrupts_held():
                os.kill(os.getpid(), signal.SIGINT)
                done.append(1)
            done.append(2)

    with pytest.raises(KeyboardInterrupt):
        nested()
    assert done == [1, 2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_the_system_handles_is_left_alone_and_a_time_limit_waits():
    def too_late(number, frame):
        raise TimeoutError

    former = signal.signal(signal.SIGALRM, too_late)
    try:
        with interrupts_held():
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        with pytest.raises(TimeoutError), interrupts_held():
            os.kill(os.getpid(), signal.SIGALRM)
    finally:
        signal.signal(signal.SIGALRM, former)


def test_other_threads_receive_nothing():
    found = []

    def look():
        with interrupts_held():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


def test_interrupts_at_many_moments_of_a_restore():
    """Timed: wherever it strikes, what was saved is back, and the interrupt is not lost. One moment is beyond reach:
    the entry of ``__exit__`` itself, where Python looks for signals before the first line. A step undoes that one."""
    weights = [nn.Parameter(torch.zeros(3)) for _ in range(30)]
    missed = 0
    for i in range(40):
        for weight in weights:
            weight.data.zero_()
        before = Snapshot(parameters=weights)
        struck = False
        former = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 1e-5 * (i + 1))
            with before.restored():
                for weight in weights:
                    weight.data.fill_(1.0)
            while True:  # in case it was slower
                pass
        except KeyboardInterrupt:
            struck = True
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, former)
        assert struck
        missed += any(bool(w.any()) for w in weights)
    assert missed <= 1
