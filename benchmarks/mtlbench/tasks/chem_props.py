"""Properties of molecules from tables of the literature: sixteen regressions with most labels missing."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.feature_extraction.text import HashingVectorizer
from torch import Tensor, nn

from mtlbench.data.sources import locate
from mtlbench.tasks.base import Budget, Split, Splits
from mtlbench.tasks.regression import RegressionTask

_SEED = 20_209
_SHARES = {"train": 0.6, "validation": 0.15, "test": 0.25}
_WIDTH = 512
_CRC, _YAWS, _HEATS = "Physical Constants of Organic Compounds.csv", "Yaws Collection.tsv", "Yaws Hf S0 (g).tsv"
_BOOK, _VAPOUR = "webbook_constants.tsv", "Ghazerati Appendix Vaporization Enthalpy.tsv"
_NAMES = "chemical identifiers pubchem large.tsv"


class _Property(NamedTuple):
    table: str
    column: str
    unit: str
    factor: float = 1.0


_PROPERTIES = {
    "melting-point": _Property(_CRC, "Tm", "K"),
    "boiling-point": _Property(_CRC, "Tb", "K"),
    "density": _Property(_CRC, "rho", "kg/m^3"),
    "refractive-index": _Property(_CRC, "RI", ""),
    "critical-temperature": _Property(_YAWS, "Tc", "K"),
    "critical-pressure": _Property(_YAWS, "Pc", "bar", 1e-5),
    "critical-volume": _Property(_YAWS, "Vc", "cm^3/mol", 1e6),
    "acentric-factor": _Property(_YAWS, "omega", ""),
    "formation-gas": _Property(_HEATS, "Hfg", "kJ/mol", 1e-3),
    "entropy-gas": _Property(_HEATS, "S0g", "J/(mol K)"),
    "vaporisation": _Property(_VAPOUR, "Hvap298", "kJ/mol", 1e-3),
    "formation-liquid": _Property(_BOOK, "Hfl", "kJ/mol", 1e-3),
    "formation-solid": _Property(_BOOK, "Hfs", "kJ/mol", 1e-3),
    "sublimation": _Property(_BOOK, "Hsub", "kJ/mol", 1e-3),
    "entropy-solid": _Property(_BOOK, "S0s", "J/(mol K)"),
    "entropy-liquid": _Property(_BOOK, "S0l", "J/(mol K)"),
}


@dataclasses.dataclass(frozen=True)
class ChemProps(RegressionTask):
    """Each molecule has 2 to 16 of the labels. A sub-task without labels in a batch is absent from the step.

    [choice] A molecule's inputs are the counts of all pieces of one to three characters of its SMILES string, hashed to
    512 columns, in logarithms: no chemistry toolkit is needed, and a fingerprint would give lower errors. Labels are
    clipped at the 2.5 and 97.5 percentiles of the training part: the tables are compilations, some of their values are
    estimates, and a few of those are absurd (critical temperatures of 20,000 K).
    """

    title = "Chem-Props: sixteen properties of molecules, most labels missing"
    about = (
        "Real values of the literature (from the chemicals package) for molecules with two known properties or more. "
        "Labels are missing, and tasks have from about 200 to about 6,000 of them."
    )
    sources = ("chem-props",)

    @property
    def units(self) -> Mapping[str, str]:
        """Units of the sixteen errors."""
        return {name: found.unit for name, found in _PROPERTIES.items()}

    def scale(self, task: str) -> float:
        """Standard deviation over the training molecules that have the label."""
        return _load()[1][task]

    @property
    def budget(self) -> Budget:
        """Several seconds of one core."""
        return Budget(steps=300, batch_size=256, learning_rate=2e-3, evaluations=10)

    def has_labels(self, task: str, target: Tensor) -> bool:
        """Whether some molecule has one; missing labels are NaN."""
        return bool((~target.isnan()).any())

    def loss(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """Mean squared error of the molecules that have a label."""
        known = ~target.isnan()
        return super().loss(task, output[known], target[known])

    def tally(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """(sum of absolute errors, count) of the molecules that have a label."""
        known = ~target.isnan()
        return super().tally(task, output[known], target[known])

    def load(self) -> Splits:
        """The three parts."""
        return _load()[0]

    def trunk(self) -> nn.Module:
        """(N, 512) -> (N, 32)."""
        return nn.Sequential(nn.Dropout(0.1), nn.Linear(_WIDTH, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())

    def head(self, task: str) -> nn.Module:
        """A linear read-out."""
        return nn.Linear(32, 1)


def _smiles(path: Path) -> dict[str, str]:
    """{CAS number: SMILES}; the lines have as many fields as a molecule has names."""
    with path.open(encoding="utf-8") as file:
        fields = (line.split("\t", 5) for line in file)
        return {row[1]: row[4] for row in fields}


def _with_dashes(number: str) -> str:
    """A CAS number as the other tables write it."""
    return number if "-" in number else f"{number[:-3]}-{number[-3:-1]}-{number[-1]}"


def _labels(files: Mapping[str, Path]) -> pd.DataFrame:
    """(molecules, 16), by CAS number; NaN where a property is not known."""
    columns = {}
    for name, what in _PROPERTIES.items():
        table = pd.read_csv(files[what.table], sep="\t", usecols=["CAS", what.column], dtype={"CAS": str})
        values = table.dropna().assign(CAS=lambda t: t["CAS"].map(_with_dashes)).groupby("CAS")[what.column].mean()
        columns[name] = values * what.factor
    return pd.DataFrame(columns)


@functools.cache
def _load() -> tuple[Splits, dict[str, float]]:
    files = {path.name: path for path in locate("chem-props").values()}
    smiles = _smiles(files[_NAMES])
    labels = _labels(files)
    labels = labels[(labels.notna().sum(axis=1) >= 2) & labels.index.isin(smiles)].sort_index()
    pieces = HashingVectorizer(
        analyzer="char", ngram_range=(1, 3), lowercase=False, n_features=_WIDTH, alternate_sign=False, norm=None
    )
    counts = np.log1p(pieces.transform([smiles[cas] for cas in labels.index]).toarray())
    order = np.random.default_rng(_SEED).permutation(len(labels))
    edges = np.floor(np.cumsum([0.0, *_SHARES.values()]) * len(labels)).astype(int)
    rows = {part: order[a:b] for part, a, b in zip(_SHARES, edges[:-1], edges[1:])}
    values = labels.to_numpy(np.float64)
    train = values[rows["train"]]
    values = np.clip(values, *np.nanpercentile(train, [2.5, 97.5], axis=0))
    mean, std = np.nanmean(values[rows["train"]], axis=0), np.nanstd(values[rows["train"]], axis=0)
    middle, spread = counts[rows["train"]].mean(axis=0), counts[rows["train"]].std(axis=0)
    x = torch.from_numpy(np.clip((counts - middle) / np.where(spread > 0, spread, 1.0), -6.0, 6.0)).float()
    y = torch.from_numpy((values - mean) / std).float()
    parts = {
        part: Split(x[index], {name: y[index, i].clone() for i, name in enumerate(_PROPERTIES)}, index)
        for part, index in rows.items()
    }
    return Splits(**parts), dict(zip(_PROPERTIES, map(float, std)))
