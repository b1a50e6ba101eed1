"""What a solver says about its answer."""

from __future__ import annotations

from dataclasses import dataclass

EPS = 2.0**-52


@dataclass(frozen=True)
class Certificate:
    """How good an answer is, measured on the answer itself, not on how it was found.

    Args:
        status: "optimal", "trivial" (nothing to solve), "stationary" (the rows have no common descent direction to
            within rounding) or "inexact" (the residual is above what rounding explains).
        residual: largest violation of the optimality conditions of the row-normalised problem, relative to the size
            of the terms in it; a few 1e-16 is what float64 allows.
        iterations: linear systems solved.
    """

    status: str
    residual: float
    iterations: int

    def diagnostics(self) -> dict[str, object]:
        """The same as entries for ``Aggregation.diagnostics``."""
        return {"solver": self.status, "kkt_residual": self.residual, "solver_iterations": self.iterations}
