"""Honest benchmarks: real tasks, paired seeds, equal tuning, raw records, and a report that says what it cannot show.

Public, for tasks of one's own: :class:`BenchmarkTask` with :class:`ClassificationTask` and :class:`RegressionTask`, and
what a task is made of. Everything else here may change.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mtlbench.tasks.base import BenchmarkTask as BenchmarkTask
    from mtlbench.tasks.base import Budget as Budget
    from mtlbench.tasks.base import LazySplit as LazySplit
    from mtlbench.tasks.base import Metric as Metric
    from mtlbench.tasks.base import MultiSplit as MultiSplit
    from mtlbench.tasks.base import Split as Split
    from mtlbench.tasks.base import Splits as Splits
    from mtlbench.tasks.classification import ClassificationTask as ClassificationTask
    from mtlbench.tasks.regression import RegressionTask as RegressionTask

_PUBLIC = {
    "BenchmarkTask": "base", "Budget": "base", "LazySplit": "base", "Metric": "base", "MultiSplit": "base",
    "Split": "base", "Splits": "base", "ClassificationTask": "classification", "RegressionTask": "regression",
}  # fmt: skip
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> object:
    """Imported on first use: `mtl list` reads this package's registrations and must stay quick."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mtlbench' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mtlbench.tasks.{_PUBLIC[name]}"), name)
