"""A step that teleports is still one step, and one that is refused a teleport is an ordinary one."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import mtlcore
from mtlcore import Aggregation, Aggregator, Displacement, Needs, TeleportStrategy
from mtlcore.errors import LossError, TeleportError
from mtlcore.teleporting import Teleporter
from support.teleport_nets import TASKS, problem


@dataclass(frozen=True)
class Stays(TeleportStrategy):
    """Looks at the batch as a search does, draws, and stays."""

    def propose(self, problem, generator):
        problem.rows()
        torch.rand(3)
        return Displacement({})


class Trunk(nn.Module):
    """Learns statistics and draws from every stream."""

    def __init__(self):
        super().__init__()
        self.one, self.norm, self.drop, self.two = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 5)

    def forward(self, x):
        scale = 1.0 + 0.1 * (random.random() + np.random.rand()) if self.training else 1.0
        return self.two(self.drop(torch.relu(self.norm(self.one(x)))) * scale)


def one_step(aggregator, gradients, teleport, batches=1):
    """Everything that a step leaves behind, and its report."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    made = problem("mlp")
    made.trunk = Trunk().double()
    made.heads["red"].append(nn.BatchNorm1d(1).double())
    optimizer = made.optimizer(torch.optim.SGD, lr=0.0, momentum=0.9)
    mt = mtlcore.MultiTask(
        made.trunk, aggregator, optimizer, teleport=teleport, gradients=gradients, heads=made.heads, probe=made.batch(1)
    )
    report = mt.step([made.batch(s) for s in range(batches)] if batches > 1 else made.batch(0))
    left = {f"parameter {i}": p for i, p in enumerate(made.parameters())}
    left |= {f"gradient {i}": p.grad for i, p in enumerate(made.parameters())}
    left |= {f"buffer {n}": b for m in (made.trunk, made.heads) for n, b in m.named_buffers()}
    left |= {f"state {n}": v for n, v in (mt.state_dict()["state"] or {}).items()}
    left |= {f"momentum {i}": optimizer.state[p]["momentum_buffer"] for i, p in enumerate(made.parameters())}
    left |= {"torch": torch.rand(2), "python": torch.tensor(random.random()), "numpy": torch.tensor(np.random.rand())}
    return {n: v.detach().clone() for n, v in left.items()}, report


METHODS = [
    ("ls", "losses"),
    ("famo", "losses"),
    ("gradops", "sequential"),
    ("gradops", "features"),
    ("gradops", "streaming"),
    ("gradops", "batched"),
]


@pytest.mark.parametrize(("aggregator", "gradients"), METHODS)
def test_after_a_refused_teleport_the_step_goes_on_as_without(aggregator, gradients):
    without, plain = one_step(aggregator, gradients, None)
    left, report = one_step(aggregator, gradients, Stays())
    assert not report.teleport.accepted
    assert torch.equal(plain.losses, report.losses)
    for name, value in without.items():
        assert torch.equal(value, left[name]), name


@pytest.mark.parametrize(("aggregator", "gradients"), METHODS)
def test_an_accepted_teleport_counts_the_batch_once(aggregator, gradients):
    @dataclass(frozen=True)
    class Nudge(TeleportStrategy):
        """As good as nowhere: what the step leaves can be compared with a step that stayed."""

        improves = False

        def propose(self, problem, generator):
            weight = problem.parameters()["two.weight"]
            return Displacement({"two.weight": weight.detach() * (1.0 + 1e-13)})

    without, plain = one_step(aggregator, gradients, None)
    left, report = one_step(aggregator, gradients, Nudge())
    assert report.teleport.accepted, report.teleport.reason
    torch.testing.assert_close(plain.losses, report.losses, rtol=1e-9, atol=0)
    for name in ("torch", "python", "numpy"):
        assert torch.equal(without[name], left[name]), name
    for name, value in without.items():
        torch.testing.assert_close(value, left[name], rtol=1e-6, atol=1e-9, msg=name)


def test_the_other_batches_are_looked_at_again_after_a_jump():
    seen = []

    @dataclass(frozen=True)
    class Twice(Aggregator):
        needs = Needs.JACOBIAN
        batches = 2

        def aggregate(self, view, state):
            seen.append((view.jacobian.clone(), view.others[0].jacobian.clone()))
            return Aggregation(weights=torch.ones(view.n_tasks), state=state)

    made = problem("mlp")
    made.trunk.eval()
    mt = mtlcore.MultiTask(made.trunk, Twice(), made.optimizer(), teleport="random")
    assert mt.step([made.batch(0), made.batch(0)]).teleport.accepted
    ((rows, others),) = seen
    assert torch.equal(rows, others), "the same batch at the same point"


def test_an_optimizer_whose_history_cannot_be_carried_is_refused_at_once():
    class Own(torch.optim.Optimizer):
        def __init__(self, parameters, lr):
            super().__init__(parameters, {"lr": lr})

        def step(self, closure=None):
            pass

    made = problem("mlp")
    with pytest.raises(TeleportError, match=r"Own cannot be carried.*use one of .*Adadelta.*or let it forget"):
        mtlcore.MultiTask(made.trunk, "ls", made.optimizer(Own), teleport="lora")
    mtlcore.MultiTask(made.trunk, "ls", made.optimizer(Own))
    forgetful = Teleporter("lora", history="reset")
    mt = mtlcore.MultiTask(made.trunk, "ls", made.optimizer(Own), teleport=forgetful, heads=made.heads)
    assert mt.step(made.batch(0)).teleport is not None


def without_graph(closure):
    with torch.no_grad():
        return closure()


PROBES = {
    "no_grad": (without_graph, "probe: the loss of task 'red' has no gradient graph"),
    "vectors": (
        lambda c: ({t: v.expand(3) for t, v in c()[0].items()}, None),
        r"probe: the loss of task 'red' has shape \(3,\)",
    ),
    "numbers": (lambda c: ({t: v.item() for t, v in c()[0].items()}, None), "probe: the loss of task 'red' is a float"),
    "nothing": (lambda c: (dict.fromkeys(TASKS), None), "probe: no losses: every task is missing"),
    "an unknown task": (lambda c: ({**c()[0], "ultraviolet": torch.ones(())}, None), "probe: unknown task"),
}


@pytest.mark.parametrize("kind", PROBES)
@pytest.mark.parametrize("name", ["lora", "random"])
def test_a_probe_is_held_to_what_is_asked_of_a_step(kind, name):
    spoil, message = PROBES[kind]
    made = problem("mlp")
    before = [p.detach().clone() for p in made.parameters()]
    mt = mtlcore.MultiTask(
        made.trunk, "ls", made.optimizer(), teleport=name, tasks=TASKS, probe=lambda: spoil(made.batch(1))
    )
    with pytest.raises(LossError, match=message):
        mt.step(made.batch(0))
    assert all(torch.equal(a, b) for a, b in zip(before, made.parameters()))


def in_single_precision(around):
    """What a step of FAMO, which looks twice, sees when the caller has an autocast block around it; a jump as asked."""

    @dataclass(frozen=True)
    class Far(TeleportStrategy):
        improves = False

        def propose(self, problem, generator):
            return Displacement({n: 3.0 * p.detach() for n, p in problem.parameters().items()})

    torch.manual_seed(0)
    trunk, heads = nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.ModuleList([nn.Linear(8, 1), nn.Linear(8, 1)])
    optimizer = torch.optim.SGD([*trunk.parameters(), *heads.parameters()], lr=0.1)
    x, held_out = torch.randn(2, 32, 6).unbind()

    def closure(x):
        with torch.autocast("cpu", torch.bfloat16):
            z = trunk(x)
            return {t: (h(z).float() - i).square().mean() for i, (t, h) in enumerate(zip("ab", heads))}, z

    mt = mtlcore.MultiTask(
        trunk, "famo", optimizer, heads=heads, teleport=Far(), tolerance=1.0, probe=lambda: closure(held_out)
    )
    with around:
        report = mt.step(lambda: closure(x))
    return report, mt.state_dict()["state"], [p.detach() for p in trunk.parameters()]


def test_an_autocast_block_around_the_step_hides_no_move():
    """Autocast keeps the cast weights until its outermost block ends: every later look would be at the first point."""
    inside, state, values = in_single_precision(torch.autocast("cpu", torch.bfloat16))
    alone, expected, others = in_single_precision(contextlib.nullcontext())
    assert inside.teleport == dataclasses.replace(alone.teleport, seconds=inside.teleport.seconds)
    assert torch.equal(inside.losses, alone.losses)
    assert all(torch.equal(state[n], expected[n]) for n in expected), "of the second look"
    assert all(map(torch.equal, values, others))


def test_an_interrupted_attempt_is_none():
    made = problem("mlp")
    mt = mtlcore.MultiTask(
        made.trunk, "ls", made.optimizer(), teleport="random", probe=made.batch(1), brakes=mtlcore.Brakes(cap=1)
    )
    before, calls = mt.state_dict(), [0]

    def closure():
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return made.batch(0)()

    with pytest.raises(KeyboardInterrupt):
        mt.step(closure)
    assert mt.state_dict() == before, "a run resumed from here goes on as one that was not interrupted"
    assert mt.step(closure).teleport.accepted
    assert mt.step(closure).teleport is None
