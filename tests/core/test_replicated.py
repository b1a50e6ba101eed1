"""A trunk in DistributedDataParallel: the step of all processes, or none."""

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
@pytest.mark.parametrize("name", ["gradops", "imtl-l"])
def test_a_problem_of_its_own_is_not_averaged(replicated, name):
    mt = MultiTask(nn.Sequential(replicated), name, process_group=None)
    z = replicated(torch.ones(5, 3))
    with pytest.raises(ConfigurationError, match=r"^0 of the trunk is wrapped in Distrib.*over 2 processes.*own"):
        mt.backward([z.sum(), z.square().sum()], z)


@pytest.mark.parametrize("replicated", [1], indirect=True)
def test_one_process_has_nobody_to_hear_of(replicated):
    z = replicated(torch.ones(5, 3))
    report = MultiTask(replicated, "gradops").backward([z.sum(), z.square().sum()], z)
    assert (report.weights > 0).all()


@pytest.mark.parametrize("replicated", [1], indirect=True)
def test_what_is_no_process_group(replicated):
    for wish in ("world", 2, object()):
        with pytest.raises(ConfigurationError, match="process_group must be"):
            MultiTask(replicated, "sum", process_group=wish)
    mesh = dist.device_mesh.DeviceMesh("cpu", torch.zeros(1, 1, dtype=torch.int), mesh_dim_names=("dp", "tp"))
    with pytest.raises(ConfigurationError, match=r"2 dimensions \(dp, tp\).*mesh\['dp'\]"):
        MultiTask(replicated, "sum", process_group=mesh)
