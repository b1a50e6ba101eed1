"""A promise about the whole step holds for the gradients that were written: whoever changes them after that is told.

Clipping is the common case. It shortens the fresh gradient and not the momentum, so that the sum may leave the cone.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtlcore.errors import TrainingWarning
from mtlcore.trajectory import Optimizers, each


class Promise:
    """From the moment when the gradients are written until the optimizers move.

    Args:
        optimizer: of the run; None: nothing is promised.
        parameters: whose gradients were written.
    """

    def __init__(self, optimizer: Optimizers = None, parameters: Sequence[Tensor] = ()) -> None:
        self._seen = [(p, p.grad, -1 if p.grad is None else p.grad._version) for p in parameters]
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
        changed = [
            p
            for p, grad, version in self._seen
            if id(p) in mine and (p.grad is not grad or (grad is not None and grad._version != version))
        ]
        if changed:
            warnings.warn(
                f'metric="step": the gradients of {len(changed)} parameters were changed between backward and the step '
                f"of {type(optimizer).__name__} (clipped?). That the step raises no task's loss is not known any more. "
                f'Clip before the method answers: create("aggregator", "clipped", method=..., max_norm=...).',
                TrainingWarning,
                stacklevel=2,
            )
