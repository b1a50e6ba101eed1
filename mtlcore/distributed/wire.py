"""The collectives that a step uses, and how many bytes they put on the wire."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mtlcore.distributed import silent
from mtlcore.distributed.hook import CommunicationHook
from mtlcore.errors import ProcessError

_BUCKET = 25 * 2**20
"""Bytes that travel at once, as DistributedDataParallel has it."""


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Blocks that are under way."""

    work: Any
    out: Tensor
    kind: str
    dtype: torch.dtype


class Wire:
    """A group of processes.

    Args:
        group: of more than one process.
        hook: codes what travels in bulk, or None.
    """

    def __init__(self, group: dist.ProcessGroup, hook: CommunicationHook | None = None) -> None:
        self.group = group
        self.hook = hook
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
                f"group's timeout{silent.named(self.group)}: {' '.join(str(error).split())[:300]} Nothing of this "
                f"step was written here. Look at the first error among the processes; the group cannot be used any "
                f"more."
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
        if self.hook is not None:
            self._add_coded(tensors, kind)
            return
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
        _spread(flat, bucket)

    def _add_coded(self, tensors: Sequence[Tensor], kind: str) -> None:
        # A sum on the way would decode and encode at every stop: each process adds up its share, and shows it.
        for bucket in _buckets(tensors):
            flat = torch.cat([t.reshape(-1) for t in bucket])
            width = -(-flat.numel() // self.size)
            blocks = torch.nn.functional.pad(flat, (0, self.size * width - flat.numel())).view(self.size, width)
            total = self.arrived(self.exchange(blocks, kind)).sum(0, dtype=torch.float64).to(flat)
            _spread(self.gather(total, kind).reshape(-1), bucket)

    def exchange(self, blocks: Tensor, kind: str) -> Exchange:
        """Begin to send ``blocks[r]`` (R, ...) to process r."""
        placed = self._placed(self._encoded(blocks, kind))
        out = torch.empty_like(placed)
        with self._guarded():
            work = dist.all_to_all_single(out, placed, group=self.group, async_op=True)
        self._sent(kind, placed)
        return Exchange(work, out, kind, blocks.dtype)

    def arrived(self, sent: Exchange) -> Tensor:
        """(R, ...) what came from each process; waits for it."""
        with self._guarded():
            sent.work.wait()
        return self._decoded(sent.out, sent.kind, sent.dtype)

    def gather(self, share: Tensor, kind: str) -> Tensor:
        """(R, n) of everybody's (n,), on the device of ``share``."""
        placed = self._placed(self._encoded(share, kind))
        out = placed.new_empty(self.size * placed.numel())
        collect = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        with self._guarded():
            collect(out, placed, group=self.group)
        self._sent(kind, out)
        return self._decoded(out.view(self.size, -1).to(share.device), kind, share.dtype)

    def _encoded(self, tensor: Tensor, kind: str) -> Tensor:
        return tensor if self.hook is None else self.hook.encode(tensor, kind)

    def _decoded(self, tensor: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
        return tensor if self.hook is None else self.hook.decode(tensor, kind, dtype)

    def _placed(self, tensor: Tensor) -> Tensor:
        tensor = tensor.contiguous()
        return tensor if tensor.device.type in self._served else tensor.to(self._small)


def _spread(flat: Tensor, bucket: Sequence[Tensor]) -> None:
    pieces = flat[: sum(t.numel() for t in bucket)].split([t.numel() for t in bucket])
    for tensor, piece in zip(bucket, pieces):
        tensor.copy_(piece.view(tensor.shape))


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
