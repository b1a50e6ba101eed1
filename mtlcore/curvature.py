"""Hessian-vector products: how the task gradients change along given directions.

``view.curvature(vectors)`` answers sum_i H_i v_i, with H_i the Hessian of task i's loss over the trunk's parameters;
this module implements it. The step's batch is evaluated once more with the random numbers and buffers of the first
time, so that it is the same function. Each task is differentiated, and the inner product of that gradient with v_i is
differentiated again. The tasks come one after the other: that keeps one task's second graph at a time, and an error
names its task. Afterwards everything is bit for bit as before. ``.grad`` and the optimizer are not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mtlcore import linalg
from mtlcore.contracts import StepView
from mtlcore.errors import LossError, NonFiniteError, PluginError
from mtlcore.gradients import graph
from mtlcore.gradients.torch_internals import tensor_hooks
from mtlcore.inner_loop import Evaluate
from mtlcore.snapshot import Snapshot

_SAME = 1e-3
"""Relative. A batch whose loss differs by more is not the one that the step began with: kernels on an accelerator that
add up in any order differ by far less, another batch or other noise by more. [choice]"""


class Together(Protocol):
    """Other processes with batches of their own."""

    def counted(self, work: Callable[[], Mapping[str, float]]) -> tuple[Mapping[str, float], Mapping[str, float]]:
        """Of the losses that each process finds: the mean of each task, and how many processes have it."""

    def summed(self, work: Callable[[], Tensor]) -> Tensor:
        """The sum of what each process finds."""


def products(
    view: StepView,
    vectors: Tensor,
    *,
    evaluate: Evaluate,
    shared: Sequence[nn.Parameter],
    start: Snapshot,
    modules: Iterable[nn.Module] = (),
    scale: float | None = None,
    together: Together | None = None,
) -> Tensor:
    """sum_i H_i v_i, (P,) in the dtype of the vectors, and everything as it was.

    Costs a forward pass, and for each vector that is not zero a backward pass and its derivative, which takes about two
    more. With several processes H_i is that of the mean loss of the processes that have task i.

    Args:
        view: the view of this step; its tasks are the ones that count, also after ``view.restricted``.
        vectors: v, (K, P), columns as in ``view.jacobian``; the same on all processes.
        evaluate: losses by task, with graphs, of this step's batch.
        shared: the trunk's parameters, as many numbers as there are columns.
        start: random numbers and buffers as they were before the step evaluated its batch.
        modules: networks whose buffers a forward pass may change.
        scale: of a ``GradScaler``; backward passes start from it. The answer is the true one.
        together: the other processes.

    Raises:
        PluginError: the vectors are not of that shape, or not finite.
        LossError: a loss cannot be differentiated twice, or is not what it was when the step began; names the task.
        NonFiniteError: a product is NaN or infinite; names the task.
    """
    asked = _asked(view, vectors, shared)
    if not asked:
        return vectors.new_zeros(vectors.shape[1])
    with Snapshot(modules=modules).restored():
        start.restore()
        losses: dict[str, Tensor] = {}

        def look() -> dict[str, float]:
            _refuse_hooks(shared)
            # Only this kernel of attention has a second derivative.
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                losses.update(evaluate()[0])
            return {n: float(losses[n].detach()) for n in view.task_names if n in losses}

        means, counts = (look(), {}) if together is None else together.counted(look)
        _check_same(view, means)

        def work() -> Tensor:
            total = torch.zeros(vectors.shape[1], dtype=torch.float64, device=vectors.device)
            for name, vector in asked.items():
                if name in losses:
                    share = 1.0 / counts.get(name, 1.0)
                    _add(total, name, losses[name], vector.double() * share, shared, scale)
            return total

        found = work() if together is None else together.summed(work)
    return found.to(vectors.dtype)


def _asked(view: StepView, vectors: Tensor, shared: Sequence[nn.Parameter]) -> dict[str, Tensor]:
    """The vectors that are not zero, by task."""
    wanted = (view.n_tasks, sum(p.numel() for p in shared))
    if not isinstance(vectors, Tensor) or tuple(vectors.shape) != wanted or not vectors.is_floating_point():
        found = f"{tuple(vectors.shape)} {vectors.dtype}" if isinstance(vectors, Tensor) else type(vectors).__name__
        raise PluginError(f"view.curvature takes one vector for each task, a tensor of shape {wanted}; found {found}.")
    if not bool(torch.isfinite(vectors).all()):
        raise PluginError("view.curvature was asked about vectors that are NaN or infinite.")
    there = vectors.detach().any(1).tolist()
    return {name: v for name, v, here in zip(view.task_names, vectors.detach(), there) if here}


def _refuse_hooks(shared: Sequence[nn.Parameter]) -> None:
    for p in shared:
        if tensor_hooks(p):
            raise LossError(
                f"a parameter of the trunk of shape {tuple(p.shape)} has a hook on its gradient (register_hook), which "
                f"would act on second derivatives, too: what view.curvature is asked for is not defined. Take it off, "
                f"or use a method that needs no curvature."
            )


def _check_same(view: StepView, found: Mapping[str, float]) -> None:
    for name, before in zip(view.task_names, view.loss_values):
        if before != before:  # absent
            continue
        if name not in found:
            raise LossError(
                f"task {name!r} is missing when the closure is called again: within a step it must give the same batch."
            )
        if not abs(found[name] - before) <= _SAME * max(abs(found[name]), abs(before)):
            raise LossError(
                f"the loss of task {name!r} is {found[name]:g} when the closure is called again, and was {before:g}: "
                f"within a step the closure must give the same batch, with random numbers that come from the global "
                f"generators of torch, numpy or python only (dropout inside of attention is of that kind on the "
                f"processor only)."
            )


def _refuse_single(gradients: Iterable[Tensor]) -> None:
    """
    Raises:
        RuntimeError: a function is marked with ``once_differentiable``. The mark raises only where a pass
            meets it, and a pass to parameters of the trunk goes past it, without the function's part.
    """
    met: set[Any] = set()
    graph.leaves(gradients, seen=met)
    if any(type(function).__name__ == "Error" for function in met):
        raise RuntimeError("a torch.autograd.Function in it is marked with once_differentiable.")


def _add(
    total: Tensor, name: str, loss: Tensor, vector: Tensor, shared: Sequence[nn.Parameter], scale: float | None
) -> None:
    """total += H v for one task; nothing where it does not reach the trunk, or its gradient is constant."""
    size = float(vector.abs().max())
    # With entries up to 1, so that no product of a short vector underflows.
    unit = (vector / size).to(linalg.row_dtype(shared))
    # It requires gradients so that a function that has one derivative leaves its mark in the graph of the first pass.
    seed = torch.full_like(loss, 1.0 if scale is None else scale, requires_grad=True)
    try:
        with torch.enable_grad():
            first = torch.autograd.grad(loss, shared, seed, create_graph=True, allow_unused=True)
            pieces = unit.split([p.numel() for p in shared])
            pairs = [(g, v) for g, v in zip(first, pieces) if g is not None]
            if not pairs:
                return
            _refuse_single(g for g, _ in pairs)
            along = torch.stack([(g.to(v) * v.view(g.shape)).sum() for g, v in pairs]).sum()
            second = torch.autograd.grad(along, shared, retain_graph=True, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise LossError(
            f"the loss of task {name!r} cannot be differentiated twice, as view.curvature has to: "
            f"{' '.join(str(error).split())[:300]} Make it of functions that have a second derivative (no compiled "
            f"network, no recurrent layer of cuDNN, no checkpoints with use_reentrant=True), or use a method that "
            f"needs no curvature."
        ) from error
    column, factor = 0, size / (1.0 if scale is None else scale)
    for p, h in zip(shared, second):
        if h is not None:
            h = h.to_dense() if h.is_sparse else h
            if not bool(torch.isfinite(h).all()):
                raise NonFiniteError(
                    f"the second derivative of task {name!r} is NaN or infinite, although its gradient is finite. "
                    f"Parameters, method state and .grad are untouched."
                )
            total[column : column + p.numel()] += h.flatten().to(total) * factor
        column += p.numel()
