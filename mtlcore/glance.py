"""What a plugin is, in one line, without importing it: from the source text where it is registered lazily."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys

from mtlcore.discovery import BUILT_IN, extra_of
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
        value = _declared(module, name, "needs", _DEEP)
        if isinstance(value, ast.FunctionDef):
            return "depends"  # on its hyper-parameters
        return value.attr.lower() if isinstance(value, ast.Attribute) else ""
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


def _declared(module: str, name: str, attribute: str, deep: int) -> ast.expr | ast.FunctionDef | None:
    """What a class or the nearest of its bases says of an attribute: its value, or the function that computes it."""
    home, node = _node(module, name)
    if not isinstance(node, ast.ClassDef) or deep == 0:
        return None
    for statement in node.body:
        target: ast.expr | None = statement.target if isinstance(statement, ast.AnnAssign) else None
        if isinstance(statement, ast.Assign):
            target = statement.targets[0]
        value = getattr(statement, "value", None)
        if isinstance(target, ast.Name) and target.id == attribute and value is not None:
            return value  # type: ignore[no-any-return]
        if isinstance(statement, ast.FunctionDef) and statement.name == attribute:
            return statement
    for base in node.bases:
        if isinstance(base, ast.Name) and (found := _declared(home, base.id, attribute, deep - 1)):
            return found
    return None


def packages(entry: Entry) -> dict[str, str]:
    """The packages that only some of its options need, each with these options: what its class calls ``packages``."""
    if entry.status != "ok" or SHAPES.get(entry.kind) is None or SHAPES[entry.kind].base == "":
        return {}
    try:
        if isinstance(entry.target, str):
            module, _, name = entry.target.partition(":")
            value = _declared(module, name, "packages", _DEEP)
            found = {} if value is None or isinstance(value, ast.FunctionDef) else ast.literal_eval(value)
        else:
            found = getattr(entry.target, "packages", {})
        return {one_line(package): one_line(options) for package, options in dict(found).items()}
    except Exception:  # whoever says nonsense there needs nothing
        return {}


def installed(package: str) -> bool:
    """Whether it can be imported; it is not."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # of a submodule, or no name of a module
        return False


def pip_line(entry: Entry, package: str) -> str:
    """How to install it: by an extra of ours for a built-in plugin."""
    extra = extra_of(package) if entry.distribution == BUILT_IN else None
    return f"pip install {package}" if extra is None else f"pip install 'mtlcore[{extra}]'"


def missing_packages(kind: str) -> tuple[str, ...]:
    """The packages that are not installed and without which the built-in plugins of this kind cannot be used."""
    return tuple(name for name in SHAPES[kind].needs if not installed(name))
