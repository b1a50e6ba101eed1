"""Finds the units in the graph of a network whose rescaling changes no output.

torch.fx traces the trunk; each value that flows through it is given a *space* of units, and every operation either

* produces a new space: the outputs of Linear, Conv, Embedding, and of norms with an affine part (their input is
  pinned, because a rescaling before a norm would change the effect of its epsilon);
* passes a space on: operations that are positively homogeneous, unit by unit (ReLU, LeakyReLU, PReLU, max and average
  pooling, dropout, flatten, upsampling, products with a number);
* merges spaces: a sum, for example an identity shortcut, whose terms can only be rescaled together;
* consumes a space: the inputs of Linear and Conv;
* or pins it, so that its units cannot be rescaled: every other operation, the trunk's output, values that its forward
  keeps in attributes, modules with hooks, parametrisations, frozen or tied parameters, and modules whose parameters are
  read outside of their calls.

The result is a set of groups (:class:`.scaling.Group`), valid in training and in evaluation mode. An operation that is
not known to be safe always pins its inputs. If a trunk cannot be traced as a whole, or its forward draws random
numbers, its children are searched one by one. That the trunk's forward uses a child only by calling it is then not
proved. It is checked on the trigger batch (``sound``; in the transaction also in training mode) and on the probe; this
check also finds layers that a closure calls outside of the trunk's forward. Hooks on the trunk itself are in no graph:
then nothing is searched.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import nn

from mtlplugins.teleports.symmetry.encoder_layer import feed_forward
from mtlplugins.teleports.symmetry.plainness import altered, fingerprint, shared_modules, uncompiled
from mtlplugins.teleports.symmetry.scaling import Group
from mtlplugins.teleports.symmetry.tracing import traces
from mtlplugins.teleports.symmetry.walk import Walk


@dataclass(frozen=True)
class Found:
    """Groups, a text about what was searched, and whether that was the whole forward of the trunk."""

    groups: tuple[Group, ...]
    note: str
    whole: bool = False


def find_groups(trunk: nn.Module) -> Found:
    """All groups of the trunk whose rescaling is proved to be a symmetry; a small trunk is searched again only after a
    change."""
    if sum(p.numel() for p in trunk.parameters()) > _SMALL:
        return _search(trunk)
    now = fingerprint(trunk)
    known = _SEEN.get(trunk)
    if known is None or known[0] != now:
        known = _SEEN[trunk] = (now, _search(trunk))
    return known[1]


_SMALL = 1 << 20
"""Largest number of parameters for which groups are kept. In a larger network a step takes longer than tracing, and the
indices in its groups (16 bytes for a weight of 4 bytes) would need too much memory."""


_SEEN: weakref.WeakKeyDictionary[nn.Module, tuple[Hashable, Found]] = weakref.WeakKeyDictionary()
"""Kept, because tracing a small network takes as long as a training step, and its result does not change."""


def _search(trunk: nn.Module) -> Found:
    inner, prefix = uncompiled(trunk)
    if altered(trunk, inner):
        return Found((), "hooks or an own forward of the trunk do what its graph does not show")
    shared = shared_modules(inner)
    try:
        return Found(_free(inner, prefix, shared), "whole trunk traced", whole=True)
    except Exception as error:  # tracing runs the user's forward on proxies: anything can be raised
        groups, traced = _children(inner, prefix, shared)
        note = f"trunk cannot be traced ({type(error).__name__}); {traced} of its parts were traced one by one"
        return Found(tuple(groups), note)


def _children(module: nn.Module, prefix: str, unsafe: set[nn.Module]) -> tuple[list[Group], int]:
    groups: list[Group] = []
    traced = 0
    for name, child in module.named_children():
        path = f"{prefix}{name}."
        if altered(child):
            continue
        if type(child) is nn.TransformerEncoderLayer:
            groups += feed_forward(child, path, unsafe)
            continue
        if child.__class__.__module__.startswith("torch.nn") and not isinstance(child, nn.Sequential):
            if isinstance(child, (nn.ModuleList, nn.ModuleDict, nn.TransformerEncoder)):
                inner, n = _children(child, path, unsafe)
                groups, traced = groups + inner, traced + n
            continue
        try:
            groups += _free(child, path, unsafe)
            traced += 1
        except Exception:
            inner, n = _children(child, path, unsafe)
            groups, traced = groups + inner, traced + n
    return groups, traced


def _free(module: nn.Module, prefix: str, unsafe: set[nn.Module]) -> tuple[Group, ...]:
    """The groups of one module that are symmetries in every mode."""
    first, *others = (Walk(module, prefix, unsafe, graph).groups() for graph in traces(module))
    return tuple(g for g in first if all(any(_same(g, o) for o in other) for other in others))


def _same(one: Group, other: Group) -> bool:
    if (one.name, one.units, len(one.members)) != (other.name, other.units, len(other.members)):
        return False
    return all(
        (a.parameter, a.produces) == (b.parameter, b.produces) and torch.equal(a.elements, b.elements)
        for a, b in zip(one.members, other.members)
    )
