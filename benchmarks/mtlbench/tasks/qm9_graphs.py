"""QM9 with the published network: eleven properties of molecules from the files of torch_geometric."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mtlbench.data import molecules
from mtlbench.data.molecules import COLUMNS, MAX_ATOMS, Molecule
from mtlbench.data.official import first_there, folder_of
from mtlbench.data.sources import DataError
from mtlbench.networks.mpnn import MPNN
from mtlbench.tasks.base import Budget, LazySplit, Splits
from mtlbench.tasks.regression import RegressionTask
from mtlcore import integer

_EV = 27211.386246
"""meV of a hartree."""
_KCAL = 43.36414
"""meV of a kcal/mol."""
_SEED = 20_212
_HELD = 10_000  # molecules of the validation and of the test part
_FILES = ("gdb9.sdf", "gdb9.sdf.csv", "uncharacterized.txt")


class _Target(NamedTuple):
    column: str
    unit: str
    factor: float = 1.0


_TARGETS = {
    "mu": _Target("mu", "D"),
    "alpha": _Target("alpha", "bohr^3"),
    "homo": _Target("homo", "meV", _EV),
    "lumo": _Target("lumo", "meV", _EV),
    "r2": _Target("r2", "bohr^2"),
    "zpve": _Target("zpve", "meV", _EV),
    "u0": _Target("u0_atom", "meV", _KCAL),
    "u": _Target("u298_atom", "meV", _KCAL),
    "h": _Target("h298_atom", "meV", _KCAL),
    "g": _Target("g298_atom", "meV", _KCAL),
    "cv": _Target("cv", "cal/(mol K)"),
}


@dataclasses.dataclass(frozen=True)
class QM9Graphs(RegressionTask):
    """The eleven targets and the message-passing network of the line of Nash-MTL [code], on complete graphs with bonds
    and distances. ``root`` is the folder that torch_geometric has filled, default $MTLCORE_DATA/qm9-graphs.

    What differs [choice]: an atom has 7 features (element, atomic number, bound hydrogens) in place of 11, since
    aromaticity and hybridisation need a chemistry toolkit; and the order of the molecules is fixed, with 10,000 each
    for validation and test (a tenth of them, where there are fewer than 100,000). Targets are standardised with the
    training part. A run of the published length is one for a GPU.

    Args:
        root: folder with the three raw files, or with a folder raw that has them.
        dim: width of the network; 64 in the code.
    """

    root: str = ""
    dim: int = integer(64, low=1)

    title = "QM9-graphs: eleven properties of molecules, with the published network"
    about = "The official molecules, from a folder that torch_geometric has filled."
    sources: ClassVar[tuple[str, ...]] = ()
    evaluation_batch = 120

    @property
    def units(self) -> Mapping[str, str]:
        """Units of the eleven errors."""
        return {name: target.unit for name, target in _TARGETS.items()}

    def scale(self, task: str) -> float:
        """Standard deviation over the training molecules."""
        return self._data()[1][task]

    @property
    def budget(self) -> Budget:
        """[code] 300 epochs of batches of 120; the rate falls when validation stands still."""
        plateau = {"mode": "min", "factor": 0.7, "patience": 5, "min_lr": 1e-5}
        return Budget(
            steps=1, batch_size=120, learning_rate=1e-3, evaluations=300, epochs=300, schedule="ReduceLROnPlateau",
            schedule_options=plateau,
        )  # fmt: skip

    def load(self) -> Splits:
        """The three parts; a molecule is unpacked when it is wanted."""
        return self._data()[0]

    def _data(self) -> tuple[Splits, dict[str, float]]:
        return _load(folder_of("qm9-graphs", self.root, f"{', '.join(_FILES)}, in it or in a folder raw"))

    def trunk(self) -> nn.Module:
        """(N, 29, 39) -> (N, dim)."""
        return MPNN(molecules.FEATURES, self.dim, 2 * self.dim)

    def head(self, task: str) -> nn.Module:
        """A linear read-out."""
        return nn.Linear(self.dim, 1)


@functools.cache
def _load(root: Path) -> tuple[Splits, dict[str, float]]:
    sdf, table, left_out = (first_there([root / "raw" / name, root / name], "qm9-graphs") for name in _FILES)
    names, values = molecules.read_targets(table, tuple(t.column for t in _TARGETS.values()))
    skip = molecules.read_uncharacterized(left_out)
    kept: list[Molecule] = []
    rows = []
    for row, molecule in enumerate(molecules.read_sdf(sdf)):
        if row >= len(names) or names[row] != molecule.name:
            other = names[row] if row < len(names) else "none"
            raise DataError(f"molecule {row + 1} is {molecule.name!r} in {sdf}, and {other!r} in {table}.")
        if row + 1 not in skip:
            kept.append(molecule)
            rows.append(row)
    if len(kept) < 10:
        raise DataError(f"{sdf} has {len(kept)} molecules that are not left out; ten are the least.")
    values = values[rows] * np.array([t.factor for t in _TARGETS.values()])
    order = np.random.default_rng(_SEED).permutation(len(kept))
    held = min(_HELD, len(kept) // 10)
    index = {"test": order[:held], "validation": order[held : 2 * held], "train": order[2 * held :]}
    mean, std = values[index["train"]].mean(0), values[index["train"]].std(0)
    if not (std > 0).all():
        raise DataError(f"{table}: a target is the same for all molecules of the training part.")
    targets = torch.from_numpy((values - mean) / std).float()
    parts = {
        part: LazySplit(
            torch.empty(0, MAX_ATOMS, COLUMNS), {}, found, read=functools.partial(_read, kept, targets, found)
        )
        for part, found in index.items()
    }
    return Splits(**parts), dict(zip(_TARGETS, map(float, std), strict=True))


def _read(kept: list[Molecule], targets: Tensor, index: np.ndarray, i: int) -> tuple[Tensor, dict[str, Tensor]]:
    row = int(index[i])
    return kept[row].packed(), dict(zip(_TARGETS, targets[row], strict=True))
