"""QM9: eleven quantum-chemical properties of small molecules."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from mtlbench.data.sources import locate
from mtlbench.tasks.base import Budget, Split, Splits
from mtlbench.tasks.regression import RegressionTask

_HARTREE = 27.211386246  # eV
ELEMENTS = ("H", "C", "N", "O", "F")
_CHARGE = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}
_MAX_ATOMS = 29
_SEED = 20_203
COUNTS = {"train": 22_000, "validation": 3_000, "test": 5_000}
# Energies of the free atoms in eV, H C N O F, as used for the published targets.
_ATOMS = {
    "U0": (-13.61312172, -1029.86312267, -1485.30251237, -2042.61123593, -2713.48485589),
    "U": (-13.5745904, -1029.82456413, -1485.26398105, -2042.5727046, -2713.44632457),
    "H": (-13.54887564, -1029.79887659, -1485.2382935, -2042.54701705, -2713.42063702),
    "G": (-13.90303183, -1030.25891228, -1485.71166277, -2043.01812778, -2713.88796536),
}


class Target(NamedTuple):
    """A column of the package, and how it becomes a target.

    Args:
        column: its name.
        unit: of the target.
        factor: by which the column is multiplied.
        atoms: energies of the free atoms in eV, in the order of :data:`ELEMENTS`, which are subtracted; None: nothing.
    """

    column: str
    unit: str
    factor: float
    atoms: tuple[float, ...] | None = None


TARGETS = {
    "mu": Target("Dipole_debye", "D", 1.0),
    "alpha": Target("Polarizability_bohr3", "bohr^3", 1.0),
    "homo": Target("HOMO_au", "meV", 1000 * _HARTREE),
    "lumo": Target("LUMO_au", "meV", 1000 * _HARTREE),
    "r2": Target("R2_bohr2", "bohr^2", 1.0),
    "zpve": Target("ZPVE_au", "meV", 1000 * _HARTREE),
    "u0": Target("InternalEnergy_0K_au", "meV", 1000 * _HARTREE, _ATOMS["U0"]),
    "u": Target("InternalEnergy_298K_au", "meV", 1000 * _HARTREE, _ATOMS["U"]),
    "h": Target("Enthalphy_298K_au", "meV", 1000 * _HARTREE, _ATOMS["H"]),
    "g": Target("GibbsFreeEnergy_298K_au", "meV", 1000 * _HARTREE, _ATOMS["G"]),
    "cv": Target("Heatcapacity_Cv_cal_mol_K", "cal/(mol K)", 1.0),
}


@dataclasses.dataclass(frozen=True)
class QM9(RegressionTask):
    """The eleven targets used in the multi-task literature, on 30,000 of the 130,831 molecules.

    [choice] The papers train a graph network on 110,000 molecules for days; here the inputs are the eigenvalues of
    the Coulomb matrix (29, sorted by size) and the counts of the five elements, and the network is an MLP, so that
    a run takes seconds. Errors are therefore not comparable with published ones; the imbalance of the gradients is
    the published one (norms differ by 10 to 30 times) and so is the order of difficulty. Energies are atomisation
    energies (the energies of the free atoms are subtracted), as usual.
    """

    title = "QM9: eleven properties of 30,000 small molecules"
    about = (
        "The real QM9 (from the qm9pack package), Coulomb-matrix eigenvalues and an MLP. Gradient norms of the tasks "
        "differ by 10 to 30 times, and equal weighting loses much against single tasks."
    )
    sources = ("qm9",)

    @property
    def units(self) -> Mapping[str, str]:
        """Units of the eleven errors."""
        return {name: target.unit for name, target in TARGETS.items()}

    def scale(self, task: str) -> float:
        """Standard deviation over the training molecules."""
        return _load()[1][task]

    @property
    def budget(self) -> Budget:
        """About ten seconds of one core."""
        return Budget(steps=1500, batch_size=128, learning_rate=1e-3, evaluations=10)

    def load(self) -> Splits:
        """The three parts."""
        return _load()[0]

    def trunk(self) -> nn.Module:
        """(N, 34) -> (N, 64)."""
        return nn.Sequential(
            nn.Linear(_MAX_ATOMS + len(ELEMENTS), 128),
            nn.SiLU(),
            nn.Linear(128, 128),
            nn.SiLU(),
            nn.Linear(128, 64),
            nn.SiLU(),
        )

    def head(self, task: str) -> nn.Module:
        """A small MLP."""
        return nn.Sequential(nn.Linear(64, 32), nn.SiLU(), nn.Linear(32, 1))


@functools.cache
def _load() -> tuple[Splits, dict[str, float]]:
    table = molecules()
    described = [_describe(*atoms(e, x)) for e, x in zip(table["Elements"], table["XYZ_Ang"])]
    inputs = np.stack([np.concatenate(both) for both in described])
    train = inputs[: COUNTS["train"]]
    mean, std = train.mean(axis=0), train.std(axis=0)
    # The smallest eigenvalues are zero padding in almost every molecule; a column without spread carries nothing.
    inputs = (inputs - mean) / np.where(std > 0, std, 1.0)
    return parts(table, inputs, np.stack([counts for _, counts in described]))


def molecules() -> pd.DataFrame:
    """The 30,000 that are used, in a fixed random order; the index says where they are in the package."""
    columns = ["Elements", "XYZ_Ang", *dict.fromkeys(t.column for t in TARGETS.values())]
    table = pd.concat([pd.read_csv(path, usecols=columns) for path in locate("qm9").values()], ignore_index=True)
    return table.iloc[np.random.default_rng(_SEED).permutation(len(table))[: sum(COUNTS.values())]]


def atoms(elements: str, positions: str) -> tuple[list[str], np.ndarray]:
    """Symbols of the n atoms, and their places (n, 3) in angstrom, as the package writes them."""
    # Numbers such as "0." and "-.5" are not JSON, so the brackets are cut away instead.
    places = np.array(positions.replace("[", "").replace("]", "").split(","), dtype=np.float64).reshape(-1, 3)
    return elements.strip("[]").replace("'", "").split(","), places


def parts(table: pd.DataFrame, inputs: np.ndarray, counts: np.ndarray) -> tuple[Splits, dict[str, float]]:
    """The three parts with standardised targets, and the standard deviation of each target in training.

    Args:
        table: of :func:`molecules`.
        inputs: (N, ...), what the network sees of each.
        counts: (N, 5), how many atoms of each of :data:`ELEMENTS` it has.
    """
    targets = {}
    for name, target in TARGETS.items():
        values = table[target.column].to_numpy(np.float64) * target.factor
        targets[name] = values if target.atoms is None else values - 1000 * (counts @ np.array(target.atoms))
    edges = np.cumsum([0, *COUNTS.values()])
    slices = {name: slice(a, b) for name, a, b in zip(COUNTS, edges[:-1], edges[1:])}
    centre = {name: values[slices["train"]].mean() for name, values in targets.items()}
    spread = {name: float(values[slices["train"]].std()) for name, values in targets.items()}
    found = {
        name: Split(
            torch.from_numpy(inputs[where]).float(),
            {t: torch.from_numpy((v[where] - centre[t]) / spread[t]).float() for t, v in targets.items()},
            table.index.to_numpy()[where],
        )
        for name, where in slices.items()
    }
    return Splits(**found), spread


def _describe(symbols: list[str], places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (29,) of the Coulomb matrix by decreasing size, and counts (5,) of the elements."""
    charge = np.array([_CHARGE[s] for s in symbols], dtype=np.float64)
    distance = np.linalg.norm(places[:, None] - places[None, :], axis=-1)
    np.fill_diagonal(distance, 1.0)
    coulomb = np.outer(charge, charge) / distance
    np.fill_diagonal(coulomb, 0.5 * charge**2.4)
    values = np.linalg.eigvalsh(coulomb)
    padded = np.zeros(_MAX_ATOMS)
    padded[: len(values)] = values[np.argsort(-np.abs(values))]
    return padded, np.array([symbols.count(e) for e in ELEMENTS], dtype=np.float64)
