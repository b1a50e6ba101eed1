"""What the wings use of the core: see docs/reference/stability.md."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PUBLIC = {"mtlcore", "mtlcore.errors", "mtlcore.linalg", "mtlcore.integrations", "mtlcore.hookspecs"}
# Their names are in `mtlcore.__all__`, or are parts of what these names mean.
PARTS = {"mtlcore.contracts", "mtlcore.exploring", "mtlcore.hyperparameters", "mtlcore.report", "mtlcore.trajectory"}
BESIDES = {
    # A teleport's search moves the network and puts it back; an exact one is asked about its tolerance.
    "plugins/mtlplugins": {"mtlcore.snapshot", "mtlcore.teleporting"},
    "verification/mtlverify": {
        "mtlcore.asking.aggregator", "mtlcore.asking.seeds", "mtlcore.cli", "mtlcore.geometry",
        "mtlcore.geometry.metric", "mtlcore.gradients.task_gradients", "mtlcore.output",
        "mtlcore.patience", "mtlcore.registry", "mtlcore.safety", "mtlcore.soundness", "mtlcore.step",
        "mtlcore.teleporting",
    },
    "benchmarks/mtlbench": {
        "mtlcore.discovery", "mtlcore.distributed.hook", "mtlcore.gradients.batch",
        "mtlcore.gradients.task_gradients", "mtlcore.patience", "mtlcore.presence", "mtlcore.presets",
        "mtlcore.registry", "mtlcore.safety", "mtlcore.snapshot", "mtlcore.teleporting",
    },
}  # fmt: skip


@pytest.mark.parametrize("wing", BESIDES)
def test_a_wing_uses_no_more_of_the_core_than_is_listed(wing):
    used = set()
    for file in (ROOT / wing).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                used.add(node.module)
            elif isinstance(node, ast.Import):
                used |= {alias.name for alias in node.names}
    core = {module for module in used if module.partition(".")[0] == "mtlcore"}
    assert core - PUBLIC - PARTS == BESIDES[wing]
