"""Jacobians that are hard for float arithmetic and easy for mathematics: all of them have a common descent direction.

Every family starts from a unit vector h and rows with <g_i, h> > 0, so d = h would help every task; what varies is what
makes the K x K problem ill-conditioned. The property is checked on the finished rows (in float64, after they
were rounded to their dtype), so an example that lost it would be an error here, not an excuse there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

TASKS = (2, 3, 5, 11, 40)


@dataclass(frozen=True)
class Example:
    """One hostile Jacobian: ``rows`` (K, P), from which family, how extreme (0 mild .. 3 extreme)."""

    family: str
    level: int
    rows: Tensor


def examples(seed: int = 0) -> Iterator[Example]:
    """All of them: families x levels x K x {float64, float32}; the same ones for the same seed."""
    for index, (family, make) in enumerate(_FAMILIES.items()):
        for level in range(4):
            for k in TASKS:
                for dtype in (torch.float64, torch.float32):
                    generator = torch.Generator().manual_seed(((seed * 100 + index) * 10 + level) * 100 + k)
                    rows, h = make(k, k + 9 if level % 2 else 2 * k + 40, level, dtype, generator)
                    rows = rows.to(dtype)
                    exact = rows.double()
                    gain = (exact @ h) / exact.norm(dim=1)
                    assert bool((gain > 0).all() & exact.isfinite().all()), (family, level, k, dtype)
                    yield Example(family, level, rows)


def _unit(x: Tensor) -> Tensor:
    unit: Tensor = x / x.norm(dim=-1, keepdim=True)
    return unit


def _frame(k: int, p: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """h, and K unit vectors orthogonal to it."""
    h = _unit(torch.randn(p, generator=generator, dtype=torch.float64))
    v = torch.randn(k, p, generator=generator, dtype=torch.float64)
    v = v - (v @ h)[:, None] * h
    return h, _unit(v - (v @ h)[:, None] * h)


def _cone(k: int, p: int, margin: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows whose cosine with h is between margin and 2 margin."""
    h, v = _frame(k, p, generator)
    cos = margin * (1.0 + torch.rand(k, 1, generator=generator, dtype=torch.float64))
    return cos * h + (1.0 - cos**2).sqrt() * v, h


def _norms(k: int, decades: float, generator: torch.Generator) -> Tensor:
    """Norms that span ``decades`` decades around 1, in random order."""
    exponents = torch.linspace(-decades / 2, decades / 2, k, dtype=torch.float64)
    return 10.0 ** exponents[torch.randperm(k, generator=generator)][:, None]


def _finest(dtype: torch.dtype) -> tuple[float, ...]:
    """Four angles, the last near what a Gramian in float64 can still resolve (float32 rows: what the rows can)."""
    return (1e-2, 1e-4, 1e-6, 3e-8) if dtype == torch.float64 else (1e-2, 1e-3, 1e-4, 3e-5)


def _spread(k: int, p: int, level: int, dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Row norms over 2, 4, 6, 8 decades."""
    rows, h = _cone(k, p, 0.05, generator)
    return rows * _norms(k, 2.0 * (level + 1), generator), h


def _scale(k: int, p: int, level: int, dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """All rows of size 1e-10, 1e-5, 1e+5, 1e+10."""
    rows, h = _cone(k, p, 0.05, generator)
    return rows * (1e-10, 1e-5, 1e5, 1e10)[level], h


def _narrow(k: int, p: int, level: int, dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Every row almost orthogonal to the only direction that helps all of them."""
    rows, h = _cone(k, p, _finest(dtype)[level], generator)
    return rows, h


def _collinear(k: int, p: int, level: int, dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """All rows within a small angle of one another."""
    h, v = _frame(k, p, generator)
    angle = _finest(dtype)[level]
    return _unit(h + angle * v), h


def _antiparallel(k: int, p: int, level: int, dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows +-a plus a little: opposed up to a small angle, with the little on the side of h."""
    h, v = _frame(k + 1, p, generator)
    sign = torch.where(torch.arange(k) % 2 == 0, 1.0, -1.0).double()[:, None]
    angle = _finest(dtype)[level]
    return _unit(sign * v[-1] + angle * (h + 0.3 * v[:-1])), h


def _rank(k: int, p: int, level: int, dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows in a space of 2 dimensions (3 at odd levels), half of them close to its edge."""
    rank = 2 + level % 2
    h, basis = _frame(rank, p, generator)
    mix = torch.randn(k, rank, generator=generator, dtype=torch.float64)
    cos = torch.where(torch.arange(k) % 2 == 0, 0.3, 10.0 ** -(level + 1.0)).double()[:, None]
    return cos * h + _unit(mix @ basis), h


def _duplicates(k: int, p: int, level: int, dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Half of the rows are positive multiples of the other half."""
    half = (k + 1) // 2
    rows, h = _cone(half, p, 0.02, generator)
    return rows[torch.arange(k) % half] * _norms(k, 2.0 * level, generator), h


def _everything(k: int, p: int, level: int, dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A narrow cone, a duplicate, a near-antiparallel pair and norms over 8 decades at once."""
    rows, h = _cone(k, p, _finest(dtype)[min(level, 2)], generator)
    rows[-1] = rows[0]
    if k > 2:
        rows[1] = _unit(-rows[0] + 2.5 * _finest(dtype)[min(level, 2)] * 2.0 * h)
    return rows * _norms(k, 8.0, generator), h


_FAMILIES = {
    "spread": _spread,
    "scale": _scale,
    "narrow": _narrow,
    "collinear": _collinear,
    "antiparallel": _antiparallel,
    "rank-deficient": _rank,
    "duplicates": _duplicates,
    "everything": _everything,
}
