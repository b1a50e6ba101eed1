"""What is done to gradients on their way between processes: nothing, unless somebody asks for it.

``mt.register_comm_hook(Rounded())`` sends them as bfloat16: half the bytes of float32, and an error that the hook
measures. Losses, Gramians and verdicts always travel whole.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class CommunicationHook(Protocol):
    """Codes what travels. All processes must have the same hook; its ``repr`` is compared in the first step."""

    def encode(self, tensor: Tensor, kind: str) -> Tensor:
        """What travels in place of ``tensor``: the same shape, any dtype that the backend can send.

        Args:
            tensor: real numbers.
            kind: "rows", "direction", "gradients", "inner steps", "curvature" or "teleport".
        """

    def decode(self, tensor: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
        """What arrived, in the dtype that it was sent from."""


class Rounded:
    """Sends bfloat16, which has the range of float32 and three digits. Sums are taken in float64 of what arrives.

    Numbers beyond the range of float32 become its largest.

    Args:
        measure: whether the error is measured, which costs a pass over what is sent.
    """

    def __init__(self, measure: bool = True) -> None:
        self._measure = measure
        self._sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def __repr__(self) -> str:
        return "Rounded()"

    def encode(self, tensor: Tensor, kind: str) -> Tensor:
        """See :class:`CommunicationHook`."""
        edge = torch.finfo(torch.bfloat16)
        small = tensor.clamp(edge.min, edge.max).to(torch.bfloat16)
        if self._measure:
            exact = tensor.double()
            sums = self._sums[kind]
            sums[0] += float((exact - small.double()).square().sum())
            sums[1] += float(exact.square().sum())
        return small

    def decode(self, tensor: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
        """See :class:`CommunicationHook`."""
        return tensor.to(dtype)

    def error(self) -> dict[str, float]:
        """By kind, the relative error of what this process has sent so far: |rounded - exact| / |exact|."""
        return {kind: (off / size) ** 0.5 if size else 0.0 for kind, (off, size) in self._sums.items()}
