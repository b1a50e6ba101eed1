"""Laws about explorers: about form, on short searches; and about the models found, on problems with known optima."""

from __future__ import annotations

import copy
import dataclasses
import io
from typing import Any

import torch
from torch import Tensor

from mtlcore import simplex
from mtlverify import tolerance
from mtlverify.law import Margin, law, worst
from mtlverify.laws.compare import same
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
from mtlverify.memory import remembered
from mtlverify.problems import Problem
from mtlverify.strategies.tradeoffs import TradeoffExample, learnt, long_searches, placed, short_searches

HOUSE = "contract of mtlcore.Explorer"
FEW = 0.08
"""A search consists of many trainings, so two inputs of every family are tried."""
ONCE = 0.04
"""A search that may converge takes seconds, so one input of every family is tried."""

KEPT = 16
"""Searches that are remembered: as many as a law has inputs, and some more."""


def asked(n_tasks: int) -> Tensor:
    """(n, K) preferences: the corners of the simplex, the centre, and points between."""
    return simplex.grid(n_tasks, n_tasks + 3)


def searched(plugin: Any, example: TradeoffExample) -> dict[str, Tensor]:
    """The result of the search, for laws that look at nothing else: several share one."""
    found: dict[str, Tensor] = remembered(plugin, example, lambda: learnt(plugin, example), KEPT)
    return found


def readings(plugin: Any, found: dict[str, Tensor], example: TradeoffExample) -> dict[str, Tensor]:
    """All entries of the models for all preferences, by name."""
    preferences = asked(example.problem().shape[0])
    return {f"{n} for {p.tolist()}": v for p in preferences for n, v in plugin.read(found, p.clone()).items()}


@law("finite", kind="explorer", statement="What is learnt, and every model read from it, has finite numbers only.",
     source=HOUSE, universal=True, margin=VERDICT, examples=short_searches, effort=FEW,
     decode=TradeoffExample.from_json)  # fmt: skip
def finite(plugin: Any, example: TradeoffExample) -> float:
    """Preferences include the corners of the simplex."""
    found = searched(plugin, example)
    every = {**found, **readings(plugin, found, example)}
    return unless([f"{n!r} is not finite" for n, v in every.items() if not bool(torch.as_tensor(v).isfinite().all())])


@law("pure", kind="explorer", statement="A search changes only what it makes; reading writes to nothing and draws "
     "nothing.", source=HOUSE, universal=True, margin=VERDICT, examples=short_searches, effort=FEW,
     decode=TradeoffExample.from_json)  # fmt: skip
def pure(plugin: Any, example: TradeoffExample) -> float:
    """The explorer, what was learnt, the preference and the global generators are compared before and after."""
    before = traces(plugin)
    found = learnt(plugin, example)
    kept = copy.deepcopy(found)
    preference = asked(example.problem().shape[0])[-1]
    untouched = preference.clone()
    plugin.read(found, preference)
    faults = side_effects(plugin, before)
    faults += [] if same(found, kept) else ["read writes into what was learnt"]
    return unless(faults if torch.equal(preference, untouched) else [*faults, "read writes into the preference"])


@law("deterministic", kind="explorer", statement="The same work and seed give the same front bit for bit.",
     source=HOUSE, universal=True, margin=VERDICT, examples=short_searches, effort=FEW,
     decode=TradeoffExample.from_json)  # fmt: skip
def deterministic(plugin: Any, example: TradeoffExample) -> float:
    """The search is repeated after another search, and under other global seeds. The first result is that of another
    instance, from this law or an earlier one."""
    with generators_restored():
        first = searched(dataclasses.replace(plugin), example)
        learnt(plugin, dataclasses.replace(example, seed=example.seed + 1))
        reseed(example.seed + 12345)
        return unless(differences(first, learnt(plugin, example)))


@law("shape-dtype-device", kind="explorer", statement="A model that is read has entries of the user's model, in their "
     "shapes and dtypes; all tasks have one.", source=HOUSE, universal=True, margin=VERDICT, examples=short_searches,
     effort=FEW, decode=TradeoffExample.from_json)  # fmt: skip
def shape_dtype_device(plugin: Any, example: TradeoffExample) -> float:
    """Entries have no autograd graph; some may be left out."""
    found, model = searched(plugin, example), example.model().state_dict()
    if not isinstance(found, dict) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        return verdict(False, "search does not return a dict of tensors")
    faults = []
    for preference in asked(example.problem().shape[0]):
        for name, value in plugin.read(found, preference).items():
            if name not in model:
                faults.append(f"{name!r} is no entry of the model")
            elif (value.shape, value.dtype) != (model[name].shape, model[name].dtype):
                faults.append(f"{name!r} is {value.dtype} {tuple(value.shape)}, in the model {model[name].dtype}")
            elif value.requires_grad:
                faults.append(f"{name!r} still has a graph behind it (requires_grad)")
    return unless(sorted(set(faults)))


@law("reproducible-from-state", kind="explorer", statement="What was learnt, saved and loaded, gives a new instance "
     "the same models bit for bit.", source=HOUSE, universal=True, margin=VERDICT, examples=short_searches, effort=FEW,
     decode=TradeoffExample.from_json)  # fmt: skip
def reproducible_from_state(plugin: Any, example: TradeoffExample) -> float:
    """It goes through ``torch.save`` and ``torch.load(weights_only=True)``; the explorer may have no other memory."""
    found = learnt(plugin, example)
    first = readings(plugin, found, example)
    file = io.BytesIO()
    torch.save(found, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    return unless(differences(first, readings(dataclasses.replace(plugin), loaded, example)))


# --- what a search finds --------------------------------------------------------------------------------------------


def found_losses(plugin: Any, example: TradeoffExample, preferences: Tensor) -> tuple[Tensor, Tensor]:
    """(n, P) points and (n, K) losses. Each loss is in units of its task's range: 0 at the task's optimum, 1 at the
    worst of the other tasks' optima."""
    problem = example.problem()
    at = placed(plugin, searched(plugin, example), preferences, example)
    return at, in_ranges(problem, torch.stack([problem.losses(x) for x in at]))


def in_ranges(problem: Problem, losses: Tensor) -> Tensor:
    """Losses (n, K) in units of the ranges that the problem declares."""
    best = torch.tensor(problem.optimal_values, dtype=torch.float64)
    eye = torch.eye(problem.shape[0], dtype=torch.float64)
    worst_of = torch.stack([problem.losses(problem.pareto_point(e)) for e in eye]).amax(0)
    return (losses - best) / (worst_of - best)


def below(excess: Tensor, what: str) -> Margin:
    """Margin of an excess, in ranges, that must be at most the tolerance."""
    most = max(0.0, float(excess.max()))
    return Margin(tolerance.share_left(most, tolerance.TRADE_OFF), f"{what} by {most:.3g} of a task's range")


SHARE = "share of the tolerance that is left; unit: the range of a task's loss on the declared Pareto set"


@law("recovers-single-task", kind="explorer", statement="All preference for one task finds that task's optimum.",
     source="a corner of the simplex asks for nothing else", margin=SHARE, examples=long_searches, effort=ONCE,
     decode=TradeoffExample.from_json)  # fmt: skip
def recovers_single_task(plugin: Any, example: TradeoffExample) -> float:
    """It is checked for every task, on convex problems."""
    corners = torch.eye(example.problem().shape[0], dtype=torch.float64)
    _, losses = found_losses(plugin, example, corners)
    return below(losses.diagonal(), "a corner misses its task's optimum")


@law("monotone-edge", kind="explorer", statement="Along an edge of the simplex the task that gains preference does not "
     "lose.", source="the value of a minimum of sum p_i L_i is such that L_i falls as p_i rises", margin=SHARE,
     examples=long_searches, effort=ONCE, decode=TradeoffExample.from_json)  # fmt: skip
def monotone_edge(plugin: Any, example: TradeoffExample) -> float:
    """It is checked at five points on the edge between the first two tasks, for both of them."""
    n_tasks = example.problem().shape[0]
    edge = torch.zeros(5, n_tasks, dtype=torch.float64)
    edge[:, :2] = simplex.grid(2, 5)  # from the first task to the second
    _, losses = found_losses(plugin, example, edge)
    first = below(-losses[:, 0].diff(), "the first task gets worse as it gains preference")
    return worst([first, below(losses[:, 1].diff(), "the second task gets worse as it gains preference")])


@law("no-dominated-pair", kind="explorer", statement="No model of the front is dominated by another one, or by a "
     "declared optimum, beyond tolerance.", source="definition of a Pareto front", margin=SHARE,
     examples=long_searches, effort=ONCE, decode=TradeoffExample.from_json)  # fmt: skip
def no_dominated_pair(plugin: Any, example: TradeoffExample) -> float:
    """The amount of domination is the smallest improvement over the tasks by the other point."""
    problem = example.problem()
    at, losses = found_losses(plugin, example, asked(problem.shape[0]))
    optima = in_ranges(problem, torch.stack([problem.losses(problem.project(x)) for x in at]))
    others = torch.cat([losses, optima])
    excess = (losses[:, None] - others[None]).amin(2)
    return below(excess, "a model is dominated in every task")
