"""The router: a tiny network W whose output sigma(W) weights the tasks.

Its parameters are one flat float64 vector, so that state and optimizer see a plain tensor whatever its form:

- ``free``: one score per task, no input (K parameters).
- ``linear``: scores = A phi + b, phi the pooled features (K F + K).
- ``mlp``: scores = A relu(B phi + c) + b (H F + H + K H + K).

Derivatives are written out: for graphs this small, building and walking an autograd tape would cost more than the
method itself. The tests compare them with autograd.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from mtlcore.contracts import StepView
from mtlcore.errors import FeaturesError

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


def pooled(view: StepView, channel_dim: int) -> Tensor:
    """phi (F,): every feature tensor averaged over all dimensions but its channels, then concatenated, float64."""
    parts = []
    for feature in view.features:
        others = [d for d in range(feature.ndim) if d != channel_dim % feature.ndim]
        parts.append((feature.mean(others) if others else feature).to(torch.float64))
    return torch.cat(parts)


def spread(view: StepView, channel_dim: int, gradient: Tensor) -> tuple[Tensor, ...]:
    """Cotangents of the features for a cotangent ``gradient`` (F,) of :func:`pooled`; the adjoint of the mean."""
    sizes = [f.shape[channel_dim] for f in view.features]
    cotangents = []
    for feature, part in zip(view.features, torch.split(gradient, sizes)):
        shape = [1] * feature.ndim
        shape[channel_dim] = -1
        scaled = (part * (part.numel() / feature.numel())).to(feature.dtype)
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

    def _sizes(self) -> list[int]:
        k, f, h = self.n_tasks, self.n_features, self.hidden
        return {"free": [k], "linear": [k * f, k], "mlp": [k * h, k, h * f, h]}[self.kind]

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(self._sizes())

    def draw(self, generator: torch.Generator, low: float, high: float) -> Tensor:
        """First parameters: scores uniform in [low, high] if free, else as nn.Linear draws its own. [code]"""
        unit = torch.rand(self.size, generator=generator, dtype=torch.float64)
        if self.kind == "free":
            return unit * (high - low) + low
        # Weights and bias of a layer are uniform within 1 / sqrt(its inputs).
        inputs = [self.hidden] * 2 + [self.n_features] * 2 if self.kind == "mlp" else [self.n_features] * 2
        parts = [(2.0 * u - 1.0) / math.sqrt(n) for u, n in zip(torch.split(unit, self._sizes()), inputs)]
        return torch.cat(parts)

    def scores(self, flat: Tensor, phi: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Scores (K,), and what the last layer read (None if free)."""
        if phi is None:
            return flat, None
        parts = torch.split(flat, self._sizes())
        if self.kind == "mlp":
            phi = torch.addmv(parts[3], parts[2].view(self.hidden, -1), phi).relu_()
        return torch.addmv(parts[1], parts[0].view(self.n_tasks, -1), phi), phi

    def pullback(
        self, flat: Tensor, phi: Tensor | None, last: Tensor | None, gradient: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Cotangents of (flat, phi) for a cotangent ``gradient`` (K,) of the scores."""
        if phi is None or last is None:
            return gradient, None
        parts = torch.split(flat, self._sizes())
        back = gradient @ parts[0].view(self.n_tasks, -1)
        outer = torch.outer(gradient, last).flatten()
        if self.kind == "linear":
            return torch.cat([outer, gradient]), back
        back = back * (last > 0)
        return (
            torch.cat([outer, gradient, torch.outer(back, phi).flatten(), back]),
            back @ parts[2].view(self.hidden, -1),
        )

    def touched(self, index: Tensor) -> Tensor:
        """(n,) bool: parameters that the scores of the tasks in ``index`` depend on."""
        rows = torch.zeros(self.n_tasks, dtype=torch.bool, device=index.device)
        rows[index] = True
        if self.kind == "free":
            return rows
        sizes = self._sizes()
        parts = [rows.repeat_interleave(sizes[0] // self.n_tasks), rows]
        return torch.cat([*parts, rows.new_ones(sum(sizes[2:]))])


def squash(kind: str, scores: Tensor, low: float | None, high: float | None) -> tuple[Tensor, Tensor]:
    """sigma (K,), clamped to [low, high] where given, and sigma before the clamp. No renormalisation. [code]"""
    if kind == "softmax":
        raw = torch.softmax(scores, 0)
    elif kind == "sigmoid":
        raw = torch.sigmoid(scores)
    else:
        raw = torch.sigmoid(scores.relu())
    return (raw if low is None and high is None else raw.clamp(low, high)), raw


def unsquash(kind: str, scores: Tensor, sigma: Tensor, raw: Tensor, gradient: Tensor) -> Tensor:
    """Cotangent of the scores for a cotangent ``gradient`` (K,) of sigma; zero where clamp or relu is active."""
    if sigma is not raw:
        gradient = gradient * (sigma == raw)
    if kind == "softmax":
        return raw * (gradient - raw @ gradient)
    slope = gradient * raw * (1.0 - raw)
    return slope * (scores > 0) if kind == "relu-sigmoid" else slope
