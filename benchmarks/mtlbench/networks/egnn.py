"""A graph network for molecules that sees distances only, so that a rotation of a molecule changes nothing.

The invariant part of EGNN (Satorras et al. 2021) [memory]: places are not moved. [choice] ReLU in the place of SiLU,
and distances in the place of their squares.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EGNN(nn.Module):
    """Every atom hears from all others, once in each layer.

    Args:
        atom: features of an atom; in ``inputs`` its place (3) follows them. An atom without any features is none.
        atoms: in the largest molecule.
        dim: width.
        layers: how often atoms hear from each other.
    """

    others: Tensor

    def __init__(self, atom: int, atoms: int, dim: int = 32, layers: int = 2) -> None:
        super().__init__()
        self._atom, self._atoms = atom, atoms
        self.enter = nn.Linear(atom, dim)
        self.layers = nn.ModuleList([Layer(dim, atoms) for _ in range(layers)])
        self.leave = nn.Linear(dim, dim)
        self.register_buffer("others", (1.0 - torch.eye(atoms))[..., None], persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, atoms, atom + 3) -> (N, dim)."""
        features, place = inputs[..., : self._atom], inputs[..., self._atom :]
        there = features.abs().sum(-1, keepdim=True).sign()
        apart = there[:, :, None] * there[:, None] * self.others
        distance = (place[:, :, None] - place[:, None]).norm(dim=-1, keepdim=True)
        x = self.enter(features)
        for layer in self.layers:
            x = layer(x, distance, apart)
        return F.relu(self.leave((x * there).sum(1) / self._atoms))


class Layer(nn.Module):
    """x_i + f(x_i, sum_j m(x_i, x_j, d_ij))."""

    def __init__(self, dim: int, atoms: int) -> None:
        super().__init__()
        self._atoms = atoms
        self.message = nn.Sequential(nn.Linear(2 * dim + 1, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())
        self.update = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, x: Tensor, distance: Tensor, apart: Tensor) -> Tensor:
        """(N, A, dim), (N, A, A, 1), (N, A, A, 1) -> (N, A, dim)."""
        own = x[:, :, None].expand(-1, -1, self._atoms, -1)
        other = x[:, None].expand(-1, self._atoms, -1, -1)
        heard = (self.message(torch.cat([own, other, distance], dim=-1)) * apart).sum(2)
        out: Tensor = x + self.update(torch.cat([x, heard], dim=-1))
        return out
