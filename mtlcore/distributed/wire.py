"""The collectives that a step uses, and how many bytes they put on the wire."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mtlcore.errors import ProcessError

_BUCKET = 25 * 2**20
"""Bytes that travel at once, as DistributedDataParallel has it."""


class Wire:
    """A group of processes.

    Args:
        group: of more than one process.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)
        served = [kind.split(":")[0] for kind in dist.get_backend_config(group).split(",")]
        self._served = frozenset(served)
        self._small = torch.device("cpu" if "cpu" in served else served[0])
        """Where small numbers travel from: backends for accelerators take no others."""
        self.bytes: Counter[str] = Counter()
        """What this process has sent so far, by kind of collective, if each is done in the way that sends least:
        (R-1)/R of what it holds to scatter or gather, twice that to sum up in place."""

    def _sent(self, kind: str, tensor: Tensor, times: int = 1) -> None:
        self.bytes[kind] += times * tensor.numel() * tensor.element_size() * (self.size - 1) // self.size

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError) as error:
            lost = ProcessError(
                f"process {self.rank} of {self.size} has lost another one, or waited for it longer than the process "
                f"group's timeout: {' '.join(str(error).split())[:300]} Nothing of this step was written here. Look at "
                f"the first error among the processes; the group cannot be used any more."
            )
            lost.lost = True
            raise lost from error

    def sum(self, numbers: Sequence[float] | Tensor) -> Tensor:
        """(n,) float64 on the processor: the sums over all processes, the same bits everywhere."""
        mine = torch.as_tensor(numbers, dtype=torch.float64).to(self._small)
        with self._guarded():
            dist.all_reduce(mine, group=self.group)
        self._sent("numbers", mine, 2)
        return mine.cpu()

    def objects(self, value: Any) -> list[Any]:
        """What every process gave, in the order of ranks."""
        out: list[Any] = [None] * self.size
        with self._guarded():
            dist.all_gather_object(out, value, group=self.group)
        return out

    def matrix(self, share: Tensor) -> Tensor:
        """The sum of matrices (k, k) float64, where they are."""
        placed = self._placed(share)
        with self._guarded():
            dist.all_reduce(placed, group=self.group)
        self._sent("gramian", placed, 2)
        return placed.to(share.device)

    def add(self, tensors: Sequence[Tensor], kind: str) -> None:
        """Each becomes its sum over all processes, in place. They travel in buckets, one behind the other."""
        waiting: list[tuple[Any, Tensor, list[Tensor]]] = []
        for bucket in _buckets(tensors):
            flat = self._placed(torch.cat([t.reshape(-1) for t in bucket]))
            with self._guarded():
                waiting.append((dist.all_reduce(flat, group=self.group, async_op=True), flat, bucket))
            self._sent(kind, flat, 2)
            if len(waiting) > 1:
                self._arrived(*waiting.pop(0))
        for each in waiting:
            self._arrived(*each)

    def _arrived(self, work: Any, flat: Tensor, bucket: list[Tensor]) -> None:
        with self._guarded():
            work.wait()
        for tensor, piece in zip(bucket, flat.split([t.numel() for t in bucket])):
            tensor.copy_(piece.view(tensor.shape))

    def exchange(self, blocks: Tensor) -> tuple[Any, Tensor]:
        """Begin to send ``blocks[r]`` (R, ...) to process r; what comes from each, once the work is done."""
        placed = self._placed(blocks)
        out = torch.empty_like(placed)
        with self._guarded():
            work = dist.all_to_all_single(out, placed, group=self.group, async_op=True)
        self._sent("rows", placed)
        return work, out

    def wait(self, work: Any) -> None:
        """Until it is done."""
        with self._guarded():
            work.wait()

    def gather(self, share: Tensor, kind: str) -> Tensor:
        """(R, n) of everybody's (n,), on the device of ``share``."""
        placed = self._placed(share)
        out = placed.new_empty(self.size * placed.numel())
        collect = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        with self._guarded():
            collect(out, placed, group=self.group)
        self._sent(kind, out)
        return out.view(self.size, -1).to(share.device)

    def _placed(self, tensor: Tensor) -> Tensor:
        tensor = tensor.contiguous()
        return tensor if tensor.device.type in self._served else tensor.to(self._small)


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Neighbours of one dtype and device, up to a bucket's bytes together."""
    out: list[list[Tensor]] = []
    room = 0
    for t in tensors:
        size = t.numel() * t.element_size()
        if not out or size > room or out[-1][0].dtype != t.dtype or out[-1][0].device != t.device:
            out.append([])
            room = _BUCKET
        out[-1].append(t)
        room -= size
    return out
