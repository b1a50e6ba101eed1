"""The explicit Jacobian: one plain autograd.grad per task, on a network of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from support.architectures import Workload


def make(factory: Callable[[], Workload], dtype: torch.dtype = torch.float64) -> Workload:
    """The workload, identically initialised each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        old = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            return factory()
        finally:
            torch.set_default_dtype(old)


def explicit(work: Workload) -> tuple[Tensor, dict[int, list[Tensor | None]]]:
    """(K, P) Jacobian of the trunk's trainable parameters; per task the gradients of the others by position."""
    losses, _ = work.evaluate()
    shared = [p for p in work.trunk.parameters() if p.requires_grad]
    ids = {id(p) for p in shared}
    heads = [(i, p) for i, p in enumerate(work.parameters()) if p.requires_grad and id(p) not in ids]
    rows, own = [], {i: [] for i, _ in heads}
    for loss in losses.values():
        found = torch.autograd.grad(loss, [*shared, *(p for _, p in heads)], retain_graph=True, allow_unused=True)
        cells = [torch.zeros_like(p) if g is None else g for p, g in zip(shared, found)]
        rows.append(torch.cat([c.to_dense().flatten() for c in cells]))
        for (i, _), g in zip(heads, found[len(shared) :]):
            own[i].append(g)
    return torch.stack(rows), own


def shared_gradient(work: Workload) -> Tensor:
    """What a step left in the trunk's .grad, (P,)."""
    shared = [p for p in work.trunk.parameters() if p.requires_grad]
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in shared])
