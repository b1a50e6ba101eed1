"""Parameters in shards: DTensors as ``fully_shard`` (FSDP2) places them, and the columns of J that lie here.

Each parameter is cut along its first dimension into as many pieces as the mesh has processes in its sharded dimension:
of ceil(n / S) slices each, the last ones shorter, or empty.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlcore.distributed.wire import Wire
from mtlcore.errors import ConfigurationError

_BUCKET = 25 * 2**20
"""Bytes of rows that travel at once, or one parameter's."""


def is_sharded(parameters: Iterable[Any]) -> bool:
    """Whether some parameter is a DTensor."""
    # By name: importing the class takes a second, which a run without it should not pay.
    return any(type(p).__name__ == "DTensor" or type(getattr(p, "data", p)).__name__ == "DTensor" for p in parameters)


def local(tensor: Any) -> Tensor:
    """The shard that lies here; a tensor that is no DTensor as it is."""
    found: Tensor = tensor.to_local() if is_sharded([tensor]) else tensor
    return found


def whole(tensor: Any) -> Any:
    """All of a DTensor, gathered: every process calls it; anything else as it is."""
    return tensor.full_tensor() if is_sharded([tensor]) else tensor


def shard(whole: Tensor, like: Any) -> Tensor:
    """A DTensor placed as ``like``, of its dtype, from numbers that every process has."""
    size, rank, _ = _along(like)
    width = -(-len(whole) // size)
    out = torch.zeros_like(like, requires_grad=False)
    local(out).copy_(whole[rank * width : (rank + 1) * width])
    return out


def _along(parameter: Any) -> tuple[int, int, Any]:
    """In how many pieces it is, which of them lies here, and the processes that hold the pieces."""
    (dimension,) = [i for i, p in enumerate(parameter.placements) if str(p).startswith("S")]
    group = parameter.device_mesh.get_group(dimension)
    # FSDP counts in the group, whose order need not be the mesh's.
    return group.size(), group.rank(), group


_KNOWN = frozenset(("R", "S(0)", "Replicate()", "Shard(dim=0)"))
"""How placements of ``fully_shard`` are written."""


def replicas(parameters: Sequence[Any], processes: int) -> int:
    """On how many processes each shard lies.

    Args:
        parameters: of the trunk.
        processes: that take the step together.

    Raises:
        ConfigurationError: the parameters are not sharded alike, not in the way of ``fully_shard``, or over other
            processes.
    """
    kinds = {tuple(map(str, p.placements)) if is_sharded([p]) else ("not sharded",) for p in parameters}
    meshes = {p.device_mesh for p in parameters if is_sharded([p])}
    if len(kinds) != 1 or len(meshes) != 1:
        raise ConfigurationError(
            f"the trunk's parameters are placed in different ways ({', '.join(sorted(' '.join(k) for k in kinds))}): "
            f"shard the whole trunk with fully_shard(trunk, mesh=...), and without tensor parallelism."
        )
    (kind,), (mesh,) = kinds, meshes
    if sum(k.startswith("S") for k in kind) != 1 or not _KNOWN.issuperset(kind):
        raise ConfigurationError(
            f"the trunk's parameters are DTensors placed as {' '.join(kind)}, which is not how fully_shard (FSDP2) "
            f"places them: tensor parallelism is not served."
        )
    if mesh.size() != processes:
        raise ConfigurationError(
            f"the trunk is sharded (FSDP2) over a mesh of {mesh.size()} processes, and this step is taken by "
            f"{processes}: FSDP would average over others than the method. Shard the trunk over all processes of "
            f"process_group, or give the group of the mesh."
        )
    return math.prod(size for k, size in zip(kind, mesh.mesh.shape) if not k.startswith("S"))


class Columns:
    """Which columns of J lie here: of each parameter the piece of this process, in the order of the parameters.

    Args:
        parameters: of the trunk, which are sharded alike.
    """

    def __init__(self, parameters: Sequence[Any]) -> None:
        self._parameters = list(parameters)
        self.sizes = [local(p).numel() for p in parameters]
        """Columns here, by parameter."""
        self._pieces, self._rank, self._group = _along(parameters[0])

    def mine(self, whole: Tensor) -> Tensor:
        """(m, P) -> (m, columns here)."""
        out = []
        for p, block in zip(self._parameters, whole.split([p.numel() for p in self._parameters], 1)):
            width = self._width(p)
            out.append(block[:, self._rank * width : (self._rank + 1) * width])
        return torch.cat(out, 1)

    def gathered(self, share: Tensor, wire: Wire) -> Tensor:
        """(k, columns here) -> (k, P) on every process, with the columns of a trunk in one piece.

        Args:
            share: of this process.
            wire: of the run; its hook codes what travels, and it counts the bytes.
        """
        if self._pieces == 1:
            return share
        near, k = Wire(self._group, wire.hook), len(share)
        near.bytes = wire.bytes
        out = share.new_empty(k, sum(p.numel() for p in self._parameters))
        start = offset = 0
        cells = share.split(self.sizes, 1)
        for run in self._runs(k * share.element_size()):
            widths = [self._width(self._parameters[i]) for i in run]
            block = share.new_zeros(k, sum(widths))
            for i, place in zip(run, block.split(widths, 1)):
                place[:, : self.sizes[i]] = cells[i]
            everybody = near.gather(block.flatten(), "rows").view(self._pieces, k, -1)
            offset = 0
            for i, width in zip(run, widths):
                n = self._parameters[i].numel()
                # What fills up the pieces is behind the last of them.
                pieces = everybody[:, :, offset : offset + width].transpose(0, 1).reshape(k, -1)
                out[:, start : start + n] = pieces[:, :n]
                start, offset = start + n, offset + width
        return out

    def _width(self, parameter: Any) -> int:
        """Numbers of the largest piece of it."""
        first, *rest = (int(n) for n in parameter.shape)
        return -(-first // self._pieces) * math.prod(rest)

    def _runs(self, size: int) -> list[list[int]]:
        """Neighbours that travel together; ``size`` is the bytes of a column."""
        out: list[list[int]] = []
        room = 0
        for i, p in enumerate(self._parameters):
            if not out or p.numel() * size > room:
                out.append([])
                room = _BUCKET
            out[-1].append(i)
            room -= p.numel() * size
        return out
