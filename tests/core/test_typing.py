"""A project that uses mtlcore is checked by mypy in strict mode, and gets real types."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONSUMER = """
from dataclasses import dataclass
from typing import ClassVar

import mtlcore
from mtlcore import Aggregation, Aggregator, Needs, StepView, choice, flag, integer, number, vector


@dataclass(frozen=True)
class Mine(Aggregator):
    power: float = number(1.0, low=0.0)
    window: int = integer(3, low=1)
    mode: str = choice("a", ["a", "b"])
    safe: bool = flag(True)
    weights: tuple[float, ...] | None = vector(None)
    needs: ClassVar[Needs] = Needs.GRAMIAN

    def aggregate(self, view: StepView, state: dict[str, "torch.Tensor"]) -> Aggregation:
        return Aggregation(weights=view.losses**self.power, state=state)


import torch

reveal_type(mtlcore.create("aggregator", "ls"))
reveal_type(mtlcore.create("detector", "cosine"))
reveal_type(mtlcore.create("teleport", "lora"))
reveal_type(mtlcore.available("aggregator"))
reveal_type(Mine().power)
"""
WRONG = """
from dataclasses import dataclass
from mtlcore import Aggregator, number


@dataclass(frozen=True)
class Wrong(Aggregator):
    power: str = number(1.0)
"""


def mypy(path) -> str:
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--config-file=", path.name]
    env = {**os.environ, "MYPYPATH": str(ROOT)}  # mypy does not follow an editable install
    return subprocess.run(command, capture_output=True, text=True, cwd=path.parent, env=env, check=False).stdout


@pytest.mark.slow  # mypy reads all of torch
def test_a_consumer_type_checks(tmp_path):
    (tmp_path / "consumer.py").write_text(CONSUMER)
    found = mypy(tmp_path / "consumer.py")
    kinds = ("mtlcore.contracts.Aggregator", "mtlcore.contracts.ConflictDetector", "mtlcore.contracts.TeleportStrategy")
    revealed = re.findall(r'Revealed type is "([^"]+)"', found)
    assert [r.replace("builtins.", "") for r in revealed] == [*kinds, "list[str]", "float"], found
    assert not [line for line in found.splitlines() if "consumer.py" in line and "error:" in line], found
    (tmp_path / "wrong.py").write_text(WRONG)
    assert "Incompatible types in assignment" in mypy(tmp_path / "wrong.py")
