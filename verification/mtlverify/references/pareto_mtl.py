"""Pareto MTL, second phase: the min-norm point of the gradients and of the sector's constraints that are active.
[Lin et al. 2019, 1912.12854]

No built-in method has this name: the reference is there for a plugin that has it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mtlverify.references import Array, NoUniqueAnswer, Solution, reference
from mtlverify.references.min_norm import min_norm

uses_losses = True
TOO_CLOSE = 1e-12
"""A constraint this near to its boundary, relative to the losses, may be active or not by rounding."""


def covers(plugin: Any) -> bool:
    """Read are ``preferences`` (n, K), the rays, and ``index``, the ray that is followed; d itself, not rescaled."""
    return all(hasattr(plugin, name) for name in ("preferences", "index")) and not getattr(plugin, "rescale", False)


@reference("pareto-mtl")
def pareto_mtl(rows: Array, plugin: Any, losses: Array) -> Solution:
    """argmin |d| over conv{g_1 .. g_K, h_j (j active)}, h_j = J'(u_j - u_k); j is active when (u_j - u_k)'L > 0, that
    is, when the losses have left the sector of ray k on the side of ray j. None active: MGDA."""
    return min_norm(augmented(rows, plugin, losses))


def augmented(rows: Array, plugin: Any, losses: Array) -> Array:
    """(K + active, P): the gradients, then the active constraints' gradients."""
    rays = np.asarray(plugin.preferences, dtype=np.float64)
    sides = np.delete(rays - rays[plugin.index], plugin.index, axis=0)
    outside = sides @ losses
    if (np.abs(outside) <= TOO_CLOSE * (np.abs(sides) @ np.abs(losses))).any():
        raise NoUniqueAnswer("the losses are on the boundary of the sector: a constraint is active or not by rounding")
    return np.vstack([rows, sides[outside > 0] @ rows])
