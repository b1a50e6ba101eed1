"""Laws in distribution, for methods that draw random numbers.

Renaming tasks renames a method's draws, too, so a random method cannot answer the same for the same seed. What it can
do is to treat tasks alike over all its draws: its answer is then a random vector whose distribution follows the tasks.
Two samples decide, with a bound on the chance of a false alarm that holds whatever the distribution is.
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
    """The law is about methods that draw."""
    return None if uses_randomness(plugin) else "draws nothing: permutation-equivariant says the same without chance"


def gains(plugin: Aggregator, example: Example, order: list[int], seed: int) -> tuple[Tensor, float]:
    """(n, K) <g_i, d> / |g_i| of n first steps on the tasks in ``order``, columns in the original order, and the length
    below which two directions count as equal. All draws are from one stream of random numbers."""
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
    """Values that differ by rounding count as equal: F(x) is compared with G(x + rounding), and the other way round."""
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
