"""``mtl new-plugin``: a package that installs, registers, verifies or runs, and passes its tests from the first minute.

The files are in ``templates/``; ``${name}`` and the like are filled in.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import keyword
import os
import shutil
import string
import tempfile
from pathlib import Path

from mtlcore.errors import ConfigurationError, did_you_mean
from mtlcore.hookspecs import KINDS
from mtlcore.registry import registry
from mtlcore.safety import shown
from mtlcore.soundness import is_name


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a package of one kind is made.

    Args:
        file: the module that holds the plugin.
        ending: of its class's name, so that no name that the module imports is the same; "" for a function.
        test: the template of its tests.
        next: the command to try first.
        extra: what it needs of mtlcore.
        object: the name in the module that is registered; "" for the class or function named after the plugin.
        more: further files: path in the package -> template.
    """

    file: str
    ending: str
    test: str
    next: str
    extra: str = ""
    object: str = ""
    more: dict[str, str] = dataclasses.field(default_factory=dict)


RECIPES = {
    "aggregator": Recipe("method", "method", "method_test", "mtl verify {name}"),
    "detector": Recipe("method", "method", "method_test", "mtl verify {name}"),
    "teleport": Recipe("method", "method", "method_test", "mtl verify {name}"),
    "explorer": Recipe("method", "method", "explorer_test", "mtl verify {name}"),
    "merger": Recipe("method", "method", "method_test", "mtl verify {name}"),
    "law": Recipe("law", "", "law_test", "mtl show --law {name}", "[verify]"),
    "family": Recipe("family", "", "family_test", "mtl verify upgrad --claimed", "[verify]"),
    "network": Recipe("network", "", "network_test", "mtl verify relu-rescaling --claimed", "[verify]"),
    "problem": Recipe("problem", "problem", "problem_test", "mtl verify {name} --kind problem", "[verify]"),
    "task": Recipe(
        "task", "task", "task_test", "mtl bench run {folder}/suite.toml", "[bench]", more={"suite.toml": "suite.toml"}
    ),
    "command": Recipe("command", "", "command_test", "mtl {name}", object="app"),
}


def next_step(kind: str, name: str, folder: Path | str = ".") -> str:
    """The command to try first, once the package is installed."""
    return RECIPES[kind].next.format(name=name, folder=folder)


def create_package(name: str, kind: str, directory: Path) -> Path:
    """Write the package ``mtlcore-NAME`` into ``directory``; all of it or nothing.

    The class is called after the plugin, as in ``InverseNormMethod``: no name that its module imports ends like this.

    Raises:
        ConfigurationError: a bad or taken name, a bad kind, or a folder that exists already or cannot be made.
    """
    _refuse(name, kind)
    target = directory / f"mtlcore-{name}"
    if target.exists():
        raise ConfigurationError(f"{target} exists already; nothing was written.")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".mtlcore-{name}-", dir=directory))
    except OSError as error:
        raise ConfigurationError(f"nothing can be written into {str(directory)!r}: {error.strerror}.") from error
    try:
        for path, text in _files(name, kind).items():
            file = scratch / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        scratch.chmod(0o755)
        os.rename(scratch, target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return target


def _refuse(name: str, kind: str) -> None:
    if not is_name(name):
        raise ConfigurationError(f"{shown(name)} is not a lower-case kebab name such as 'my-method'.")
    if kind not in RECIPES:
        hint = did_you_mean(kind, RECIPES, "Please choose one of")
        raise ConfigurationError(f"there is no kind {shown(kind)}. {hint}")
    if keyword.iskeyword(name) or keyword.iskeyword(name.capitalize()):
        raise ConfigurationError(f"{name!r} is a word of Python; choose another name.")
    # A name that two kinds share would have to be explained with every command.
    for taken in (e for k in RECIPES for e in registry().entries(k) if e.name == name):
        raise ConfigurationError(f"{taken.kind} {name!r} exists already, in distribution {taken.provenance!r}.")


def _files(name: str, kind: str) -> dict[str, str]:
    recipe, module = RECIPES[kind], "mtlcore_" + name.replace("-", "_")
    cls = "".join(part.capitalize() for part in (*name.split("-"), recipe.ending))
    function = name.replace("-", "_")
    fill = {
        "name": name,
        "kind": kind,
        "module": module,
        "cls": cls,
        "file": recipe.file,
        "hook": KINDS[kind],
        "object": recipe.object or (cls if recipe.ending else function),
        "extra": recipe.extra,
        "next": next_step(kind, name),
    }
    files = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{module}/__init__.py": "registration.py",
        f"{module}/{recipe.file}.py": f"{kind}.py",
        f"tests/test_{module}.py": f"{recipe.test}.py",
        **recipe.more,
    }
    return {path: _filled(template, fill) for path, template in files.items()}


def _filled(template: str, fill: dict[str, str]) -> str:
    text = importlib.resources.files("mtlcore").joinpath("templates", f"{template}.txt").read_text(encoding="utf-8")
    return string.Template(text).substitute(fill)
