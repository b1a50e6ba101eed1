"""J of the global batch, of which every process holds some columns.

Rows are scattered: process s sends the columns of process r to r, and each adds up what it gets, in float64 and in the
order of ranks, so that the sum does not depend on who arrives first. Each then makes the Gramian of its columns; the
K x K sums of these, and the weighted sum of its columns, are all that has to travel further: (K + 1) P numbers for a
direction, where summing up all rows everywhere takes 2 K P.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlcore import linalg
from mtlcore.distributed.wire import Exchange, Wire

_BUCKET = 4 * 2**20
"""Bytes of rows that travel at once; two buckets at a time are under way. A row's worth where that is more: then there
are about K exchanges, each of R - 1 messages, where a sum of every row takes 2 K (R - 1)."""


class Shards:
    """The columns of this process.

    Args:
        wire: to the other processes.
        rows: (l, P) task gradients of this process.
        where: for each of the l rows its position among the k.
        factors: for each of the l rows what it counts in the sum over processes.
        k: tasks that are present anywhere.
    """

    def __init__(self, wire: Wire, rows: Tensor, where: Sequence[int], factors: Sequence[float], k: int) -> None:
        self._wire = wire
        self._size = rows.shape[1]
        bucket = max(_BUCKET, self._size * rows.element_size())
        width = max(1, bucket // max(1, k * rows.element_size() * wire.size))
        self._widths = _widths(self._size, width, wire.size)
        self._share = rows.new_empty(k, sum(self._widths))
        place = torch.tensor(list(where), dtype=torch.long, device=rows.device)
        scale = torch.tensor(list(factors), dtype=rows.dtype, device=rows.device)
        waiting: list[tuple[Exchange, int]] = []
        start = offset = 0
        for width in self._widths:
            block = rows.new_zeros(wire.size, k, width)
            for r in range(wire.size):
                part = rows[:, start + r * width : start + (r + 1) * width]
                block[r, place, : part.shape[1]] = part * scale[:, None]
            waiting.append((wire.exchange(block, "rows"), offset))
            start, offset = start + wire.size * width, offset + width
            if len(waiting) > 1:
                self._arrived(*waiting.pop(0))
        for each in waiting:
            self._arrived(*each)

    def _arrived(self, sent: Exchange, offset: int) -> None:
        pieces = self._wire.arrived(sent)
        total = pieces.sum(0, dtype=torch.float64)
        self._share[:, offset : offset + pieces.shape[2]] = total.to(self._share)

    def gramian(self) -> Tensor:
        """(k, k) float64 of all columns, the same on every process."""
        return linalg.symmetric(self._wire.matrix(linalg.products(self._share)))

    def combine(self, weights: Tensor) -> Tensor:
        """J^T w, (P,), the same on every process."""
        everybody = self._wire.gather(linalg.combine(self._share, weights), "direction")
        pieces = [c.reshape(-1) for c in everybody.split(self._widths, 1)]
        return torch.cat(pieces)[: self._size] if pieces else everybody.reshape(-1)[: self._size]


def _widths(columns: int, width: int, processes: int) -> list[int]:
    """Columns per process and bucket; the last is filled up with zeros."""
    out = []
    while columns > 0:
        mine = min(width, -(-columns // processes))
        out.append(mine)
        columns -= mine * processes
    return out
