"""A promise about the whole step holds for the gradients that were written: a later change gives a warning.

Clipping is the common case. It shortens the fresh gradient and not the momentum, so that the sum may leave the cone.
Under a ``GradScaler`` every gradient is changed once, rightly: it is divided by the scale. There the lengths are
compared, and not whether somebody wrote.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtlcore.distributed.dtensors import whole
from mtlcore.errors import TrainingWarning
from mtlcore.trajectory import Optimizers, each

ROUNDING = 1e-3
"""Relative difference of two lengths that rounding may make, where the scale is not a power of two. [choice]"""


class Promise:
    """From the moment when the gradients are written until the optimizers move.

    Args:
        optimizer: of the run; None: nothing is promised.
        parameters: whose gradients were written.
        scale: of a ``GradScaler``, that will be taken out of ``.grad``; None without one.
    """

    def __init__(
        self, optimizer: Optimizers = None, parameters: Sequence[Tensor] = (), scale: float | None = None
    ) -> None:
        self._scale = scale
        self._seen = [(p, p.grad, -1 if p.grad is None else p.grad._version) for p in parameters]
        self._lengths = [] if scale is None else [_length(p) for p in parameters]
        self._handles = [
            o.register_step_pre_hook(functools.partial(self._look, n)) for n, o in enumerate(each(optimizer))
        ]

    def end(self) -> None:
        """Look no more."""
        for handle in self._handles:
            handle.remove()

    def _look(self, number: int, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._handles[number].remove()
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        own = [i for i, (p, _, _) in enumerate(self._seen) if id(p) in mine]
        changed = sum(map(self._written, own)) if self._scale is None else self._reshaped(own, optimizer)
        if changed:
            warnings.warn(
                f'metric="step": the gradients of {changed} parameters were changed between backward and the step '
                f"of {type(optimizer).__name__} (clipped?). That the step raises no task's loss is not known any more. "
                f'Clip before the method answers: create("aggregator", "clipped", method=..., max_norm=...).',
                TrainingWarning,
                stacklevel=2,
            )

    def _written(self, i: int) -> bool:
        """Whether somebody wrote to the gradient of parameter ``i``, or put another in its place."""
        p, grad, version = self._seen[i]
        return p.grad is not grad or (grad is not None and grad._version != version)

    def _reshaped(self, own: Sequence[int], optimizer: torch.optim.Optimizer) -> int:
        """How many gradients have another length than when they were written, the scale taken out."""
        if not own:
            return 0
        assert self._scale is not None
        # Fused optimizers take the scale out themselves, in their step.
        left = getattr(optimizer, "grad_scale", None)
        lengths = [self._lengths[i] for i in own] + [_length(self._seen[i][0]) for i in own]
        numbers = torch.stack([n.to(lengths[0].device) for n in lengths]).tolist()  # one wait for a device
        pairs = zip(numbers[: len(own)], numbers[len(own) :])
        out = self._scale if left is None else self._scale / float(left)
        # Not finite: an overflow, at which a fused optimizer stays where it is.
        return sum(math.isfinite(n) and not math.isclose(n * out, w, rel_tol=ROUNDING, abs_tol=0.0) for w, n in pairs)


def _length(parameter: Tensor) -> Tensor:
    """() float64, of the gradient of a parameter."""
    gradient = parameter.grad
    if gradient is None:
        return torch.zeros((), dtype=torch.float64, device=parameter.device)
    values = gradient.coalesce()._values() if gradient.is_sparse else gradient
    length: Tensor = whole(torch.linalg.vector_norm(values.detach(), dtype=torch.float64))
    return length
