"""IMGrad: CAGrad's dual with another radius. [Zhou et al. 2025, 2503.08006; official code]"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np

from mtlverify.references import Array, NoUniqueAnswer, Solution, reference
from mtlverify.references.cagrad import dual
from mtlverify.references.min_norm import min_norm

RESOLVED = 1e-6
"""Radius, relative to |g_0|, below which a cone program's answer is all tolerance; it is blown up by c / radius."""


@reference("imgrad")
def imgrad(rows: Array, plugin: Any) -> Solution:
    """w minimises (1.5 - q) <g_w, g_0> + q c |g_0| |g_w|, then d = g_0 + c |g_0| g_w / |g_w|, divided as asked."""
    mean, c = rows.mean(axis=0), float(plugin.c)
    length, largest = float(np.linalg.norm(mean)), float(np.linalg.norm(rows, axis=1).max(initial=0.0))
    if not rows.any(axis=1).all():
        raise NoUniqueAnswer("a zero gradient is the min-norm point itself: no cosine")
    nearest = min_norm(rows).direction
    size = float(np.linalg.norm(nearest))
    if size <= 1e-5 * float(np.linalg.norm(rows, axis=1).min()) or length <= 1e-7 * largest:
        raise NoUniqueAnswer("the min-norm point or the mean is zero to within rounding: no cosine")
    q = min(1.0, float(mean @ nearest) / size / length)
    radius = c * q / (float(plugin.level) - q)
    by = {"none": 1.0, "1+c^2": 1.0 + c * c, "1+c": 1.0 + c}[plugin.rescale]
    if radius == 0.0:
        return Solution(mean / by, largest / by)
    if radius < RESOLVED:
        raise NoUniqueAnswer("the mean is nearly orthogonal to the min-norm point: the ball is not resolved")
    found = dual(rows, SimpleNamespace(c=radius, rescale="none"))
    factor = max(1.0, c / radius)
    direction = (mean + (c / radius) * (found.direction - mean)) / by
    return dataclasses.replace(
        found, direction=direction, size=found.size * factor / by, distance=found.distance * factor / by
    )
