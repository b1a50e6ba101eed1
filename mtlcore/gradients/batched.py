"""All tasks in one vector-Jacobian product under vmap, rows kept.

Fast where many small operations dominate (small networks, many tasks, attention), slow where vmap has no good rule
(weight gradients of convolutions), refused where it has none (recurrent kernels on accelerators, custom Functions
without a vmap rule, compiled trunks). Weight gradients of matrix products are multiplied out in one product for all
tasks instead of by vmap.
"""

from __future__ import annotations

from typing import ClassVar

from mtlcore.contracts import Needs
from mtlcore.gradients import jacobian
from mtlcore.gradients.source import GradientProblem, GradientSource, TaskGradients
from mtlcore.gradients.storage import Storage


class Batched(GradientSource):
    """K x P numbers kept, and the trunk's intermediate gradients of ``chunk`` tasks at once while it works.

    Args:
        chunk: tasks per product; None for all.
        storage: memory shared with other sources; None for its own.
    """

    name: ClassVar[str] = "batched"
    provides: ClassVar[Needs] = Needs.JACOBIAN

    def __init__(self, chunk: int | None = None, storage: Storage | None = None) -> None:
        self._chunk = chunk
        self._storage = storage or Storage()

    def collect(self, problem: GradientProblem, keep_graph: bool = False) -> TaskGradients:
        """Fill the rows; the graph is freed by the last chunk."""
        chunk = max(2, self._chunk or len(problem.losses))
        return jacobian.collect(
            problem, self._storage, know_uses=True, factors=False, chunk=chunk, keep_graph=keep_graph
        )
