"""What a strategy proposed, checked: errors name the plugin and the culprit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mtlcore.contracts import Displacement, Map, TeleportStrategy
from mtlcore.errors import PluginError
from mtlcore.registry import registry
from mtlcore.teleporting.transaction import Transaction


def checked(proposal: Any, transaction: Transaction, strategy: TeleportStrategy) -> Displacement:
    """The proposal itself.

    Raises:
        PluginError: it is none, or does not fit the network.
    """
    who = f"teleport {registry().identify(strategy)}"
    if not isinstance(proposal, Displacement):
        raise PluginError(f"{who} returned {type(proposal).__name__}, not an mtlcore.Displacement.")
    _check("trunk", transaction.trunk_parameters, proposal.parameters, proposal.maps, who)
    _check("heads", transaction.head_parameters, proposal.head_parameters, proposal.head_maps, who)
    if set(proposal.head_parameters) - set(proposal.head_maps):
        raise PluginError(f"{who} displaces heads; a head may only be reparametrised (give head_maps).")
    if strategy.exact and set(proposal.parameters) - set(proposal.maps):
        raise PluginError(
            f"{who} calls itself exact but gives no map for {set(proposal.parameters) - set(proposal.maps)}."
        )
    return proposal


def _check(
    where: str, known: Mapping[str, nn.Parameter], values: Mapping[str, Tensor], maps: Mapping[str, Map], who: str
) -> None:
    for name, value in values.items():
        if name not in known:
            raise PluginError(f"{who} wants to move {name!r}, which is not a parameter of the {where}.")
        if not known[name].requires_grad:
            raise PluginError(f"{who} wants to move {name!r} of the {where}, which is frozen.")
        if not isinstance(value, Tensor):
            raise PluginError(f"{who} gives {name!r} of the {where} as a {type(value).__name__}; it must be a tensor.")
        if value.shape != known[name].shape:
            raise PluginError(
                f"{who} wants to give {name!r} of the {where} the shape {tuple(value.shape)}; it has "
                f"{tuple(known[name].shape)}."
            )
        if isinstance(map := maps.get(name), Tensor) and not _fits(map.shape, value.shape):
            raise PluginError(
                f"{who}: the map of {name!r} of the {where} has the shape {tuple(map.shape)}, which does not broadcast "
                f"to the parameter's {tuple(value.shape)}."
            )


def _fits(shape: torch.Size, parameter: torch.Size) -> bool:
    """Whether a diagonal of that shape broadcasts to the parameter."""
    return len(shape) <= len(parameter) and all(a in (1, b) for a, b in zip(shape[::-1], parameter[::-1]))
