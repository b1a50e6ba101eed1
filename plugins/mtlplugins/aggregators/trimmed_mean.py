"""``trimmed-mean``: the mean in every coordinate without the largest and smallest values."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from mtlcore import integer
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView


@dataclasses.dataclass(frozen=True)
class TrimmedMean(Aggregator):
    """Yin et al. 2018 [paper*; lib code: TorchJD]: in every coordinate the ``trim`` largest and the ``trim`` smallest
    of the K values are dropped, and the others are averaged. trim = 0 is the mean. With fewer than 2 trim + 1 tasks one
    or two values are kept, which gives the median [choice; TorchJD refuses].

    The method is made for federated learning with broken workers; here it is a robust baseline. Proved: each d_p lies
    between the smallest and the largest g_ip; if up to ``trim`` gradients are arbitrary, each d_p is still within the
    range of the others. Not promised: no conflict, a combination of the gradients with one weight per task, or
    invariance under a rotation of the parameters.
    Cost: the rows and a sort of each column.

    Args:
        trim: number of values that are dropped at each end.
    """

    needs = Needs.JACOBIAN
    paper: ClassVar[str] = "https://arxiv.org/abs/1803.01498"
    claims = frozenset({"permutation-equivariant", "positively-homogeneous", "resume-equivalent"})

    trim: int = integer(1, low=0)

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """A direction (P,)."""
        rows, k = view.jacobian, view.n_tasks
        dropped = min(self.trim, (k - 1) // 2)
        kept = rows.sort(dim=0).values[dropped : k - dropped]
        direction = kept.double().mean(dim=0).to(rows.dtype)
        return Aggregation(direction=direction, state=state, diagnostics={"dropped": 2 * dropped})
