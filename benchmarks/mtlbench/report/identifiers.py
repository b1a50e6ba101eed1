"""Which measure of conflict orders the methods as the test part does."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mtlbench import statistics as stats
from mtlbench.measures.ranking import Ranking, ranking_similarity
from mtlbench.report.model import IdentifierRow, MethodRow

TITLES = {
    "min_cosine": ("smallest cosine", 1),
    "mean_cosine": ("mean cosine", 1),
    "min_cosine_minibatch": ("smallest cosine in a mini-batch", 1),
    "norm_ratio": ("largest / smallest gradient norm", -1),
    "magnitude_similarity": ("similarity of gradient norms", 1),
    "condition": ("condition number of the Jacobian", -1),
    "disentanglement": ("feature disentanglement, overlap", 1),
    "disentanglement_cosine": ("feature disentanglement, cosine", 1),
    "disentanglement_entropy": ("feature disentanglement, entropy", 1),
    "disentanglement_times_input": ("feature disentanglement, overlap of gradient times input", 1),
}
"""Identifier -> in words; and 1 where a larger value should mean less trouble, -1 where a smaller one. [choice]"""


def of_task(methods: Sequence[MethodRow]) -> list[IdentifierRow]:
    """The identifiers that at least one method has; Holm's correction is over those of them that can be judged."""
    scored = [(m.conflict, m.delta_m.estimate) for m in methods if m.delta_m and math.isfinite(m.delta_m.estimate)]
    found: dict[str, tuple[int, Ranking]] = {}
    for name, (_, sign) in TITLES.items():
        pairs = [(value, d) for conflict, d in scored if (value := conflict.get(name)) is not None]
        if pairs:
            found[name] = (len(pairs), ranking_similarity([-sign * v for v, _ in pairs], [d for _, d in pairs]))
    judged = [name for name, (_, r) in found.items() if r.p is not None]
    p_holm = dict(zip(judged, stats.holm([found[n][1].p or 0.0 for n in judged]), strict=True))
    return [
        IdentifierRow(name, TITLES[name][0], count, r.similarity, r.p, p_holm.get(name))
        for name, (count, r) in found.items()
    ]
