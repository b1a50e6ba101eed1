"""Discovery of plugins, and the promise that a broken one harms nobody.

Each entry point of the group ``mtlcore`` is loaded on its own, tried in a plugin manager of its own, and joins
the common one only if all its hooks are sound. What it registers is collected by name; the order in which
plugins load never matters, because they are processed sorted by distribution and name, built-ins first.

Nothing here imports torch: a lazily registered class ("module:Class") is looked at as source text until
somebody asks for it.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import functools
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import os
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Set
from types import ModuleType
from typing import Any

import pluggy

from mtlcore import hookspecs
from mtlcore.errors import ConfigurationError, MtlError, PluginError, PluginWarning, UnknownPluginError
from mtlcore.hookspecs import KINDS, PROJECT

BUILT_IN = "mtlcore"
"""Name of the distribution whose plugins are the built-in ones."""
_HOOKS = {name: function for name, function in vars(hookspecs).items() if name.startswith("mtlcore_")}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of the registry: a plugin, or what is known of a broken one.

    ``status`` is "ok" or "broken"; ``problem`` says why in the second case.
    """

    kind: str
    name: str
    distribution: str
    version: str
    status: str = "ok"
    problem: str | None = None
    target: Any = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def provenance(self) -> str:
        """Name and version of the distribution it comes from."""
        return f"{self.distribution} {self.version}".strip()


@dataclasses.dataclass(frozen=True)
class _Plugin:
    """A source of hooks: an entry point, or an object handed to :func:`add_plugin`."""

    name: str
    distribution: str
    version: str
    load: Any = dataclasses.field(compare=False)


class Registry:
    """All plugins of this process. Use the module's functions; a registry of one's own is for tests."""

    def __init__(self, plugins: Iterable[_Plugin] | None = None) -> None:
        self._manager = _new_manager()
        self._sources: list[tuple[_Plugin, Any]] = []
        self._broken: list[Entry] = []
        self._collected: dict[str, list[Entry]] = {}
        self._listeners: dict[str, list[Any]] = {}
        self._silenced: set[tuple[str, str]] = set()
        self._owner: dict[type, Entry | None] = {}
        for plugin in sorted(
            _discover() if plugins is None else plugins,
            key=lambda p: (*_rank(p.distribution), p.name),
        ):
            self._admit(plugin)

    # --- plugins ----------------------------------------------------------------------------------------

    def _admit(self, plugin: _Plugin) -> None:
        """Load one plugin and try it alone; only a sound one joins the others."""
        try:
            with _quiet_exit(plugin):
                module = plugin.load()
                trial = _new_manager()
                trial.register(module, name=plugin.name)
                trial.check_pending()
                unmarked = [n for n in _HOOKS if hasattr(module, n) and _bare_hook(module, n) is None]
                if unmarked:
                    raise PluginError(f"{unmarked[0]} is not marked with @mtlcore.hookimpl")
                for caller in trial.get_hookcallers(module) or ():
                    for impl in caller.get_hookimpls():
                        if impl.wrapper or impl.hookwrapper:
                            raise PluginError(
                                f"{impl.function.__name__} is a hook wrapper, which mtlcore does not allow"
                            )
                if any(known is module for _, known in self._sources):
                    return
                self._manager.register(module, name=f"{plugin.distribution}:{plugin.name}")
        except Exception as error:
            cause = _hook_problem(error) if isinstance(error, pluggy.PluginValidationError) else _located(error)
            self._report(Entry("plugin", plugin.name, plugin.distribution, plugin.version, "broken", cause))
            return
        self._sources.append((plugin, module))
        self._forget()

    def add(self, module: Any, name: str | None = None, distribution: str = "(this process)") -> None:
        """Register the hooks of a module or object for this process, in place of what was added before under its name:
        a cell of a notebook that is run again means its new classes."""
        cls = type(module)
        known_as = name or str(getattr(module, "__name__", f"{cls.__module__}.{cls.__qualname__}"))
        for plugin, known in list(self._sources):
            if known is module or (plugin.name, plugin.distribution) == (known_as, distribution):
                self.remove(known)
        self._admit(_Plugin(known_as, distribution, "", lambda: module))

    def remove(self, module: Any) -> None:
        """Forget what :meth:`add` registered."""
        self._sources = [(p, m) for p, m in self._sources if m is not module]
        self._manager.unregister(module)
        self._forget()

    def _forget(self) -> None:
        """The plugins are others now: ask them anew."""
        self._collected.clear()
        self._listeners.clear()
        self._owner.clear()

    def _report(self, entry: Entry) -> None:
        """Remember a problem; say it once; make it fatal under MTLCORE_STRICT=1."""
        self._broken.append(entry)
        text = f"{entry.kind} {entry.name!r} of distribution {entry.provenance!r} is set aside: {entry.problem}"
        if os.environ.get("MTLCORE_STRICT", "") not in ("", "0"):
            raise PluginError(text + " (fatal because MTLCORE_STRICT is set)")
        warnings.warn(text, PluginWarning, stacklevel=3)

    # --- entries ----------------------------------------------------------------------------------------

    def entries(self, kind: str) -> list[Entry]:
        """The entries of one kind, sorted by name; broken ones included."""
        if kind not in KINDS:
            raise ConfigurationError(f"unknown kind {kind!r}; kinds are {', '.join(KINDS)}.")
        if kind not in self._collected:
            self._collected[kind] = self._collect(kind)
        return self._collected[kind]

    def problems(self) -> list[Entry]:
        """Plugins that could not be loaded at all, or broke while registering."""
        return [e for e in self._broken if e.kind == "plugin"]

    def _collect(self, kind: str) -> list[Entry]:
        good: dict[str, Entry] = {}
        taken: dict[str, _Plugin] = {}
        bad: list[Entry] = []

        def note(entry: Entry) -> None:
            bad.append(entry)
            if entry not in self._broken:
                self._report(entry)

        for plugin, module in self._sources:
            found: list[tuple[Any, Any]] = []
            arguments = {"register": lambda name, target, found=found: found.append((name, target))}
            try:
                for impl in self._implementations(KINDS[kind]):
                    if impl.plugin is module:
                        _trace(KINDS[kind], {"register": f"<{plugin.distribution}>"})
                        with _quiet_exit(plugin):
                            impl.function(*[arguments[a] for a in impl.argnames])
            except Exception as error:
                problem = f"{KINDS[kind]} raised {_located(error)}"
                entry = Entry("plugin", plugin.name, plugin.distribution, plugin.version, "broken", problem)
                if entry not in self._broken:
                    self._report(entry)
                continue
            for name, target in found:
                entry = Entry(kind, str(name), plugin.distribution, plugin.version, target=target)
                fault = _fault(kind, name, target)
                if fault is None and name in good:
                    first, second = f"distribution {good[name].provenance!r}", f"distribution {entry.provenance!r}"
                    if first == second:
                        first, second = f"plugin {taken[name].name!r}", f"plugin {plugin.name!r}"
                    fault = f"the name {name!r} is already taken by {first}, which stays; rename the one in {second}"
                if fault is None:
                    good[name], taken[name] = entry, plugin
                else:
                    note(dataclasses.replace(entry, status="broken", problem=fault, target=None))
        return sorted([*good.values(), *bad], key=lambda e: (e.name, e.status == "broken", e.distribution))

    def find(self, kind: str, name: str) -> Entry:
        """The sound entry of that name, or an error that suggests the nearest ones."""
        entries = self.entries(kind)
        for entry in entries:
            if entry.name == name and entry.status == "ok":
                return entry
        for entry in entries:
            if entry.name == name:
                raise PluginError(f"{kind} {name!r} of distribution {entry.provenance!r} is broken: {entry.problem}")
        names = [e.name for e in entries if e.status == "ok"]
        # Papers write PCGrad and Nash-MTL.
        near = difflib.get_close_matches(str(name).lower().replace("_", "-"), names, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(repr(n) for n in near)}?" if near else f"Available: {', '.join(names)}."
        broken = "".join(f" (Plugin {p.name!r} of {p.provenance!r} is broken: {p.problem})" for p in self.problems())
        raise UnknownPluginError(f"there is no {kind} called {name!r}. {hint} `mtl list` shows all.{broken}")

    def load(self, kind: str, name: str) -> Any:
        """The class (or object) behind a name; a lazy one is imported now and checked."""
        entry = self.find(kind, name)
        target = entry.target
        if isinstance(target, str):
            try:
                module, _, attribute = target.partition(":")
                with _quiet_exit(entry):
                    target = getattr(importlib.import_module(module), attribute)
            except Exception as error:
                self._break(entry, _located(error))
        fault = _loaded_fault(kind, target)
        if fault is not None:
            self._break(entry, fault)
        return target

    def _break(self, entry: Entry, problem: str) -> None:
        """Mark a lazy entry as broken once its import has shown it, and raise."""
        worse = dataclasses.replace(entry, status="broken", problem=problem, target=None)
        self._collected[entry.kind] = [worse if e is entry else e for e in self.entries(entry.kind)]
        raise PluginError(f"{entry.kind} {entry.name!r} of distribution {entry.provenance!r} is broken: {problem}")

    def create(self, kind: str, name: str, **options: Any) -> Any:
        """An instance of the plugin class with these hyper-parameters."""
        entry = self.find(kind, name)
        cls = self.load(kind, name)
        if not isinstance(cls, type):
            if options:
                raise ConfigurationError(f"{kind} {name!r} takes no options, got {', '.join(options)}.")
            return cls
        known = [f.name for f in dataclasses.fields(cls) if f.init] if dataclasses.is_dataclass(cls) else None
        if known is not None:
            for option in options:
                if option not in known:
                    near = difflib.get_close_matches(option, known, n=1)
                    hint = f"Did you mean {near[0]!r}?" if near else f"It takes: {', '.join(known) or 'none'}."
                    raise ConfigurationError(f"{kind} {name!r} has no hyper-parameter {option!r}. {hint}")
        try:
            plugin = cls(**options)
            # A property may compute what a class attribute states: it can be looked at only now.
            fault = declared_fault(plugin) if kind in _BASES else None
        except MtlError:
            raise
        except Exception as error:
            raise PluginError(
                f"{kind} {name!r} of distribution {entry.provenance!r} could not be created: {_located(error)}"
            ) from error
        if fault is not None:
            raise PluginError(f"{kind} {name!r} of distribution {entry.provenance!r} is broken: {fault}")
        return plugin

    def entry_of(self, plugin: object) -> Entry | None:
        """The entry under which this instance's class is registered, whoever made the instance: of several the first in
        the order in which plugins are processed. None if it is not registered."""
        cls = type(plugin)
        if cls not in self._owner:
            entries = [e for kind in _BASES for e in self.entries(kind) if e.status == "ok"]
            named = [e for e in entries if _is_target(e.target, cls)]
            self._owner[cls] = min(named, key=lambda e: (*_rank(e.distribution), e.name), default=None)
        return self._owner[cls]

    def identify(self, plugin: object) -> str:
        """How to name this instance in an error: registered name and distribution, else its class."""
        cls, entry = type(plugin), self.entry_of(plugin)
        if entry is None:
            return f"{cls.__module__}.{cls.__qualname__} (not registered)"
        return f"{entry.name!r} of distribution {entry.provenance!r}"

    def name_of(self, plugin: object) -> str:
        """The registered name of this instance's class, else the class's own name."""
        entry = self.entry_of(plugin)
        return type(plugin).__qualname__ if entry is None else entry.name

    # --- events and questions ---------------------------------------------------------------------------

    def listens(self, hook: str) -> bool:
        """Whether any plugin implements this hook."""
        return bool(self._implementations(hook))

    def _implementations(self, hook: str) -> list[Any]:
        """In the order of registration."""
        known = self._listeners.get(hook)
        if known is None:
            known = self._listeners[hook] = getattr(self._manager.hook, hook).get_hookimpls()[::-1]
        return known

    def announce(self, hook: str, **arguments: Any) -> None:
        """Call an event hook of every plugin. One that raises is reported once and not called again."""
        for impl in self._implementations(hook):
            if (hook, impl.plugin_name) in self._silenced:
                continue
            _trace(hook, arguments)
            try:
                impl.function(*[arguments[a] for a in impl.argnames])
            except Exception as error:
                self._silenced.add((hook, impl.plugin_name))
                distribution, _, name = impl.plugin_name.rpartition(":")
                self._report(Entry("plugin", name, distribution, "", "broken", f"{hook} raised {_located(error)}"))

    def ask(self, hook: str, **arguments: Any) -> Any:
        """Call a question hook; the first answer that is not None wins."""
        _trace(hook, arguments)
        return getattr(self._manager.hook, hook)(**arguments)


def _rank(distribution: str) -> tuple[bool, str]:
    """Built-ins first."""
    return distribution != BUILT_IN, distribution


# --- discovery --------------------------------------------------------------------------------------------------


def _new_manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def _discover() -> Iterator[_Plugin]:
    """Entry points of the group, filtered by MTLCORE_PLUGINS (off, or a list of names or distributions)."""
    wish = os.environ.get("MTLCORE_PLUGINS", "").strip()
    allowed = None if not wish else {w.strip() for w in wish.split(",")} - {"off"}
    for point in importlib.metadata.entry_points(group=PROJECT):
        distribution, version = _provenance(point.dist)
        if allowed is None or distribution == BUILT_IN or allowed & {point.name, distribution}:
            yield _Plugin(point.name, distribution, version, functools.partial(_load, point))


def _load(point: importlib.metadata.EntryPoint) -> Any:
    """What the entry point names. One that is malformed is said to be: Python itself stumbles over it."""
    if point.pattern.match(point.value) is None:
        raise PluginError(
            f"its entry point {point.name} = {point.value!r} is not of the form 'module' or 'module:attribute': "
            f"correct it in the table project.entry-points.{PROJECT} of its pyproject.toml, and install it again"
        )
    return point.load()


def _provenance(distribution: importlib.metadata.Distribution | None) -> tuple[str, str]:
    """Name and version, as far as they are known: what an interrupted uninstall leaves behind has no metadata."""
    if distribution is None:
        return "?", ""
    try:
        metadata = distribution.metadata
    except importlib.metadata.PackageNotFoundError:
        return "?", ""
    known = {key: metadata[key] for key in ("Name", "Version") if key in metadata}
    return known.get("Name") or "?", known.get("Version") or ""


@contextlib.contextmanager
def _quiet_exit(plugin: _Plugin | Entry) -> Iterator[None]:
    """A plugin that calls sys.exit at import must not end the host."""
    try:
        yield
    except SystemExit as error:
        raise PluginError(f"called sys.exit({error.code!r})").with_traceback(error.__traceback__) from error


def _describe(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _located(error: BaseException) -> str:
    """The error with the last line of the plugin's own code that it came through: the user sees no traceback."""
    text = _describe(error)
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


def _hook_problem(error: pluggy.PluginValidationError) -> str:
    """What is wrong with the hooks, in one line; pluggy's own words where it is neither a name nor an argument."""
    for name in dir(error.plugin):
        function = _bare_hook(error.plugin, name)
        if function is None:
            continue
        options = getattr(function, f"{PROJECT}_impl")
        hook = options.get("specname") or name
        if hook in _HOOKS:
            allowed = inspect.signature(_HOOKS[hook]).parameters
            required = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
            if not allowed.keys() >= set(required):
                return f"{name}({', '.join(required)}): the hook takes only: {', '.join(allowed)}"
        elif not options.get("optionalhook"):
            near = difflib.get_close_matches(hook, _HOOKS, n=1)
            return f"unknown hook {hook!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    return " ".join(str(error).split())


def _bare_hook(module: Any, hook: str) -> Any:
    function = getattr(module, hook, None)
    return function if function is not None and hasattr(function, f"{PROJECT}_impl") else None


def _trace(hook: str, arguments: dict[str, Any]) -> None:
    if os.environ.get("MTLCORE_TRACE", "") not in ("", "0"):
        shown = ", ".join(f"{k}={v!s:.60}" for k, v in arguments.items())
        print(f"mtlcore: {hook}({shown})", file=sys.stderr)


def _is_target(target: Any, cls: type) -> bool:
    """Whether this is what was registered; nothing is imported to find out, for what has an instance is imported."""
    if isinstance(target, str):
        module, _, attribute = target.partition(":")
        target = getattr(sys.modules.get(module), attribute, None)
    return target is cls


# --- soundness of one registration --------------------------------------------------------------------------------


def _fault(kind: str, name: Any, target: Any) -> str | None:
    """What is wrong with ``register(name, target)``, as far as can be seen without importing anything."""
    if not isinstance(name, str) or not name or name != name.strip().lower() or " " in name or "_" in name:
        return f"register({name!r}, ...): a name is a non-empty lower-case kebab string such as 'my-method'"
    if isinstance(target, str):
        return _lazy_fault(target)
    return _loaded_fault(kind, target)


_BASES = {"aggregator": "Aggregator", "detector": "ConflictDetector", "teleport": "TeleportStrategy"}


def _loaded_fault(kind: str, target: Any) -> str | None:
    if kind not in _BASES:
        return None
    from mtlcore import contracts  # only reached with a real class, which has imported torch already

    base = getattr(contracts, _BASES[kind])
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
                return None, _describe(error)
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
        return f"importing {module!r}: {_describe(error)}"
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


# --- the registry of this process -----------------------------------------------------------------------------------


@functools.cache
def registry() -> Registry:
    """The registry of this process, built on first use."""
    return Registry()


def available(kind: str) -> list[str]:
    """Names of the sound plugins of a kind ("aggregator", "detector", "teleport", ...), sorted."""
    return [e.name for e in registry().entries(kind) if e.status == "ok"]


def create(kind: str, name: str, **options: Any) -> Any:
    """Make a plugin by name: ``create("aggregator", "cagrad", c=0.4)``.

    Raises:
        UnknownPluginError: no such name; suggests the nearest.
        ConfigurationError: a hyper-parameter does not exist or is out of range.
        PluginError: the plugin cannot be imported or breaks its contract.
    """
    return registry().create(kind, name, **options)


def add_plugin(module: ModuleType | object, name: str | None = None) -> None:
    """Register hooks for this process without packaging: in a notebook, ``add_plugin(sys.modules[__name__])``.

    Adding again under the same name (default: that of the module, or of the object's class with its module) replaces
    what was added before.
    """
    registry().add(module, name)
