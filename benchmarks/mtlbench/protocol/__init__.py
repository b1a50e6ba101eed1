"""The protocol: how one run is trained and measured, the same for every method.

- *Paired seeds.* Initial weights, data order and probe batches depend on (task, seed, axis), never on the method.
- *Single-task baselines* get the same steps, batches, learning-rate schedule and initial weights.
- *Selection on validation only.* The checkpoint with the best validation score is kept; the test part is
  evaluated once, on that checkpoint, and never in a trial of tuning.
- *Time.* Each step is timed; a plain summed-loss step on a copy of the network runs right before or after it at
  regular steps, so that the ratio compares like with like; it is a ratio of processor times (runs have one thread),
  which waiting for a busy machine does not change.
- *Conflict* is measured on fixed probe batches at a few checkpoints, for every method alike, outside the timed
  part and without touching the run.

One file per part:

* :mod:`~mtlbench.protocol.training`: a run from end to end.
* :mod:`~mtlbench.protocol.randomness`, :mod:`~mtlbench.protocol.optimizer`: what is equal for all methods.
* :mod:`~mtlbench.protocol.selection`, :mod:`~mtlbench.protocol.delta_m`: which checkpoint, and how good it is.
* :mod:`~mtlbench.protocol.cost`, :mod:`~mtlbench.protocol.memory`, :mod:`~mtlbench.protocol.conflict`,
  :mod:`~mtlbench.protocol.log`: what else is measured.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from mtlbench.protocol.delta_m import delta_m as delta_m

if TYPE_CHECKING:
    from mtlbench.protocol.training import Outcome as Outcome
    from mtlbench.protocol.training import train as train
    from mtlbench.protocol.training import train_single_tasks as train_single_tasks

__all__ = ["Outcome", "delta_m", "train", "train_single_tasks"]


def __getattr__(name: str) -> object:
    """Training is imported on first use: a report needs delta-m, and no torch."""
    if name not in __all__:
        raise AttributeError(f"module 'mtlbench.protocol' has no attribute {name!r}")
    return getattr(importlib.import_module("mtlbench.protocol.training"), name)
