"""``mtl new-plugin``: a package that installs, registers, verifies and passes its tests from the first minute."""

from __future__ import annotations

import keyword
import os
import re
import shutil
import tempfile
from pathlib import Path

from mtlcore.errors import ConfigurationError
from mtlcore.registry import registry

_PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "mtlcore-{name}"
version = "0.1.0"
description = "{kind} {name!r} for mtlcore"
requires-python = ">=3.10"
dependencies = ["mtlcore"]

[project.optional-dependencies]
test = ["mtlcore[verify]", "pytest"]

[project.entry-points.mtlcore]
{module} = "{module}"

[tool.setuptools.packages.find]
include = ["{module}*"]
"""

_REGISTRATION = """\
\"\"\"What this package adds to mtlcore. The class is imported on first use only.\"\"\"

from mtlcore import hookimpl


@hookimpl
def mtlcore_register_{kind}s(register):
    register("{name}", "{module}.method:{cls}")
"""

_AGGREGATOR = """\
\"\"\"{name}: weights inversely proportional to the gradient norms. Replace it with your own method.\"\"\"

from dataclasses import dataclass
from typing import ClassVar

import torch

from mtlcore import Aggregation, Aggregator, Needs, number


@dataclass(frozen=True)
class {cls}(Aggregator):
    \"\"\"w_i = |g_i|^(-power), scaled to mean 1 (a task with a zero gradient gets weight 0).\"\"\"

    power: float = number(1.0, low=0.0, high=2.0)

    needs: ClassVar[Needs] = Needs.GRAMIAN
    claims: ClassVar[frozenset[str]] = frozenset({{"permutation-equivariant", "conic-combination"}})

    def aggregate(self, view, state):
        norm = view.gramian.diagonal().sqrt()
        # Relative to the largest norm, so that gradients of any scale are treated alike.
        relative = norm / norm.max() if norm.max() > 0 else torch.ones_like(norm)
        weights = torch.where(relative > 0, relative ** -self.power, torch.zeros_like(relative))
        return Aggregation(weights=weights / weights.mean(), state=state)
"""

_DETECTOR = """\
\"\"\"{name}: more than a share of the task pairs point apart. Replace it with your own rule.\"\"\"

from dataclasses import dataclass
from typing import ClassVar

from mtlcore import Conflict, ConflictDetector, number


@dataclass(frozen=True)
class {cls}(ConflictDetector):
    \"\"\"Conflicting iff more than ``share`` of the pairs have a negative cosine.\"\"\"

    share: float = number(0.0, low=0.0, high=1.0)

    claims: ClassVar[frozenset[str]] = frozenset()

    def detect(self, view):
        pairs = view.gramian < 0
        k = view.n_tasks
        severity = float(pairs.sum()) / max(k * (k - 1), 1)
        return Conflict(
            conflicting=severity > self.share,
            severity=severity,
            pairs=pairs,
            dominated=pairs.new_zeros(k),
        )
"""

_TELEPORT = """\
\"\"\"{name}: a small random jump. Replace it with your own teleport.\"\"\"

from dataclasses import dataclass
from typing import ClassVar

import torch

from mtlcore import Displacement, TeleportStrategy, number


@dataclass(frozen=True)
class {cls}(TeleportStrategy):
    \"\"\"Move every parameter by ``size`` times its norm in a random direction.

    The transaction around it keeps the jump only if no task's loss moved and the conflict became less.
    \"\"\"

    size: float = number(1e-3, low=0.0, open_low=True)

    exact: ClassVar[bool] = False

    def propose(self, problem, generator):
        moved = {{}}
        for name, parameter in problem.parameters().items():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64, device="cpu")
            step = self.size * noise / noise.norm()
            moved[name] = parameter.detach() + step.to(parameter) * parameter.detach().norm()
        return Displacement(parameters=moved)
"""

_TEST = """\
\"\"\"The method is found and keeps what it claims.\"\"\"

import mtlcore
from mtlverify import check


def test_is_registered():
    assert "{name}" in mtlcore.available("{kind}")


def test_is_the_one_of_this_package():
    assert type(mtlcore.create("{kind}", "{name}")).__module__ == "{module}.method"


def test_laws():
    results = list(check(mtlcore.create("{kind}", "{name}"), max_examples=20))
    assert results
    assert not [r for r in results if r.failed]
"""

_README = """\
# mtlcore-{name}

The {kind} `{name}` for mtlcore.

    pip install -e .
    mtl list --kind {kind}
    mtl verify {name}
    pytest
"""

_METHODS = {"aggregator": _AGGREGATOR, "detector": _DETECTOR, "teleport": _TELEPORT}


def create_package(name: str, kind: str, directory: Path) -> Path:
    """Write the package ``mtlcore-NAME`` into ``directory``; all of it or nothing.

    The class is called after the method, as in ``InverseNormMethod``: no name that its module imports ends like this.

    Raises:
        ConfigurationError: a bad or taken name, a bad kind, or a folder that exists already or cannot be made.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ConfigurationError(f"{name!r} is not a lower-case kebab name such as 'my-method'.")
    if kind not in _METHODS:
        raise ConfigurationError(f"kind {kind!r}: choose one of {', '.join(_METHODS)}.")
    if keyword.iskeyword(name) or keyword.iskeyword(name.capitalize()):
        raise ConfigurationError(f"{name!r} is a word of Python; choose another name.")
    for taken in (e for k in _METHODS for e in registry().entries(k) if e.name == name):
        raise ConfigurationError(f"{taken.kind} {name!r} exists already, in distribution {taken.provenance!r}.")
    module = "mtlcore_" + name.replace("-", "_")
    target = directory / f"mtlcore-{name}"
    if target.exists():
        raise ConfigurationError(f"{target} exists already; nothing was written.")
    cls = "".join(p.capitalize() for p in (*name.split("-"), "method"))
    fill = {"name": name, "kind": kind, "module": module, "cls": cls}
    files = {
        "pyproject.toml": _PYPROJECT,
        "README.md": _README,
        f"{module}/__init__.py": _REGISTRATION,
        f"{module}/method.py": _METHODS[kind],
        f"tests/test_{module}.py": _TEST,
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".mtlcore-{name}-", dir=directory))
    except OSError as error:
        raise ConfigurationError(f"nothing can be written into {str(directory)!r}: {error.strerror}.") from error
    try:
        for path, text in files.items():
            file = scratch / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text.format(**fill), encoding="utf-8")
        scratch.chmod(0o755)
        os.rename(scratch, target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return target
