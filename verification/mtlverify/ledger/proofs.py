"""What is proved, by whom, and under which assumptions. A proof and a counterexample exclude each other: the ledger
stops if it ever has both.

Statements about the mathematics in exact arithmetic; that the code obeys them, too, is what the examples in the same
row are evidence for.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from mtlcore import Needs
from mtlverify.law import anything
from mtlverify.laws.conflict import weights_add_up
from mtlverify.predicates import Precondition, independent, not_stationary


@dataclasses.dataclass(frozen=True)
class Proof:
    """Where to find it, or the proof itself if it fits on a line.

    Args:
        citation: paper, or "by definition" and the reason.
        assumptions: what it needs, in words; empty if nothing.
        holds: the assumptions as a predicate of the Jacobian. A counterexample on which it is True contradicts the
            proof, and stops the ledger; one on which it is False shows that the assumption is needed.
        read_by: "person", or "machine" where a test derives the statement for few tasks (tests/verify/test_exact.py).
    """

    citation: str
    assumptions: str = ""
    holds: Precondition = anything
    read_by: str = "person"

    def contradicted_by(self, counterexample: dict[str, Any]) -> bool:
        """Whether a stored counterexample meets the assumptions."""
        example = counterexample["example"]
        if "jacobian" not in example:
            return True
        rows = torch.tensor(example["jacobian"], dtype=torch.float64).reshape(example["shape"])
        return self.holds(rows)


DESIDERI = "Desideri 2012: the minimum-norm point d of a convex hull has <g_i, d> >= |d|^2 for all i"
QUINTON = "Quinton & Rey 2024 (2406.16232)"
MEAN = "linear in the gradients with equal, non-negative weights"
SYMMETRIC = "the definition names no task"
NASH = "G w = 1/w, w > 0 (Navon et al. 2022, 2202.01017), so <g_i, d> = 1/w_i > 0"
FAIR = "G w = w^(-1/alpha), w > 0 (Ban & Ji 2024, 2402.15638), so <g_i, d> > 0"
ORTHOGONAL = "w > 0 with J'w = 0 turns J x >= 0 into J x = 0: the dual cone is orthogonal to every gradient"
GRADOPS = "docs/explanation/gradops.md"
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
        "per-task-descent": Proof(f"{DESIDERI}, twice what is asked"),
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
        "strongly-stationary-zero": Proof(ORTHOGONAL),
        "zero-only-if-stationary": Proof(
            "d = 0 and <P g_j, g_j> = |P g_j|^2 make every P g_j zero: -g_j is in the cone of the gradients for all j"
        ),
    },
    "dualproj": {
        "non-conflicting": Proof("a projection onto the dual cone (Lopez-Paz & Ranzato 2017, 1706.08840, equation 11)"),
        "conic-combination": Proof(f"{QUINTON}, Proposition 1"),
        "positively-homogeneous": Proof("a projection onto a cone commutes with positive scaling"),
        "permutation-equivariant": Proof(SYMMETRIC),
        "no-conflict-identity": Proof("without conflict the mean is in the dual cone already"),
        "strongly-stationary-zero": Proof(ORTHOGONAL),
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
        "non-conflicting": Proof(NASH, NONSTATIONARY, not_stationary),
        "conic-combination": Proof(NASH, NONSTATIONARY, not_stationary),
        "scale-free": Proof(
            "D G D (D^-1 w) = 1/(D^-1 w): D^-1 w belongs to D J and J'w stays", NONSTATIONARY, not_stationary
        ),
        "permutation-equivariant": Proof(SYMMETRIC),
        "positively-homogeneous": Proof("scale-free with D = t I: degree 0", NONSTATIONARY, not_stationary),
    },
    "fairgrad": {
        "non-conflicting": Proof(FAIR, NONSTATIONARY, not_stationary),
        "conic-combination": Proof(FAIR, NONSTATIONARY, not_stationary),
        "permutation-equivariant": Proof(SYMMETRIC),
        "positively-homogeneous": Proof(
            "degree (1 - alpha) / (1 + alpha), by inserting t J", NONSTATIONARY, not_stationary
        ),
        "scale-free": Proof("alpha = 1 is Nash-MTL: D^-1 w belongs to D J", NONSTATIONARY, not_stationary),
    },
    "gradops": {
        "non-conflicting": Proof(f"{GRADOPS}: <g_i', g_j> = 0 or >= 0 for all pairs, and so for non-negative sums"),
        "strongly-stationary-zero": Proof(
            f"{GRADOPS}: w > 0 makes every row dependent on the others and in conflict: every g_i' is zero; then "
            f"the fallback: {ORTHOGONAL}"
        ),
        "zero-only-if-stationary": Proof(
            f"{GRADOPS}: <d, g_j> >= w_j |g_j'|^2 makes every g_j' zero; then the fallback's projections, as for UPGrad"
        ),
        "linear-under-scaling": Proof("a projection off a span does not see lengths; conflict is a sign"),
        "positively-homogeneous": Proof("as linear-under-scaling"),
        "permutation-equivariant": Proof(SYMMETRIC),
        "no-conflict-identity": Proof("nothing is projected"),
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
        "equal-projections": Proof(
            "U x = 1 (Liu et al. 2024, 2408.11104)", "linearly independent gradients", independent
        ),
        "linear-under-scaling": Proof("the direction is made of unit rows; its length is linear in the norms"),
        "positively-homogeneous": Proof("as linear-under-scaling"),
        "permutation-equivariant": Proof(SYMMETRIC),
    },
    "imtl-g": {
        "equal-projections": Proof(
            "Liu et al. 2021 (IMTL-G), equation 3: w = t G^-1 |g|, t fixed by sum w = 1",
            "linearly independent gradients, and sum(G^-1 |g|) != 0 (else no multiple of the weights sums to 1)",
            weights_add_up,
        ),
        "permutation-equivariant": Proof(SYMMETRIC),
    },
    "aligned-mtl": {
        "positively-homogeneous": Proof("Senushkin et al. 2023 (2305.19000): sigma and the eigenvalues scale alike"),
        "permutation-equivariant": Proof(SYMMETRIC, "equal preferences"),
    },
}
"""Label of a subject -> law -> proof. A proof does not carry over to other hyper-parameters by itself."""

for _label in ("ls", "sum"):
    PROOFS[_label] = PROOFS[_label] | {"unbiased-in-batches": Proof(MEAN), "continuous": Proof(MEAN)}
for _label, _why in (("nash-mtl", NASH), ("fairgrad", FAIR)):
    PROOFS[_label] = PROOFS[_label] | {"alpha-fair": Proof(_why, NONSTATIONARY, not_stationary)}
PROOFS["cagrad (c=1)"] |= PROOFS["cagrad"]
PROOFS["fairgrad (alpha=2)"] = {law: proof for law, proof in PROOFS["fairgrad"].items() if law != "scale-free"}
PROOFS["gradops (project=always)"] = {
    law: proof for law, proof in PROOFS["gradops"].items() if law != "no-conflict-identity"
}
for _label in ("nash-mtl", "fairgrad", "fairgrad (alpha=2)"):
    PROOFS[_label] = PROOFS[_label] | {"permutation-equivariant": Proof(SYMMETRIC, NONSTATIONARY, not_stationary)}
for _label, _law in (
    ("mgda", "descent-lower-bound"), ("mgda", "non-conflicting"), ("dualproj", "non-conflicting"),
    ("upgrad", "non-conflicting"), ("pcgrad", "conic-combination"), ("gradops", "non-conflicting"),
    ("nash-mtl", "non-conflicting"),
):  # fmt: skip
    PROOFS[_label] = PROOFS[_label] | {_law: dataclasses.replace(PROOFS[_label][_law], read_by="machine")}

READ_INSIDE = frozenset({"bilb4mtl-double-loop"})
"""Methods that take gradient steps of their own through ``view.inner``: their weights are no function of G alone."""
ROTATION = Proof("the weights are a function of J J' and the losses, which (J Q)(J Q)' = J J' leaves alone")


def proof_of(kind: str, label: str, plugin: Any, law: str) -> Proof | None:
    """What is proved about this method and law, or None."""
    if kind != "aggregator":
        return None
    inside = label.partition(" (")[0] in READ_INSIDE or getattr(plugin, "batches", 1) > 1
    if law == "parameter-rotation" and plugin.needs <= Needs.GRAMIAN and not inside:
        return ROTATION
    return PROOFS.get(label, {}).get(law)
