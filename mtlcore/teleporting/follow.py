"""Averaged copies of a network (``torch.optim.swa_utils.AveragedModel``, an EMA) across a teleport.

An exact teleport writes the same function down in other coordinates, theta' = D theta. The mean of points before it and
points after it is a point of neither: its losses can be anything. But the mean of the *path* in the new coordinates is
D times the mean in the old ones, so the copy is carried by the same map. A jump without a map (``lora``) is a
place of its own: no map moves the mean, and the average has to start again.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mtlcore import trajectory
from mtlcore.contracts import Displacement, Map
from mtlcore.errors import ConfigurationError


class Follower:
    """One averaged copy, and which of its parameters stands for which of the network.

    Args:
        averaged: the copy: an ``AveragedModel``, or any module whose parameters are linear means of the network's.
        trunk: the shared network, as it trains.
        heads: the task-specific networks, if known.
        of: the module that ``averaged`` is a copy of. Default: found by the names and shapes of the parameters, the
            trunk as a whole and the heads as a whole, wherever they are in the copy.

    Raises:
        ConfigurationError: not a module; the network itself, not a copy; or it is unknown which part is the trunk's.
    """

    def __init__(
        self, averaged: nn.Module, trunk: nn.Module, heads: nn.Module | None = None, of: nn.Module | None = None
    ) -> None:
        if not isinstance(averaged, nn.Module):
            raise ConfigurationError(
                f"follow: averaged_model must be an nn.Module, found a {type(averaged).__name__}: hand over the "
                f"torch.optim.swa_utils.AveragedModel, or the module that holds the averaged parameters."
            )
        inner = averaged.module if isinstance(averaged, torch.optim.swa_utils.AveragedModel) else averaged
        live = {id(p) for part in (trunk, heads) if part is not None for p in part.parameters()}
        if any(id(p) in live for p in inner.parameters()):
            raise ConfigurationError(
                "follow: averaged_model holds parameters of the network itself, which a teleport moves anyway: hand "
                "over the averaged copy."
            )
        counterparts = _by_identity(inner, of) if of is not None else None
        self._trunk = _matched(trunk, inner, counterparts)
        self._heads = {} if heads is None else _matched(heads, inner, counterparts)
        if not self._trunk:
            raise ConfigurationError(
                "follow: no part of averaged_model has exactly the trunk's parameters by name and shape, or several "
                "have: say which module it is a copy of, follow(averaged_model, of=model)."
            )
        known = {id(p) for p in (*self._trunk.values(), *self._heads.values())}
        self._strangers = [n for n, p in inner.named_parameters() if id(p) not in known]

    def parameters(self) -> list[Tensor]:
        """What :meth:`carry` may write to."""
        return [*self._trunk.values(), *self._heads.values()]

    @torch.no_grad()
    def carry(self, proposal: Displacement) -> dict[str, Any]:
        """Take the copy along, in place, all of it or nothing; says in the result, and in a warning, what it cannot
        carry."""
        jumped = sorted(set(proposal.parameters) - set(proposal.maps))
        unknown = [] if not self._strangers else sorted(set(proposal.head_parameters) - set(self._heads))
        if jumped or unknown:
            return self._left_behind(jumped, unknown)
        self._map(self._trunk, proposal.maps, proposal.parameters)
        self._map(self._heads, proposal.head_maps, proposal.head_parameters)
        return {"averaged_copy": "carried"}

    @staticmethod
    def _map(copies: Mapping[str, Tensor], maps: Mapping[str, Map], moved: Mapping[str, Tensor]) -> None:
        for name in moved:
            if name in copies:
                copy = copies[name]
                copy.copy_(trajectory.pulled(copy, _there(maps[name], copy), -1))

    def _left_behind(self, jumped: list[str], unknown: list[str]) -> dict[str, Any]:
        why = (
            f"the teleport is not a reparametrisation of {', '.join(jumped)}"
            if jumped
            else f"which of its parameters ({', '.join(self._strangers)}) stand for {', '.join(unknown)} of the heads "
            f"is unknown (say it with follow(averaged_model, of=model))"
        )
        warnings.warn(
            f"the averaged copy does not follow the teleport: {why}. From now on it would average two different "
            f"points, so start the average again (averaged_model.n_averaged.zero_()).",
            UserWarning,
            stacklevel=2,
        )
        return {"averaged_copy": f"not carried: {why}"}


def _matched(part: nn.Module, copy: nn.Module, counterparts: Mapping[int, Tensor] | None) -> dict[str, Tensor]:
    """Parameter of the copy by its name in ``part``; empty if that cannot be told."""
    wanted = dict(part.named_parameters())
    if counterparts is not None:
        found = {n: counterparts[id(p)] for n, p in wanted.items() if id(p) in counterparts}
        return found if len(found) == len(wanted) else {}
    outline = _outline(part)
    homes = [m for m in copy.modules() if _outline(m) == outline]
    if len(homes) != 1:
        return {}
    there = {_plain(n): p for n, p in homes[0].named_parameters()}
    return {n: there[_plain(n)] for n in wanted}


def _by_identity(copy: nn.Module, of: nn.Module) -> dict[int, Tensor]:
    """The copy's parameters by the identity of those that they are copies of."""
    if _outline(copy) != _outline(of):
        raise ConfigurationError(
            "follow: averaged_model is not a copy of the module handed over as of=...: their parameters differ in name "
            "or shape."
        )
    there = {_plain(n): p for n, p in copy.named_parameters()}
    return {id(p): there[_plain(n)] for n, p in of.named_parameters()}


def _outline(module: nn.Module) -> dict[str, torch.Size]:
    return {_plain(n): p.shape for n, p in module.named_parameters()}


def _plain(name: str) -> str:
    """Without the layer that torch.compile puts in."""
    return name.replace("_orig_mod.", "")


def _there(map: Map, copy: Tensor) -> Map:
    """On the device of the copy, which may be kept on the processor."""
    if isinstance(map, Tensor):
        return map.to(copy.device)
    return type(map)(map.matrix.to(copy.device), map.dim)
