"""``doge``: merging as adaptive projective gradient descent (Wei et al. 2025)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from mtlcore import Merger, choice, integer, number
from mtlcore.contracts import Entries
from mtlplugins.mergers.task_arithmetic import RETURNS
from mtlplugins.mergers.trim import largest


@dataclasses.dataclass(frozen=True)
class DOGE(Merger):
    """A common Delta is added to all task vectors; it reduces the gap to the experts, outside of a shared subspace.

    For each matrix (an entry of two or more dimensions is a matrix: first dimension times all others):

    1. lambda_t = eta / |tau_t|_F. [code]
    2. The shared basis B: the first floor(r/T) left singular vectors of all tau_t are put side by side, and B are the
       first floor(r/subspace) left singular vectors of the result; r is the shorter side of the matrix. [code] Vectors
       with a singular value of zero (up to rounding) are arbitrary and are left out. [choice]
    3. Delta = 0, then ``steps`` steps on sum_j |reduce(tau_j * (tau_j - sum_t lambda_t (tau_t + Delta)))|^2, along
       the gradient without its part in B. [code]
    4. The result is theta_0 + sum_t lambda_t mask_t (tau_t + Delta). mask_t keeps the share ``keep`` of the largest
       |tau_t| over the whole model. [code]

    The authors' repository is not available. Steps and numbers follow a co-author's implementation [lib code]; another
    library reduces the loss to one number per task [lib code], which is an option. A task vector that is zero in a
    matrix has lambda_t = 0 there. [choice]

    Proved: with optimizer "sgd", B^T Delta = 0; with "adam", as in the code, this does not hold, because Adam rescales
    each entry.
    If a task vector is multiplied by c > 0, its lambda_t is divided by c. Without steps and with keep = 1 it is task
    arithmetic with the coefficients lambda_t. The merger of one expert is not that expert, except with equal
    coefficients, no steps and keep = 1.

    Args:
        eta: length of each scaled task vector, per matrix.
        coefficients: "adaptive": lambda_t as above; "equal": 1/T [choice].
        reduce: sum of the gap over each "row" of the matrix, or over the "full" matrix.
        subspace: B has 1/subspace of the full rank.
        steps: number of the optimizer's steps.
        lr: the optimizer's learning rate.
        optimizer: "adam" [code] or "sgd".
        keep: share of the entries that are kept in step 4.
        rest: entries of fewer than two dimensions: "merge": sum_t lambda_t mask_t tau_t [choice]; "base": unchanged, as
            in the code, which merges the weights of an encoder only [code].
    """

    paper = "https://arxiv.org/abs/2501.01230"

    eta: float = number(0.07, low=0.0, open_low=True, log=True)
    coefficients: str = choice("adaptive", ("adaptive", "equal"))
    reduce: str = choice("row", ("row", "full"))
    subspace: int = integer(6, low=1)
    steps: int = integer(400, low=0)
    lr: float = number(1e-4, low=0.0, open_low=True, log=True)
    optimizer: str = choice("adam", ("adam", "sgd"))
    keep: float = number(0.3, low=0.0, high=1.0, open_low=True)
    rest: str = choice("merge", ("merge", "base"))

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised."""
        plain = self.coefficients == "equal" and self.steps == 0 and self.keep == 1.0 and self.rest == "merge"
        return frozenset({"order-free", "zero-steps-task-arithmetic"}) | (RETURNS if plain else frozenset())

    def merge(self, base: Entries, vectors: Sequence[Entries], generator: torch.Generator) -> dict[str, Tensor]:
        """Matrix by matrix."""
        masks = [largest(v, self.keep) for v in vectors]
        out = {}
        for name, value in base.items():
            taus = torch.stack([v[name] for v in vectors])
            mask = torch.stack([m[name] for m in masks])
            shape = (len(vectors),) + (1,) * value.dim()
            lambdas = self.lambdas(taus).view(shape)
            if value.dim() >= 2:
                delta = self.delta(taus.flatten(2)).view_as(value)
                out[name] = (lambdas * mask * (taus + delta)).sum(0)
            elif self.rest == "merge":
                out[name] = (lambdas * mask * taus).sum(0)
        return out

    def lambdas(self, taus: Tensor) -> Tensor:
        """lambda (T,) of the task vectors (T, ...) of one entry."""
        if self.coefficients == "equal":
            return taus.new_full((len(taus),), 1.0 / len(taus))
        # Scaled before it is squared: a task vector of size 1e-200 has a length.
        flat = taus.reshape(len(taus), taus[0].numel())
        size = flat.abs().amax(1) if flat.shape[1] else flat.new_zeros(len(taus))
        unit = flat / torch.where(size > 0.0, size, 1.0)[:, None]
        length = size * unit.norm(dim=1)
        return torch.where(length > 0.0, self.eta / torch.where(length > 0.0, length, 1.0), 0.0)

    def delta(self, taus: Tensor) -> Tensor:
        """Delta (a, b) for the matrices tau (T, a, b)."""
        lambdas, basis = self.lambdas(taus), self.basis(taus)
        total, plain = lambdas.sum(), (lambdas[:, None, None] * taus).sum(0)
        delta = torch.zeros_like(taus[0])
        make = torch.optim.Adam if self.optimizer == "adam" else torch.optim.SGD
        optimizer = make([delta], lr=self.lr)
        over = 2 if self.reduce == "row" else (1, 2)
        for _ in range(self.steps):
            gap = (taus * (taus - plain - total * delta)).sum(over, keepdim=True)
            gradient = -2.0 * total * (gap * taus).sum(0)
            delta.grad = gradient - basis @ (basis.T @ gradient)
            optimizer.step()
        return delta

    def basis(self, taus: Tensor) -> Tensor:
        """B (a, n), orthonormal columns: the shared subspace."""
        count, rank = len(taus), min(taus.shape[1:])
        kept = [_left(tau, rank // count) for tau in taus]
        return _left(torch.cat(kept, dim=1), rank // self.subspace)


def _left(matrix: Tensor, count: int) -> Tensor:
    """The first ``count`` left singular vectors, as columns; fewer where the rank is smaller."""
    if 0 in matrix.shape or count == 0:
        return matrix.new_zeros(len(matrix), 0)
    left, sizes, _ = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((sizes > sizes[0] * max(matrix.shape) * torch.finfo(sizes.dtype).eps).sum())
    kept: Tensor = left[:, : min(count, rank)]
    return kept
