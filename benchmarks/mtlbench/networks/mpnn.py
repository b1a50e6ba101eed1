"""The message-passing network of Gilmer et al. (2017) as Nash-MTL and its successors train it on QM9 [code], for
molecules that are padded to one size."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROUNDS = 3
EDGE = 5
"""Of a pair of atoms: four types of bonds, and the distance."""


class MPNN(nn.Module):
    """Every atom hears from all others, three times; a recurrent attention reads the molecule.

    Args:
        atom: features of an atom; the rows of ``inputs`` begin with them.
        dim: width of the messages; 64 in the code.
        hidden: width of the network of pairs; 128 in the code.
    """

    def __init__(self, atom: int, dim: int = 64, hidden: int = 128) -> None:
        super().__init__()
        self._atom = atom
        self.enter = nn.Linear(atom, dim)
        self.messages = Messages(dim, hidden)
        self.memory = nn.GRUCell(dim, dim)
        self.reader = nn.LSTMCell(2 * dim, dim)
        self.leave = nn.Linear(2 * dim, dim)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, A, atom + 3 + A) -> (N, dim). A row: features of an atom, its place, its bonds (0 to 4) to all atoms. An
        atom without any features is none."""
        there = inputs[..., : self._atom].any(-1)
        n = int(there.sum(1).max())  # rows after the largest molecule of the batch are padding for everybody
        inputs, there = inputs[:, :n], there[:, :n]
        apart = there[:, :, None] & there[:, None] & ~torch.eye(n, dtype=torch.bool, device=inputs.device)
        place, bonds = inputs[..., self._atom :].split([3, inputs.shape[-1] - self._atom - 3], dim=-1)
        kinds = F.one_hot(bonds[..., :n].long(), EDGE)[..., 1:]
        distance = (place[:, :, None] - place[:, None]).norm(dim=-1, keepdim=True)
        pairs = self.messages.pairs(torch.cat([kinds.to(distance), distance], dim=-1), apart)
        x = state = F.relu(self.enter(inputs[..., : self._atom]))
        for _ in range(ROUNDS):
            heard = F.relu(self.messages(x, pairs, apart))
            x = state = self.memory(heard.flatten(0, 1), state.flatten(0, 1)).view_as(heard)
        return F.relu(self.leave(self._read(x, there)))

    def _read(self, x: Tensor, there: Tensor) -> Tensor:
        """Set2Set: (N, A, dim) -> (N, 2 dim)."""
        q = cell = x.new_zeros(len(x), x.shape[-1])
        both = torch.cat([q, q], dim=-1)
        for _ in range(ROUNDS):
            q, cell = self.reader(both, (q, cell))
            share = torch.einsum("nad,nd->na", x, q).masked_fill(~there, -math.inf).softmax(1)
            both = torch.cat([q, torch.einsum("na,nad->nd", share, x)], dim=-1)
        return both


class Messages(nn.Module):
    """mean_j W(e_ij)^T x_j + R^T x_i + b, where a small network makes the matrix W(e) of a pair (NNConv).

    The matrices are never made: W is linear in the hidden layer, so the sum over j and hidden units is one product.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(EDGE, hidden)
        self.second = nn.Linear(hidden, dim * dim)
        self.root = nn.Linear(dim, dim)

    def pairs(self, edges: Tensor, apart: Tensor) -> Tensor:
        """(N, A, A, hidden): the hidden layer, zero where there is no pair."""
        out: Tensor = F.relu(self.first(edges)) * apart[..., None]
        return out

    def forward(self, x: Tensor, pairs: Tensor, apart: Tensor) -> Tensor:
        """(N, A, dim) -> (N, A, dim)."""
        dim = x.shape[-1]
        weight = self.second.weight.view(dim, dim, -1)
        spread = torch.einsum("njc,cdk->njkd", x, weight)
        counts = apart.to(x)
        heard = torch.einsum("nijk,njkd->nid", pairs, spread) + counts @ (x @ self.second.bias.view(dim, dim))
        out: Tensor = heard / counts.sum(-1, keepdim=True).clamp_min(1.0) + self.root(x)
        return out
