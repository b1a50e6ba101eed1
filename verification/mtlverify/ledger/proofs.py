"""What is proved, by whom, and under which assumptions. A proof and a counterexample exclude each other: the ledger
stops if it ever has both.

Statements about the mathematics in exact arithmetic; that the code obeys them, too, is what the examples in the same
row are evidence for.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from mtlcore import Needs


@dataclasses.dataclass(frozen=True)
class Proof:
    """Where to find it, or the proof itself if it fits on a line.

    Args:
        citation: paper, or "by definition" and the reason.
        assumptions: what it needs; empty if nothing.
    """

    citation: str
    assumptions: str = ""


DESIDERI = "Desideri 2012: the minimum-norm point d of a convex hull has <g_i, d> >= |d|^2 for all i"
QUINTON = "Quinton & Rey 2024 (2406.16232)"
MEAN = "linear in the gradients with constant weights"
SYMMETRIC = "the definition names no task"
NASH = "G w = 1/w, w > 0 (Navon et al. 2022, 2202.01017), so <g_i, d> = 1/w_i > 0"
FAIR = "G w = w^(-1/alpha), w > 0 (Ban & Ji 2024, 2402.15638), so <g_i, d> > 0"
NONSTATIONARY = "the gradients admit a common descent direction; elsewhere the equation has no solution"

_CONSTANT = {
    law: Proof(MEAN)
    for law in (
        "conic-combination", "permutation-equivariant", "positively-homogeneous", "linear-under-scaling",
        "no-conflict-identity", "absent-task",
    )
}  # fmt: skip

PROOFS: dict[str, dict[str, Proof]] = {
    "ls": _CONSTANT,
    "sum": _CONSTANT,
    "mgda": {
        "non-conflicting": Proof(DESIDERI),
        "descent-lower-bound": Proof(DESIDERI),
        "pareto-stationary-zero": Proof("the hull contains 0 exactly at Pareto-stationary points"),
        "strongly-stationary-zero": Proof("strongly stationary points are Pareto-stationary"),
        "zero-only-if-stationary": Proof("the hull contains 0 exactly at Pareto-stationary points"),
        "conic-combination": Proof("the direction is in the convex hull"),
        "simplex-weights": Proof("the direction is in the convex hull"),
        "positively-homogeneous": Proof("the hull scales with the gradients"),
        "permutation-equivariant": Proof(SYMMETRIC),
        "duplicate-task": Proof("the hull of a set does not see repetitions"),
    },
    "mgda (normalize=l2)": {
        "non-conflicting": Proof(f"{DESIDERI}; here of the unit gradients"),
        "conic-combination": Proof("the direction is in the convex hull of the unit gradients"),
        "permutation-equivariant": Proof(SYMMETRIC),
        "scale-free": Proof("unit gradients do not change"),
    },
    "upgrad": {
        "non-conflicting": Proof(f"{QUINTON}: a mean of points of the dual cone, which is convex"),
        "conic-combination": Proof(f"{QUINTON}, Proposition 1: projections have weights >= those projected"),
        "linear-under-scaling": Proof(f"{QUINTON}: a projection onto a cone commutes with positive scaling"),
        "positively-homogeneous": Proof("a projection onto a cone commutes with positive scaling"),
        "permutation-equivariant": Proof(SYMMETRIC),
        "no-conflict-identity": Proof("gradients without conflict are in the dual cone already"),
    },
    "dualproj": {
        "non-conflicting": Proof("a projection onto the dual cone (Lopez-Paz & Ranzato 2017, 1706.08840, equation 11)"),
        "conic-combination": Proof(f"{QUINTON}, Proposition 1"),
        "positively-homogeneous": Proof("a projection onto a cone commutes with positive scaling"),
        "permutation-equivariant": Proof(SYMMETRIC),
        "no-conflict-identity": Proof("without conflict the mean is in the dual cone already"),
        "strongly-stationary-zero": Proof(
            "w > 0 with J'w = 0 turns J x >= 0 into J x = 0: the cone is orthogonal to every gradient"
        ),
    },
    "cagrad": {
        "no-worse-than-mean": Proof("Liu et al. 2021 (2110.14048): the mean is feasible", "rescale = 'none'"),
        "positively-homogeneous": Proof("the ball scales with the gradients"),
        "permutation-equivariant": Proof(SYMMETRIC),
        "conic-combination": Proof("Liu et al. 2021 (2110.14048): d = g_0 + c |g_0| g_w / |g_w| with w in the simplex"),
    },
    "cagrad (c=1)": {
        "non-conflicting": Proof("for c >= 1 the ball contains 0, so the maximin value is >= 0"),
    },
    "nash-mtl": {
        "non-conflicting": Proof(NASH, NONSTATIONARY),
        "conic-combination": Proof(NASH, NONSTATIONARY),
        "scale-free": Proof("D G D (D^-1 w) = 1/(D^-1 w): D^-1 w belongs to D J and J'w stays", NONSTATIONARY),
        "permutation-equivariant": Proof(SYMMETRIC),
        "positively-homogeneous": Proof("scale-free with D = t I: degree 0", NONSTATIONARY),
    },
    "fairgrad": {
        "non-conflicting": Proof(FAIR, NONSTATIONARY),
        "conic-combination": Proof(FAIR, NONSTATIONARY),
        "permutation-equivariant": Proof(SYMMETRIC),
        "positively-homogeneous": Proof("degree (1 - alpha) / (1 + alpha), by inserting t J", NONSTATIONARY),
    },
    "pcgrad": {
        "conic-combination": Proof("only positive multiples of gradients are added (Yu et al. 2020, 2001.06782)"),
        "linear-under-scaling": Proof("a projection off g_j does not see |g_j|; orders are drawn independently of J"),
        "positively-homogeneous": Proof("as linear-under-scaling"),
        "no-conflict-identity": Proof("nothing is projected (Yu et al. 2020, 2001.06782)"),
        "equivariant-in-distribution": Proof("every order of the projections is equally likely, for each task"),
    },
    "bilb4mtl": {
        "conic-combination": Proof("coefficients below zero are clipped"),
    },
    "bilb4mtl (discrepancy=all-pairs)": {
        "conic-combination": Proof("coefficients below zero are clipped"),
        "permutation-equivariant": Proof(SYMMETRIC),
    },
    "rlw": {
        "equivariant-in-distribution": Proof("the draws of the tasks are independent and identically distributed"),
        "simplex-weights": Proof("a softmax"),
        "conic-combination": Proof("a softmax is positive"),
    },
    "config": {
        "equal-projections": Proof("U x = 1 (Liu et al. 2024, 2408.11104)", "linearly independent gradients"),
        "linear-under-scaling": Proof("the direction is made of unit rows; its length is linear in the norms"),
        "positively-homogeneous": Proof("as linear-under-scaling"),
        "permutation-equivariant": Proof(SYMMETRIC),
    },
    "imtl-g": {
        "equal-projections": Proof("Liu et al. 2021 (IMTL-G), equation 3", "linearly independent gradients"),
        "permutation-equivariant": Proof(SYMMETRIC),
    },
    "aligned-mtl": {
        "positively-homogeneous": Proof("Senushkin et al. 2023 (2305.19000): sigma and the eigenvalues scale alike"),
        "permutation-equivariant": Proof(SYMMETRIC, "equal preferences"),
    },
}
"""Label of a subject -> law -> proof. A proof does not carry over to other hyper-parameters by itself."""

PROOFS["cagrad (c=1)"] |= PROOFS["cagrad"]
PROOFS["fairgrad (alpha=2)"] = PROOFS["fairgrad"]

ROTATION = Proof("the weights are a function of J J' and the losses, which (J Q)(J Q)' = J J' leaves alone")


def proof_of(kind: str, label: str, plugin: Any, law: str) -> Proof | None:
    """What is proved about this method and law, or None."""
    if kind != "aggregator":
        return None
    if law == "parameter-rotation" and plugin.needs <= Needs.GRAMIAN:
        return ROTATION
    return PROOFS.get(label, {}).get(law)
