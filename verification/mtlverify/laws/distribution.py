"""Laws in distribution, for methods that draw random numbers.

If the tasks are reordered, a random method uses its random numbers for other tasks. So its answer for one seed may
change, but the distribution of its answer must be reordered in the same way. The law compares two samples; the bound on
the probability of a false alarm holds for every distribution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtlcore import Aggregator
from mtlverify import tolerance
from mtlverify.answer import answered, stepped, uses_randomness, view_of
from mtlverify.example import Example
from mtlverify.law import Margin, anything, law
from mtlverify.laws.symmetry import permutation
from mtlverify.strategies import jacobians


def draws(plugin: Aggregator) -> str | None:
    """The law applies to methods that draw random numbers."""
    return None if uses_randomness(plugin) else "draws nothing: permutation-equivariant says the same without chance"


def gains(plugin: Aggregator, example: Example, order: list[int], seed: int) -> tuple[Tensor, float]:
    """(n, K) <g_i, d> / |g_i| in n first steps on the tasks in ``order`` (columns are in the original order), and the
    difference below which two directions count as equal. All random numbers are from one stream."""
    rows, losses = example.jacobian[order], example.losses[order]
    back = torch.tensor(order).argsort()
    norms = rows.double().norm(dim=1)
    units = rows.double() / torch.where(norms > 0, norms, 1.0)[:, None]
    generator = torch.Generator().manual_seed(seed)
    found, equal = [], 0.0
    for _ in range(tolerance.DRAWS):
        view = view_of(plugin, rows, losses, seed=generator)
        answer = answered(stepped(plugin, view, plugin.init(example.n_tasks), rows), rows)
        found.append((units @ answer.direction.double())[back])
        equal = max(equal, tolerance.equality(answer))
    return torch.stack(found), equal


def excess(left: Tensor, right: Tensor, shift: float) -> float:
    """max_x F(x) - G(x + shift), F and G the empirical distribution functions of two (n,) samples."""
    left, right = left.sort().values, right.sort().values.contiguous()
    below_left = torch.searchsorted(left, left, right=True)
    below_right = torch.searchsorted(right, left + shift, right=True)
    return float((below_left - below_right).max()) / len(left)


@law(
    "equivariant-in-distribution",
    statement="For a method that draws: reordering the tasks reorders the distribution of the direction's gains "
    "<g_i, d> with them.",
    source="no task is special by its position (Yu et al. 2020 draw PCGrad's order for that reason); the test is the "
    "Dvoretzky-Kiefer-Wolfowitz inequality with Massart's constant",
    margin="what chance explains of the largest distance of two empirical distribution functions, minus that distance",
    examples=lambda: jacobians(more=permutation),
    within=anything,
    applies=draws,
    effort=0.1,
)
def equivariant_in_distribution(plugin: Any, example: Example) -> float:
    """Values that differ by rounding count as equal: F(x) is compared with G(x + rounding), and G(x) with
    F(x + rounding)."""
    straight, here = gains(plugin, example, list(range(example.n_tasks)), 2 * example.seed)
    moved, there = gains(plugin, example, list(example.extra["permutation"]), 2 * example.seed + 1)
    columns = zip(straight.unbind(1), moved.unbind(1), strict=True)
    apart = [max(excess(*pair, here + there) for pair in ((a, b), (b, a))) for a, b in columns]
    task = apart.index(max(apart))
    explained = tolerance.chance(example.n_tasks)
    return Margin(
        explained - apart[task],
        f"two distribution functions of task{task}'s gain are {apart[task]:.2g} apart; chance explains {explained:.2g}",
    )
