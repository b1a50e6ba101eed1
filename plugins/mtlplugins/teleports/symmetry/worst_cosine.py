"""The soft minimum of the cosines in a Gramian, with its slope; and a search for parameters that maximise it.

It is written in numpy, because everything here has the size of a K x K table, for which torch calls are slow.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

TEMPERATURE = 0.05
"""T of the soft minimum -T log sum_i exp(-c_i / T): a smooth lower bound of the minimum, exact for T -> 0."""


def worst_cosine(gram: Array, measure: str) -> tuple[float, Array]:
    """Soft minimum of c_i = cos(g_i, g_0) ("dominated") or c_ij = cos(g_i, g_j) ("pairwise"), and its slope.

    Tasks whose gradient is zero are left out. With p the softmax of -c / T, and n_i = sqrt(G_ii), m = sqrt(mean G):

        dominated:  dG_ij: p_i / (K n_i m) - sum_i p_i c_i / (2 K^2 m^2),   dG_ii: - p_i c_i / (2 G_ii)
        pairwise:   dG_ij: p_ij / (n_i n_j),                                dG_ii: - sum_j p_ij c_ij / (2 G_ii)

    Args:
        gram: (K, K), symmetric, at least two non-zero gradients; for "dominated" a mean that is not zero.

    Returns:
        The value, and (K, K) S with d value = <S, dG> for symmetric dG.
    """
    alive = np.flatnonzero(gram.diagonal() > 0.0)
    if len(alive) < len(gram):
        value, inner = worst_cosine(gram[np.ix_(alive, alive)], measure)
        slope = np.zeros_like(gram)
        slope[np.ix_(alive, alive)] = inner
        return value, slope
    k = len(gram)
    square = gram.diagonal()
    size = np.sqrt(square)
    if measure == "pairwise":
        unit = 1.0 / np.outer(size, size)
        cos = gram * unit
        i, j = np.triu_indices(k, 1)
        value, p = _soft_minimum(cos[i, j])
        slope = np.zeros_like(gram)
        slope[i, j] = p
        both = (slope + slope.T) * cos
        slope *= unit
        slope[np.diag_indices(k)] -= both.sum(axis=1) / (2.0 * square)
        return value, slope
    mean = max(float(gram.mean()), np.finfo(np.float64).tiny)
    cos = gram.mean(axis=1) / (size * mean**0.5)
    value, p = _soft_minimum(cos)
    slope = np.repeat((p / (k * size * mean**0.5))[:, None], k, axis=1) - float(p @ cos) / (2.0 * k * k * mean)
    slope[np.diag_indices(k)] -= p * cos / (2.0 * square)
    return value, slope


def has_angles(gram: Array) -> bool:
    """Whether cosines are defined: there are two non-zero gradients, and the mean is larger than its rounding error."""
    square = gram.diagonal()
    return int((square > 0.0).sum()) >= 2 and bool(gram.mean() > 1e-14 * square.max())


def ascend(gain: Callable[[Array], tuple[float, Array]], start: Array, steps: int, *, lr: float = 0.2) -> Array:
    """Adam from ``start``; returns the best point found, which may be ``start``. It stops after ten steps without gain.

    Args:
        gain: point -> (value, slope).
    """
    x = start.copy()
    mean, square = np.zeros_like(x), np.zeros_like(x)
    best, chosen, idle = -np.inf, start, 0
    for step in range(1, steps + 2):
        value, slope = gain(x)
        idle = 0 if value > best + 1e-4 else idle + 1
        if value > best:
            best, chosen = value, x.copy()
        if idle == 10:
            break
        mean = 0.9 * mean + 0.1 * slope
        square = 0.999 * square + 0.001 * slope * slope
        x = x + lr * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-300)
    return chosen


def _soft_minimum(values: Array) -> tuple[float, Array]:
    """The value and the weights: its slope."""
    least = values.min()
    weights = np.exp((least - values) / TEMPERATURE)
    total = weights.sum()
    return float(least - TEMPERATURE * np.log(total)), weights / total
