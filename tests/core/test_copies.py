"""A copy of a run, by ``copy.deepcopy`` or ``pickle``, together with network and optimizer."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from mtlcore import MultiTask
from mtlcore.errors import ConfigurationError, TrainingWarning

COPIES = [copy.deepcopy, lambda run: pickle.loads(pickle.dumps(run))]


def made(method, **options):
    torch.manual_seed(0)
    trunk = nn.ModuleDict({"used": nn.Linear(6, 8), "unused": nn.Linear(8, 8)})
    heads = nn.ModuleDict({"a": nn.Linear(8, 1), "b": nn.Linear(8, 1)})
    optimizer = torch.optim.Adam([*trunk.parameters(), *heads.parameters()], lr=0.01)
    return trunk, heads, optimizer, MultiTask(trunk, method, optimizer, **options)


def losses_of(run, tasks="ab", whole=False):
    trunk, heads, x = run[0], run[1], torch.ones(4, 6)
    z = trunk["used"](x).tanh()
    z = trunk["unused"](z) if whole else z
    return {t: heads[t](z).square().mean() for t in tasks}, z


@pytest.mark.parametrize("again", COPIES)
@pytest.mark.parametrize("method", ["uw", "upgrad"])
def test_no_copy_in_the_middle_of_a_step(again, method):
    """A pickle used to lose the gradients of the micro-batches and keep their losses; deepcopy raised torch's error."""
    run = made(method)
    mt = run[3]
    losses, z = losses_of(run)
    mt.accumulate(losses, z)
    with pytest.raises(ConfigurationError, match="micro-batches are waiting"):
        again(run)
    losses, z = losses_of(run)
    assert mt.backward(losses, z).losses.tolist() == pytest.approx([2 * v.item() for v in losses.values()])
    again(run)


@pytest.mark.parametrize("again", COPIES)
def test_a_copy_names_its_own_parameters(again):
    """It used to say "?", for names were kept by the identity of the first run's parameters."""
    run = again(made("upgrad"))
    with pytest.warns(TrainingWarning, match=r"no task has reached 2 .*\(unused.weight, unused.bias\)"):
        for _ in range(3):
            run[3].step(lambda: losses_of(run))


@pytest.mark.parametrize("again", COPIES)
def test_a_copy_does_not_forget_who_reached_a_parameter(again):
    """It used to know the tasks that had come, and not what they had reached: a false warning about the other task."""
    run = made("upgrad", tasks=["a", "b"])
    run[3].step(lambda: losses_of(run, "b", whole=True))
    run = again(run)
    with warnings.catch_warnings():
        warnings.simplefilter("error", TrainingWarning)
        for _ in range(4):
            run[3].step(lambda: losses_of(run, "a", whole=True))


@pytest.mark.parametrize("again", COPIES)
def test_a_network_that_holds_its_own_run_can_be_copied(again):
    trunk, _, _, mt = made("upgrad")
    trunk.run = mt
    copied = again(trunk)
    assert copied.run is not mt
    assert [id(p) for p in copied.run._run.parameters] == [id(p) for p in copied.parameters()]
