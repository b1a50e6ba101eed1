"""The losses as a function of a displacement of the trunk's parameters.

A search does not need adapters inside the network. For a weight W + Delta(factors) the chain rule gives the gradient of
the factors from that of W, which autograd computes for every kind of layer. So a search changes the weights in place
and calls the user's closure; nothing is injected or removed. (The transaction around a search always restores the
weights.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mtlcore import TeleportProblem
from mtlcore.errors import TeleportError

Vector = list[Tensor]
"""A direction in parameter space: one tensor per trainable trunk parameter."""


class Field:
    """One batch's losses around the starting point.

    Attributes:
        names: of the trainable trunk parameters; all vectors are in this order.
        start: their values.
        tasks: names of the tasks, K of them, in the order of every (K,) tensor.
        reference: (K,) losses at the start, float64.
        unit: (K,) max(|L_i|, eps * largest |L|), the unit of relative changes.
    """

    def __init__(self, problem: TeleportProblem) -> None:
        self._problem = problem
        self._parameters = problem.parameters()
        self.names = tuple(self._parameters)
        self._heads: dict[Tensor, Tensor] = {}
        self.start = [p.detach().clone() for p in self._parameters.values()]
        losses, self.rows_at_start = problem.rows()
        self.tasks = tuple(losses)
        self.reference = _stacked(losses)
        eps = max(torch.finfo(v.dtype).eps for v in losses.values())
        self.unit = self.reference.abs().clamp_min(eps * float(self.reference.abs().max()))
        self.unit = torch.where(self.unit > 0.0, self.unit, torch.ones_like(self.unit))

    def current(self) -> Vector:
        """Copy of the current point."""
        return [p.detach().clone() for p in self._parameters.values()]

    def place(self, values: Sequence[Tensor], shift: Sequence[Tensor] | None = None) -> None:
        """Move to ``values`` (+ ``shift``). Entries of ``shift`` beyond the trunk's parameters are for those of the
        heads, in the order of :meth:`heads`; without them the heads are at their starting values."""
        n = len(self.names)
        for i, parameter in enumerate(self._parameters.values()):
            parameter.data.copy_(values[i] if shift is None else values[i] + shift[i])
        for i, (head, start) in enumerate(self._heads.items()):
            head.data.copy_(start if shift is None or len(shift) == n else start + shift[n + i])

    def heads(self) -> list[Tensor]:
        """The starting values of the heads' trainable parameters; empty without ``heads``."""
        if not self._heads and self._problem.heads is not None:
            self._heads = {p: p.detach().clone() for p in self._problem.heads.parameters() if p.requires_grad}
        return list(self._heads.values())

    def displace(self, displacement: Mapping[str, Tensor]) -> None:
        """Move to start + displacement."""
        self.place([s + displacement[n] if n in displacement else s for n, s in zip(self.names, self.start)])

    def losses(self) -> Tensor:
        """(K,) at the current point, without a graph. One is made and dropped, because a closure may differentiate."""
        return _stacked(self._problem.evaluate()[0]).detach()

    def relative_change(self) -> Tensor:
        """(K,) (L_i - L_i*) / unit_i at the current point, L_i* cached for this batch."""
        return (self.losses() - self.reference) / self.unit

    def rows(self) -> tuple[Tensor, list[Tensor]]:
        """(K,) losses and the (K, numel) task gradients per parameter at the current point."""
        losses, blocks = self._problem.rows()
        return _stacked(losses), blocks

    def gradients(self, *weights: Tensor, graph: bool = False) -> tuple[Tensor, list[Vector]]:
        """(K,) losses, and grad sum_i w_i L_i for each (K,) ``weights``: one forward, one backward each."""
        with _twice_differentiable() if graph else contextlib.nullcontext():
            losses = _stacked(self._problem.evaluate()[0])
        parameters = list(self._parameters.values())
        found = []
        for i, w in enumerate(weights):
            total = (w * losses).sum()
            keep = graph or i + 1 < len(weights)
            raw = torch.autograd.grad(total, parameters, retain_graph=keep, create_graph=graph, allow_unused=True)
            means = raw if graph else self._problem.averaged(raw)
            found.append([_dense(p, g) for p, g in zip(parameters, means)])
        return losses if graph else losses.detach(), found

    def backward(self, scalar: Tensor) -> Vector:
        """Gradient of a scalar made of ``gradients(..., graph=True)``: the double backward pass.

        Raises:
            TeleportError: an operation of the network cannot be differentiated twice.
        """
        parameters = list(self._parameters.values())
        try:
            raw = torch.autograd.grad(scalar, parameters, allow_unused=True)
        except RuntimeError as error:
            raise TeleportError(
                f"the network cannot be differentiated twice ({error}). Use estimator='finite-difference'."
            ) from error
        return [_dense(p, g) for p, g in zip(parameters, raw)]

    def small_step(self, direction: Vector) -> float:
        """The step size along ``direction`` for finite differences: sqrt(eps) relative to the weights, where the
        rounding error and the truncation error of the difference are about equal."""
        size = norm(self.start)
        length = norm(direction)
        eps = torch.finfo(direction[0].dtype).eps
        return eps**0.5 * (size if size > 0.0 else 1.0) / length if length > 0.0 else 0.0


@contextlib.contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Switch off fused attention and recurrent kernels, which have no second derivative; the plain forms have one."""
    with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
        yield


def _dense(parameter: Tensor, gradient: Tensor | None) -> Tensor:
    if gradient is None:
        return torch.zeros_like(parameter)
    return gradient.to_dense() if gradient.is_sparse else gradient


def _stacked(losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([v.double() for v in losses.values()])


def inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """<a, b> in float64."""
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b))


def norm(a: Sequence[Tensor]) -> float:
    """|a|."""
    return float(inner(a, a) ** 0.5)


def combine(terms: Sequence[tuple[float, Sequence[Tensor]]]) -> Vector:
    """sum_j c_j v_j."""
    first = terms[0][1]
    return [sum(c * v[i] for c, v in terms) + torch.zeros_like(first[i]) for i in range(len(first))]


def weighted(weights: Tensor, blocks: Sequence[Tensor], like: Sequence[Tensor]) -> Vector:
    """sum_i w_i g_i from the (K, numel) blocks."""
    return [(weights.to(b.dtype) @ b).view_as(p) for b, p in zip(blocks, like)]
