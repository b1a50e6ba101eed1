"""Laws about the step of the optimizer, not about the direction. [docs/explanation/step.md]"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtlverify import tolerance
from mtlverify.example import Example
from mtlverify.law import Margin, anything, given, law, worst
from mtlverify.laws.compare import agreement, shown
from mtlverify.laws.universal import verdict
from mtlverify.problems.quadratics import Quadratics
from mtlverify.references import dual_cone
from mtlverify.references.rows import unit_rows
from mtlverify.stepping import PLAIN, Stepper, pasts, takes_steps
from mtlverify.strategies import jacobians
from mtlverify.strategies.scales import ORDINARY

STEPS = 2
"""Steps of a run: in the second the optimizer has a history from the first."""
FEW = 0.3
"""A check makes whole runs, so fewer inputs are tried."""


def pulls() -> Any:
    """Gradients, and an optimizer with a history; in float64, because a step is computed from the parameters."""
    return jacobians(scalings=ORDINARY, dtypes=(torch.float64,), more=pasts)


@law(
    "step-non-conflicting",
    statement='With metric="step", the whole step of the optimizer, momentum and weight decay included, has '
    "<g_i, s> <= 0 for every task, wherever the report says that it is safe; under SGD it is always safe.",
    source="the projection onto {x : Jx >= 0} in the optimizer's metric [ours]",
    margin="smallest cosine of a task's gradient with minus the step, plus tolerance.STEP",
    examples=pulls,
    within=anything,
    applies=takes_steps,
    effort=FEW,
)
def step_non_conflicting(plugin: Any, example: Example) -> float:
    """The step is computed from the parameters, not from the report. The cosines of a very short step are rounding
    errors, so they are judged relative to the length of the step without ``metric``, and to the rounding of the step
    that the longest gradient alone would make: this rounding is all that is left of gradients that cancel."""
    kind = example.extra["optimizer"]
    run = Stepper(plugin, example, "step", kind)
    margins = []
    for _ in range(STEPS):
        step, report = run.step()
        safe = bool(report.diagnostics.get("step_safe", True))
        if kind in PLAIN:
            margins.append(verdict(safe, "the report says of a step of SGD that it is not safe"))
        if safe:
            margins.append(_harm(plugin, example, kind, step, float(run.place().norm())))
    given(bool(margins), "a step is safe")
    return worst(margins, of="step")


def _harm(plugin: Any, example: Example, kind: str, step: Tensor, place: float) -> Margin:
    rows = example.jacobian.double()
    norms = rows.norm(dim=1)
    alive = norms > 0
    gains = -(rows[alive] @ step) / norms[alive]
    lowest, length = float(gains.min()) if len(gains) else 0.0, float(step.norm())
    if lowest < -tolerance.STEP * length:
        own, _ = Stepper(plugin, example, "optimizer", kind).step()
        alone = Stepper(plugin, example, "optimizer", kind).alone(int(norms.argmax()))
        rounding = tolerance.ROUNDINGS * tolerance.EPS64 * (float(own.norm()) + float(alone.norm()) + place)
        length = max(length, rounding / tolerance.STEP, tolerance.LITTLE * float(own.norm()))
    margin = lowest / length if length else 0.0
    return Margin(
        margin + tolerance.STEP, f"a task is harmed: the cosine of its gradient with the step is {margin:.3g}"
    )


@law(
    "step-nearest",
    statement='Under SGD, of all moves that harm no task the step with metric="step" is the nearest to the step that '
    "the method alone would make, in the norm <x, D^-1 x> of the learning rates.",
    source="projection onto a convex cone, here as a program of its own (cvxpy, scipy) [ours]",
    examples=pulls,
    within=anything,
    applies=takes_steps,
    effort=FEW,
)
def step_nearest(plugin: Any, example: Example) -> float:
    """The first coordinate has another learning rate than the others, so D is not a multiple of the identity."""
    kind, rates = example.extra["plain"], (1.0, 1.0 / 16.0)
    own, here = (Stepper(plugin, example, m, kind, rates=rates).step()[0] for m in ("optimizer", "step"))
    roots = torch.full_like(own, rates[1] ** 0.5)
    roots[0] = 1.0
    rows, point = (example.jacobian.double() * roots).numpy(), (-own / roots).numpy()
    length = float(np.linalg.norm(point))
    if length == 0.0 or not rows.any():
        return agreement(float((here - own).norm()), 0.0, "there is nothing to project, and the step is another one")
    found = dual_cone.project(unit_rows(rows), point / length).accepted()
    expected = -torch.from_numpy(found.direction) * length * roots
    error = float(((here - expected) / roots).norm()) / length
    wrong = f"the step is {shown(here)} and the nearest harmless one {shown(expected)}"
    return agreement(error, tolerance.REFERENCE + found.distance, wrong)


@law(
    "metric-identity",
    statement="Where the optimizer's metric is a multiple of the Euclidean one, as under SGD with one learning rate, "
    'metric="optimizer" takes the same steps as metric="euclidean", bit for bit.',
    source="J (c I) J^T = c J J^T: nothing is to be computed",
    examples=pulls,
    within=anything,
    applies=takes_steps,
    effort=FEW,
    margin="1 if obeyed, -1 if not",
)
def metric_identity(plugin: Any, example: Example) -> float:
    """It is checked for two steps."""
    ends = []
    for metric in ("euclidean", "optimizer"):
        run = Stepper(plugin, example, metric, example.extra["plain"])
        for _ in range(STEPS):
            run.step()
        ends.append(run.place())
    return verdict(torch.equal(*ends), f"it arrives at {shown(ends[1])} instead of {shown(ends[0])}")


@law(
    "step-unit-free",
    statement="Measuring some parameters in another unit, x = s y, with the optimizer transported, changes nothing of "
    "the step of x in the optimizer's metrics. (One parameter keeps its unit, and the largest rate.)",
    source="J_y D_y J_y^T = J_x S S^-1 D_x S^-1 S J_x^T [ours]; Euclidean methods lack it",
    examples=pulls,
    within=anything,
    applies=takes_steps,
    effort=FEW,
)
def step_unit_free(plugin: Any, example: Example) -> float:
    """s is a power of two, so every product is exact, and a method with a threshold gives the same answer. The largest
    rate does not change, because D is defined up to a factor, on which the length of some methods' d depends."""
    given(example.jacobian.shape[1] > 1, "there are two parameters")
    kind, metric = example.extra["optimizer"], example.extra["metric"]
    runs = [Stepper(plugin, example, metric, kind, unit=s) for s in (1.0, example.extra["unit"])]
    margins = []
    for _ in range(STEPS):
        plain, other = (run.step()[0] for run in runs)
        length = max(float(plain.norm()), 2.0**-52 * float(runs[0].place().norm()))
        wrong = f"the step is {shown(plain)}, and in other units {shown(other)}"
        margins.append(agreement(float((plain - other).norm()), tolerance.REFERENCE * length, wrong))
    return worst(margins, of="step")


@law(
    "step-descent",
    statement='Where task i has a gradient that is L_i-Lipschitz, a safe step s of metric="step" under SGD raises its '
    "loss by at most L_i |s|^2 / 2, and lowers it as soon as |s| < 2 c |g_i| / L_i, c the cosine of g_i with -s.",
    source="the descent lemma, f(x + s) <= f(x) + <g, s> + L |s|^2 / 2",
    margin="what is left of the bound, in units of |g_i| |s| + L_i |s|^2 / 2, plus tolerance.STEP",
    examples=pulls,
    within=anything,
    applies=takes_steps,
    effort=FEW,
)
def step_descent(plugin: Any, example: Example) -> float:
    """It is checked on quadratics with known L_i and conflicting gradients. Of the example the number of tasks, the
    seed and the optimizer's history are used."""
    k = example.n_tasks
    given(2 <= k <= 8, "two to eight tasks")
    most = math.degrees(math.acos(-1.0 / (k - 1)))
    problem = Quadratics(n_tasks=k, angle=0.9 * most, imbalance=4.0, conditioning=10.0, seed=example.seed)
    x = nn.Parameter(problem.start(torch.Generator().manual_seed(example.seed)).clone())
    rows = problem.jacobian(x.detach())
    made = Stepper(plugin, example.with_(jacobian=rows, losses=problem.losses(x.detach())), "step", "sgd")
    lipschitz = torch.tensor(problem.smoothness, dtype=torch.float64)
    # Downhill on the quadratics from their start: the gradients there are those that the linear losses had.
    step, report = made.step()
    given(bool(report.diagnostics.get("step_safe", True)), "the step is safe")
    rise = problem.losses(x.detach() + step) - problem.losses(x.detach())
    bound = lipschitz * step.square().sum() / 2
    first, size = rows @ step, rows.norm(dim=1) * step.norm() + bound
    left = torch.where(-first > bound, torch.zeros_like(bound), bound) - rise
    margin = float((left / size.clamp_min(1e-300)).min())
    return Margin(margin + tolerance.STEP, f"the losses change by {shown(rise)}, where {shown(bound)} bounds them")
