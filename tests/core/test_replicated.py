"""A trunk in DistributedDataParallel: allowed where its hooks see the gradients."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from mtlcore import MultiTask
from mtlcore.errors import ConfigurationError


@pytest.fixture
def replicated(request):
    """A trunk that thinks it is one of so many."""
    dist.init_process_group("fake", rank=0, world_size=request.param, store=FakeStore())
    try:
        yield nn.parallel.DistributedDataParallel(nn.Linear(3, 4))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("replicated", [2], indirect=True)
def test_refused_where_gradients_are_read(replicated):
    with pytest.raises(ConfigurationError, match=r"^the trunk is wrapped in Distr.*'gradops' of .* reads task"):
        MultiTask(replicated, "gradops")
    with pytest.raises(ConfigurationError, match=r"^0 of the trunk is wrapped .*'dominated' of .*average p.grad over"):
        MultiTask(nn.Sequential(replicated), "sum", detector="dominated")


@pytest.mark.parametrize("replicated", [2], indirect=True)
def test_allowed_where_losses_are_read(replicated):
    assert MultiTask(replicated, "bilb4mtl").state_dict()["step"] == 0


@pytest.mark.parametrize("replicated", [1], indirect=True)
def test_one_process_has_nobody_to_hear_of(replicated):
    z = replicated(torch.ones(5, 3))
    report = MultiTask(replicated, "gradops").backward([z.sum(), z.square().sum()], z)
    assert (report.weights > 0).all()
