"""What is wrong with a plugin, in words: its hooks, what it registers, and the errors that come out of it.

Nothing here imports torch, or the plugin: "module:Class" is looked at as source text.
"""

from __future__ import annotations

import ast
import difflib
import importlib.machinery
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Set
from typing import Any

import pluggy

from mtlcore import hookspecs
from mtlcore.hookspecs import PROJECT

HOOKS = {name: function for name, function in vars(hookspecs).items() if name.startswith("mtlcore_")}


def fault(kind: str, name: Any, target: Any) -> str | None:
    """What is wrong with ``register(name, target)``, as far as can be seen without importing anything."""
    if not isinstance(name, str) or not name or name != name.strip().lower() or " " in name or "_" in name:
        return f"register({name!r}, ...): a name is a non-empty lower-case kebab string such as 'my-method'"
    if isinstance(target, str):
        return _lazy_fault(target)
    return loaded_fault(kind, target)


BASES = {"aggregator": "Aggregator", "detector": "ConflictDetector", "teleport": "TeleportStrategy"}


def loaded_fault(kind: str, target: Any) -> str | None:
    """What is wrong with a class, or another object, that is there."""
    if kind not in BASES:
        return None
    from mtlcore import contracts  # only reached with a real class, which has imported torch already

    base = getattr(contracts, BASES[kind])
    if not isinstance(target, type) or not issubclass(target, base):
        shown = target.__qualname__ if isinstance(target, type) else repr(target)
        return f"{shown} is not a subclass of mtlcore.{base.__name__}"
    missing = sorted(getattr(target, "__abstractmethods__", ()))
    if missing:
        return f"{target.__qualname__} does not implement {', '.join(missing)}"
    own = [name for name, kind_of in inspect.get_annotations(target).items() if "ClassVar" not in str(kind_of)]
    if own and "__dataclass_fields__" not in target.__dict__:
        return f"{target.__qualname__} has fields ({', '.join(own)}) but is not decorated with @dataclass(frozen=True)"
    return declared_fault(target)


def declared_fault(plugin: Any) -> str | None:
    """What is wrong with ``needs`` or ``claims`` of a plugin, or of its class as far as they are no properties.

    A string is a collection, too: ``claims = "non-conflicting"`` would go unnoticed until somebody subtracts sets.
    """
    from mtlcore.contracts import Needs

    cls = plugin if isinstance(plugin, type) else type(plugin)
    needs: Any = getattr(plugin, "needs", Needs.GRAMIAN)
    claims: Any = getattr(plugin, "claims", frozenset())
    if not isinstance(needs, (Needs, property)):
        return f"{cls.__qualname__}.needs is {needs!r}; it must be {' or '.join(f'Needs.{n.name}' for n in Needs)}"
    if isinstance(claims, property) or (isinstance(claims, Set) and all(isinstance(c, str) for c in claims)):
        return None
    return f"{cls.__qualname__}.claims is {claims!r}; it must be a frozenset of law ids: frozenset({{'scale-free'}})"


def _lazy_fault(target: str) -> str | None:
    """Check "module:Class" by reading the module's source, without running it."""
    module, colon, attribute = target.partition(":")
    if not colon or not attribute or not module:
        return f"{target!r} is not of the form 'module:Class'"
    spec, fault = spec_without_import(module)
    if fault is not None:
        return fault
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return _source_fault(spec, module, attribute)


def spec_without_import(module: str) -> tuple[importlib.machinery.ModuleSpec | None, str | None]:
    """Find a module's file. Unlike ``importlib.util.find_spec`` this never imports the parent packages."""
    path: Any = None
    spec = None
    parts = module.split(".")
    for depth in range(len(parts)):
        name = ".".join(parts[: depth + 1])
        loaded = sys.modules.get(name)
        if depth == 0:
            try:
                spec = importlib.util.find_spec(name)
            except (ImportError, ValueError) as error:
                return None, describe(error)
        elif loaded is not None and getattr(loaded, "__spec__", None) is not None:
            spec = loaded.__spec__
        else:
            spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None:
            return None, f"ModuleNotFoundError: No module named {name!r}"
        path = spec.submodule_search_locations
        if depth + 1 < len(parts) and path is None:
            return None, f"ModuleNotFoundError: {name!r} is not a package"
    return spec, None


_WRITERS = frozenset({"*", "__getattr__", "exec", "globals", "locals", "setattr", "vars"})
"""What may give a module a name that its source does not show."""


def _source_fault(spec: importlib.machinery.ModuleSpec, module: str, attribute: str) -> str | None:
    try:
        # The loader's own reading: it knows zip files, byte-order marks and declared encodings.
        read = getattr(spec.loader, "get_source", None)
        source = None if read is None else read(module)
        tree = None if source is None else ast.parse(source, str(spec.origin))
    except (ImportError, SyntaxError, ValueError) as error:
        return f"importing {module!r}: {describe(error)}"
    if tree is None:
        return None
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names.update((a.asname or a.name).split(".")[0] for a in node.names)
        elif isinstance(node, ast.Name) and (isinstance(node.ctx, ast.Store) or node.id in _WRITERS):
            names.add(node.id)
    if attribute in names or names & _WRITERS:
        return None
    return f"AttributeError: module {module!r} has no attribute {attribute!r}"


def hook_problem(error: pluggy.PluginValidationError) -> str:
    """What is wrong with the hooks, in one line; pluggy's own words where it is neither a name nor an argument."""
    for name in dir(error.plugin):
        function = bare_hook(error.plugin, name)
        if function is None:
            continue
        options = getattr(function, f"{PROJECT}_impl")
        hook = options.get("specname") or name
        if hook in HOOKS:
            allowed = inspect.signature(HOOKS[hook]).parameters
            required = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
            if not allowed.keys() >= set(required):
                return f"{name}({', '.join(required)}): the hook takes only: {', '.join(allowed)}"
        elif not options.get("optionalhook"):
            near = difflib.get_close_matches(hook, HOOKS, n=1)
            return f"unknown hook {hook!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    return " ".join(str(error).split())


def bare_hook(module: Any, hook: str) -> Any:
    """The function of that name if it is marked as a hook, else None."""
    function = getattr(module, hook, None)
    return function if function is not None and hasattr(function, f"{PROJECT}_impl") else None


def describe(error: BaseException) -> str:
    """Type and text."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def located(error: BaseException) -> str:
    """The error with the last line of the plugin's own code that it came through: the user sees no traceback."""
    text = describe(error)
    if isinstance(error, TypeError) and "cannot inherit non-frozen dataclass" in text:
        text += "; decorate the class with @dataclass(frozen=True)"
    if isinstance(error, SyntaxError):
        return text  # it says where by itself
    machinery = ("mtlcore", "importlib", "pluggy", "contextlib")
    frames = [
        (str(frame.f_globals.get("__name__")).partition(".")[0], os.path.basename(frame.f_code.co_filename), line)
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    # The plugin is what the machinery called first; whatever comes after may be a library that it uses.
    plugin = next((package for package, _, _ in frames if package not in machinery), None)
    own = [(file, line) for package, file, line in frames if package == plugin and not file.startswith("<")]
    return f"{text} ({own[-1][0]}, line {own[-1][1]})" if own else text
