"""Laws about all teleports."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mtlcore import Displacement
from mtlcore.teleporting import Teleporter
from mtlverify import tolerance
from mtlverify.law import Margin, law, worst
from mtlverify.laws.compare import agreement, same
from mtlverify.laws.proposals import (
    FEW,
    ask,
    asked,
    change_by,
    losses_at,
    quietly,
    teleported,
    tensors,
    trainable,
    worst_cosine,
)
from mtlverify.laws.universal import (
    VERDICT,
    differences,
    generators_restored,
    reseed,
    side_effects,
    traces,
    unless,
    verdict,
)
from mtlverify.strategies.networks import Network, NetworkExample, networks

HOUSE = "contract of mtlcore.TeleportStrategy"


@law("finite", kind="teleport", statement="A proposal consists of finite numbers.", source=HOUSE, universal=True,
     margin=VERDICT, examples=networks, effort=FEW, decode=NetworkExample.from_json)  # fmt: skip
def finite(plugin: Any, example: NetworkExample) -> float:
    """Inputs include the smallest networks."""
    found = tensors(asked(plugin, example))
    return unless([f"{name} is not finite" for name, value in found.items() if not value.isfinite().all()])


@law(
    "shape-dtype-device",
    kind="teleport",
    statement="A proposal names trainable parameters and gives each a value of its shape, dtype and device.",
    source=HOUSE,
    universal=True,
    margin=VERDICT,
    examples=networks,
    effort=FEW,
    decode=NetworkExample.from_json,
)
def shape_dtype_device(plugin: Any, example: NetworkExample) -> float:
    """The law is about the parameters of trunk and heads."""
    displacement = asked(plugin, example)
    made = example.build()
    if not isinstance(displacement, Displacement):
        return verdict(False, f"propose returns {type(displacement).__name__}, not an mtlcore.Displacement")
    faults = []
    for part, module, values in (
        ("trunk", made.trunk, displacement.parameters), ("heads", made.heads, displacement.head_parameters),
    ):  # fmt: skip
        known = {name: p for name, p in module.named_parameters() if p.requires_grad}
        for name, value in values.items():
            if name not in known:
                faults.append(f"{part}.{name} is not the name of a trainable parameter")
            elif value.requires_grad:
                faults.append(f"{part}.{name} still has a graph behind it (requires_grad)")
            elif _form(value) != _form(known[name]):
                faults.append(f"{part}.{name} is {_form(value)}; the parameter is {_form(known[name])}")
    return unless(faults)


def _form(value: Tensor) -> str:
    return f"{tuple(value.shape)} {value.dtype} on {value.device}"


@law(
    "deterministic",
    kind="teleport",
    statement="The same network, batch and seed give the same proposal bit for bit.",
    source=HOUSE,
    universal=True,
    margin=VERDICT,
    examples=networks,
    effort=FEW,
    decode=NetworkExample.from_json,
)
def deterministic(plugin: Any, example: NetworkExample) -> float:
    """The question is repeated after one about another network, and under other global seeds. The first answer is from
    this law or an earlier one."""
    first = tensors(asked(plugin, example))
    ask(plugin, dataclasses.replace(example, seed=example.seed + 1).build(), 1)
    with generators_restored():
        reseed(example.seed + 12345)
        again = tensors(ask(plugin, example.build(), example.seed))
    return unless(differences(first, again))


@law("pure", kind="teleport", statement="A strategy remembers nothing and draws from no global generator.",
     source=HOUSE, universal=True, margin=VERDICT, examples=networks, effort=FEW,
     decode=NetworkExample.from_json)  # fmt: skip
def pure(plugin: Any, example: NetworkExample) -> float:
    """The strategy may change the network while it searches; rollback-exact checks that this is undone."""
    made = example.build()
    before = traces(plugin)
    ask(plugin, made, 0)
    return unless(side_effects(plugin, before))


@law(
    "rollback-exact",
    kind="teleport",
    statement="A teleport that was searched for and not made leaves parameters, buffers, flags, hooks, predictions and "
    "the optimizer's history bit for bit as they were.",
    source="mtlcore.teleporting: a transaction",
    universal=True,
    margin=VERDICT,
    examples=networks,
    effort=FEW,
    decode=NetworkExample.from_json,
)
def rollback_exact(plugin: Any, example: NetworkExample) -> float:
    """Predictions are compared, too: they show changes that the transaction does not know of."""
    made = example.build()
    made.trunk.train()
    before = _everything(made)
    ask(plugin, made, 0)
    after = _everything(made)
    return unless([f"{what} not as before" for what in before if not same(before[what], after[what])])


def _everything(made: Network) -> dict[str, Any]:
    """Everything that a refused teleport must not change."""
    parts: dict[str, nn.Module] = {"trunk": made.trunk, "heads": made.heads}
    seen: dict[str, Any] = {}
    for where, module in parts.items():
        seen[where] = {n: v.detach().clone() for n, v in module.state_dict().items()}
        seen[f"{where} flags"] = [(p.requires_grad, p.grad is None) for p in module.parameters()]
        seen[f"{where} modes"] = [(type(m).__name__, m.training, len(m._forward_hooks)) for m in module.modules()]
    seen["history"] = copy.deepcopy(made.optimizer.state_dict())
    seen["predictions"] = quietly(made, 7)
    return seen


def has(option: str, otherwise: str) -> Callable[[Any], str | None]:
    """The law applies to strategies with this hyper-parameter; ``otherwise`` is the reason given for others."""

    def applies(plugin: Any) -> str | None:
        named = dataclasses.is_dataclass(plugin) and any(f.name == option for f in dataclasses.fields(plugin))
        return None if named else otherwise

    return applies


@law(
    "zero-steps-stay",
    kind="teleport",
    statement="A search of no steps proposes the point it started from, bit for bit.",
    source="COST: adapters start at zero; a reparametrisation starts at the identity",
    margin=VERDICT,
    examples=networks,
    effort=FEW,
    decode=NetworkExample.from_json,
    applies=has("steps", "does not search in steps"),
)
def zero_steps_stay(plugin: Any, example: NetworkExample) -> float:
    """Nothing proposed is fine, too."""
    made = example.build()
    here = {f"{room}.{n}": p.detach().clone() for room, n, p in trainable(made)}
    proposed = tensors(ask(dataclasses.replace(plugin, steps=0), made, example.seed))
    moved = [name for name, value in proposed.items() if name not in here or not torch.equal(value, here[name])]
    return unless([f"{name} moves" for name in moved])


@law(
    "gamma-zero-keeps-losses",
    kind="teleport",
    statement="With gamma = 0 nothing is to be gained, and every task's loss is kept on inputs never seen.",
    source="COST: the objective is L_t - gamma L_g, and L_t is smallest where the losses are kept",
    examples=networks,
    effort=FEW,
    decode=NetworkExample.from_json,
    applies=has("gamma", "does not weigh a gain by gamma"),
)
def gamma_zero_keeps_losses(plugin: Any, example: NetworkExample) -> float:
    """Nothing proposed is fine, too."""
    made = example.build()
    displacement = ask(dataclasses.replace(plugin, gamma=0.0), made, example.seed)
    return change_by(displacement, made)


def looks_at_conflict(plugin: Any) -> str | None:
    """The law does not apply to a baseline that ignores the conflict, unless it promises the law."""
    if plugin.improves or "lowers-conflict" in plugin.claims:
        return None
    return "a baseline that does not look at the conflict"


@law(
    "lowers-conflict",
    kind="teleport",
    statement="An accepted teleport has less conflict behind it than before it, on a batch it was not computed on, and "
    "keeps every task's loss on that batch within the tolerance.",
    source="mtlcore.teleporting: what a proposal is accepted for; measured anew, on the network as it is afterwards",
    margin="the smaller of: what is left of the tolerance; gain of the worst cosine of a task with the mean gradient",
    examples=networks,
    effort=FEW,
    decode=NetworkExample.from_json,
    applies=looks_at_conflict,
)
def lowers_conflict(plugin: Any, example: NetworkExample) -> float:
    """The conflict is measured as in a transaction without a detector, but from gradients that are computed here."""
    moved, made = teleported(plugin, example), example.build()
    losses, before = losses_at(made, range(1, 2)), worst_cosine(made, 1)
    later = losses_at(moved, range(1, 2))
    change = tolerance.largest(abs(later[k] - losses[k]) / abs(losses[k]) for k in losses)
    kept = agreement(change, Teleporter(plugin, name="asked").tolerance, "a task's loss changes")
    after = worst_cosine(moved, 1)
    worse = f"the smallest cosine of a task with the mean was {before:.4g} and is {after:.4g}"
    return worst([kept, Margin(after - before + tolerance.SOLVER, worse)])
