"""Random streams and global switches of torch, as values."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Noise:
    """Where torch (on every device in use), numpy and python's ``random`` stand right now."""

    def __init__(self) -> None:
        self._torch = torch.get_rng_state()
        self._devices = [(d, d.get_rng_state_all()) for d in (torch.cuda, torch.xpu) if _in_use(d)]
        self._mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
        self._python = random.getstate()
        self._numpy = np.random.get_state()

    def restore(self) -> None:
        """What is drawn next is what would have been drawn then."""
        torch.set_rng_state(self._torch)
        for device, states in self._devices:
            device.set_rng_state_all(states)
        if self._mps is not None:
            torch.mps.set_rng_state(self._mps)
        random.setstate(self._python)
        np.random.set_state(self._numpy)

    def same_as(self, other: Noise) -> bool:
        """Whether nobody drew between the two."""
        return (
            all(map(torch.equal, self._streams(), other._streams()))
            and self._python == other._python
            and all(np.array_equal(a, b) for a, b in zip(self._numpy, other._numpy))
        )

    def _streams(self) -> list[Tensor]:
        mps = [] if self._mps is None else [self._mps]
        return [self._torch, *(state for _, states in self._devices for state in states), *mps]


def _in_use(device: Any) -> bool:
    return bool(device.is_available() and device.is_initialized())


class Switches:
    """Gradient mode, and whether attention may take its inference path."""

    def __init__(self) -> None:
        self._grad = torch.is_grad_enabled()
        self._fast = torch.backends.mha.get_fastpath_enabled()

    def restore(self) -> None:
        """Both as they were."""
        torch.set_grad_enabled(self._grad)
        torch.backends.mha.set_fastpath_enabled(self._fast)
