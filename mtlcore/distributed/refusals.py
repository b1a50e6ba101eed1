"""What several processes cannot serve, by name and with the way out."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from mtlcore.distributed.dtensors import is_sharded
from mtlcore.errors import ConfigurationError
from mtlcore.gradients import graph


def check_alone(modules: Iterable[nn.Module], parameters: Sequence[Tensor]) -> None:
    """With ``process_group=None`` every process solves its own problem; nothing may average behind its back.

    Raises:
        ConfigurationError: a module, or the network around the trunk, is in DistributedDataParallel over several
            processes; names it.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    for name, module in (*_named(modules), *_around(parameters)):
        if isinstance(module, nn.parallel.DistributedDataParallel) and module.process_group.size() > 1:
            raise ConfigurationError(
                f"{name} is wrapped in DistributedDataParallel over {module.process_group.size()} processes, and "
                f"process_group=None makes each process solve its own multi-task problem, with weights of its own: "
                f'what would be averaged is not a method. Leave the wrapper out, or take process_group="auto".'
            )


def _around(parameters: Sequence[Tensor]) -> Iterable[tuple[str, nn.Module]]:
    """Wrappers that hold one of these. Neither a parameter nor the graph leads to them: all objects are looked at."""
    mine = set(map(id, parameters))
    for found in gc.get_objects():
        if issubclass(type(found), nn.parallel.DistributedDataParallel) and any(
            id(p) in mine for p in found.parameters()
        ):
            yield "the network", found


def check_visible(trunk: Any) -> None:
    """Of a trunk inside a network that FSDP1 has wrapped there may be no parameters left.

    Raises:
        ConfigurationError: it is such a one.
    """
    if not isinstance(trunk, nn.Module) or any(True for _ in trunk.parameters()):
        return
    if any(getattr(m, "_is_fsdp_managed_module", False) for m in trunk.modules()):
        raise ConfigurationError(_FSDP1.format("the network around the trunk is"))


def check_trunk(modules: Iterable[nn.Module], parameters: Sequence[Tensor]) -> None:
    """Wrappers whose parameters are not those that the losses were made of.

    Raises:
        ConfigurationError: FSDP1, DeepSpeed, a tensor-parallel layer, shards that the run does not have, or
            DistributedDataParallel in a mode that counts on its own backward pass; names it.
    """
    for name, module in _named(modules):
        kind = type(module)
        if kind.__name__ == "FullyShardedDataParallel":
            raise ConfigurationError(_FSDP1.format(f"{name} is"))
        if kind.__module__.split(".")[0] == "deepspeed":
            raise ConfigurationError(_DEEPSPEED.format(name))
        if isinstance(module, nn.parallel.DistributedDataParallel):
            check_replica(name, module)
        if hasattr(module, "set_reshard_after_backward") and name.endswith("the trunk") and not is_sharded(parameters):
            raise ConfigurationError(
                f"{name} is sharded with fully_shard (FSDP2), and MultiTask has parameters that are no shards: it was "
                f"made before fully_shard, or between a forward pass and its backward pass, when FSDP has whole ones "
                f"in their place. Make it after fully_shard and before the first forward pass, or call "
                f"mt.refresh_parameters() there."
            )
    for p in parameters:
        if hasattr(p, "ds_id"):
            raise ConfigurationError(_DEEPSPEED.format("the trunk"))
        if getattr(p, "_fsdp_flattened", False):  # its mark on flat parameters, and on those that look into one
            raise ConfigurationError(_FSDP1.format("the network of the trunk's parameters is"))


_FSDP1 = (
    "{} wrapped in FullyShardedDataParallel (FSDP1), whose flat parameters hide which gradient is whose: shard the "
    "network with torch.distributed.fsdp.fully_shard (FSDP2) instead."
)
_DEEPSPEED = (
    "{} belongs to DeepSpeed, which owns the backward pass and keeps the gradients to itself: a multi-task step cannot "
    "see them. Use DistributedDataParallel, or torch.distributed.fsdp.fully_shard (FSDP2) for a trunk too large."
)


def check_replica(name: str, module: nn.parallel.DistributedDataParallel) -> None:
    """Raises ConfigurationError for DistributedDataParallel with a static graph, or one that looks for unused
    parameters: both wait for a backward pass of their own, which a multi-task step does not make."""
    if module.static_graph:
        raise ConfigurationError(
            f"{name} is in DistributedDataParallel(static_graph=True), which waits for a backward pass of its own; a "
            f"multi-task step takes task gradients from the graph, and averages them itself. Leave static_graph out."
        )
    if module.find_unused_parameters and module.require_backward_grad_sync:
        raise ConfigurationError(
            f"{name} is in DistributedDataParallel(find_unused_parameters=True), which waits for a backward pass of "
            f"its own; a multi-task step takes task gradients from the graph, averages them itself, and knows which "
            f"parameters are unused. Leave find_unused_parameters out, or run the forward pass under no_sync()."
        )


def check_graph(losses: Sequence[Tensor]) -> None:
    """The same for a wrapper that MultiTask was not told of, as with ``ddp.module.trunk``: it leaves a trace in the
    graph."""
    seen: set[Any] = set()
    graph.leaves(losses, seen=seen)
    for function in seen:
        reference = getattr(function, "ddp_weakref", None)
        module = reference() if callable(reference) else None
        if isinstance(module, nn.parallel.DistributedDataParallel):
            check_replica("the network", module)


def check_step(teleport: bool, parameters: Sequence[Tensor]) -> None:
    """Raises ConfigurationError for parts of a step that need whole parameters in one place."""
    if teleport and is_sharded(parameters):
        raise ConfigurationError(
            "a teleport moves whole parameters, and a sharded trunk (FSDP2) has none in one place: leave teleport out, "
            "or keep the trunk whole on every process."
        )


def _named(modules: Iterable[nn.Module]) -> Iterable[tuple[str, nn.Module]]:
    for what, module in zip(("the trunk", "the heads"), modules):
        for name, inner in module.named_modules():
            yield (f"{name} of {what}" if name else what), inner
