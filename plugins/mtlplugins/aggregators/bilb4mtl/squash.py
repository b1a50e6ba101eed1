"""sigma from scores, and its gradient: softmax, sigmoid, or sigmoid after relu; then a clamp."""

from __future__ import annotations

import math

from mtlplugins.vectors import Vector, dot

KINDS = ("softmax", "sigmoid", "relu-sigmoid")


def squash(kind: str, scores: Vector, low: float | None, high: float | None) -> tuple[Vector, Vector]:
    """sigma (K,), clamped to [low, high] where given, and sigma before the clamp. No renormalisation. [code]"""
    if kind == "relu-sigmoid":
        scores = [max(score, 0.0) for score in scores]
    raw = _softmax(scores) if kind == "softmax" else _sigmoid(scores)
    if low is None and high is None:
        return raw, raw
    bottom, top = 0.0 if low is None else low, 1.0 if high is None else high
    return [min(max(value, bottom), top) for value in raw], raw


def unsquash(kind: str, scores: Vector, sigma: Vector, raw: Vector, gradient: Vector) -> Vector:
    """Cotangent of the scores for a cotangent ``gradient`` (K,) of sigma; zero where clamp or relu is active."""
    if sigma is not raw:
        gradient = [g if clamped == value else 0.0 for g, clamped, value in zip(gradient, sigma, raw)]
    if kind == "softmax":
        mean = dot(raw, gradient)
        return [value * (g - mean) for value, g in zip(raw, gradient)]
    back = [g * value * (1.0 - value) for value, g in zip(raw, gradient)]
    if kind == "relu-sigmoid":
        back = [b if score > 0.0 else 0.0 for b, score in zip(back, scores)]
    return back


def _softmax(scores: Vector) -> Vector:
    # Shifted by the largest: exp never overflows.
    top = max(scores)
    powers = [math.exp(score - top) for score in scores]
    total = sum(powers)
    return [power / total for power in powers]


def _sigmoid(scores: Vector) -> Vector:
    # Below -700 the exponential would overflow; what is lost there is less than 1e-300.
    return [1.0 / (1.0 + math.exp(700.0 if score < -700.0 else -score)) for score in scores]
