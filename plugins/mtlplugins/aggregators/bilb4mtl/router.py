"""The router: a tiny network W whose output sigma(W) weights the tasks.

Its parameters are one flat float64 vector, so that state and optimizer see a plain vector whatever its form:

- ``free``: one score per task, no input (K parameters).
- ``linear``: scores = A phi + b, phi the pooled features (K F + K).
- ``mlp``: scores = A relu(B phi + c) + b (H F + H + K H + K).

Derivatives are written out: for graphs this small, building and walking an autograd tape would cost more than the
method itself. The tests compare them with autograd.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from mtlcore.contracts import StepView
from mtlcore.errors import FeaturesError
from mtlplugins.arrays import Array, softmax

KINDS = ("free", "linear", "mlp")
SQUASHES = ("softmax", "sigmoid", "relu-sigmoid")


def width(view: StepView, channel_dim: int) -> int:
    """F: channels of all feature tensors together.

    Raises:
        FeaturesError: the step got no features, or one without that dimension.
    """
    if not view.features:
        raise FeaturesError(
            "a router that reads features got none: hand them over, backward(losses, features=z) or a closure that "
            "returns (losses, features), or choose router='free'."
        )
    for i, feature in enumerate(view.features):
        if not -feature.ndim <= channel_dim < feature.ndim:
            shape = tuple(feature.shape)
            raise FeaturesError(f"features[{i}] has shape {shape} and no dimension {channel_dim}: set channel_dim.")
    return sum(f.shape[channel_dim] for f in view.features)


def pooled(view: StepView, channel_dim: int) -> Array:
    """phi (F,): every feature tensor averaged over all dimensions but its channels, then concatenated, float64."""
    parts = []
    for feature in view.features:
        others = [d for d in range(feature.ndim) if d != channel_dim % feature.ndim]
        parts.append((feature.mean(others) if others else feature).to(torch.float64))
    out: Array = torch.cat(parts).cpu().numpy()
    return out


def spread(view: StepView, channel_dim: int, gradient: Array) -> tuple[Tensor, ...]:
    """Cotangents of the features for a cotangent ``gradient`` (F,) of :func:`pooled`; the adjoint of the mean."""
    ends = np.cumsum([f.shape[channel_dim] for f in view.features])[:-1]
    cotangents = []
    for feature, part in zip(view.features, np.split(gradient, ends)):
        shape = [1] * feature.ndim
        shape[channel_dim] = -1
        scaled = torch.from_numpy(part * (len(part) / feature.numel())).to(feature)
        cotangents.append(scaled.reshape(shape).expand_as(feature))
    return tuple(cotangents)


@dataclasses.dataclass(frozen=True)
class Router:
    """Layout of the flat parameter vector, and the map from it to one score per task.

    Args:
        kind: "free", "linear" or "mlp".
        n_tasks: K.
        n_features: F; 0 for "free".
        hidden: H; used by "mlp".
    """

    kind: str
    n_tasks: int
    n_features: int = 0
    hidden: int = 0

    def _shapes(self) -> list[tuple[int, ...]]:
        k, f, h = self.n_tasks, self.n_features, self.hidden
        if self.kind == "free":
            return [(k,)]
        return [(k, f), (k,)] if self.kind == "linear" else [(k, h), (k,), (h, f), (h,)]

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(math.prod(shape) for shape in self._shapes())

    def _split(self, flat: Array) -> list[Array]:
        shapes = self._shapes()
        ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
        return [part.reshape(shape) for part, shape in zip(np.split(flat, ends), shapes)]

    def draw(self, generator: torch.Generator, low: float, high: float) -> Array:
        """First parameters: scores uniform in [low, high] if free, else as nn.Linear draws its own. [code]"""
        unit: Array = torch.rand(self.size, generator=generator, dtype=torch.float64).numpy()
        if self.kind == "free":
            return unit * (high - low) + low
        # Weights and bias of a layer are uniform within 1 / sqrt(its inputs).
        inputs = [self.hidden] * 2 + [self.n_features] * 2 if self.kind == "mlp" else [self.n_features] * 2
        return np.concatenate([((2.0 * u - 1.0) / math.sqrt(n)).ravel() for u, n in zip(self._split(unit), inputs)])

    def scores(self, flat: Array, phi: Array | None) -> tuple[Array, Array | None]:
        """Scores (K,), and what the last layer read (None if free)."""
        if phi is None:
            return flat, None
        weight, bias, *first = self._split(flat)
        if first:
            phi = np.maximum(first[0] @ phi + first[1], 0.0)
        return weight @ phi + bias, phi

    def pullback(
        self, flat: Array, phi: Array | None, last: Array | None, gradient: Array
    ) -> tuple[Array, Array | None]:
        """Cotangents of (flat, phi) for a cotangent ``gradient`` (K,) of the scores."""
        if phi is None or last is None:
            return gradient, None
        weight, _, *first = self._split(flat)
        back = gradient @ weight
        parts = [np.outer(gradient, last).ravel(), gradient]
        if first:
            back = back * (last > 0)
            parts += [np.outer(back, phi).ravel(), back]
            back = back @ first[0]
        return np.concatenate(parts), back

    def touched(self, view: StepView) -> Array | None:
        """(n,) bool: parameters that the scores of this view's tasks depend on; None: all."""
        if view.n_tasks == self.n_tasks:
            return None
        rows = np.zeros(self.n_tasks, dtype=bool)
        rows[list(view.task_index)] = True
        parts = [np.broadcast_to(rows.reshape(-1, *[1] * (len(s) - 1)), s).ravel() for s in self._shapes()[:2]]
        shared = self.size - sum(len(p) for p in parts)
        return np.concatenate([*parts, np.ones(shared, dtype=bool)])


def squash(kind: str, scores: Array, low: float | None, high: float | None) -> tuple[Array, Array]:
    """sigma (K,), clamped to [low, high] where given, and sigma before the clamp. No renormalisation. [code]"""
    if kind == "relu-sigmoid":
        scores = np.maximum(scores, 0.0)
    raw = softmax(scores) if kind == "softmax" else _sigmoid(scores)
    if low is None and high is None:
        return raw, raw
    return raw.clip(0.0 if low is None else low, 1.0 if high is None else high), raw


def unsquash(kind: str, scores: Array, sigma: Array, raw: Array, gradient: Array) -> Array:
    """Cotangent of the scores for a cotangent ``gradient`` (K,) of sigma; zero where clamp or relu is active."""
    if sigma is not raw:
        gradient = gradient * (sigma == raw)
    back: Array = raw * (gradient - raw @ gradient) if kind == "softmax" else gradient * raw * (1.0 - raw)
    if kind == "relu-sigmoid":
        back = back * (scores > 0)
    return back


def _sigmoid(scores: Array) -> Array:
    # Below -700 the exponential would overflow; what is lost there is less than 1e-300.
    out: Array = 1.0 / (1.0 + np.exp(np.minimum(-scores, 700.0)))
    return out
