"""Which methods have an entry in the ledger, and with which hyper-parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from mtlcore import available, create
from mtlverify.law import KINDS

VARIANTS: dict[tuple[str, str], tuple[dict[str, Any], ...]] = {
    ("aggregator", "bilb4mtl"): ({"lamb": 1.0, "pareto_safe": False}, {"discrepancy": "all-pairs"}),
    ("aggregator", "cagrad"): ({"c": 1.0},),
    ("aggregator", "emtl"): ({"form": "exact"},),
    ("aggregator", "fairgrad"): ({"alpha": 2.0},),
    ("aggregator", "gradops"): ({"project": "always"},),
    ("aggregator", "mgda"): ({"normalize": "l2"},),
    ("explorer", "pamal"): ({"balance": "gradnorm"},),
    ("explorer", "phn"): ({"balance": "epo"},),
}
"""Hyper-parameters, beside the defaults, under which a method obeys other laws."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A method with hyper-parameters.

    Args:
        kind: "aggregator", "detector" or "teleport".
        name: registered name.
        options: hyper-parameters that differ from the defaults.
    """

    kind: str
    name: str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def label(self) -> str:
        """``cagrad`` or ``cagrad (c=1)``."""
        shown = ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in self.options)
        return self.name + (f" ({shown})" if shown else "")

    @property
    def slug(self) -> str:
        """For file names: ``aggregator.cagrad.c-1``."""
        parts = [f"{k}-{v:g}" if isinstance(v, float) else f"{k}-{v}" for k, v in self.options]
        return ".".join([self.kind, self.name, *parts])

    def make(self) -> Any:
        """The plugin."""
        return create(self.kind, self.name, **dict(self.options))


def subjects(names: Iterable[str] = ()) -> list[Subject]:
    """All registered plugins of the kinds that laws speak about (or those named), and their variants."""
    wanted = set(names)
    found = []
    for kind in KINDS:
        for name in available(kind):
            if wanted and name not in wanted:
                continue
            found.append(Subject(kind, name))
            found += [Subject(kind, name, tuple(v.items())) for v in VARIANTS.get((kind, name), ())]
    return found
