"""What is wrong with a plugin, in words: its hooks, what it registers, and the errors that come out of it.

Nothing here imports torch, or the plugin: "module:Class" is looked at as source text.
"""

from __future__ import annotations

import ast
import enum
import functools
import importlib.machinery
import importlib.util
import inspect
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Set
from typing import Any

import pluggy

from mtlcore import hookspecs
from mtlcore.errors import nearest
from mtlcore.hookspecs import PROJECT, SHAPES
from mtlcore.safety import blame, described, one_line, plain, shown, type_name

HOOKS = {name: function for name, function in vars(hookspecs).items() if name.startswith("mtlcore_")}

LONGEST = 64
"""Characters of a name: every table, file name and record has room for so many."""
_KEBAB = r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*"


def is_name(name: Any, kind: str = "") -> bool:
    """Whether this is a name in the one form that all names have: lower-case kebab, ASCII, at most 64 characters. A law
    about another kind than aggregators has that kind before it, as in "detector.finite"."""
    form = rf"(?:{_KEBAB}\.)?{_KEBAB}" if kind == "law" else _KEBAB
    # An exact str: what inherits from it may compare as it likes.
    return type(name) is str and len(name) <= LONGEST and re.fullmatch(form, name) is not None


def fault(kind: str, name: Any, target: Any) -> str | None:
    """What is wrong with ``register(name, target)``, as far as can be seen without importing anything."""
    if not is_name(name, kind):
        return (
            f"register({shown(name, 80)}, ...): a name is a lower-case kebab string such as 'my-method', of at most "
            f"{LONGEST} ASCII letters, digits and hyphens, and begins with a letter"
        )
    if type(target) is str:
        return _lazy_fault(target)
    return loaded_fault(kind, target, name)


BASES = {kind: shape.base for kind, shape in SHAPES.items() if shape.base}
"""Kind -> the class in ``mtlcore`` that its plugins are subclasses of."""


def loaded_fault(kind: str, target: Any, name: str | None = None) -> str | None:
    """What is wrong with a class, or another object, that is there. Whatever it does when it is looked at is wrong."""
    try:
        shape = SHAPES[kind]
        if shape.made and not isinstance(target, type):
            wanted = f"subclass of mtlcore.{shape.base}" if shape.base else "class"
            return f"{shown(target)} is not a {wanted}"
        if shape.base:
            return _class_fault(target, shape.base)
        if kind == "law" and (wrong := _law_fault(target, name)) is not None:
            return wrong
        return _parts_fault(kind, target)
    except BaseException as error:
        return f"looking at {type_name(target)} raised {blame(error)}"


def _class_fault(target: Any, base_name: str) -> str | None:
    import mtlcore  # the class has imported torch already

    base = getattr(mtlcore, base_name)
    if not issubclass(target, base):
        return f"{plain(target.__qualname__)} is not a subclass of mtlcore.{base_name}"
    missing = sorted(getattr(target, "__abstractmethods__", ()))
    if missing:
        return f"{target.__qualname__} does not implement {', '.join(missing)}"
    own = [name for name, kind_of in inspect.get_annotations(target).items() if "ClassVar" not in str(kind_of)]
    if own and "__dataclass_fields__" not in target.__dict__:
        return f"{target.__qualname__} has fields ({', '.join(own)}) but is not decorated with @dataclass(frozen=True)"
    return declared_fault(target)


def _law_fault(law: Any, name: str | None) -> str | None:
    """Claims name a law by its id. A law that is registered under another one would answer for it."""
    texts = ("id", "kind", "statement")
    if isinstance(law, type) or any(type(getattr(law, part, None)) is not str for part in texts):
        return f"{shown(law)} is not a law: decorate its function with @mtlverify.law.law(id, ...)"
    known_as = law.id if law.kind == "aggregator" else f"{law.kind}.{law.id}"
    if name is not None and name != known_as:
        return f"a law is registered under its id: register({known_as!r}, ...), not {name!r}"
    return None


def _parts_fault(kind: str, target: Any) -> str | None:
    missing = []
    for part in SHAPES[kind].parts:
        found = getattr(target, part.removesuffix("()"), None)
        if found is None or (part.endswith("()") and not callable(found)):
            missing.append(part)
    if not missing:
        return None
    what = plain(target.__qualname__) if isinstance(target, type) else shown(target)
    return f"{what} is not a valid {kind}: it has no {', '.join(missing)}"


def declared_fault(plugin: Any) -> str | None:
    """What is wrong with what a plugin states about itself (``needs``, ``claims``, ``batches``, ...), or its class as
    far as that is not a property.

    A string is a collection, too: ``claims = "non-conflicting"`` would go unnoticed until somebody subtracts sets.
    """
    cls = plugin if isinstance(plugin, type) else type(plugin)
    contract = next((c for c in cls.__mro__ if c.__module__.startswith("mtlcore.contracts.")), None)
    for name, (wanted, allows) in _DECLARED.items():
        if hasattr(contract, name):
            value: Any = getattr(plugin, name)
            if not isinstance(value, property) and not allows(value):
                return f"{plain(cls.__qualname__)}.{name} is {shown(value)}; it must be {wanted}"
    return None


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


_DECLARED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "needs": (
        "Needs.LOSSES or Needs.GRAMIAN or Needs.JACOBIAN",
        lambda value: type(value).__name__ == "Needs" and isinstance(value, enum.Enum),
    ),
    "claims": (
        "a frozenset of law ids: frozenset({'scale-free'})",
        lambda value: isinstance(value, Set) and all(isinstance(c, str) for c in value),
    ),
    "handles_absent": ("True or False", _is_flag),
    "degree": ("a finite number", _is_number),
    "batches": ("a whole number, at least 1", lambda value: type(value) is int and value >= 1),
    "exact": ("True or False", _is_flag),
    "improves": ("True or False", _is_flag),
    "reads_data": ("True or False", _is_flag),
}
"""By what a plugin's class states about it, what that must be. A property is looked at on an instance."""


def _lazy_fault(target: str) -> str | None:
    """Check "module:Class" by reading the module's source, without running it."""
    module, colon, attribute = target.partition(":")
    if not colon or not attribute or not module:
        return f"{shown(target)} is not of the form 'module:Class'"
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
                return None, described(error)
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


_trees: dict[tuple[str, str | None, int], ast.Module | None] = {}


def tree_of(spec: importlib.machinery.ModuleSpec, module: str) -> ast.Module | None:
    """The module's source, parsed; None if it has none. Parsed once as long as its file is the same.

    Raises:
        ImportError, SyntaxError, ValueError: it cannot be read.
    """
    try:
        changed = os.stat(spec.origin or "").st_mtime_ns
    except OSError:
        changed = 0
    key = (module, spec.origin, changed)
    if key not in _trees:
        # The loader's own reading: it knows zip files, byte-order marks and declared encodings.
        read = getattr(spec.loader, "get_source", None)
        source = None if read is None else read(module)
        _trees[key] = None if source is None else ast.parse(source, str(spec.origin))
    return _trees[key]


@functools.lru_cache(maxsize=512)
def _names_in(tree: ast.Module) -> frozenset[str]:
    """Every name that the module may have when it is imported."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names.update((a.asname or a.name).split(".")[0] for a in node.names)
        elif isinstance(node, ast.Name) and (isinstance(node.ctx, ast.Store) or node.id in _WRITERS):
            names.add(node.id)
    return frozenset(names)


def _source_fault(spec: importlib.machinery.ModuleSpec, module: str, attribute: str) -> str | None:
    try:
        tree = tree_of(spec, module)
    except (ImportError, SyntaxError, ValueError) as error:
        return f"importing {module!r}: {described(error)}"
    if tree is None:
        return None
    # A name at the top, as nearly all are, spares the walk through all of the module.
    if any(getattr(node, "name", None) == attribute for node in tree.body):
        return None
    names = _names_in(tree)
    if attribute in names or names & _WRITERS:
        return None
    return f"AttributeError: module {module!r} has no attribute {attribute!r}"


def hook_problem(error: pluggy.PluginValidationError) -> str:
    """What is wrong with the hooks, in one line; pluggy's own words where it is neither a name nor an argument."""
    try:
        return _hook_problem(error)
    except BaseException as raised:  # the plugin is looked at once more
        return located(raised)


def _hook_problem(error: pluggy.PluginValidationError) -> str:
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
            near = nearest(hook, HOOKS)
            return f"unknown hook {shown(hook)}" + (f"; did you mean {near[0]!r}?" if near else "")
    return one_line(error)


def bare_hook(module: Any, hook: str) -> Any:
    """The function of that name if it is marked as a hook, else None."""
    function = getattr(module, hook, None)
    return function if function is not None and hasattr(function, f"{PROJECT}_impl") else None


def located(error: BaseException) -> str:
    """The error with the last line of the plugin's own code that it came through: the user sees no traceback.

    Raises:
        KeyboardInterrupt: ``error`` itself, if it is the user's Ctrl-C.
    """
    text = blame(error)
    if isinstance(error, TypeError) and "cannot inherit non-frozen dataclass" in text:
        text += "; decorate the class with @dataclass(frozen=True)"
    if isinstance(error, SyntaxError):
        return text  # it says where by itself
    machinery = ("mtlcore", "importlib", "pluggy", "contextlib")
    frames = [
        (plain(frame.f_globals.get("__name__")).partition(".")[0], os.path.basename(frame.f_code.co_filename), line)
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    # The plugin is what the machinery called first; whatever comes after may be a library that it uses.
    plugin = next((package for package, _, _ in frames if package not in machinery), None)
    own = [(file, line) for package, file, line in frames if package == plugin and not file.startswith("<")]
    return f"{text} ({plain(own[-1][0])}, line {own[-1][1]})" if own else text
