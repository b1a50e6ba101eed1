"""Memory that a source keeps between steps, so that a step allocates no rows (and the system zeroes no pages)."""

from __future__ import annotations

import torch
from torch import Tensor


class Storage:
    """One block of numbers; grows when it must. The sources of one training run share it: a step ends before the next
    one begins, so that no two of them need their numbers at the same time."""

    def __init__(self) -> None:
        self._flat = torch.empty(0)

    def __reduce__(self) -> tuple[type[Storage], tuple[()]]:
        return Storage, ()  # a copy begins without numbers

    def release(self) -> None:
        """Let go of the memory; the next :meth:`take` asks for what it needs."""
        self._flat = torch.empty(0)

    def take(self, rows: int, columns: int, like: Tensor, dtype: torch.dtype) -> Tensor:
        """(rows, columns), contents arbitrary, on the device of ``like``; the next call may hand out the same."""
        size = rows * columns
        if self._flat.numel() < size or self._flat.dtype != dtype or self._flat.device != like.device:
            self._flat = torch.empty(0)  # free the old block before asking for the new one
            self._flat = torch.empty(size, dtype=dtype, device=like.device)
        return self._flat[:size].view(rows, columns)
