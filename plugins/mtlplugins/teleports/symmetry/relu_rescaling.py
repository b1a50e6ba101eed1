"""The positive rescaling symmetry of networks with ReLU-like activations, used to reduce conflict."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtlcore import Displacement, TeleportProblem, TeleportStrategy, choice, flag, integer, number
from mtlcore.errors import ConfigurationError
from mtlplugins.teleports.symmetry.channels import Found, find_groups
from mtlplugins.teleports.symmetry.plainness import uncompiled
from mtlplugins.teleports.symmetry.scaling import Group, factors, rescale


@dataclass(frozen=True)
class ReluRescaling(TeleportStrategy):
    """Multiply what produces unit j by lambda_j > 0, divide what consumes it: an exact symmetry. [derived]

    W1[j,:] *= lambda_j, b1[j] *= lambda_j, W2[:,j] /= lambda_j, for Linear and Conv chains, through batch norm (whose
    affine part then is what produces), pooling, dropout and flatten, inside residual blocks and, for all branches
    together, along residual streams. Units are found in the graph of the trunk (see ``channels.py``); units for which
    the symmetry cannot be proved are not changed. Every loss is kept on every input, up to rounding.

    The log-scales maximise the worst cosine by the closed form of ``scaling.py``, from one pass of task gradients for
    any number of steps. The teleport changes the metric in which gradients are compared, not the function: a better
    cosine need not give a lower loss. Weight decay breaks the symmetry of the training problem, not of the network.

    Args:
        objective: "dominated": the worst cos(g_i, g_0); "pairwise": the worst cos(g_i, g_j).
        bound: largest |log lambda|. [choice]
        stiffness: mu of the penalty mu mean(log lambda^2), which keeps units without effect at lambda = 1. [choice]
        steps: number of steps of the optimisation on the K x K tables.
        powers_of_two: round every lambda to a power of two. A product with a power of two is exact in every
            floating-point type, without overflow and underflow, so losses are kept to the last bit. It is for bfloat16,
            half and autocast, where other scales change the losses by more than the tolerance and are mostly refused.
            It needs bound >= log 2. [choice]
    """

    paper = "https://arxiv.org/abs/2503.04046"

    exact = True
    claims = frozenset(
        {
            "loss-invariant",
            "maps-tell-the-truth",
            "history-in-new-coordinates",
            "gradients-in-new-coordinates",
            "lowers-conflict",
            "zero-steps-stay",
            "helps-where-it-must",
        }
    )

    objective: str = choice("dominated", ("dominated", "pairwise"))
    bound: float = number(0.7, low=0.0, open_low=True)
    stiffness: float = number(0.01, low=0.0)
    steps: int = integer(60, low=0)
    powers_of_two: bool = flag(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.powers_of_two and self.bound < math.log(2.0):
            raise ConfigurationError(
                f"ReluRescaling(bound={self.bound!r}, powers_of_two=True): no power of two but 1 is within the bound; "
                f"use a bound of at least log 2 = 0.6931..., like the default."
            )

    def propose(self, problem: TeleportProblem, generator: torch.Generator) -> Displacement:
        """A point on the network's symmetry orbit, with its maps."""
        found = find_groups(problem.trunk)
        groups = sound(problem, found.groups, generator, whole=found.whole)
        if not groups:
            return stay(found)
        return rescale(
            problem,
            groups,
            measure=self.objective,
            bound=self.bound,
            stiffness=self.stiffness,
            steps=self.steps,
            powers_of_two=self.powers_of_two,
        )


def stay(found: Found) -> Displacement:
    """No displacement, with the reason: no group was found, or none passed :func:`sound`."""
    reason = f"no unit of the trunk can be rescaled: {found.note}"
    if found.groups:
        names = ", ".join(g.name for g in found.groups)
        reason += (
            f"; the units of {names} look free, but the losses of this batch depend on their scales, or the closure "
            f"calls their layers beside the trunk"
        )
    return Displacement({}, diagnostics={"reason": reason})


def sound(
    problem: TeleportProblem, groups: tuple[Group, ...], generator: torch.Generator, *, whole: bool = False
) -> tuple[Group, ...]:
    """The groups that keep the trigger batch's losses under random scales: a second, independent check.

    The graph search is a proof only if the trunk is called through its own ``forward``. Here it shows if a closure
    calls parts of the trunk, or if a part that was traced alone is used differently. Cost: two evaluations.

    Args:
        whole: the groups are those of the trunk's whole forward. Groups with a layer that is also called outside of it
            are then left out, also if this batch's losses do not change.
    """
    if not groups:
        return groups
    with _calls_beside(problem.trunk, groups if whole else ()) as beside:
        kept = _keeps_losses(problem, groups, generator)
    if beside:
        return sound(problem, tuple(g for g in groups if not beside & _layers(g)), generator)
    return groups if kept else tuple(g for g in groups if _keeps_losses(problem, (g,), generator))


def _layers(group: Group) -> set[str]:
    return {m.parameter.rpartition(".")[0] for m in group.members}


@contextlib.contextmanager
def _calls_beside(trunk: nn.Module, groups: tuple[Group, ...]) -> Iterator[set[str]]:
    """Names of the layers of these groups that are called, inside the context, outside of the trunk's forward."""
    beside: set[str] = set()
    running = [0]

    def watch(name: str) -> Callable[[nn.Module, object], None]:
        return lambda module, args: None if running[0] else beside.add(name)

    def enter(module: nn.Module, args: object) -> None:
        running[0] += 1

    def leave(module: nn.Module, args: object, output: object) -> None:
        running[0] -= 1

    # Hooks inside a compiled network would compile it anew; it is called as a whole, or not through what is compiled.
    names = set() if uncompiled(trunk)[1] else {n for g in groups for n in _layers(g)}
    hooks = [trunk.get_submodule(n).register_forward_pre_hook(watch(n)) for n in sorted(names)]
    if hooks:
        hooks += [trunk.register_forward_pre_hook(enter), trunk.register_forward_hook(leave, always_call=True)]
    try:
        yield beside
    finally:
        for hook in hooks:
            hook.remove()


def _keeps_losses(problem: TeleportProblem, groups: tuple[Group, ...], generator: torch.Generator) -> bool:
    parameters = dict(problem.trunk.named_parameters())
    device = next(iter(parameters.values())).device
    logs = [
        (torch.rand(g.units, generator=generator, dtype=torch.float64, device="cpu") - 0.5).to(device) for g in groups
    ]
    scales = factors(groups, logs, {n: p.shape for n, p in parameters.items()})
    before = _evaluated(problem)
    saved = {n: parameters[n].detach().clone() for n in scales}
    for n, d in scales.items():
        parameters[n].data.copy_(saved[n] * d)
    after = _evaluated(problem)
    for n, value in saved.items():
        parameters[n].data.copy_(value)
    largest = max(float(v.abs()) for v in before.values())
    eps = max(torch.finfo(v.dtype).eps for v in before.values())
    return all(
        abs(float(after[t]) - float(v)) <= eps**0.5 * 8 * max(abs(float(v)), eps * largest) for t, v in before.items()
    )


def _evaluated(problem: TeleportProblem) -> dict[str, Tensor]:
    return {t: v.detach() for t, v in problem.evaluate()[0].items()}
