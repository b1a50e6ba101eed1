"""Row normalisation: every program is stated on unit rows, so that no scale can defeat the solver."""

from __future__ import annotations

import dataclasses

import numpy as np

from mtlverify.references import Array


@dataclasses.dataclass(frozen=True)
class UnitRows:
    """The non-zero rows of a Jacobian.

    Args:
        units: (k, P) rows of length 1.
        norms: (k,) their lengths.
        index: (k,) where they were among the K rows.
    """

    units: Array
    norms: Array
    index: Array

    @property
    def square_root(self) -> Array:
        """(k, k) triangular R with |R y| = |units^T y| for all y: the program does not see P."""
        k = len(self.units)
        r: Array = np.linalg.qr(self.units.T, mode="r")  # type: ignore[assignment]
        return np.vstack([r, np.zeros((k - len(r), k))]) if len(r) < k else r


def unit_rows(rows: Array) -> UnitRows:
    """Drops zero rows. Scaled by the largest entry first, so that no square overflows."""
    largest = np.abs(rows).max(axis=1, initial=0.0)
    index = np.flatnonzero(largest > 0)
    scaled = rows[index] / largest[index, None]
    lengths = np.linalg.norm(scaled, axis=1)
    return UnitRows(scaled / lengths[:, None], lengths * largest[index], index)
