"""Seeds that depend on the axis of randomness and the task, never on the method; and what is drawn from them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


def seed_for(axis: str, task: str, seed: int) -> int:
    """The seed of one axis of randomness ("weights", "order", "probe", "method"). The method is not an argument."""
    return int.from_bytes(hashlib.sha256(f"{axis}/{task}/{seed}".encode()).digest()[:7], "big")


def batches(size: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Endless epochs without replacement; the last incomplete batch of an epoch is dropped."""
    generator = torch.Generator().manual_seed(seed)
    batch_size = min(batch_size, size)
    while True:
        order = torch.randperm(size, generator=generator)
        for start in range(0, size - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


class own_randomness:  # used like a function
    """Everything inside draws from a seed of its own; the caller's random state comes back afterwards."""

    def __init__(self, seed: int, devices: Sequence[torch.device] = ()) -> None:
        self._fork = torch.random.fork_rng(devices=list(devices), device_type=devices[0].type if devices else "cuda")
        self._seed = seed

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.manual_seed(self._seed)

    def __exit__(self, *exception: Any) -> None:
        self._fork.__exit__(*exception)
