"""Symmetries by any invertible matrix M: what produces d units is multiplied by M, what consumes them by M^{-T}.

The task gradients then become M^{-T} g and M g, so with S = (M^T M)^{-1} [derived]

    Gram(S) = C + sum_b [ tr(S_b p_k p_i^T) + tr(S_b^{-1} c_k c_i^T) ]_{ki}

for blocks b with gradients p (K, d, m) of what produces and c (K, d, m') of what consumes. So a search of any length
needs one pass of task gradients. M is symmetric, because a rotation from the left changes no inner product. It acts on
the leading left singular subspace of a block's gradients, where log M = -bound tanh(R), R symmetric; elsewhere M = I.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtlcore import linalg
from mtlplugins.teleports.symmetry.worst_cosine import Array, ascend, has_angles, worst_cosine


@dataclass(frozen=True)
class Block:
    """One space of d units.

    Args:
        produced: (K, d, m) task gradients of what M multiplies.
        consumed: (K, d, m') of what M^{-T} multiplies; m' may be 0.
    """

    produced: Tensor
    consumed: Tensor


def optimise(
    blocks: Sequence[Block],
    rest: Sequence[Tensor],
    measure: str,
    *,
    bound: float,
    directions: int,
    stiffness: float,
    steps: int,
) -> list[Tensor] | None:
    """M (d, d) of every block, float64; None if nothing is better than the identity.

    Args:
        rest: (K, numel) gradients of everything else.
        measure: as in :func:`worst_cosine`.
        bound: largest |log singular value of M|.
        directions: dimension of the subspace that M acts on.
        stiffness: mu of the penalty mu mean(log^2) over the singular values of M in that subspace.
    """
    k = len(blocks[0].produced)
    whole = torch.zeros(k, k, dtype=torch.float64, device=blocks[0].produced.device)
    for part in (*rest, *(p.flatten(1) for b in blocks for p in (b.produced, b.consumed))):
        whole += linalg.gramian(part)
    bases = [_leading(b, directions) for b in blocks]
    width = max(u.shape[1] for u in bases)
    produced, consumed = (np.zeros((len(blocks), k, k, width, width)) for _ in range(2))
    for i, (block, u) in enumerate(zip(blocks, bases)):
        a = u.shape[1]
        for tables, part in ((produced, block.produced), (consumed, block.consumed)):
            inside = u.T @ part.double()
            tables[i, :, :, :a, :a] = torch.einsum("kam,lbm->klab", inside, inside).cpu().numpy()
    total = whole.cpu().numpy()
    if not has_angles(total):
        return None
    fixed = total - np.einsum("nklaa->kl", produced) - np.einsum("nklaa->kl", consumed)

    def gain(raw: Array) -> tuple[float, Array]:
        w, v = np.linalg.eigh((raw + raw.swapaxes(1, 2)) / 2.0)
        logs, inside = bound * np.tanh(w), bound / np.cosh(w) ** 2  # of S^{1/2} = M^{-1}, and their derivative
        up, down = np.exp(2.0 * logs), np.exp(-2.0 * logs)
        gram = fixed + np.einsum("nklab,nab->kl", produced, _function(v, up))
        gram += np.einsum("nklab,nab->kl", consumed, _function(v, down))
        value, slope = worst_cosine((gram + gram.T) / 2.0, measure)
        along = _function(v, -2.0 * stiffness / logs.size * logs * inside)
        for tables, f, derivative in ((produced, up, 2.0 * up * inside), (consumed, down, -2.0 * down * inside)):
            pulled = np.einsum("nklab,kl->nab", tables, slope)
            along += _slope(w, v, f, derivative, (pulled + pulled.swapaxes(1, 2)) / 2.0)
        return value - stiffness * float((logs * logs).mean()), along

    raw = ascend(gain, np.zeros((len(blocks), width, width)), steps, lr=0.1)
    if not raw.any():
        return None
    w, v = np.linalg.eigh((raw + raw.swapaxes(1, 2)) / 2.0)
    found = []
    for u, root in zip(bases, _function(v, np.exp(-bound * np.tanh(w)))):
        a = u.shape[1]
        inner = torch.from_numpy(root[:a, :a] - np.eye(a)).to(u)
        found.append(torch.eye(len(u), dtype=u.dtype, device=u.device) + u @ inner @ u.T)
    return found


def _leading(block: Block, directions: int) -> Tensor:
    """(d, a): leading left singular vectors of a block's gradients, side by side."""
    beside = torch.cat([p.double().transpose(0, 1).flatten(1) for p in (block.produced, block.consumed)], dim=1)
    # The eigenvectors of the small d x d table are those of the long d x n matrix.
    vectors: Tensor = torch.linalg.eigh(beside @ beside.T).eigenvectors.flip(1)
    return vectors[:, : min(directions, beside.shape[1])]


def _function(vectors: Array, values: Array) -> Array:
    """f(R) = V diag(f) V^T of every block."""
    out: Array = (vectors * values[:, None, :]) @ vectors.swapaxes(1, 2)
    return out


def _slope(w: Array, v: Array, f: Array, derivative: Array, slope: Array) -> Array:
    """R-slope of <P, f(R)>: V ((V^T P V) o D) V^T, D_ij = (f_i - f_j) / (w_i - w_j), f'_i where they meet.
    [Daleckii and Krein]"""
    apart = w[:, :, None] - w[:, None, :]
    close = np.abs(apart) < 1e-6
    average = (derivative[:, :, None] + derivative[:, None, :]) / 2.0
    quotient = np.where(close, average, (f[:, :, None] - f[:, None, :]) / np.where(close, 1.0, apart))
    out: Array = v @ ((v.swapaxes(1, 2) @ slope @ v) * quotient) @ v.swapaxes(1, 2)
    return out
