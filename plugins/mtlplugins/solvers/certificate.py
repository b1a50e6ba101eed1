"""The certificate of a solver's answer."""

from __future__ import annotations

from dataclasses import dataclass

EPS = 2.0**-52


@dataclass(frozen=True)
class Certificate:
    """The quality of an answer, measured on the answer itself.

    Args:
        status: "optimal", "trivial" (nothing to solve), "stationary" (the rows have no common descent direction to
            within rounding) or "inexact" (the residual is above what rounding explains).
        residual: largest violation of the optimality conditions of the row-normalised problem, relative to the size
            of its terms; the limit of float64 is a few 1e-16.
        iterations: number of linear systems solved.
    """

    status: str
    residual: float
    iterations: int

    def diagnostics(self) -> dict[str, object]:
        """The same as entries for ``Aggregation.diagnostics``."""
        return {"solver": self.status, "kkt_residual": self.residual, "solver_iterations": self.iterations}
