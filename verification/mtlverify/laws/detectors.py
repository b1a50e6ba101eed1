"""Laws about conflict detectors."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from mtlcore import Conflict, StepView
from mtlcore.hosting import registry
from mtlverify.answer import view_of
from mtlverify.example import Example
from mtlverify.law import anything, given, law
from mtlverify.laws.compare import same
from mtlverify.laws.scaling import factor
from mtlverify.laws.symmetry import permutation
from mtlverify.laws.universal import (
    HOUSE,
    VERDICT,
    differences,
    generators_restored,
    reseed,
    side_effects,
    traces,
    unless,
    verdict,
)
from mtlverify.predicates import aligned
from mtlverify.references import conflicts
from mtlverify.strategies import ALIGNED_OR_ZERO, ALL, TIED, Draw, Strata, jacobians
from mtlverify.strategies import pick as st
from mtlverify.strategies.scales import ORDINARY


def detect(plugin: Any, example: Example, **changes: Any) -> Conflict:
    """The verdict of a detector on ``example``, with ``changes`` to it."""
    example = example.with_(**changes) if changes else example
    found: Conflict = plugin.detect(asked(plugin, example, example.jacobian))
    return found


def asked(plugin: Any, example: Example, rows: Tensor) -> StepView:
    """The view that a detector gets, in any step; without the tasks that are absent (``extra["gone"]``)."""
    view = view_of(plugin, rows, example.losses, seed=example.seed, step=example.seed)
    away = example.extra.get("gone", ())
    if not away:
        return view
    present = torch.tensor([i not in away for i in range(example.n_tasks)])
    given(bool(present.any()), "a task is there")
    return view.restricted(present)


def some_away(draw: Draw, k: int, p: int) -> dict[str, Any]:
    """Which tasks are absent; in half of the inputs none is."""
    if k == 1 or not draw(st.booleans()):
        return {}
    out, stays = draw(st.lists(st.booleans(), min_size=k, max_size=k)), draw(st.integers(0, k - 1))
    return {"gone": [i for i, gone in enumerate(out) if gone and i != stays]}


def here(example: Example) -> Example:
    """The example restricted to the tasks present."""
    away = example.extra.get("gone", ())
    keep = [i for i in range(example.n_tasks) if i not in away]
    return example.with_(jacobian=example.jacobian[keep], losses=example.losses[keep], extra={})


def partial() -> Strata:
    """Inputs in which some tasks may be absent."""
    return jacobians(more=some_away)


def named(found: Conflict) -> dict[str, Any]:
    """All fields of a detector's answer, by name."""
    return {name: getattr(found, name) for name in ("conflicting", "severity", "pairs", "dominated")}


@law("finite", kind="detector", statement="The severity is a number, never NaN.", source=HOUSE, universal=True,
     margin=VERDICT, examples=partial, within=anything)  # fmt: skip
def finite(plugin: Any, example: Example) -> float:
    """Inputs include zero rows, a single task, and Jacobians without conflict."""
    severity = detect(plugin, example).severity
    return verdict(math.isfinite(severity), f"severity is {severity}")


@law("pure", kind="detector", statement="A detector writes to nothing.", source=HOUSE, universal=True,
     margin=VERDICT, examples=partial, within=anything)  # fmt: skip
def pure(plugin: Any, example: Example) -> float:
    """It changes neither the view, nor itself, nor any global generator."""
    rows, before = example.jacobian.clone(), traces(plugin)
    plugin.detect(asked(plugin, example, rows))
    faults = side_effects(plugin, before)
    return unless(faults if same(rows, example.jacobian) else [*faults, "it writes into view.jacobian"])


@law("deterministic", kind="detector", statement="Asked again, a detector says the same.", source=HOUSE,
     universal=True, margin=VERDICT, examples=partial, within=anything)  # fmt: skip
def deterministic(plugin: Any, example: Example) -> float:
    """First a new instance is asked, then this one: after one to three other questions, under other global seeds, and
    with the rows in the memory that held the rows of those questions, because a step reuses its memory."""
    rows = -2 * example.jacobian.flip(0)
    with generators_restored():
        first = detect(dataclasses.replace(plugin), example)
        for _ in range(1 + example.seed % 3):
            detect(plugin, example, jacobian=rows)
        reseed(example.seed + 12345)
        again = detect(plugin, example, jacobian=rows.copy_(example.jacobian))
    return unless(differences(named(first), named(again)))


@law(
    "shape-dtype-device",
    kind="detector",
    statement="pairs is (K, K) bool, False on the diagonal; dominated is (K,) bool; the rest are plain numbers.",
    source=HOUSE,
    universal=True,
    margin=VERDICT,
    examples=partial,
    within=anything,
)
def shape_dtype_device(plugin: Any, example: Example) -> float:
    """Inputs include a single task, and float32."""
    found, k = detect(plugin, example), here(example).n_tasks

    faults = [
        f"{name} is a {type(value).__name__}, not a {kind.__name__}"
        for name, value, kind in (("conflicting", found.conflicting, bool), ("severity", found.severity, float))
        if not isinstance(value, kind)
    ]
    for name, mask, shape in (("pairs", found.pairs, (k, k)), ("dominated", found.dominated, (k,))):
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != shape:
            what = f"{tuple(mask.shape)} {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
            faults.append(f"{name} is {what}; expected {shape} torch.bool")
    if not faults and bool(found.pairs.diagonal().any()):
        faults.append("a task conflicts with itself in pairs")
    return unless(faults)


@law(
    "symmetric",
    kind="detector",
    statement="If task i conflicts with task j, then j conflicts with i.",
    source="the inner product is symmetric",
    universal=True,
    margin=VERDICT,
    examples=partial,
    within=anything,
)
def symmetric(plugin: Any, example: Example) -> float:
    """The symmetry is exact, not up to rounding."""
    pairs = detect(plugin, example).pairs
    i, j = next(iter((pairs & ~pairs.T).nonzero().tolist()), (0, 0))
    return verdict(i == j, f"task{i} conflicts with task{j}, but task{j} does not with task{i}")


def definition_name(plugin: Any) -> str:
    """The registered name; an unregistered class may have an attribute ``reference`` with the definition's name."""
    return getattr(plugin, "reference", None) or registry().name_of(plugin)


def has_definition(plugin: Any) -> str | None:
    """The law applies to detectors for whose name there is a definition."""
    known = conflicts.definition(definition_name(plugin), plugin) is not None
    return None if known else "no independent definition of this detector is known to the harness"


@law(
    "matches-reference",
    kind="detector",
    statement="Verdict, pairs and dominated tasks are those of the definition, wherever rounding cannot decide.",
    source="mtlverify.references.conflicts",
    margin=VERDICT,
    examples=partial,
    within=anything,
    applies=has_definition,
)
def matches_reference(plugin: Any, example: Example) -> float:
    """The definition is computed from the gradients, not from their Gramian, with exactly rounded sums."""
    definition = conflicts.definition(definition_name(plugin), plugin)
    assert definition is not None
    expected, found = definition(here(example).jacobian), detect(plugin, example)
    asked = [("conflicting", expected.conflicting, bool(found.conflicting))]
    asked += [(f"dominated[{i}]", e, bool(found.dominated[i])) for i, e in enumerate(expected.dominated)]
    for i, row in enumerate(expected.pairs):
        asked += [(f"pairs[{i}, {j}]", e, bool(found.pairs[i, j])) for j, e in enumerate(row)]
    wrong = [(name, f) for name, e, f in asked if conflicts.disagreement(e, f)]
    return unless([f"{name} is {f}, by definition {not f}" for name, f in wrong])


@law(
    "scale-free",
    kind="detector",
    statement="Multiplying all gradients by t > 0 changes neither the verdict nor the severity.",
    source="whether tasks conflict does not depend on the unit of loss",
    margin=VERDICT,
    examples=lambda: jacobians(more=factor, scalings=ORDINARY),
    within=anything,
)
def scale_free(plugin: Any, example: Example) -> float:
    """t is from 1e-12 to 1e+12 and a power of two, so the scaled data are exact."""
    t = example.extra["factor"]
    given(bool((t * example.jacobian / t == example.jacobian).all()), "the scaled gradients exist in their dtype")
    plain = detect(plugin, example)
    scaled = detect(plugin, example, jacobian=t * example.jacobian)
    return unless(_otherwise(plain, scaled))


@law(
    "permutation-equivariant",
    kind="detector",
    statement="Reordering the tasks reorders the verdict with them.",
    source="no task is special by its position",
    margin=VERDICT,
    examples=lambda: jacobians((*ALL, *TIED), more=permutation),
    within=anything,
)
def permutation_equivariant(plugin: Any, example: Example) -> float:
    """Sums over tasks are then in another order, so a quantity that is zero up to rounding may change its sign. Such
    examples decide nothing and are skipped."""
    order = torch.tensor(example.extra["permutation"])
    plain = detect(plugin, example)
    moved = detect(plugin, example, jacobian=example.jacobian[order], losses=example.losses[order])
    there = dataclasses.replace(plain, pairs=plain.pairs[order][:, order], dominated=plain.dominated[order])
    faults = _otherwise(there, moved)
    if faults:
        clear = conflicts.weak(example.jacobian)
        decided = None not in clear.dominated and not any(None in row for row in clear.pairs)
        given(decided, "no sum that decides about a conflict is zero up to rounding")
    return unless(faults)


@law(
    "silent-on-aligned",
    kind="detector",
    statement="Where no two gradients have a negative inner product, there is no conflict.",
    source="the definition of conflict",
    margin=VERDICT,
    examples=lambda: jacobians(ALIGNED_OR_ZERO),
    within=aligned,
)
def silent_on_aligned(plugin: Any, example: Example) -> float:
    """Inputs include exactly orthogonal gradients, which do not conflict."""
    found = detect(plugin, example)
    said = {"conflicting": found.conflicting, "pairs": found.pairs.any(), "dominated": found.dominated.any()}
    return unless([f"{name} {'is' if name == 'conflicting' else 'has a'} True" for name, v in said.items() if bool(v)])


def _otherwise(first: Conflict, second: Conflict) -> list[str]:
    """The differences between two verdicts that should be the same, up to rounding of the severity."""
    faults = (
        [] if _close(first.severity, second.severity) else [f"severity is {first.severity}, then {second.severity}"]
    )
    if bool(first.conflicting) != bool(second.conflicting):
        faults.append(f"conflicting is {bool(first.conflicting)}, then {bool(second.conflicting)}")
    masks = {"pairs": (first.pairs, second.pairs), "dominated": (first.dominated, second.dominated)}
    return faults + [
        f"{n} are {a.int().tolist()}, then {b.int().tolist()}" for n, (a, b) in masks.items() if not same(a, b)
    ]


def _close(a: float, b: float) -> bool:
    from mtlverify.tolerance import HALF_DIGITS

    return abs(a - b) <= HALF_DIGITS * (1.0 + abs(a) + abs(b))
