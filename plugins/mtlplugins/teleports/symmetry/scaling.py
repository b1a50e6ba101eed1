"""Positive rescaling of units, and its effect on the task gradients in closed form.

A :class:`Group` is a set of U units (channels, features) such that multiplying, for every unit u, the elements that
*produce* it by lambda_u > 0 and dividing the elements that *consume* it by lambda_u changes no output of the network.

Effect on the Gramian [derived]. Under theta' = D theta a gradient becomes g' = g / D, so with
A_u[i, k] = the part of <g_i, g_k> over the elements that produce unit u, B_u over those that consume it, C the rest,

    Gram(lambda) = C + sum_u ( lambda_u^{-2} A_u + lambda_u^{2} B_u ).

A, B, C come from one pass of task gradients; after that, any measure of conflict can be optimised over log lambda
without the network. The formula holds if every element is in one group only. But a weight between two groups is in
both: one produces it, the other consumes it. So groups are optimised in rounds of disjoint groups, and between rounds
the gradients are transformed, g <- g / D, which is exact. A weight from a group to itself (a residual branch of a
single layer) has the factor lambda_j^2 / lambda_i^2, but lambda_j^2 + lambda_i^{-2} in the tables: the slope at the
identity is right, the value is not, and the formula only guides the search. [choice]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtlcore import Displacement, TeleportProblem, linalg
from mtlplugins.teleports.symmetry.worst_cosine import Array, ascend, has_angles, worst_cosine


@dataclass(frozen=True)
class Member:
    """Elements of one parameter that belong to a group.

    Args:
        parameter: qualified name in the trunk.
        elements: (U, m) flat indices: row u are the elements that produce (or consume) unit u.
        produces: True: multiplied by lambda_u; False: divided by it.
    """

    parameter: str
    elements: Tensor
    produces: bool


@dataclass(frozen=True)
class Group:
    """Units that can be rescaled without changing the function."""

    name: str
    units: int
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Tables:
    """A (K, K, U), B (K, K, U), C (K, K), all float64; U runs over the units of all groups of one round."""

    produced: Tensor
    consumed: Tensor
    rest: Tensor

    def gramian(self, log_scales: Tensor) -> Tensor:
        """Gram(lambda) for log lambda (U,)."""
        return self.rest + self.produced @ (-2.0 * log_scales).exp() + self.consumed @ (2.0 * log_scales).exp()


def rounds(groups: Sequence[Group], sizes: Mapping[str, int]) -> list[list[Group]]:
    """Divide groups into rounds in which no element is in two groups; greedy, in the given order."""
    waiting, out = list(groups), []
    while waiting:
        taken = {name: torch.zeros(n, dtype=torch.bool, device="cpu") for name, n in sizes.items()}
        now, later = [], []
        for group in waiting:
            if any(bool(taken[m.parameter][m.elements].any()) for m in group.members):
                later.append(group)
                continue
            for m in group.members:
                taken[m.parameter][m.elements] = True
            now.append(group)
        out.append(now)
        waiting = later
    return out


def tables(groups: Sequence[Group], rows: Mapping[str, Tensor]) -> Tables:
    """The closed form's three tables for disjoint groups, from the (K, numel) gradients of every parameter."""
    k = next(iter(rows.values())).shape[0]
    device = next(iter(rows.values())).device
    touched = {name: torch.zeros(r.shape[1], dtype=torch.bool, device=device) for name, r in rows.items()}
    produced, consumed = [], []
    for group in groups:
        parts = {flag: torch.zeros(group.units, k, k, dtype=torch.float64, device=device) for flag in (True, False)}
        for member in group.members:
            if member.parameter not in rows:
                continue  # frozen: it moves with the others, but has no gradient
            elements = member.elements.to(device)
            touched[member.parameter][elements] = True
            block = rows[member.parameter][:, elements].to(torch.float64).transpose(0, 1)
            parts[member.produces] += block @ block.transpose(1, 2)
        produced.append(parts[True])
        consumed.append(parts[False])
    rest = torch.zeros(k, k, dtype=torch.float64, device=device)
    for name, r in rows.items():
        if not bool(touched[name].all()):
            rest += linalg.gramian(r[:, ~touched[name]] if bool(touched[name].any()) else r)
    return Tables(torch.cat(produced).permute(1, 2, 0), torch.cat(consumed).permute(1, 2, 0), rest)


def factors(
    groups: Sequence[Group], log_scales: Sequence[Tensor], shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """D per touched parameter (float64, full shape) for the log-scales of each group."""
    found: dict[str, Tensor] = {}
    for group, logs in zip(groups, log_scales):
        for m in group.members:
            if m.parameter not in found:
                found[m.parameter] = torch.zeros(shapes[m.parameter].numel(), dtype=torch.float64, device=logs.device)
            sign = 1.0 if m.produces else -1.0
            found[m.parameter][m.elements.to(logs.device)] += sign * logs[:, None]
    return {name: logs.exp().view(shapes[name]) for name, logs in found.items()}


def optimise(form: Tables, measure: str, *, bound: float, stiffness: float, steps: int) -> Tensor:
    """log lambda (U,) in [-bound, bound] with a high worst cosine; zeros if there is nothing to gain.

    Ascent on worst_cosine - stiffness mean(log lambda^2) over log lambda = bound tanh(x), from the identity.
    """
    k, _, units = form.produced.shape
    produced, consumed = (t.cpu().numpy().reshape(k * k, units) for t in (form.produced, form.consumed))
    rest = form.rest.cpu().numpy()

    def gain(x: Array) -> tuple[float, Array]:
        t = np.tanh(x)
        logs = bound * t
        up = np.exp(2.0 * logs)
        down = 1.0 / up
        value, slope = worst_cosine(rest + (produced @ down + consumed @ up).reshape(k, k), measure)
        s = slope.ravel()
        along = 2.0 * (up * (s @ consumed) - down * (s @ produced)) - 2.0 * stiffness / units * logs
        return value - stiffness * float(logs @ logs) / units, along * bound * (1.0 - t * t)

    x = np.zeros(units)
    if has_angles(rest + (produced.sum(axis=1) + consumed.sum(axis=1)).reshape(k, k)):
        x = ascend(gain, x, steps)
    return torch.from_numpy(bound * np.tanh(x)).to(form.rest.device)


def rescale(
    problem: TeleportProblem,
    groups: Sequence[Group],
    *,
    measure: str,
    bound: float,
    stiffness: float,
    steps: int,
    powers_of_two: bool = False,
) -> Displacement:
    """The displacement that optimises the worst cosine over all groups, from one pass of task gradients. With
    ``powers_of_two``, each lambda is rounded to the nearest power of two within the bound."""
    parameters = dict(problem.trunk.named_parameters())
    losses, blocks = problem.rows()
    rows = dict(zip(problem.parameters(), blocks))
    shapes = {n: p.shape for n, p in parameters.items()}
    if len(losses) < 2:
        return Displacement({}, diagnostics={"reason": "one task only: nothing can conflict"})
    total: dict[str, Tensor] = {}
    waiting = rounds(groups, {n: p.numel() for n, p in parameters.items()})
    for i, groups_now in enumerate(waiting):
        logs = optimise(tables(groups_now, rows), measure, bound=bound, stiffness=stiffness, steps=steps)
        if powers_of_two:
            most = math.floor(bound / math.log(2.0))
            logs = (logs / math.log(2.0)).round().clamp(-most, most) * math.log(2.0)
        scales = factors(groups_now, logs.split([g.units for g in groups_now]), shapes)
        if powers_of_two:
            scales = {name: d.log2().round().exp2() for name, d in scales.items()}
        for name, d in scales.items():
            if name in rows and i + 1 < len(waiting):
                rows[name] = (rows[name] / d.flatten()).to(rows[name].dtype)
            total[name] = d * total[name] if name in total else d
    return displacement(problem, total, {"groups": len(groups), "units": sum(g.units for g in groups)})


def displacement(
    problem: TeleportProblem, scales: Mapping[str, Tensor], diagnostics: Mapping[str, object]
) -> Displacement:
    """theta' = D theta with its maps."""
    parameters = dict(problem.trunk.named_parameters())
    moved = {n: d for n, d in scales.items() if bool((d != 1.0).any())}
    if not moved:
        return Displacement({}, diagnostics={"reason": "no rescaling lowers the conflict", **diagnostics})
    return Displacement(
        parameters={n: (parameters[n].detach() * d).to(parameters[n].dtype) for n, d in moved.items()},
        maps=moved,
        diagnostics=diagnostics,
    )
