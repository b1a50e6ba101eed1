"""`import mtlcore` is nearly free beside `import torch`, and `mtl list` is quicker than that."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """An environment in which Python keeps the code that it has compiled, as it does for every installed package."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env = {**kept, "PYTHONPYCACHEPREFIX": str(tmp_path_factory.mktemp("compiled"))}
    subprocess.run([sys.executable, "-m", "mtlcore", "list"], capture_output=True, check=True, env=env)
    return env


ADDED, LISTED = 0.2, 1.2
"""As shares of what `import torch` takes in the same run: seconds would tell machines apart, not versions.
`mtl list` may take what were two seconds where torch took 1.7."""


def least(measure, bound: float, runs: int = 3) -> float:
    """The least of at most so many measurements; the first that keeps the bound is enough: noise only ever adds."""
    found = math.inf
    for _ in range(runs):
        found = min(found, measure())
        if found < bound:
            break
    return found


def test_mtlcore_adds_little_to_torch(compiled):
    program = (
        "import time; start = time.process_time(); import torch; t = time.process_time()\n"
        "import mtlcore; mtlcore.MultiTask, mtlcore.aggregate\n"
        "print((time.process_time() - t) / (t - start))"
    )

    def added():
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=compiled)
        return float(done.stdout)

    share = least(added, ADDED)  # the first one may also compile
    assert share < ADDED, f"import mtlcore and its classes adds {share:.0%} to import torch"


def spent(env, *arguments):
    """Seconds of the processor: the tests run two at a time."""
    start = os.times()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True, env=env)
    end = os.times()
    return end.children_user - start.children_user + end.children_system - start.children_system


def test_mtl_list_is_quick(compiled):
    """It imports no torch, nor anything as large. The target is a second on a fast machine, where torch takes 1.5."""

    def share():
        return spent(compiled, "-m", "mtlcore", "list") / spent(compiled, "-c", "import torch")

    assert least(share, LISTED) < LISTED
