"""Inputs on which laws are tried: Hypothesis strategies that shrink to small integers, with a proof of what they are.

A Jacobian is an integer matrix from a *family* (generic.py, stationary.py, degenerate.py), times a positive scale for
each row (scales.py). Families are constructions with a proof in the docstring; scales are powers of two, so every
entry is exact in float32 and float64 and the proofs survive to the last bit.

`jacobians()` draws from all families; `jacobians(STATIONARY)` from some. A law adds its own draws with ``more``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st

from mtlverify.example import Example
from mtlverify.strategies import degenerate, generic, stationary
from mtlverify.strategies.losses import losses
from mtlverify.strategies.scales import SCALINGS, row_scales

Draw = Callable[[st.SearchStrategy[Any]], Any]
Family = Callable[[Draw], list[list[int]]]

GENERIC: tuple[Family, ...] = (generic.gaussian, generic.small, generic.opposed, generic.single_task, generic.tall)
ALIGNED: tuple[Family, ...] = (generic.aligned, generic.orthogonal)
STRONGLY_STATIONARY: tuple[Family, ...] = (stationary.strongly,)
WEAKLY_STATIONARY: tuple[Family, ...] = (stationary.weakly,)
NOT_STATIONARY: tuple[Family, ...] = (stationary.escapable,)
NEARLY_STATIONARY: tuple[Family, ...] = (stationary.nearly,)
DEGENERATE: tuple[Family, ...] = (
    degenerate.rank_deficient,
    degenerate.near_collinear,
    degenerate.antiparallel,
    degenerate.duplicate_rows,
    degenerate.equal_norms,
    degenerate.one_zero_row,
    degenerate.all_zero,
)
MANY_TASKS: tuple[Family, ...] = (generic.many,)
INDEPENDENT: tuple[Family, ...] = (generic.independent,)
ALL: tuple[Family, ...] = (
    *GENERIC, *ALIGNED, *INDEPENDENT, *STRONGLY_STATIONARY, *WEAKLY_STATIONARY, *NOT_STATIONARY,
    *NEARLY_STATIONARY, *DEGENERATE, *MANY_TASKS,
)  # fmt: skip
"""Ordinary ones first: the first family that shows a violation is the one that is shrunk and shown."""
TIED: tuple[Family, ...] = (degenerate.circulant,)
"""For laws that ask whether tasks are treated alike; the others learn nothing new here."""

DTYPES = (torch.float64, torch.float32)


@dataclasses.dataclass(frozen=True)
class Strata:
    """One strategy per family. A search gives each its share, so that "100 inputs" means "some of every family"."""

    strata: tuple[st.SearchStrategy[Any], ...]

    def filter(self, condition: Callable[[Example], bool]) -> Strata:
        """Only examples that satisfy ``condition``."""
        return Strata(tuple(s.filter(condition) for s in self.strata))

    def map(self, change: Callable[[Example], Example]) -> Strata:
        """Every example changed in some way."""
        return Strata(tuple(s.map(change) for s in self.strata))

    def merged(self) -> st.SearchStrategy[Example]:
        """One ordinary strategy, for ``@given``."""
        return st.one_of(*self.strata)


def jacobians(
    families: Sequence[Family] = ALL,
    *,
    scalings: Sequence[str] = SCALINGS,
    dtypes: Sequence[torch.dtype] = DTYPES,
    more: Callable[[Draw, int, int], dict[str, Any]] | None = None,
) -> Strata:
    """Examples from ``families`` under one of ``scalings``; ``more(draw, K, P)`` fills ``extra``."""
    return Strata(tuple(_stratum(family, tuple(scalings), tuple(dtypes), more) for family in families))


@functools.cache
def _stratum(
    family: Family,
    scalings: tuple[str, ...],
    dtypes: tuple[torch.dtype, ...],
    more: Callable[[Draw, int, int], dict[str, Any]] | None,
) -> st.SearchStrategy[Example]:
    @st.composite
    def examples(draw: Draw) -> Example:
        rows = torch.tensor(family(draw), dtype=torch.float64)
        scaling = draw(st.sampled_from(scalings))
        k, p = rows.shape
        scaled = rows * row_scales(draw, k, scaling)[:, None]
        return Example(
            jacobian=scaled.to(draw(st.sampled_from(dtypes))),
            losses=losses(draw, k),
            seed=draw(st.integers(0, 99)),
            family=family.__name__ + ("" if scaling == "unit" else f" ({scaling})"),
            extra={} if more is None else more(draw, k, p),
        )

    return examples()
