"""A benchmark task that trains in milliseconds, and methods that misbehave on purpose. Also a script: it runs a suite
on that task in a process of its own, so that a test can kill it."""

from __future__ import annotations

import dataclasses
import io
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import nn

import mtlcore
from mtlbench import runner
from mtlbench.suite import Suite
from mtlbench.tasks.base import Budget, Split, Splits
from mtlbench.tasks.regression import RegressionTask
from mtlcore import Aggregation, Aggregator, Needs, hookimpl


@dataclasses.dataclass(frozen=True)
class Tiny(RegressionTask):
    """Two opposed linear regressions with dropout in the trunk (so that random streams matter)."""

    title = "Tiny"
    about = "Made up."
    sources = ()

    @property
    def units(self):
        return {"a": "m", "b": "s"}

    def scale(self, task):
        return 2.0

    @property
    def budget(self):
        return Budget(steps=20, batch_size=8, learning_rate=1e-2, evaluations=4)

    def load(self):
        generator = torch.Generator().manual_seed(0)
        parts = {}
        for i, name in enumerate(("train", "validation", "test")):
            x = torch.randn(48, 5, generator=generator)
            y = x.sum(dim=1)
            parts[name] = Split(x, {"a": y, "b": x[:, 0] - y}, np.arange(48) + 100 * i)
        return Splits(**parts)

    def trunk(self):
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.1))

    def head(self, task):
        return nn.Linear(8, 1)


@dataclasses.dataclass(frozen=True)
class Equal(Aggregator):
    """Sum of the gradients, from the Gramian."""

    needs = Needs.GRAMIAN

    def aggregate(self, view, state):
        return Aggregation(weights=torch.ones(view.n_tasks, dtype=torch.float64), state=state, diagnostics={"one": 1.0})


@dataclasses.dataclass(frozen=True)
class Slow(Equal):
    """The same, but slow enough to be killed in the middle."""

    def aggregate(self, view, state):
        time.sleep(0.03)
        return super().aggregate(view, state)


@dataclasses.dataclass(frozen=True)
class Breaks(Equal):
    """Raises while the environment says so."""

    def aggregate(self, view, state):
        if os.environ.get("TINY_BREAKS"):
            raise RuntimeError("broken on purpose")
        return super().aggregate(view, state)


class Plugin:
    """Registers the above, and certifies everything except what is called tiny-refuted."""

    @hookimpl
    def mtlcore_register_tasks(self, register):
        register("tiny", Tiny)

    @hookimpl
    def mtlcore_register_aggregators(self, register):
        register("tiny-equal", Equal)
        register("tiny-slow", Slow)
        register("tiny-breaks", Breaks)
        register("tiny-refuted", type("Refuted", (Equal,), {}))

    @hookimpl(tryfirst=True)
    def mtlcore_certify(self, kind, name, options):
        if not name.startswith("tiny"):
            return None
        passed = name != "tiny-refuted"
        rows = [{"law": "finite", "claimed": True, "status": "verified" if passed else "refuted", "examples": 7}]
        return {"passed": passed, "summary": "7 examples", "rows": rows}


def suite(*methods, **changes) -> Suite:
    """A suite over the tiny task."""
    base = {"name": "tiny", "title": "Tiny suite", "tasks": ["tiny"], "seeds": 2, "reference": "tiny-equal"}
    return Suite.model_validate({**base, "methods": list(methods) or ["tiny-equal", "tiny-slow"], **changes})


def quiet() -> Console:
    """A console that prints nowhere."""
    return Console(file=io.StringIO())


if __name__ == "__main__":
    mtlcore.add_plugin(Plugin(), "tiny")
    runner.run(suite(), Path(sys.argv[1]), console=quiet())
