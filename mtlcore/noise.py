"""The state of every global random stream, as a value."""

from __future__ import annotations

import random

import numpy as np
import torch


class Noise:
    """Where torch (on every device in use), numpy and python's ``random`` stand right now."""

    def __init__(self) -> None:
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
        self._python = random.getstate()
        self._numpy = np.random.get_state()

    def restore(self) -> None:
        """What is drawn next is what would have been drawn then."""
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        random.setstate(self._python)
        np.random.set_state(self._numpy)

    def same_as(self, other: Noise) -> bool:
        """Whether nobody drew between the two."""
        return (
            torch.equal(self._torch, other._torch)
            and all(map(torch.equal, self._cuda, other._cuda))
            and self._python == other._python
            and all(np.array_equal(a, b) for a, b in zip(self._numpy, other._numpy))
        )
