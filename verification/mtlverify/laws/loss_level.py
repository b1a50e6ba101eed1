"""Laws about methods that weight losses and do not read task gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mtlcore import Aggregator, MultiTask, Needs
from mtlverify import tolerance
from mtlverify.example import Example
from mtlverify.law import Margin, anything, given, law, worst
from mtlverify.laws.compare import agreement, shown
from mtlverify.laws.runs import losses_at, step, steps
from mtlverify.laws.universal import VERDICT, verdict
from mtlverify.references import objectives
from mtlverify.strategies import jacobians


def reads_no_gradients(plugin: Aggregator) -> str | None:
    """The law applies to methods that read no task gradients, and to those that promise it."""
    if plugin.needs > Needs.LOSSES and "one-backward-pass" not in plugin.claims:
        return "reads task gradients, and these take a backward pass each"
    return None


class _Counted(torch.autograd.Function):
    """The identity function; it counts the backward passes through it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, trunk: Trunk) -> Tensor:
        ctx.trunk = trunk
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None]:
        ctx.trunk.count[0] += 1
        return cotangents[0], None


class Trunk(nn.Module):
    """A trunk whose output are its parameters, which are 0; ``passes`` counts backward passes."""

    def __init__(self, example: Example) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(example.jacobian.shape[1], dtype=example.jacobian.dtype))
        self.count = [0]
        """In a list, because plain attributes of a module are restored after inner steps."""

    @property
    def passes(self) -> int:
        """Backward passes so far."""
        return self.count[0]

    def forward(self) -> Tensor:
        """(1, P)."""
        apply: Callable[..., Tensor] = _Counted.apply
        return apply(self.theta, self)[None]


@law(
    "one-backward-pass",
    statement="A step makes exactly one backward pass through the trunk, whatever the number of tasks.",
    source="what a loss-level method is used for: O(1) in K (specifications of BiLB4MTL and FAMO)",
    margin=VERDICT,
    examples=jacobians,
    within=anything,
    applies=reads_no_gradients,
    effort=0.25,
)
def one_backward_pass(plugin: Any, example: Example) -> float:
    """Two steps of ``MultiTask`` are made on losses with the values and gradients of the example; passes are counted in
    the graph."""
    trunk, values = Trunk(example), example.losses.to(example.jacobian.dtype)

    def closure() -> tuple[dict[str, Tensor], Tensor]:
        features = trunk()
        losses = values + example.jacobian @ features[0]
        return {f"task{i}": loss for i, loss in enumerate(losses.unbind())}, features

    mt = MultiTask(trunk, plugin, torch.optim.SGD(trunk.parameters(), lr=0.0), seed=example.seed)
    for _ in range(2):
        mt.step(closure)
    return verdict(trunk.passes == 2, f"{trunk.passes} backward passes through the trunk in two steps")


@law(
    "coefficient-identity",
    statement="The weights are the derivatives of the method's scalar objective with respect to the losses, at every "
    "step of a run in which the objective's own variables are trained along.",
    source="mtlverify.references.objectives",
    examples=jacobians,
    within=anything,
    applies=objectives.missing,
    effort=0.5,
)
def coefficient_identity(plugin: Any, example: Example) -> float:
    """Each weight must be right to half of its digits, or to the rounding error of K terms as large as the largest
    w_i L_i, which may cancel in it. If that fails, the error may be as large as the change of the derivatives when the
    last bits of the losses change."""
    given(objectives.defined(plugin, example.losses), "the objective is defined: it takes logarithms of the losses")
    objective = objectives.objective_of(plugin, example.n_tasks)
    state, margins = plugin.init(example.n_tasks), []
    for number in range(steps(example)):
        losses = losses_at(example, number)
        expected = objective.weights(losses, number)
        answer, state = step(plugin, example, number, state)
        if answer.weights is None:
            return Margin(float("nan"), "a direction instead of weights")
        rounding = example.n_tasks * tolerance.EPS64 * float((expected.abs() * losses).max()) / losses
        rounding = torch.where(losses == 0, 0.0, rounding)  # nothing cancels in a term that is zero
        apart = (answer.weights - expected).abs()
        apart = torch.where(apart <= rounding.clamp_min(tolerance.VANISHED), 0.0, apart / (expected.abs() + rounding))
        error = float(apart.max())
        if error > tolerance.half_digits(answer):
            error = max(0.0, error - _undetermined(objective, losses, number, expected))
        wrong = f"the weights are {shown(answer.weights)}, the derivatives {shown(expected)}"
        margins.append(agreement(error, tolerance.half_digits(answer), wrong))
        objective.advance(losses, losses_at(example, number + 1), number)
    return worst(margins, of="step")


def _undetermined(objective: Any, losses: Tensor, number: int, expected: Tensor) -> float:
    """The relative change of the derivatives when the last bits of the losses change."""
    most = 0.0
    for probe in range(tolerance.PROBES):
        generator = torch.Generator().manual_seed(probe)
        signs = torch.randint(2, losses.shape, generator=generator).double() * 2.0 - 1.0
        moved = objective.weights(losses * (1.0 + 2.0 * tolerance.EPS64 * signs), number)
        apart = (moved - expected).abs() / expected.abs().clamp_min(tolerance.VANISHED)
        most = max(most, tolerance.largest(apart.tolist()))
    return tolerance.AMPLIFY * most
