"""QM9 as torch_geometric keeps it: gdb9.sdf, gdb9.sdf.csv and uncharacterized.txt, read without a chemistry toolkit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mtlbench.data.sources import DataError

ELEMENTS = ("H", "C", "N", "O", "F")
NUMBERS = (1, 6, 7, 8, 9)
MAX_ATOMS = 29
FEATURES = len(ELEMENTS) + 2
"""Of an atom: its element, its atomic number, and how many hydrogens it is bound to."""
COLUMNS = FEATURES + 3 + MAX_ATOMS
"""Of a packed molecule: features, place, and the type of the bond to every atom (0: none, 1 to 3; 4: aromatic)."""


@dataclasses.dataclass(frozen=True)
class Molecule:
    """One block of an SDF file.

    Args:
        name: its first line.
        elements: (n,) index into :data:`ELEMENTS`.
        places: (n, 3) in angstrom.
        bonds: (m, 3): two atoms, counted from 0, and the type.
    """

    name: str
    elements: np.ndarray
    places: np.ndarray
    bonds: np.ndarray

    def packed(self) -> Tensor:
        """(29, 39) float32; rows of zeros after the last atom."""
        n = len(self.elements)
        out = torch.zeros(MAX_ATOMS, COLUMNS)
        out[torch.arange(n), torch.from_numpy(self.elements).long()] = 1.0
        out[:n, len(ELEMENTS)] = torch.tensor(NUMBERS, dtype=torch.float32)[self.elements]
        out[:n, FEATURES : FEATURES + 3] = torch.from_numpy(self.places)
        table = out[:, FEATURES + 3 :]
        for one, other, kind in self.bonds:
            table[one, other] = table[other, one] = float(kind)
        out[:n, len(ELEMENTS) + 1] = (table[:n, :n] > 0).float() @ out[:n, 0]  # the first element is hydrogen
        return out


def read_sdf(path: Path) -> Iterator[Molecule]:
    """The molecules of a file in V2000 blocks.

    Raises:
        DataError: what is wrong, and in which line.
    """
    block: list[str] = []
    first = 1
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if line.startswith("$$$$"):
                yield _molecule(block, path, first)
                block, first = [], number + 1
            else:
                block.append(line.rstrip("\n"))
    if any(line.strip() for line in block):
        raise DataError(f"{path}: the molecule that begins in line {first} does not end with $$$$.")


def _molecule(block: list[str], path: Path, first: int) -> Molecule:
    here = first + 3
    try:
        atoms, bonds = int(block[3][:3]), int(block[3][3:6])
        rows = block[4 : 4 + atoms + bonds]
        if not 0 < atoms <= MAX_ATOMS or bonds < 0 or len(rows) != atoms + bonds:
            raise ValueError(f"{atoms} atoms (1 to {MAX_ATOMS} are known) and {bonds} bonds, in {len(rows)} lines")
        elements, places, pairs = np.empty(atoms, np.int8), np.empty((atoms, 3), np.float32), []
        for i, row in enumerate(rows):
            here = first + 4 + i
            if i < atoms:
                x, y, z, symbol = row.split()[:4]
                elements[i], places[i] = ELEMENTS.index(symbol), (float(x), float(y), float(z))
            else:
                pairs.append(_bond(row, atoms))
    except (ValueError, IndexError) as error:
        raise DataError(f"{path}, line {here}: this is not a molecule of QM9 in V2000 ({error}).") from error
    if not np.isfinite(places).all():
        raise DataError(f"{path}: the molecule that begins in line {first} has a place that is not finite.")
    return Molecule(block[0].strip(), elements, places, np.array(pairs, np.int8).reshape(-1, 3))


def _bond(row: str, atoms: int) -> tuple[int, int, int]:
    one, other, kind = int(row[:3]), int(row[3:6]), int(row[6:9])
    if not (0 < one <= atoms and 0 < other <= atoms and one != other and 1 <= kind <= 4):
        raise ValueError(f"a bond of type {kind} between atoms {one} and {other} of {atoms}")
    return one - 1, other - 1, kind


def read_targets(path: Path, columns: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
    """Names of molecules (the column mol_id), and (N, C) numbers of the columns.

    Raises:
        DataError: a column is missing, or a value is not a finite number.
    """
    with _opened(path) as file:
        head = file.readline().rstrip("\n").split(",")
        missing = [c for c in ("mol_id", *columns) if c not in head]
        if missing:
            raise DataError(f"{path}: its first line does not name {', '.join(missing)}.")
        places = [head.index(c) for c in ("mol_id", *columns)]
        names, rows = [], []
        for number, line in enumerate(file, start=2):
            if not line.strip():
                continue
            cells = line.rstrip("\n").split(",")
            try:
                name, *values = (cells[i] for i in places)
                names.append(name)
                rows.append([float(v) for v in values])
            except (ValueError, IndexError) as error:
                raise DataError(f"{path}, line {number}: {error}.") from error
    found = np.array(rows, np.float64).reshape(-1, len(columns))
    if not np.isfinite(found).all():
        raise DataError(f"{path}, line {int(np.argwhere(~np.isfinite(found))[0, 0]) + 2}: a value is not finite.")
    return names, found


def read_uncharacterized(path: Path) -> set[int]:
    """Numbers of the molecules that are left out. The list stands between nine lines and a last one [code:
    torch_geometric].

    Raises:
        DataError: a line of the list does not begin with a number.
    """
    with _opened(path) as file:
        lines = file.read().split("\n")[9:-2]
    try:
        return {int(line.split()[0]) for line in lines}
    except (ValueError, IndexError) as error:
        raise DataError(f"{path}: a line of the list (from the tenth on) does not begin with a number.") from error


def _opened(path: Path):  # type: ignore[no-untyped-def]
    try:
        return path.open(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
