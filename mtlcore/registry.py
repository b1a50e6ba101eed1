"""Discovery of plugins, and the promise that a broken one harms nobody.

Each entry point of the group ``mtlcore`` is loaded on its own, tried in a plugin manager of its own, and joins
the common one only if all its hooks are sound. What it registers is collected by name; the order in which
plugins load never matters, because they are processed sorted by distribution and name, built-ins first.

Nothing here imports torch: a lazily registered class ("module:Class") is looked at as source text until
somebody asks for it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import sys
import warnings
from collections.abc import Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, overload

import pluggy

from mtlcore import tracing
from mtlcore.discovery import BUILT_IN, Plugin, discover, missing_extra, new_manager
from mtlcore.errors import (
    ConfigurationError,
    MtlError,
    PluginError,
    PluginWarning,
    UnknownPluginError,
    did_you_mean,
    like_plugin,
)  # fmt: skip
from mtlcore.hookspecs import KINDS
from mtlcore.patience import waiting
from mtlcore.safety import one_line, plain, shown
from mtlcore.soundness import BASES, HOOKS, bare_hook, declared_fault, fault, hook_problem, loaded_fault, located

if TYPE_CHECKING:
    from mtlcore.contracts import Aggregator, ConflictDetector, TeleportStrategy


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


class Registry:
    """All plugins of this process. Use the module's functions; a registry of one's own is for tests."""

    def __init__(self, plugins: Iterable[Plugin] | None = None) -> None:
        self._manager = new_manager()
        self._sources: list[tuple[Plugin, Any]] = []
        self._broken: list[Entry] = []
        self._collected: dict[str, list[Entry]] = {}
        self._listeners: dict[str, list[Any]] = {}
        self._silenced: set[tuple[str, str]] = set()
        self._owner: dict[type, Entry | None] = {}
        for plugin in sorted(
            discover() if plugins is None else plugins,
            key=lambda p: (*_rank(p.distribution), p.name),
        ):
            self._admit(plugin)

    # --- plugins ----------------------------------------------------------------------------------------

    def _admit(self, plugin: Plugin) -> None:
        """Load one plugin and try it alone; only a sound one joins the others."""
        try:
            with waiting(f"{_source(plugin)} to be imported"):
                module = plugin.load()
                self._try_alone(plugin.name, module)
                if any(known is module for _, known in self._sources):
                    return
                self._manager.register(module, name=f"{plugin.distribution}:{plugin.name}")
        except pluggy.PluginValidationError as error:
            self._set_aside(plugin, hook_problem(error))
        except BaseException as error:
            self._set_aside(plugin, located(error))
        else:
            self._sources.append((plugin, module))
            self._forget()

    def _try_alone(self, name: str, module: Any) -> None:
        """Register it in a manager of its own: one that is refused there leaves no trace here."""
        trial = new_manager()
        trial.register(module, name=name)
        trial.check_pending()
        unmarked = [n for n in HOOKS if hasattr(module, n) and bare_hook(module, n) is None]
        if unmarked:
            raise PluginError(f"{unmarked[0]} is not marked with @mtlcore.hookimpl")
        for caller in trial.get_hookcallers(module) or ():
            for impl in caller.get_hookimpls():
                if impl.wrapper or impl.hookwrapper:
                    raise PluginError(f"{impl.function.__name__} is a hook wrapper, which mtlcore does not allow")

    def _set_aside(self, plugin: Plugin, problem: str) -> None:
        entry = Entry("plugin", plugin.name, plugin.distribution, plugin.version, "broken", problem)
        if entry not in self._broken:
            self._report(entry)

    def add(self, module: Any, name: str | None = None, distribution: str = "(this process)") -> None:
        """Register the hooks of a module or object for this process, in place of what was added before under its name:
        a cell of a notebook that is run again means its new classes."""
        cls = type(module)
        if module is None or (cls.__module__ == "builtins" and not isinstance(module, (type, ModuleType))):
            raise ConfigurationError(
                f"add_plugin takes a module or an object with hooks (functions marked @mtlcore.hookimpl), found "
                f"{shown(module)}."
            )
        own = module.__name__ if isinstance(module, ModuleType) else f"{cls.__module__}.{cls.__qualname__}"
        known_as = name or one_line(own)
        for plugin, known in list(self._sources):
            if known is module or (plugin.name, plugin.distribution) == (known_as, distribution):
                self._drop(known)
        self._admit(Plugin(known_as, distribution, "", lambda: module))

    def remove(self, module: Any) -> None:
        """Forget a plugin: the module or object that was added, or the name of the plugin, of whatever distribution.

        Raises:
            UnknownPluginError: no plugin of this process is called so, or is this object.
        """
        found = [(p, m) for p, m in self._sources if m is module or (isinstance(module, str) and p.name == module)]
        if not found:
            what = shown(module)
            hint = did_you_mean(plain(module), [p.name for p, _ in self._sources], "Plugins")
            raise UnknownPluginError(f"there is no plugin {what} to be removed. {hint}")
        for _, known in found:
            self._drop(known)

    def _drop(self, module: Any) -> None:
        """What is known against it goes, too: under its name may come another one."""
        for plugin, _ in [(p, m) for p, m in self._sources if m is module]:
            known_as = f"{plugin.distribution}:{plugin.name}"
            self._silenced = {(hook, name) for hook, name in self._silenced if name != known_as}
            key = ("plugin", plugin.name, plugin.distribution)
            self._broken = [e for e in self._broken if (e.kind, e.name, e.distribution) != key]
        self._sources = [(p, m) for p, m in self._sources if m is not module]
        self._manager.unregister(module)
        self._forget()

    def _forget(self) -> None:
        """The plugins have changed: ask them again."""
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

    def kinds_of(self, name: str) -> list[str]:
        """The kinds in which a plugin has this name; names are unique within a kind only."""
        return [kind for kind in KINDS if any(e.name == name for e in self.entries(kind))]

    def to_type(self, kind: str, name: str) -> str:
        """How a command must be told this plugin: with its kind, where the name alone is ambiguous."""
        return name if len(self.kinds_of(name)) == 1 else f"{name} --kind {kind}"

    def problems(self) -> list[Entry]:
        """Plugins that could not be loaded at all, or broke while registering."""
        return [e for e in self._broken if e.kind == "plugin"]

    def _collect(self, kind: str) -> list[Entry]:
        good: dict[str, Entry] = {}
        taken: dict[str, Plugin] = {}
        bad: list[Entry] = []
        for plugin, module in self._sources:
            for name, target in self._registered_by(plugin, module, kind):
                wrong = fault(kind, name, target)
                entry = Entry(kind, one_line(name, 80), plugin.distribution, plugin.version, target=target)
                if wrong is None and name in good:
                    first, second = f"distribution {good[name].provenance!r}", f"distribution {entry.provenance!r}"
                    if first == second:
                        first, second = f"plugin {taken[name].name!r}", f"plugin {plugin.name!r}"
                    wrong = f"the name {name!r} is already taken by {first}, which stays; rename the one in {second}"
                if wrong is None:
                    good[name], taken[name] = entry, plugin
                    continue
                bad.append(dataclasses.replace(entry, status="broken", problem=wrong, target=None))
                if bad[-1] not in self._broken:
                    self._report(bad[-1])
        return sorted([*good.values(), *bad], key=lambda e: (e.name, e.status == "broken", e.distribution))

    def _registered_by(self, plugin: Plugin, module: Any, kind: str) -> list[tuple[Any, Any]]:
        """What one plugin registers of a kind: all of it, or nothing if its hook raises."""
        found: list[tuple[Any, Any]] = []
        hook = KINDS[kind]
        arguments = {"register": lambda name, target: found.append((name, target))}
        try:
            for impl in self._implementations(hook):
                if impl.plugin is module:
                    tracing.hook(self._manager, hook, {"register": f"<{plugin.distribution}>"})
                    with waiting(f"{hook} of {_source(plugin)}"):
                        impl.function(*[arguments[a] for a in impl.argnames])
        except BaseException as error:
            self._set_aside(plugin, f"{hook} raised {located(error)}")
            return []
        return found

    def find(self, kind: str, name: str) -> Entry:
        """The sound entry of that name, or an error that suggests the nearest ones."""
        entries = self.entries(kind)
        for entry in entries:
            if entry.name == name and entry.status == "ok":
                return entry
        for entry in entries:
            if entry.name == name:
                raise PluginError(f"{_who(entry)} is broken: {entry.problem}")
        hint = like_plugin(plain(name), [e.name for e in entries if e.status == "ok"])
        broken = "".join(f" (Plugin {p.name!r} of {p.provenance!r} is broken: {p.problem})" for p in self.problems())
        others = self.kinds_of(name)
        elsewhere = f": it is the name of a plugin of kind {' and of kind '.join(others)}" if others else ""
        raise UnknownPluginError(f"there is no {kind} called {shown(name)}{elsewhere}. {hint}{broken}")

    def load(self, kind: str, name: str) -> Any:
        """The class (or object) behind a name; a lazy one is imported now and checked."""
        entry = self.find(kind, name)
        target = entry.target
        if isinstance(target, str):
            try:
                module, _, attribute = target.partition(":")
                with waiting(f"{_who(entry)} to be imported"):
                    target = getattr(importlib.import_module(module), attribute)
            except BaseException as error:
                extra = missing_extra(error) if entry.distribution == BUILT_IN else None
                if extra is not None:  # nothing is broken: it is not there
                    raise extra from error
                self._break(entry, located(error))
        wrong = loaded_fault(kind, target, entry.name)
        if wrong is not None:
            self._break(entry, wrong)
        return target

    def _break(self, entry: Entry, problem: str) -> None:
        """Mark a lazy entry as broken once its import has shown it, and raise."""
        worse = dataclasses.replace(entry, status="broken", problem=problem, target=None)
        self._collected[entry.kind] = [worse if e is entry else e for e in self.entries(entry.kind)]
        raise PluginError(f"{_who(entry)} is broken: {problem}")

    def create(self, kind: str, name: str, **options: Any) -> Any:
        """An instance of the plugin class with these hyper-parameters."""
        entry = self.find(kind, name)
        cls = self.load(kind, name)
        if not isinstance(cls, type):
            if options:
                raise ConfigurationError(f"{kind} {name!r} takes no options, got {', '.join(options)}.")
            return cls
        if dataclasses.is_dataclass(cls):
            known = [f.name for f in dataclasses.fields(cls) if f.init]
            for option in options:
                if option not in known:
                    hint = did_you_mean(option, known, "It takes", n=1)
                    raise ConfigurationError(f"{kind} {name!r} has no hyper-parameter {option!r}. {hint}")
        try:
            plugin = cls(**options)
            # A property may compute what a class attribute states: it can be looked at only now.
            wrong = declared_fault(plugin) if kind in BASES else None
        except MtlError:
            raise
        except BaseException as error:
            raise PluginError(f"{_who(entry)} could not be created: {located(error)}") from error
        if wrong is not None:
            raise PluginError(f"{_who(entry)} is broken: {wrong}")
        return plugin

    def entry_of(self, plugin: object) -> Entry | None:
        """The entry under which this instance's class is registered, no matter which code made the instance: of several
        the first in the order in which plugins are processed. None if it is not registered."""
        cls = type(plugin)
        if cls not in self._owner:
            entries = [e for kind in BASES for e in self.entries(kind) if e.status == "ok"]
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
        """Call an event hook of every plugin, each with tensors and dicts of its own: what it writes there, nobody
        reads. One that raises is reported once and not called again."""
        for impl in self._implementations(hook):
            if (hook, impl.plugin_name) in self._silenced:
                continue
            tracing.hook(self._manager, hook, arguments)
            from mtlcore.report import apart  # here, because it imports torch: whoever announces has it

            try:
                impl.function(*[apart(arguments[a]) for a in impl.argnames])
            except BaseException as error:
                self._silence(hook, impl.plugin_name, located(error))

    def ask(self, hook: str, **arguments: Any) -> Any:
        """Call a question hook; the first answer that is not None wins.

        A plugin that raises is reported once, and the next one is asked.

        Raises:
            MtlError, PluginError: nobody answered, and somebody raised this.
        """
        raised: MtlError | None = None
        for impl in self._implementations(hook):
            tracing.hook(self._manager, hook, arguments)
            try:
                answer = impl.function(*[arguments[a] for a in impl.argnames])
            except MtlError as error:  # what it was asked about is at fault
                raised = raised or error
                continue
            except BaseException as error:
                problem = located(error)
                if (hook, impl.plugin_name) not in self._silenced:
                    self._silence(hook, impl.plugin_name, problem)
                if raised is None:
                    raised = PluginError(f"{hook} of plugin {plain(impl.plugin_name)!r} raised {problem}")
                    raised.__cause__ = error
                continue
            if answer is not None:
                return answer
        if raised is not None:
            raise raised
        return None

    def _silence(self, hook: str, plugin_name: str, problem: str) -> None:
        self._silenced.add((hook, plugin_name))
        distribution, _, name = plugin_name.rpartition(":")
        self._report(Entry("plugin", name, distribution, "", "broken", f"{hook} raised {problem}"))


def _rank(distribution: str) -> tuple[bool, str]:
    """Built-ins first."""
    return distribution != BUILT_IN, distribution


def _source(plugin: Plugin) -> str:
    return f"plugin {plugin.name!r} of distribution {f'{plugin.distribution} {plugin.version}'.strip()!r}"


def _who(entry: Entry) -> str:
    return f"{entry.kind} {entry.name!r} of distribution {entry.provenance!r}"


def _is_target(target: Any, cls: type) -> bool:
    """Whether this is what was registered; nothing is imported for that: what has an instance is imported."""
    if isinstance(target, str):
        module, _, attribute = target.partition(":")
        target = getattr(sys.modules.get(module), attribute, None)
    return target is cls


# --- the registry of this process -----------------------------------------------------------------------------------


@functools.cache
def registry() -> Registry:
    """The registry of this process, built on first use."""
    return Registry()


KindName = Literal[
    "aggregator", "detector", "teleport", "explorer", "merger", "law", "family", "network", "problem", "task", "command"
]  # fmt: skip
"""Kinds of plugins, for a type checker; :data:`mtlcore.hookspecs.KINDS` has them at run time."""


@overload
def available(kind: KindName) -> list[str]: ...
@overload
def available(kind: str) -> list[str]: ...
def available(kind: str) -> list[str]:
    """Names of the sound plugins of a kind ("aggregator", "detector", "teleport", ...), sorted."""
    return [e.name for e in registry().entries(kind) if e.status == "ok"]


@overload
def create(kind: Literal["aggregator"], name: str, **options: Any) -> Aggregator: ...
@overload
def create(kind: Literal["detector"], name: str, **options: Any) -> ConflictDetector: ...
@overload
def create(kind: Literal["teleport"], name: str, **options: Any) -> TeleportStrategy: ...
@overload
def create(kind: str, name: str, **options: Any) -> Any: ...
def create(kind: str, name: str, **options: Any) -> Any:
    """Make a plugin by name: ``create("aggregator", "cagrad", c=0.4)``.

    Raises:
        UnknownPluginError: no such name; suggests the nearest.
        ConfigurationError: a hyper-parameter does not exist or is out of range.
        PluginError: the plugin cannot be imported or breaks its contract.
        MissingExtraError: a built-in plugin needs a package that is not installed.
    """
    return registry().create(kind, name, **options)


def add_plugin(module: ModuleType | object, name: str | None = None) -> None:
    """Register hooks for this process without packaging: in a notebook, ``add_plugin(sys.modules[__name__])``.

    Adding again under the same name (default: that of the module, or of the object's class with its module) replaces
    what was added before.
    """
    registry().add(module, name)


def remove_plugin(plugin: ModuleType | object | str) -> None:
    """Take a plugin out of this process: what was given to :func:`add_plugin`, or the plugin's name.

    Everything that it registered is gone, and its hooks are not called any more. Objects made by it stay as they are.

    Raises:
        UnknownPluginError: there is no such plugin; suggests the nearest name.
    """
    registry().remove(plugin)
