"""Which steps a logger keeps: every n-th one, and each in which a teleport was tried."""

from __future__ import annotations

import operator

from mtlcore.errors import ConfigurationError
from mtlcore.report import StepReport


class Every:
    """Says of a report whether it is to be logged.

    Raises:
        ConfigurationError: ``n`` is not a whole number above zero.
    """

    def __init__(self, n: int) -> None:
        try:
            self._n = operator.index(n)
        except TypeError:
            self._n = 0
        if self._n < 1 or isinstance(n, bool):
            raise ConfigurationError(f"every={n!r}: a logger needs a whole number of steps, 1 or more.")

    def __call__(self, report: StepReport) -> bool:
        """True in step 0, n, 2n, ..., and after a teleport was tried, which happens too rarely to be left out."""
        return report.step % self._n == 0 or report.teleport is not None
