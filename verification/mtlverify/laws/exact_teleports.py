"""Laws about exact teleports: symmetries of the network, whose maps carry the optimizer's history."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from mtlcore.contracts import Map
from mtlverify import tolerance
from mtlverify.law import Margin, given, law, worst
from mtlverify.laws.compare import agreement
from mtlverify.laws.proposals import (
    FEW,
    MOVES,
    apply,
    asked,
    change_by,
    gradients,
    mapped,
    moves,
    teleported,
    trainable,
)
from mtlverify.laws.universal import verdict
from mtlverify.strategies.networks import Network, NetworkExample, networks


@law(
    "loss-invariant",
    kind="teleport",
    statement="An exact teleport keeps every task's loss on inputs it has never seen, in evaluation and in training.",
    source="a symmetry of the network is one on every input and in every mode: training goes on in training mode",
    examples=networks,
    effort=FEW,
    decode=NetworkExample.from_json,
    applies=lambda plugin: None if plugin.exact else "calls itself approximate: the transaction checks it on a probe",
)
def loss_invariant(plugin: Any, example: NetworkExample) -> float:
    """Changes are relative to the losses. The tolerance is half of the digits, because rescaling changes the rounding
    errors in the whole network."""
    displacement = asked(plugin, example)
    given(moves(displacement), MOVES)
    return change_by(displacement, example.build(), training=True)


@law(
    "maps-tell-the-truth",
    kind="teleport",
    statement="Where a proposal comes with a map, the new value is the map applied to the old one.",
    source="the optimizer's history is transported by the maps: a wrong one would corrupt it silently",
    examples=networks,
    effort=FEW,
    decode=NetworkExample.from_json,
    applies=lambda plugin: None if plugin.exact else "calls itself approximate, and needs no maps",
)
def maps_tell_the_truth(plugin: Any, example: NetworkExample) -> float:
    """There are two kinds of map: a factor for each entry, and a matrix along one dimension."""
    displacement = asked(plugin, example)
    given(moves(displacement), MOVES)
    made, margins = example.build(), [Margin(1.0)]
    for module, values, maps in (
        (made.trunk, displacement.parameters, displacement.maps),
        (made.heads, displacement.head_parameters, displacement.head_maps),
    ):
        for name, old in module.named_parameters():
            found = maps.get(name)
            if name in values and found is not None:
                size = float(values[name].abs().max().clamp_min(1e-300))
                error = float((mapped(found, old.detach()) - values[name]).abs().max()) / size
                margins.append(agreement(error, tolerance.HALF_DIGITS, f"the map of {name} does not lead to its value"))
    return worst(margins)


@law(
    "history-in-new-coordinates",
    kind="teleport",
    statement="After an exact teleport theta' = D theta Adam's moments are those of the same path expressed in the new "
    "coordinates: m' = m / D, v' = v / D^2 (theta' = M theta: m' = M^-T m).",
    source="the chain rule: g' = g / D at every point of the path, and both moments are averages of g' and g'^2. (Not "
    "those of a run of Adam in the new coordinates: Adam takes other steps there)",
    examples=networks,
    effort=FEW,
    decode=NetworkExample.from_json,
    applies=lambda plugin: None if plugin.exact else "calls itself approximate: its history is reused, not transported",
)
def history_in_new_coordinates(plugin: Any, example: NetworkExample) -> float:
    """The teleport goes through the core's transaction. The second moment is not checked for a dense matrix, for which
    there is no exact rule."""
    displacement = asked(plugin, example)
    given(moves(displacement), MOVES)
    maps = {"trunk": displacement.maps, "heads": displacement.head_maps}
    moved, made, margins = teleported(plugin, example), example.build(), [Margin(1.0)]
    before = {(room, n): (p.detach(), _moments(made, p)) for room, n, p in trainable(made)}
    for room, name, parameter in trainable(moved):
        old, (first, second) = before[room, name]
        map_, (now, square) = maps[room].get(name), _moments(moved, parameter)
        if map_ is None:
            if not torch.equal(old, parameter):
                return verdict(False, f"{room}.{name} moved, and no map says how its history follows")
            map_ = torch.ones_like(old)
        if isinstance(map_, Tensor):
            # D is computed from the parameter, not taken from the map.
            scale = torch.where(old == 0, map_.expand_as(old), parameter.detach() / old)
            back = [(now * scale, first), (square * scale**2, second)]
        else:
            back = [(mapped(dataclasses.replace(map_, matrix=map_.matrix.T), now), first)]
        error = tolerance.largest(float((b - a).abs().max() / a.abs().max().clamp_min(1e-300)) for b, a in back)
        margins.append(agreement(error, tolerance.HALF_DIGITS, f"a moment of {room}.{name} is another one"))
    return worst(margins)


def _moments(made: Network, parameter: nn.Parameter) -> tuple[Tensor, Tensor]:
    state = made.optimizer.state[parameter]
    return state["exp_avg"].clone(), state["exp_avg_sq"].clone()


@law(
    "gradients-in-new-coordinates",
    kind="teleport",
    statement="After an exact teleport theta' = M theta the task Gramian on an unseen batch is that of the old "
    "gradients in the new coordinates, g' = M^-T g: the closed form that spares a search all further passes.",
    source="the chain rule, for a symmetry that holds around theta and not only at it",
    examples=networks,
    effort=FEW,
    decode=NetworkExample.from_json,
    applies=lambda plugin: (
        None if plugin.exact else "calls itself approximate: no closed form ties old to new gradients"
    ),
)
def gradients_in_new_coordinates(plugin: Any, example: NetworkExample) -> float:
    """Errors are relative to the product of the norms of the gradients of all parameters of trunk and heads."""
    displacement = asked(plugin, example)
    given(moves(displacement), MOVES)
    made, maps = example.build(), {"trunk": displacement.maps, "heads": displacement.head_maps}
    expected = _gramian([[_pulled(maps[r].get(n), g) for r, n, g in row] for row in gradients(made, 60)])
    apply(displacement, made)
    found = _gramian([[g for _, _, g in row] for row in gradients(made, 60)])
    norms = expected.diagonal().sqrt().clamp_min(1e-300)
    error = float(((found - expected) / (norms[:, None] * norms[None, :])).abs().max())
    return agreement(error, tolerance.HALF_DIGITS, "the Gramian is not that of the old gradients in new coordinates")


def _gramian(rows: list[list[Tensor]]) -> Tensor:
    jacobian = torch.stack([torch.cat([g.flatten().to(torch.float64) for g in row]) for row in rows])
    return jacobian @ jacobian.T


def _pulled(found: Map | None, gradient: Tensor) -> Tensor:
    """M^-T g."""
    if found is None:
        return gradient
    if isinstance(found, Tensor):
        return gradient / found
    return mapped(dataclasses.replace(found, matrix=torch.linalg.inv(found.matrix).T), gradient)
