"""The input of a router: the mean of every channel of the step's features; and the gradient of these means."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mtlcore.contracts import StepView
from mtlcore.errors import FeaturesError
from mtlplugins.arrays import Array


def width(view: StepView, channel_dim: int) -> int:
    """F: channels of all feature tensors together.

    Raises:
        FeaturesError: the step got no features, or one without that dimension, without entries, or complex.
    """
    features = view.features
    if not features:
        raise FeaturesError(
            "a router that reads features got none: hand them over, backward(losses, features=z) or a closure that "
            "returns (losses, features), or choose router='free'."
        )
    for i, feature in enumerate(features):
        if not -feature.ndim <= channel_dim < feature.ndim:
            shape = tuple(feature.shape)
            raise FeaturesError(f"features[{i}] has shape {shape} and no dimension {channel_dim}: set channel_dim.")
        if not feature.numel() or feature.is_complex():
            found = f"is complex ({feature.dtype})" if feature.numel() else f"is empty, of shape {tuple(feature.shape)}"
            raise FeaturesError(f"features[{i}] {found}: a router reads the mean of real numbers.")
    return sum([f.shape[channel_dim] for f in features])


def pooled(view: StepView, channel_dim: int) -> Array:
    """phi (F,): every feature tensor averaged over all dimensions but its channels, then concatenated, float64.

    Raises:
        FeaturesError: NaN or infinity in a mean.
    """
    parts = []
    for feature in view.features:
        others = [d for d in range(feature.ndim) if d != channel_dim % feature.ndim]
        real = feature if feature.is_floating_point() else feature.to(torch.float64)
        parts.append((real.mean(others) if others else real).to(torch.float64))
    out: Array = (torch.cat(parts) if len(parts) > 1 else parts[0]).cpu().numpy()
    if not np.isfinite(out).all():
        i = [bool(part.isfinite().all()) for part in parts].index(False)
        raise FeaturesError(f"features[{i}]: the mean of a channel is NaN or infinite.")
    return out


def spread(view: StepView, channel_dim: int, gradient: Array) -> tuple[Tensor, ...]:
    """Cotangents of the features for a cotangent ``gradient`` (F,) of :func:`pooled`; the adjoint of the mean."""
    features = view.features
    ends = np.cumsum([f.shape[channel_dim] for f in features])[:-1]
    cotangents = []
    for feature, part in zip(features, np.split(gradient, ends)):
        shape = [1] * feature.ndim
        shape[channel_dim] = -1
        scaled = torch.from_numpy(part * (len(part) / feature.numel())).to(feature)
        cotangents.append(scaled.reshape(shape).expand_as(feature))
    return tuple(cotangents)
