"""QM9 with a small graph network on the atoms in space."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from torch import nn

from mtlbench.networks.egnn import EGNN
from mtlbench.tasks import qm9
from mtlbench.tasks.base import Budget, Splits

HEAVY = 9
"""Atoms of the largest molecule, hydrogens not counted."""
FEATURES = len(qm9.ELEMENTS)
"""Of a heavy atom: which of C, N, O, F it is, and how many hydrogens it has."""


@dataclasses.dataclass(frozen=True)
class QM9Geometry(qm9.QM9):
    """The molecules, targets and parts of the task ``qm9``, seen as graphs.

    [choice] The nodes are the heavy atoms with their places in angstrom, at most nine. A hydrogen is counted at the
    heavy atom that is nearest to it, and its place is left out: the pairs of nodes, which the price of a step follows,
    become ten times fewer. Errors are not comparable with published ones, whose networks see every atom.
    """

    title = "QM9-geometry: eleven properties of 30,000 small molecules, with a graph network"
    about = (
        "The real QM9 (from the qm9pack package), heavy atoms in space and a small graph network of ReLU units. "
        "Gradients of the tasks conflict, and their norms differ by 5 to 17 times."
    )

    def scale(self, task: str) -> float:
        """Standard deviation over the training molecules."""
        return _load()[1][task]

    @property
    def budget(self) -> Budget:
        """About two minutes of one core."""
        return Budget(steps=1500, batch_size=64, learning_rate=3e-3, evaluations=10)

    def load(self) -> Splits:
        """The three parts."""
        return _load()[0]

    def trunk(self) -> nn.Module:
        """(N, 9, 8) -> (N, 32)."""
        return EGNN(FEATURES, HEAVY)

    def head(self, task: str) -> nn.Module:
        """A linear read-out."""
        return nn.Linear(32, 1)


@functools.cache
def _load() -> tuple[Splits, dict[str, float]]:
    table = qm9.molecules()
    read = [qm9.atoms(e, x) for e, x in zip(table["Elements"], table["XYZ_Ang"])]
    counts = np.array([[symbols.count(e) for e in qm9.ELEMENTS] for symbols, _ in read], dtype=np.float64)
    return qm9.parts(table, np.stack([_nodes(*molecule) for molecule in read]), counts)


def _nodes(symbols: list[str], places: np.ndarray) -> np.ndarray:
    """(9, 8): features and places of the heavy atoms, seen from their centre; zero where there is none."""
    kinds = np.array([qm9.ELEMENTS.index(s) for s in symbols])
    heavy = places[kinds > 0]
    apart = np.linalg.norm(places[kinds == 0][:, None] - heavy[None], axis=-1)
    out = np.zeros((HEAVY, FEATURES + 3))
    rows = np.arange(len(heavy))
    out[rows, kinds[kinds > 0] - 1] = 1.0
    np.add.at(out[:, FEATURES - 1], apart.argmin(axis=1), 1.0)
    out[rows, FEATURES:] = heavy - heavy.mean(axis=0)
    return out
