"""The routers that read features: one linear layer, or two with a relu between. Matrices, so arrays and not lists."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mtlcore.contracts import State, StepView
from mtlcore.errors import FeaturesError
from mtlplugins import adam
from mtlplugins.aggregators.bilb4mtl import features
from mtlplugins.aggregators.bilb4mtl.router import Rule
from mtlplugins.arrays import Array
from mtlplugins.vectors import Vector, put, take


@dataclasses.dataclass(frozen=True)
class Layout:
    """Shapes of the layers within the flat parameter vector.

    Args:
        kind: "linear" or "mlp".
        n_tasks: K.
        n_features: F.
        hidden: H; used by "mlp".
        channel_dim: dimension of the features that is not averaged.
    """

    kind: str
    n_tasks: int
    n_features: int
    hidden: int
    channel_dim: int

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Weight and bias, last layer first."""
        k, f, h = self.n_tasks, self.n_features, self.hidden
        return [(k, f), (k,)] if self.kind == "linear" else [(k, h), (k,), (h, f), (h,)]

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(math.prod(shape) for shape in self.shapes)

    def split(self, flat: Array) -> list[Array]:
        """The layers, as views into the flat vector."""
        parts, start = [], 0
        for shape in self.shapes:
            end = start + math.prod(shape)
            parts.append(flat[start:end].reshape(shape))
            start = end
        return parts

    def draw(self, generator: torch.Generator) -> Array:
        """First parameters, as nn.Linear draws its own. [code]"""
        unit: Array = torch.rand(self.size, generator=generator, dtype=torch.float64, device="cpu").numpy()
        # Weights and bias of a layer are uniform within 1 / sqrt(its inputs).
        inputs = [self.hidden] * 2 + [self.n_features] * 2 if self.kind == "mlp" else [self.n_features] * 2
        return np.concatenate([((2.0 * u - 1.0) / math.sqrt(n)).ravel() for u, n in zip(self.split(unit), inputs)])

    def touched(self, view: StepView) -> Array | None:
        """(n,) bool: parameters that the scores of this view's tasks depend on; None: all."""
        if view.n_tasks == self.n_tasks:
            return None
        rows = np.zeros(self.n_tasks, dtype=bool)
        rows[list(view.task_index)] = True
        parts = [np.broadcast_to(rows.reshape(-1, *[1] * (len(s) - 1)), s).ravel() for s in self.shapes[:2]]
        shared = self.size - sum(len(p) for p in parts)
        return np.concatenate([*parts, np.ones(shared, dtype=bool)])


class Seen(NamedTuple):
    """What the layers read in one forward pass."""

    phi: Array
    last: Array
    """Input of the last layer."""


class DenseRouter(NamedTuple):
    """A :class:`.router.Router`: its rows (parameters, moments) as one array."""

    layout: Layout
    rows: Array

    @classmethod
    def read(cls, layout: Layout, state: State) -> DenseRouter:
        """From the state of a step before.

        Raises:
            FeaturesError: the features are not those of the first step.
        """
        found = state["router"].shape[1]
        if found != layout.size:
            raise FeaturesError(
                f"the features have {layout.n_features} channels in all, but the router was made for another number in "
                f"the first step ({found} parameters instead of {layout.size})."
            )
        return cls(layout, state["router"].numpy())

    @classmethod
    def drawn(cls, layout: Layout, state: State, generator: torch.Generator) -> DenseRouter:
        """In the first step."""
        rows = np.zeros((state["router"].shape[0], layout.size))
        rows[0] = layout.draw(generator)
        return cls(layout, rows)

    def scores(self, view: StepView) -> tuple[Vector, Seen]:
        """Scores (K,) of the tasks present."""
        weight, bias, *first = self.layout.split(self.rows[0])
        phi = last = features.pooled(view, self.layout.channel_dim)
        if first:
            last = np.maximum(first[0] @ phi + first[1], 0.0)
        return take((weight @ last + bias).tolist(), view), Seen(phi, last)

    def pullback(self, view: StepView, seen: Seen, gradient: Vector) -> tuple[Array, Array]:
        """Cotangents of all parameters and of phi (F,)."""
        weight, _, *first = self.layout.split(self.rows[0])
        by_score = np.array(put([0.0] * self.layout.n_tasks, view, gradient))
        back = by_score @ weight
        out = np.empty(self.layout.size)
        by_weight, by_bias, *by_first = self.layout.split(out)
        np.multiply(by_score[:, None], seen.last, out=by_weight)
        by_bias[:] = by_score
        if first:
            back = back * (seen.last > 0)
            np.multiply(back[:, None], seen.phi, out=by_first[0])
            by_first[1][:] = back
            back = back @ first[0]
        return out, back

    def trained(self, view: StepView, gradient: Array, rule: Rule) -> Tensor:
        """One step of the parameters that the scores of the tasks present depend on."""
        flat, touched = self.rows[0], self.layout.touched(view)
        if len(self.rows) == 1:
            new = (flat - rule.lr * (gradient if touched is None else gradient * touched))[None]
        else:
            moved, moments = adam.step(
                flat, gradient / rule.unit, self.rows[1:],
                lr=rule.lr, beta1=rule.beta1, beta2=rule.beta2, eps=rule.eps, touched=touched,
            )  # fmt: skip
            new = np.concatenate([moved[None], moments])
        return torch.from_numpy(new)
