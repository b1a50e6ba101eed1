"""Find, in the graph of a network, the units whose rescaling changes nothing.

torch.fx traces the trunk; each value that flows through it is given a *space* of units, and every operation either

* produces a new space: the outputs of Linear, Conv, Embedding, and of norms with an affine part (whose input, being
  normalised, is pinned: a rescaling in front of a norm would meet its epsilon);
* hands a space on: positively homogeneous, unit by unit (ReLU, LeakyReLU, PReLU, max and average pooling, dropout,
  flatten, upsampling, products with a number);
* merges spaces: a sum, e.g. an identity shortcut, whose terms can only be rescaled together;
* consumes a space: the inputs of Linear and Conv;
* or pins it: everything else, the trunk's output and what its forward keeps in attributes, modules with hooks,
  parametrisations, frozen or tied parameters, and modules whose parameters are read beside their calls.

What is left, in training and in evaluation mode alike, is a set of groups (:class:`.scaling.Group`). The
rule is one-sided: an operation that is not known to be safe pins what it touches. A trunk that cannot be traced as a
whole, or whose forward draws random numbers, is searched child by child; that its own forward does not reach into a
child is then no longer proved, only seen on the trigger batch (``sound``; by the transaction also in training) and on
the probe. Layers that a closure calls beside the trunk's forward are found there too. Hooks on the trunk itself are in
no graph: then nothing is searched.
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
    """Groups, in words what was searched, and whether it was the whole forward of the trunk."""

    groups: tuple[Group, ...]
    note: str
    whole: bool = False


def find_groups(trunk: nn.Module) -> Found:
    """Every group of the trunk that can be shown to be free; a small trunk is searched anew only when it changed."""
    if sum(p.numel() for p in trunk.parameters()) > _SMALL:
        return _search(trunk)
    now = fingerprint(trunk)
    known = _SEEN.get(trunk)
    if known is None or known[0] != now:
        known = _SEEN[trunk] = (now, _search(trunk))
    return known[1]


_SMALL = 1 << 20
"""Parameters up to which groups are kept. A larger network's step takes longer than its trace, and the indices in its
groups, two of eight bytes for a weight of four, would be too much to hold."""


_SEEN: weakref.WeakKeyDictionary[nn.Module, tuple[Hashable, Found]] = weakref.WeakKeyDictionary()
"""Tracing takes as long as a training step of a small network, and says the same every time."""


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
    """The groups of one module that are free in every mode."""
    first, *others = (Walk(module, prefix, unsafe, graph).groups() for graph in traces(module))
    return tuple(g for g in first if all(any(_same(g, o) for o in other) for other in others))


def _same(one: Group, other: Group) -> bool:
    if (one.name, one.units, len(one.members)) != (other.name, other.units, len(other.members)):
        return False
    return all(
        (a.parameter, a.produces) == (b.parameter, b.produces) and torch.equal(a.elements, b.elements)
        for a, b in zip(one.members, other.members)
    )
