"""Inputs on which laws are tried: strategies of small integers, with a proof of what they are.

A Jacobian is an integer matrix from a *family* (generic.py, stationary.py, degenerate.py, edge.py), times a positive
scale for each row (scales.py). Families are constructions with a proof in the docstring; scales are powers of two, so
every entry is exact in float32 and float64 and the proofs survive to the last bit.

`jacobians()` draws from all families; `jacobians(STATIONARY)` from some. A law adds its own draws with ``more``. What
is drawn is made by :mod:`.pick`, which the search samples itself and Hypothesis understands as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from mtlverify.example import Example
from mtlverify.strategies import degenerate, edge, foreign, generic, pick, stationary
from mtlverify.strategies.losses import losses
from mtlverify.strategies.profile import deep, spoken_about
from mtlverify.strategies.scales import SCALINGS, row_scales
from mtlverify.strategies.strata import Draw, Strata, Stratum

__all__ = ["Draw", "Family", "Strata", "Stratum", "jacobians"]

Family = Callable[[Draw], list[list[int]]]

GENERIC: tuple[Family, ...] = (generic.gaussian, generic.small, generic.opposed, generic.single_task, generic.tall)
ALIGNED: tuple[Family, ...] = (generic.aligned, generic.orthogonal)
ALIGNED_OR_ZERO: tuple[Family, ...] = (*ALIGNED, edge.aligned_beside_zero)
STRONGLY_STATIONARY: tuple[Family, ...] = (stationary.strongly, edge.lopsided)
WEAKLY_STATIONARY: tuple[Family, ...] = (stationary.weakly,)
WITH_ZERO_ROWS: tuple[Family, ...] = (degenerate.one_zero_row, edge.several_zero_rows, degenerate.antiparallel)
NOT_STATIONARY: tuple[Family, ...] = (stationary.escapable, stationary.nearly, edge.nearly_orthogonal)
NEARLY_STATIONARY: tuple[Family, ...] = (stationary.nearly,)
DEGENERATE: tuple[Family, ...] = (
    degenerate.rank_deficient,
    degenerate.near_collinear,
    degenerate.antiparallel,
    degenerate.duplicate_rows,
    degenerate.equal_norms,
    degenerate.one_zero_row,
    degenerate.all_zero,
    edge.several_zero_rows,
    edge.aligned_beside_zero,
)
MANY_TASKS: tuple[Family, ...] = (generic.many,)
INDEPENDENT: tuple[Family, ...] = (generic.independent, edge.nearly_orthogonal)
ALL: tuple[Family, ...] = (
    *GENERIC, *ALIGNED, *INDEPENDENT, *STRONGLY_STATIONARY, *WEAKLY_STATIONARY, stationary.escapable,
    *NEARLY_STATIONARY, edge.nearly_antiparallel, *DEGENERATE, edge.one_giant, edge.wide, *MANY_TASKS,
)  # fmt: skip
"""Ordinary ones first: the first family that shows a violation is the one that is shrunk and shown."""
TIED: tuple[Family, ...] = (degenerate.circulant,)
"""For laws that ask whether tasks are treated alike; the others learn nothing new here."""

DTYPES = (torch.float64, torch.float32)

EARLY = 14
"""Half of the inputs are about a step up to this: what is wrong in the seventh is then seen by several inputs."""
LATE = (99, 100, 128, 255, 256, 300, 499, 500, 512, 1000, 1001, 1023, 1024, 4999, 10_000, 100_000)
"""Step numbers at which schedules end, windows are full and periods come round; see :attr:`Example.seed`."""


def jacobians(
    families: Sequence[Family] = ALL,
    *,
    scalings: Sequence[str] = SCALINGS,
    dtypes: Sequence[torch.dtype] = DTYPES,
    more: Callable[[Draw, int, int], dict[str, Any]] | None = None,
) -> Strata:
    """Examples from ``families`` under one of ``scalings``; ``more(draw, K, P)`` fills ``extra``.

    And from the families that other packages register: with all of ours, all that they draw; else, in a check of a law
    that says which Jacobians it speaks about, those.
    """
    chosen = [*families, *((edge.large,) if deep() and families == ALL else ())]
    own = tuple(_stratum(family, tuple(scalings), tuple(dtypes), more) for family in chosen)
    others = tuple(_stratum(family, tuple(scalings), tuple(dtypes), more) for family in foreign.families())
    if tuple(families[: len(ALL)]) == ALL:
        return Strata(own + others)
    domain = spoken_about()
    if domain is None:
        return Strata(own)
    return Strata(own + tuple(s.filter(lambda example: bool(domain(example.jacobian))) for s in others))


@functools.cache
def _stratum(
    family: Family,
    scalings: tuple[str, ...],
    dtypes: tuple[torch.dtype, ...],
    more: Callable[[Draw, int, int], dict[str, Any]] | None,
) -> Stratum:
    def recipe(draw: Draw) -> Example:
        rows = torch.tensor(family(draw), dtype=torch.float64)
        favoured = getattr(family, "favours", "")
        often = favoured in scalings and draw(pick.integers(0, 3)) > 0
        scaling = favoured if often else draw(pick.sampled_from(scalings))
        k, p = rows.shape
        dtype = draw(pick.sampled_from(dtypes))
        if scaling == "extreme" and torch.float64 in dtypes and draw(pick.booleans()):
            dtype = torch.float64  # whose ends are farther apart
        scaled = rows * row_scales(draw, rows, scaling, dtype)[:, None]
        return Example(
            jacobian=scaled.to(dtype),
            losses=losses(draw, k),
            seed=_seed(draw),
            family=family.__name__ + ("" if scaling == "unit" else f" ({scaling})"),
            extra={} if more is None else more(draw, k, p),
        )

    return Stratum(recipe, family.__name__)


def _seed(draw: Draw) -> int:
    if draw(pick.integers(0, 7)) == 7:
        return int(draw(pick.sampled_from(LATE)))
    if draw(pick.booleans()):
        return int(draw(pick.integers(0, EARLY)))
    return int(draw(pick.integers(0, 999 if deep() else 98)))
