"""What a plugin is, in one line, without importing it: from the source text where it is registered lazily."""

from __future__ import annotations

import ast
import re
import sys
from typing import Any

from mtlcore.discovery import BUILT_IN
from mtlcore.hookspecs import SHAPES
from mtlcore.registry import Entry
from mtlcore.safety import one_line
from mtlcore.soundness import spec_without_import, tree_of

_TAG = re.compile(r"\s*\[[^\[\]]*\b(?:paper|code|choice|memory|textbook)\b[^\[\]]*\]")
"""Where a sentence comes from: [paper], [code], ..."""
_END = re.compile(r"(?<!\bal)\.\s")
"""Of a sentence."""
_DEEP = 4
"""Base classes that are followed to find ``needs``."""


def description(entry: Entry) -> str:
    """The first sentence of its docstring, or the statement of a law; "" where there is none.

    The docstring of a class often begins with an equation. A module that holds one plugin says in words what it is:
    that sentence is taken for built-in methods, and for others where it begins with the plugin's name and a colon.
    """
    try:
        if isinstance(entry.target, str):
            module, _, name = entry.target.partition(":")
            tree = _tree(_node(module, name)[0])
            found = _lazy_description(module, name)
            words = "" if tree is None else ast.get_docstring(tree) or ""
        else:
            target = entry.target
            told = (getattr(target, part, None) for part in ("statement", "title", "__doc__"))
            found = next((text for text in told if isinstance(text, str) and text), "")
            words = getattr(sys.modules.get(getattr(target, "__module__", "")), "__doc__", None) or ""
        found = _in_words(words, entry) or found
    except Exception:  # without a readable source there is no description
        return ""
    if entry.kind == "command":
        found = re.sub(r"^`+[^`]*`+:\s*", "", found.strip())
        found = found[:1].upper() + found[1:]
    first = _TAG.sub("", one_line(found.strip().split("\n\n")[0])).replace("``", "")
    return _END.split(first)[0].removesuffix(".")


def _in_words(text: str, entry: Entry) -> str:
    """A module's docstring without "NAME: " at its beginning; "" where it may be about something else."""
    if entry.kind in ("law", "command", "task"):
        return ""
    label, colon, rest = text.replace("``", "").partition(": ")
    if colon and label.lower() == entry.name:
        return rest[:1].upper() + rest[1:]
    method = SHAPES[entry.kind].base != "" and entry.distribution == BUILT_IN
    return text if method else ""


def needs(entry: Entry) -> str:
    """What it reads of the gradients: "losses", "gramian" or "jacobian"; "" where nothing says so."""
    if entry.status != "ok" or SHAPES.get(entry.kind) is None or SHAPES[entry.kind].base == "":
        return ""
    try:
        if not isinstance(entry.target, str):
            return getattr(getattr(entry.target, "needs", None), "name", "").lower()
        module, _, name = entry.target.partition(":")
        return _lazy_needs(module, name, _DEEP).lower()
    except Exception:
        return ""


def _tree(module: str) -> ast.Module | None:
    spec, _ = spec_without_import(module)
    return None if spec is None else tree_of(spec, module)


def _node(module: str, name: str) -> tuple[str, ast.ClassDef | ast.FunctionDef | None]:
    """The definition of a name, in this module or in the one that it is imported from."""
    tree = _tree(module)
    for node in [] if tree is None else tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                if (alias.asname or alias.name) == name and node.module != module:
                    return _node(node.module, alias.name)
    return module, None


def _lazy_description(module: str, name: str) -> str:
    _, node = _node(module, name)
    if node is None:  # an application, say: what its module says
        tree = _tree(module)
        return "" if tree is None else ast.get_docstring(tree) or ""
    for decorator in node.decorator_list:
        for keyword in decorator.keywords if isinstance(decorator, ast.Call) else ():
            if keyword.arg == "statement" and isinstance(keyword.value, ast.Constant):
                return str(keyword.value.value)
    titles = [s.value for s in node.body if isinstance(s, ast.Assign) and ast.unparse(s.targets[0]) == "title"]
    if titles and isinstance(titles[0], ast.Constant):  # a benchmark task's
        return str(titles[0].value)
    return ast.get_docstring(node) or ""


def _lazy_needs(module: str, name: str, deep: int) -> str:
    home, node = _node(module, name)
    if not isinstance(node, ast.ClassDef) or deep == 0:
        return ""
    for statement in node.body:
        target: ast.expr | None = statement.target if isinstance(statement, ast.AnnAssign) else None
        if isinstance(statement, ast.Assign):
            target = statement.targets[0]
        value = getattr(statement, "value", None)
        if isinstance(target, ast.Name) and target.id == "needs" and isinstance(value, ast.Attribute):
            return value.attr
        if isinstance(statement, ast.FunctionDef) and statement.name == "needs":
            return "depends"  # on its hyper-parameters
    for base in node.bases:
        if isinstance(base, ast.Name) and (found := _lazy_needs(home, base.id, deep - 1)):
            return found
    return ""


def missing_packages(kind: str) -> tuple[str, ...]:
    """The packages that are not installed and without which the built-in plugins of this kind cannot be used."""
    import importlib.util

    shape: Any = SHAPES[kind]
    return tuple(name for name in shape.needs if importlib.util.find_spec(name) is None)
