"""The law about gradients from a network in low precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mtlcore import Aggregator, MultiTask
from mtlverify import tolerance
from mtlverify.answer import Answer
from mtlverify.example import Example
from mtlverify.law import Margin, anything, law, worst
from mtlverify.laws.conflict import cosines
from mtlverify.strategies import GENERIC, NOT_STATIONARY, jacobians
from mtlverify.strategies.scales import ORDINARY

EITHER = ("parameters", "autocast")
"""Either the parameters are bfloat16; or they are float32, and forward pass and step are in an autocast region."""


def promises_no_conflict(plugin: Aggregator) -> str | None:
    """The law applies to methods that promise non-conflict."""
    if "non-conflicting" not in plugin.claims:
        return "does not promise to harm no task"
    return None


def in_range(rows: Tensor) -> Tensor:
    """The rows in the range of bfloat16: multiplied by a power of two, so that all entries are below 1; entries below
    1e-15 are then set to zero."""
    data = rows.double()
    largest = float(data.abs().max())
    power = 0.0 if largest == 0 else -float(torch.frexp(torch.tensor(largest, dtype=torch.float64))[1])
    scaled = data * 2.0**power
    return torch.where(scaled.abs() < 1e-15, 0.0, scaled)


def written(plugin: Aggregator, example: Example, precision: str) -> Answer:
    """The task gradients of a linear layer in low precision, and the gradient that a step of ``MultiTask`` writes.

    Losses are L_i + <J_i, z - z_0> with z = W x + b and z_0 its value, so the gradients are J_i x' and J_i: their
    angles are those of the example, up to the rounding of the layer.
    """
    rows, p = in_range(example.jacobian), example.jacobian.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(example.seed)
        trunk, x = nn.Linear(3, p), torch.randn(1, 3)
    mixed = precision == "autocast"
    if not mixed:
        trunk, x = trunk.bfloat16(), x.bfloat16()
    own = list(trunk.parameters())
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        z = trunk(x)
        pulls = (z.float() @ rows.T.float())[0].double() if mixed else (z @ rows.T.to(z.dtype))[0].double()
        values = example.losses + pulls - pulls.detach()
        losses = {f"task{i}": value for i, value in enumerate(values)}
        each = [torch.autograd.grad(loss, own, retain_graph=True) for loss in losses.values()]
        report = MultiTask(trunk, plugin, seed=example.seed).backward(losses, features=z)
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in each])
    found = [torch.zeros_like(q) if q.grad is None else q.grad for q in own]
    return Answer(torch.cat([g.flatten() for g in found]), report.weights, {}, jacobian, jacobian.dtype)


@law(
    "low-precision-network",
    statement="On a network in bfloat16, and in an autocast region, the gradient that a step writes harms no task by "
    "more than eight roundings of bfloat16 of what it is made of: <g_i, d> >= -2^-5 |g_i| sum_j |w_j| |g_j|.",
    source="Quinton & Rey 2024 (2406.16232); a method must not compute in the precision of its network",
    margin="smallest cosine <g_i, d> / (|g_i| |d|), plus eight roundings of bfloat16 of what d is made of",
    examples=lambda: jacobians((*GENERIC, *NOT_STATIONARY), scalings=ORDINARY),
    within=anything,
    universal=True,
    applies=promises_no_conflict,
    effort=0.3,
)
def low_precision_network(plugin: Any, example: Example) -> float:
    """Task gradients are computed from the same graph, so the tolerance covers two ways of rounding them. Inputs are
    gradients that do not nearly cancel, because otherwise rounding decides."""
    return worst(_nobody_harmed(written(plugin, example, precision), precision) for precision in EITHER)


def _nobody_harmed(answer: Answer, precision: str) -> Margin:
    smallest = min(cosines(answer), default=0.0)
    where = "bfloat16 parameters" if precision == "parameters" else "autocast"
    noise = 1.0 if answer.length == 0 else tolerance.LOW_PRECISION * answer.size / answer.length
    return Margin(smallest + noise, f"with {where} a task is harmed: its cosine is {smallest:.3g}")
