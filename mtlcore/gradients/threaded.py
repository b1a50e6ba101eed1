"""K vector-Jacobian products side by side, one thread each, rows kept.

Small operations do not get faster on more processors; whole tasks do. The products are those of the sequential
source, computed with one intra-op thread each, so that rounding may differ from it in the last bit but not from run to
run. On the processor only; refused where the backward pass runs Python code.
"""

from __future__ import annotations

from typing import ClassVar

from mtlcore.contracts import Needs
from mtlcore.gradients import jacobian
from mtlcore.gradients.permit import Permit
from mtlcore.gradients.source import GradientProblem, GradientSource, TaskGradients
from mtlcore.gradients.storage import Storage


class Threaded(GradientSource):
    """As :class:`Sequential`, on as many threads as torch has. K x P numbers, and that many tasks' intermediates."""

    name: ClassVar[str] = "threaded"
    provides: ClassVar[Needs] = Needs.JACOBIAN

    def __init__(self, storage: Storage | None = None) -> None:
        self._storage = storage or Storage()
        self._permit = Permit()

    def collect(self, problem: GradientProblem, keep_graph: bool = False) -> TaskGradients:
        """Fill the rows, then free the graph."""
        return jacobian.collect(
            problem,
            self._storage,
            know_uses=False,
            factors=False,
            chunk=1,
            keep_graph=keep_graph,
            permit=self._permit,
        )
