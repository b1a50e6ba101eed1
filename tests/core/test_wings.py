"""The wings stand on the core's public ground: see docs/reference/stability.md."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import mtlcore
from mtlcore import hosting

ROOT = Path(__file__).parents[2]
WINGS = ("plugins/mtlplugins", "verification/mtlverify", "benchmarks/mtlbench")
PUBLIC = (
    "mtlcore.errors", "mtlcore.linalg", "mtlcore.presets", "mtlcore.simplex", "mtlcore.integrations",
    "mtlcore.distributed.hook",
)  # fmt: skip
INSIDE = {
    # It times a source of gradients alone, without a step around it.
    "benchmarks/mtlbench/speed/contenders.py": {
        "mtlcore.gradients.batch.Batch", "mtlcore.gradients.task_gradients.Answer", "mtlcore.presence.Presence",
    },
    # They break the optimizer's metric on purpose, so that a law must see it.
    "verification/mtlverify/mutants/steps.py": {
        "mtlcore.geometry.whole", "mtlcore.geometry.metric.InMetric", "mtlcore.gradients.task_gradients.TaskGradients",
        "mtlcore.step.prepare",
    },
}  # fmt: skip
"""What is about the inside of a step, and takes it."""


def taken(file):
    """Every name that a file imports from the core, with its module."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


def is_public(module, name):
    if module == "mtlcore":
        return name in mtlcore.__all__ or f"mtlcore.{name}" in (*PUBLIC, "mtlcore.hosting") or not name
    if module == "mtlcore.hosting":
        return name in hosting.__all__
    # A public name may be taken from where it is written.
    written_here = name in mtlcore.__all__ and getattr(importlib.import_module(module), name) is getattr(mtlcore, name)
    return module.startswith(PUBLIC) or written_here


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_uses_public_names_only(wing):
    private = {}
    for file in sorted((ROOT / wing).rglob("*.py")):
        found = {f"{m}.{n}" for m, n in taken(file) if m.partition(".")[0] == "mtlcore" and not is_public(m, n)}
        if found:
            private[file.relative_to(ROOT).as_posix()] = found
    assert private == {file: names for file, names in INSIDE.items() if file.startswith(wing)}


@pytest.mark.parametrize("package", [mtlcore, hosting])
def test_a_type_checker_sees_every_public_name(package):
    """One that it does not see is Any, without a word: ``ask`` was."""
    tree = ast.parse(Path(package.__file__).read_text())
    (block,) = [n for n in tree.body if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING"]
    told = {a.asname for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    told |= {n.targets[0].id for n in block.body if isinstance(n, ast.Assign)}
    assert set(package.__all__) - {"__version__"} <= told


def test_every_public_name_of_a_host_is_there():
    for name in hosting.__all__:
        assert getattr(hosting, name) is not None
    with pytest.raises(AttributeError, match="'mtlcore.hosting' has no attribute 'nobody'"):
        hosting.nobody  # noqa: B018 - looked up on purpose
