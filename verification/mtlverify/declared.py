"""What a package declares with a decorator, read from its source: nothing is imported to list it.

A law is known by the id in ``@law("id", ...)``, a problem by the name in ``@problem("name")``. The definition is the
only place where the name stands.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from mtlcore.hosting import spec_without_import


def declared(package: str, decorator: str) -> Iterator[tuple[str, dict[str, str], str]]:
    """(first argument, literal keywords, "module:object") of everything decorated so in a module or package."""
    for module, path in _modules(package):
        for node in _decorated(path):
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and _name(call.func) == decorator:
                    keywords = {k.arg: k.value.value for k in call.keywords if k.arg and _is_text(k.value)}  # type: ignore[attr-defined]
                    for argument in call.args:
                        if _is_text(argument):
                            yield argument.value, keywords, f"{module}:{node.name}"  # type: ignore[attr-defined]


def declared_laws(package: str) -> Iterator[tuple[str, str]]:
    """(name, target) of every law in a module or package, as the hook ``mtlcore_register_laws`` takes them."""
    for id, keywords, target in declared(package, "law"):
        kind = keywords.get("kind", "aggregator")
        yield id if kind == "aggregator" else f"{kind}.{id}", target


def declared_problems(package: str) -> Iterator[tuple[str, str]]:
    """(name, target) of every problem, as the hook ``mtlcore_register_problems`` takes them."""
    for name, _, target in declared(package, "problem"):
        yield name, target


def _modules(package: str) -> list[tuple[str, Path]]:
    spec, _ = spec_without_import(package)
    if spec is None:
        return []
    if not spec.submodule_search_locations:
        return [(package, Path(spec.origin or ""))]
    folders = [Path(p) for p in spec.submodule_search_locations]
    return [(f"{package}.{file.stem}", file) for folder in folders for file in sorted(folder.glob("[!_]*.py"))]


@functools.cache
def _decorated(path: Path) -> tuple[ast.FunctionDef | ast.ClassDef, ...]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return tuple(n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.decorator_list)


def _name(function: ast.expr) -> str:
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


def _is_text(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
