"""Options that name one task: it stays the same one, or the step is refused."""

from __future__ import annotations

import pytest
import torch

import mtlcore
from mtlcore import MultiTask
from mtlcore.errors import ConfigurationError

METHODS = [
    ("pcd", "primary", {}),
    ("config", "tracked", {"length": "task"}),
    ("m-config", "tracked", {"length": "task"}),
]


class Work:
    def __init__(self, name, option, options, position=1, names="abc"):
        torch.manual_seed(0)
        self.trunk = torch.nn.Linear(3, 4).double()
        self.x = torch.randn(8, 3, dtype=torch.float64)
        method = mtlcore.create("aggregator", name, **{option: position}, **options)
        self.mt = MultiTask(self.trunk, method, tasks=list(names))

    def direction(self, names="abc"):
        z = self.trunk(self.x)
        losses = {
            "a": z[:, 0].square().mean(),
            "b": 3 * (z[:, 1] - z[:, 0]).square().mean(),
            "c": 9 * (z[:, 2] + z[:, 0]).square().mean(),
        }
        self.trunk.zero_grad()
        self.mt.backward({n: losses[n] for n in names})
        return self.trunk.weight.grad.clone()


@pytest.mark.parametrize(("name", "option", "options"), METHODS)
def test_another_order_keeps_the_task(name, option, options):
    """It went by its position, so that a reordered run measured itself by another task, in silence."""
    first, again = Work(name, option, options), Work(name, option, options, names="cab")
    first.direction()
    again.mt.load_state_dict(first.mt.state_dict())
    torch.testing.assert_close(again.direction("cab"), first.direction(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "option", "options"), METHODS)
def test_a_task_that_goes_leaves_it_the_same_one_and_may_not_be_it(name, option, options):
    work, other = Work(name, option, options), Work(name, option, options)
    for each in (work, other):
        each.direction()
    work.mt.remove_task("a")
    alone = Work(name, option, options, position=0, names="bc")  # the same one, by its new place
    found = work.direction("bc")
    if name == "config":  # without a memory of the first step
        torch.testing.assert_close(found, alone.direction("bc"), rtol=1e-9, atol=1e-12)
    assert found.any()
    other.mt.remove_task("b")
    with pytest.raises(ConfigurationError, match=f"{name}: the task of {option} was removed"):
        other.direction("ac")


@pytest.mark.parametrize(("name", "option", "options"), METHODS)
def test_a_task_that_is_not_there_is_refused(name, option, options):
    """``pcd`` said so in its docstring, and gave zeros."""
    with pytest.raises(ConfigurationError, match=f"{name}: {option}=3, but the 3 tasks are counted from 0"):
        Work(name, option, options, position=3).direction()
