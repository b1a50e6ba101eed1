"""Negative statements that must stay true: what a method does *not* do, each with a stored counterexample.

They are as much part of a method's description as what it promises. A test replays each of them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from mtlverify.answer import ask
from mtlverify.example import Example
from mtlverify.ledger.planar import cosines
from mtlverify.ledger.subjects import Subject


@dataclasses.dataclass(frozen=True)
class Negative:
    """One statement.

    Args:
        subject: whose.
        law: what it does not obey.
        sentence: in words.
        why: the reason, in a line.
        all_harmed: the counterexample must harm every task, not only one.
        start: a Jacobian known to do so, from which smaller ones are sought.
    """

    subject: Subject
    law: str
    sentence: str
    why: str
    all_harmed: bool = False
    start: tuple[tuple[float, ...], ...] = ()


def harms_everybody(plugin: Any, example: Example) -> float:
    """Margin of "some task is not harmed": the largest cosine with a gradient."""
    found = cosines(ask(plugin, example))
    return 0.0 if found is None else float(found.max())


def negative_about(subject: Subject, law: str) -> Negative | None:
    """The statement about this method and law, if there is one."""
    return next((n for n in NEGATIVES if (n.subject, n.law) == (subject, law)), None)


def _not(name: str, law: str, sentence: str, why: str, options: tuple[Any, ...] = (), **more: Any) -> Negative:
    return Negative(Subject("aggregator", name, options), law, sentence, why, **more)


NEGATIVES: tuple[Negative, ...] = (
    _not("ls", "non-conflicting", "The mean gradient can harm a task.", "a longer gradient outvotes a shorter one"),
    _not("sum", "non-conflicting", "The sum of the gradients can harm a task.", "as the mean"),
    _not(
        "pcgrad", "non-conflicting", "PCGrad can harm a task from three tasks on (with two it cannot).",
        "a projection off a later gradient brings back a conflict with an earlier one",
    ),
    _not(
        "cagrad", "non-conflicting", "CAGrad with c < 1 can harm a task.",
        "the ball around the mean does not reach the cone of common descent",
    ),
    _not(
        "imtl-g", "non-conflicting", "IMTL-G can harm all tasks at once.",
        "its weights sum to 1 and may be negative; if the equal projection is negative, it is negative for everybody",
        all_harmed=True, start=((-7, -2, -4, 6), (45, -334, -894, -294), (5, -166, 778, 606)),
    ),
    _not(
        "aligned-mtl", "non-conflicting", "Aligned-MTL can harm a task.",
        "it aligns with the orthogonalised gradients, not with the original ones",
    ),
    _not(
        "config", "non-conflicting", "ConFIG can harm a task if the gradients are linearly dependent.",
        "the equal-cosine equations then hold in the least-squares sense only",
    ),
    _not(
        "mgda", "linear-under-scaling", "MGDA is not linear under scaling.",
        "a longer gradient gets a smaller weight, down to none",
    ),
    _not("mgda", "scale-free", "MGDA turns when one loss changes its unit.", "it favours small gradients"),
    _not(
        "dualproj", "linear-under-scaling", "DualProj is not linear under scaling.",
        "whether the mean is in the cone depends on the scales",
    ),
    _not(
        "cagrad", "linear-under-scaling", "CAGrad is not linear under scaling.",
        "the worst-served task, by absolute gain, changes with the scales",
    ),
    _not(
        "nash-mtl", "linear-under-scaling", "Nash-MTL is not linear under scaling.",
        "it is scale-free: a task's influence does not grow with its gradient",
    ),
    _not("upgrad", "scale-free", "UPGrad turns when one loss changes its unit.", "influence grows with the gradient"),
    _not(
        "upgrad", "pareto-stationary-zero", "UPGrad does not stop at every Pareto-stationary point.",
        "at a weakly stationary point the dual cone still holds a direction that improves some task and harms none",
    ),
    _not(
        "ls", "pareto-stationary-zero", "The mean gradient does not stop at every Pareto-stationary point.",
        "it stops where this one combination vanishes",
    ),
    _not(
        "bilb4mtl", "conic-combination", "BiLB4MTL without the safeguard can push a task's loss up (lambda > 1/2).",
        "the coefficient sigma_i + lambda tau_i (s_i - s_(i-1)) of a task between two larger ones is negative",
        options=(("lamb", 1.0), ("pareto_safe", False)),
    ),
    _not(
        "bilb4mtl", "permutation-equivariant", "BiLB4MTL depends on the order in which tasks are listed.",
        "only neighbours are compared (discrepancy='adjacent', as published); 'all-pairs' does not depend on it",
    ),
    _not(
        "aligned-mtl", "no-conflict-identity", "Aligned-MTL changes gradients that do not conflict.",
        "it also repairs unequal lengths and angles below 90 degrees",
    ),
)  # fmt: skip
