"""Laws about runs of several steps."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import torch
from torch import Tensor

from mtlverify.answer import answered, view_of
from mtlverify.example import Example
from mtlverify.law import law
from mtlverify.laws.universal import VERDICT, verdict
from mtlverify.strategies import jacobians

STEPS = 4


def step(plugin: Any, example: Example, number: int, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Step ``number`` of a made-up run: gradients turn and losses fall at a rate of their own."""
    rows = torch.roll(example.jacobian, number, dims=1)
    rates = torch.linspace(0.5, 0.9, example.n_tasks, dtype=torch.float64)
    losses, later = example.losses * rates**number, example.losses * rates ** (number + 1)
    aggregation = plugin.aggregate(view_of(plugin, rows, losses, seed=example.seed + number, step=number), state)
    seen = view_of(plugin, rows, later, seed=example.seed + number, step=number)
    return answered(aggregation, rows).direction, plugin.observe(seen, dict(aggregation.state))


@law(
    "resume-equivalent",
    statement="A run that is saved, loaded into a new object and continued equals the uninterrupted run, bit for bit.",
    source="contract of mtlcore.Aggregator: state is a dict of tensors and there is no other memory",
    margin=VERDICT,
    examples=jacobians,
    effort=0.5,
)
def resume_equivalent(plugin: Any, example: Example) -> float:
    """The state goes through a file that allows nothing but tensors; the method is built anew from its fields."""
    state = plugin.init(example.n_tasks)
    for number in range(STEPS // 2):
        _, state = step(plugin, example, number, state)
    file = io.BytesIO()
    torch.save(state, file)
    straight = []
    for number in range(STEPS // 2, STEPS):
        direction, state = step(plugin, example, number, state)
        straight.append(direction)
    file.seek(0)
    resumed_state, resumed = torch.load(file, weights_only=True), dataclasses.replace(plugin)
    for number, expected in zip(range(STEPS // 2, STEPS), straight, strict=True):
        direction, resumed_state = step(resumed, example, number, resumed_state)
        if not torch.equal(direction, expected):
            return verdict(False)
    return verdict(True)
