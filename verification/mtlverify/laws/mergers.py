"""Laws about mergers. All are about merged task vectors; the core adds the base."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor

from mtlcore.contracts import Entries, Objective
from mtlverify import tolerance
from mtlverify.law import Margin, law, worst
from mtlverify.laws.compare import agreement, same
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
from mtlverify.strategies.experts import ExpertsExample, experts

HOUSE = "contract of mtlcore.Merger"
FEW = 0.25
"""A merger may run an optimisation, so a quarter of the usual inputs are tried."""

REPEATED = 0.1
"""Of a law that asks the same question again, fewer are tried: whether an answer is repeated depends little on the
question."""

KEPT = 32
"""Answers that are remembered: as many as a law has inputs, and some more."""

Vectors = list[dict[str, Tensor]]


def ask(plugin: Any, base: dict[str, Tensor], vectors: Vectors, seed: int) -> dict[str, Tensor]:
    """The merged task vector, with zeros for entries that were left out."""
    return _filled(answer(plugin, base, vectors, seed), base)


def asked(plugin: Any, example: ExpertsExample) -> dict[str, Tensor]:
    """The same about an example as it is: several laws look at this answer, so the merger is asked once."""
    return _filled(asked_once(plugin, example), example.build()[0])


def asked_once(plugin: Any, example: ExpertsExample) -> Any:
    """The answer of the merger about an example; a copy of it, if it is known."""
    return remembered(plugin, example, lambda: answer(plugin, *example.build(), example.seed), KEPT)


def _filled(found: dict[str, Tensor], base: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: found.get(n, torch.zeros_like(v)) for n, v in base.items()}


def answer(plugin: Any, base: dict[str, Tensor], vectors: Vectors, seed: int) -> Any:
    """The answer of the merger. A merger that uses data gets the objective :func:`wish`."""
    generator = torch.Generator().manual_seed(seed)
    if plugin.reads_data:
        return plugin.adapt(base, vectors, generator, wish(base, vectors))
    return plugin.merge(base, vectors, generator)


def wish(base: dict[str, Tensor], vectors: Vectors) -> Objective:
    """A convex objective that treats all experts alike: the mean squared distance to the mean expert, entry by entry,
    relative to the size of the task vectors. All entries in one vector, because a merger asks hundreds of times."""
    target = torch.cat([(base[n] + torch.stack([v[n] for v in vectors]).mean(0)).flatten() for n in base])
    scale = {n: max(float(torch.stack([v[n] for v in vectors]).square().mean()), 1e-300) for n in base}
    share = torch.cat([v.new_full((v.numel(),), 1.0 / v.numel() / scale[n]) for n, v in base.items()])

    def objective(entries: Entries, step: int) -> Tensor:
        return torch.dot((torch.cat([entries[n].flatten() for n in base]) - target).square(), share)

    return objective


def close(found: dict[str, Tensor], expected: dict[str, Tensor], scale: dict[str, float], what: str) -> Margin:
    """Margin of equality to half of the digits, entry by entry, relative to ``scale``."""
    return worst(
        agreement(
            float((found[n] - expected[n]).abs().max()) / max(scale[n], 1e-300), tolerance.HALF_DIGITS, f"{what}: {n!r}"
        )
        for n in expected
    )


def sizes(*many: dict[str, Tensor]) -> dict[str, float]:
    """The largest absolute value in each entry."""
    return {n: max(float(v[n].abs().max()) for v in many) for n in many[0]}


@law("finite", kind="merger", statement="Finite task vectors give finite numbers.", source=HOUSE, universal=True,
     margin=VERDICT, examples=experts, effort=FEW, decode=ExpertsExample.from_json)  # fmt: skip
def finite(plugin: Any, example: ExpertsExample) -> float:
    """Inputs include experts that are equal to the base."""
    found = asked(plugin, example)
    return unless([f"{n!r} is not finite" for n, v in found.items() if not bool(v.isfinite().all())])


@law("pure", kind="merger", statement="A merger writes to nothing: its inputs stay bit for bit as they were.",
     source=HOUSE, universal=True, margin=VERDICT, examples=experts, effort=REPEATED,
     decode=ExpertsExample.from_json)  # fmt: skip
def pure(plugin: Any, example: ExpertsExample) -> float:
    """Base, task vectors, the merger and the global generators are compared before and after."""
    base, vectors = example.build()
    kept, before = copy.deepcopy((base, vectors)), traces(plugin)
    ask(plugin, base, vectors, example.seed)
    faults = side_effects(plugin, before)
    faults += [] if same(base, kept[0]) else ["it writes into the base"]
    return unless(faults if same(vectors, kept[1]) else [*faults, "it writes into a task vector"])


@law("deterministic", kind="merger", statement="The same experts and seed give the same answer bit for bit.",
     source=HOUSE, universal=True, margin=VERDICT, examples=experts, effort=REPEATED,
     decode=ExpertsExample.from_json)  # fmt: skip
def deterministic(plugin: Any, example: ExpertsExample) -> float:
    """The question is repeated after one about other experts, and under other global seeds. The first answer is that of
    another instance, from this law or an earlier one."""
    with generators_restored():
        first = asked(dataclasses.replace(plugin), example)
        ask(plugin, *dataclasses.replace(example, seed=example.seed + 1).build(), 1)
        reseed(example.seed + 12345)
        return unless(differences(first, ask(plugin, *example.build(), example.seed)))


@law("shape-dtype-device", kind="merger", statement="The answer is a dict of float64 tensors of the entries' shapes.",
     source=HOUSE, universal=True, margin=VERDICT, examples=experts, effort=FEW,
     decode=ExpertsExample.from_json)  # fmt: skip
def shape_dtype_device(plugin: Any, example: ExpertsExample) -> float:
    """Entries have no autograd graph; some may be left out."""
    base, _ = example.build()
    found = asked_once(plugin, example)
    if not isinstance(found, dict):
        return verdict(False, f"merge returns {type(found).__name__}, not a dict")
    faults = [f"{n!r} is not an entry of the base" for n in found if n not in base]
    for name in found.keys() & base.keys():
        value = found[name]
        if not isinstance(value, Tensor) or (value.shape, value.dtype) != (base[name].shape, torch.float64):
            faults.append(f"{name!r} is no float64 tensor of shape {tuple(base[name].shape)}")
        elif value.requires_grad:
            faults.append(f"{name!r} still has a graph behind it (requires_grad)")
    return unless(faults)


@law("zero-vectors", kind="merger", statement="Experts that have not moved return the base exactly.",
     source="there is nothing to merge", universal=True, margin=VERDICT, examples=experts, effort=FEW,
     decode=ExpertsExample.from_json)  # fmt: skip
def zero_vectors(plugin: Any, example: ExpertsExample) -> float:
    """The equality is exact, not up to rounding."""
    base, vectors = example.build()
    still = [{n: torch.zeros_like(v) for n, v in vector.items()} for vector in vectors]
    found = ask(plugin, base, still, example.seed)
    return unless([f"{n!r} moves" for n, v in found.items() if bool((v != 0).any())])


@law("one-expert", kind="merger", statement="One expert comes back.", source="it is the only compromise with itself",
     examples=experts, effort=FEW, decode=ExpertsExample.from_json)  # fmt: skip
def one_expert(plugin: Any, example: ExpertsExample) -> float:
    """The equality is to half of the digits."""
    base, vectors = example.build()
    last = vectors[-1]
    return close(ask(plugin, base, [last], example.seed), last, sizes(last), "the only expert does not come back")


@law("identical-experts", kind="merger", statement="Equal experts come back.", source="they agree on everything",
     examples=experts, effort=FEW, decode=ExpertsExample.from_json)  # fmt: skip
def identical_experts(plugin: Any, example: ExpertsExample) -> float:
    """There are two or more experts."""
    base, vectors = example.build()
    last = vectors[-1]
    copies = [last] * (1 + len(vectors))
    return close(ask(plugin, base, copies, example.seed), last, sizes(last), "equal experts do not come back")


@law("order-free", kind="merger", statement="The order of the experts does not matter.",
     source="no task is special by its position", examples=experts, effort=FEW,
     decode=ExpertsExample.from_json)  # fmt: skip
def order_free(plugin: Any, example: ExpertsExample) -> float:
    """The order is reversed; the equality is to half of the digits of the largest task vector."""
    base, vectors = example.build()
    plain, turned = asked(plugin, example), ask(plugin, base, vectors[::-1], example.seed)
    return close(turned, plain, sizes(*vectors, plain), "another order gives another model")


def adapts(plugin: Any) -> str | None:
    """The law applies to mergers that use data."""
    return None if plugin.reads_data else "does not look at data"


@law("lowers-objective", kind="merger", statement="What a merger adapts to is no worse at its answer than at the base, "
     "and than at its answer without a step.", source="it is what the steps are for", margin=VERDICT, examples=experts,
     effort=FEW, decode=ExpertsExample.from_json, applies=adapts)  # fmt: skip
def lowers_objective(plugin: Any, example: ExpertsExample) -> float:
    """The objective is convex, and its minimum is the mean expert."""
    base, vectors = example.build()
    objective = wish(base, vectors)

    def value(found: dict[str, Tensor]) -> float:
        return float(objective({n: base[n] + found[n] for n in base}, 0))

    still = {n: torch.zeros_like(v) for n, v in base.items()}
    at = value(asked(plugin, example))
    before = min(value(still), value(ask(dataclasses.replace(plugin, steps=0), base, vectors, example.seed)))
    return verdict(at <= before * (1.0 + tolerance.HALF_DIGITS), f"the objective is {at:.6g}, and was {before:.6g}")


def searches(plugin: Any) -> str | None:
    """The law applies to mergers that start at scaled task vectors and declare the scale."""
    wanted = {"steps", "keep", "eta", "coefficients", "rest"}
    has = {f.name for f in dataclasses.fields(plugin)} if dataclasses.is_dataclass(plugin) else set()
    return None if wanted <= has else "does not search from scaled task vectors"


@law(
    "zero-steps-task-arithmetic",
    kind="merger",
    statement="Without steps and without trimming the answer is sum_t eta tau_t / |tau_t|, entry by entry.",
    source="Delta = 0 in the objective of adaptive projective gradient descent",
    examples=experts,
    effort=FEW,
    decode=ExpertsExample.from_json,
    applies=searches,
)
def zero_steps_task_arithmetic(plugin: Any, example: ExpertsExample) -> float:
    """A task vector that is zero in an entry contributes nothing to it."""
    base, vectors = example.build()
    start = dataclasses.replace(plugin, steps=0, keep=1.0, coefficients="adaptive", rest="merge")
    expected = {}
    for name, value in base.items():
        total = torch.zeros_like(value)
        for vector in vectors:
            length = float(vector[name].square().sum().sqrt())
            total = total + (plugin.eta / length * vector[name] if length else 0.0)
        expected[name] = total
    scale = dict.fromkeys(base, plugin.eta)
    return close(ask(start, base, vectors, example.seed), expected, scale, "not task arithmetic")
