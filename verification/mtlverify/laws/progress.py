"""The law that a teleport makes progress possible, on a network for which theory guarantees that it can."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mtlverify.law import Margin, given, law, worst
from mtlverify.laws.proposals import ACCEPTED, FEW, ask, attempt, moves
from mtlverify.laws.universal import verdict
from mtlverify.strategies.networks import Closure, Network, NetworkExample, networks

SLANT = 0.2
"""t: at the trunk's two outputs the task gradients are along (1, t) and (t, 1); their inner product is 2 t."""
EXCESS = 2.5
"""Ratio of the conflict in the first layer to the agreement in the second; with a factor of 2 for every unit it changes
by 16."""


class BadCoordinates(Network):
    """Two tasks whose conflict depends on the parametrisation of the network only.

    z = W2 relu(W1 x) with x > 0 and W1 > 0, so that every unit is active. Task i has the loss s_i (a_i . z + 1)^2 / 2
    with a_1 = (1, t), a_2 = (t, 1), and e_i = a_i . z + 1 > 0. The columns of W2 are b (1, -1). On one input the inner
    product of the task gradients is s_1 s_2 e_1 e_2 times

        2 t |h|^2                                in W2: agreement, and
        - (1 - t)^2 |x|^2 sum_u b^2              in W1: conflict.

    b is chosen so that the second term is EXCESS times the first, and s_2 so large that a step along the mean gradient
    raises the loss of task 1. If all rows of W1 are multiplied by lambda and the columns of W2 are divided by it, no
    output changes. The first term is then multiplied by lambda^2 and the second is divided by it; there is no conflict
    if lambda^4 >= EXCESS.
    """

    def __init__(self, units: int, seed: int) -> None:
        draws = torch.Generator().manual_seed(seed)
        first, second = nn.Linear(4, units, bias=False), nn.Linear(units, 2, bias=False)
        ends = [nn.Linear(2, 1), nn.Linear(2, 1)]
        heads = nn.ModuleDict(dict(zip(("small", "large"), ends)))
        super().__init__(nn.Sequential(first, nn.ReLU(), second).double(), heads.double(), (4,))
        self.scales = torch.ones(2, dtype=torch.float64)
        with torch.no_grad():
            first.weight.copy_(0.05 + 0.05 * torch.rand(units, 4, generator=draws, dtype=torch.float64))
            x = self._inputs(0, 24)
            x_size, h_size = (float(v.square().sum(dim=1).mean()) for v in (x, x @ first.weight.T))
            b = (EXCESS * 2 * SLANT * h_size / ((1 - SLANT) ** 2 * x_size * units)) ** 0.5
            second.weight.copy_(torch.tensor([[b], [-b]]).expand(2, units))
            for head, along in zip(ends, ([1.0, SLANT], [SLANT, 1.0])):
                head.weight.copy_(torch.tensor([along]))
                head.bias.fill_(1.0)
        small, large = self.rows(0)
        self.scales[1] = 2.0 * float(small @ small) / abs(float(small @ large))

    @staticmethod
    def _inputs(seed: int, size: int) -> Tensor:
        return 0.5 + torch.rand(size, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def batch(self, seed: int, size: int = 24) -> Closure:
        """A batch; the targets are the same on all batches."""
        x = self._inputs(seed, size)

        def closure() -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
            z = self.trunk(x)
            losses = {
                name: scale * head(z).square().mean() / 2
                for (name, head), scale in zip(self.heads.items(), self.scales.clone())
            }
            return losses, (z,)

        return closure

    def rows(self, seed: int) -> Tensor:
        """(2, P): task gradients of the trunk on a batch."""
        losses, _ = self.batch(seed)()
        found = [torch.autograd.grad(v, list(self.trunk.parameters()), retain_graph=True) for v in losses.values()]
        return torch.stack([torch.cat([g.flatten() for g in row]) for row in found])


def served(made: BadCoordinates, seed: int) -> Tensor:
    """(2,): cosines of the task gradients with the mean gradient."""
    rows = made.rows(seed)
    mean = rows.mean(dim=0)
    return rows @ mean / (rows.norm(dim=1) * mean.norm())


def step_changes(made: BadCoordinates, seed: int) -> list[float]:
    """Relative changes of the losses on another batch in a step along the mean gradient of batch 0. The length of the
    step is a thousandth of that of the weights. The network is not changed."""
    mean, parameters = made.rows(0).mean(dim=0), list(made.trunk.parameters())
    start = nn.utils.parameters_to_vector(parameters).detach()
    before = [float(v.detach()) for v in made.batch(seed)()[0].values()]
    places = (start - 1e-3 * start.norm() * mean / mean.norm(), start)
    nn.utils.vector_to_parameters(places[0], parameters)
    after = [float(v.detach()) for v in made.batch(seed)()[0].values()]
    nn.utils.vector_to_parameters(places[1], parameters)
    return [(b - a) / a for a, b in zip(before, after)]


def finds_the_symmetry(plugin: Any) -> str | None:
    """The law applies to strategies that use the symmetry of this network: two linear layers around a ReLU."""
    if not (plugin.exact and plugin.improves):
        return "does not search along a symmetry"
    with torch.random.fork_rng(devices=[]):
        made = [BadCoordinates(4, seed) for seed in range(TRIES)]
    if not any(moves(ask(plugin, one, 0)) for one in made):
        return "never moves two linear layers around a ReLU: its symmetries are others"
    return None


TRIES = 4


@law(
    "helps-where-it-must",
    kind="teleport",
    statement="Where two tasks conflict in the parametrisation only, a teleport along the network's symmetry that is "
    "accepted ends the conflict, and the next step along the mean gradient lowers both losses; without it one rises.",
    source="the closed form of the Gramian under rescaling, C + sum_u (A_u / lambda_u^2 + B_u lambda_u^2), on a "
    "network whose A and B are known by construction",
    margin="smallest cosine of a task with the mean gradient, on an unseen batch",
    examples=networks,
    effort=FEW,
    decode=NetworkExample.from_json,
    applies=finds_the_symmetry,
)
def helps_where_it_must(plugin: Any, example: NetworkExample) -> float:
    """Only the width and the seed of the example are used; the architecture is the one above."""
    with torch.random.fork_rng(devices=[]):
        made = BadCoordinates(example.width, example.seed)
    unseen = 7
    given(float(served(made, unseen)[0]) < 0.0 < max(step_changes(made, unseen)), "the mean gradient raises a loss")
    given(attempt(plugin, made, example.seed).accepted, ACCEPTED)
    changes = step_changes(made, unseen)
    cosine = float(served(made, unseen).min())
    rises = [f"after the teleport a step along the mean gradient changes the losses by {changes}"]
    return worst([Margin(cosine, f"the worst cosine is {cosine:.3g}"), verdict(max(changes) < 0.0, rises[0])])
