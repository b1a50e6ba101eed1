"""Plugins that raise what nobody catches, cannot be printed, or register what is no plugin: named, and set aside."""

from __future__ import annotations

import contextlib
import time
import types
import warnings

import pytest

import mtlcore
from mtlcore import Aggregation, Aggregator, hookimpl, patience
from mtlcore.discovery import Plugin
from mtlcore.errors import PluginError, PluginWarning, UnknownPluginError
from mtlcore.hookspecs import KINDS
from mtlcore.registry import Registry
from mtlcore.soundness import is_name
from support.methods import Fixed


class Unprintable(Exception):
    def __str__(self):
        raise KeyboardInterrupt

    __repr__ = __str__


RAISED = [SystemExit(0), KeyboardInterrupt(), GeneratorExit(), Unprintable(), BaseException("\x1b[31m\udcff")]


def module(hook, function):
    made = types.ModuleType("made")

    def call(register):
        function(register)

    call.__name__ = hook
    setattr(made, hook, hookimpl(call))
    return made


def quietly(*plugins):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)
        return Registry(plugins)


def good(register):
    register("good", Fixed)


GOOD = Plugin("good", "good", "1", lambda: module("mtlcore_register_aggregators", good))


def raiser(error):
    def call(*_):
        raise error

    return call


@pytest.mark.parametrize("error", RAISED, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("where", ["import", "registration"])
def test_whatever_a_plugin_raises_is_isolated_and_named(error, where):
    load = raiser(error) if where == "import" else lambda: module("mtlcore_register_aggregators", raiser(error))
    registry = quietly(Plugin("bad", "bad-dist", "2", load), GOOD)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)
        assert [e.name for e in registry.entries("aggregator")] == ["good"]
    (broken,) = registry.problems()
    assert broken.distribution == "bad-dist"
    assert type(error).__name__ in broken.problem
    assert broken.problem.isprintable()


@pytest.mark.parametrize("error", RAISED, ids=lambda e: type(e).__name__)
def test_whatever_is_raised_on_creation_or_in_a_hook_is_named(error):
    sly = type("Sly", (Fixed,), {"__post_init__": raiser(error)})

    class Listener:
        @hookimpl
        def mtlcore_register_aggregators(self, register):
            register("sly", sly)

        @hookimpl
        def mtlcore_step_finished(self, report):
            raise error

        @hookimpl(tryfirst=True)
        def mtlcore_certify(self, kind):
            raise error

    class Certifier:
        @hookimpl
        def mtlcore_certify(self, kind):
            return {"passed": True}

    registry = quietly(Plugin("bad", "bad-dist", "2", Listener))
    with pytest.raises(
        PluginError, match=f"'sly' of distribution 'bad-dist 2' could not be created: {type(error).__name__}"
    ):
        registry.create("aggregator", "sly")
    with pytest.warns(PluginWarning, match="bad.*mtlcore_step_finished raised"):
        registry.announce("mtlcore_step_finished", report=None)
    with (
        pytest.warns(PluginWarning),
        pytest.raises(PluginError, match="mtlcore_certify of plugin 'bad-dist:bad' raised"),
    ):
        registry.ask("mtlcore_certify", kind="aggregator", name="x", options={})
    registry.add(Certifier(), "certifier")
    assert registry.ask("mtlcore_certify", kind="aggregator", name="x", options={}) == {"passed": True}


LAW = types.SimpleNamespace(
    id="mine", kind="aggregator", statement="s", check=len, examples=list, applies=len, measure=len
)


def type_or_text(value):
    """The repr of a bare object holds its address: each worker would collect another test."""
    return value if isinstance(value, str) else type(value).__name__


WRONG = {
    "law": [5, None, "nowhere", object(), LAW.__class__(id="mine"), type("Law", (), vars(LAW))],
    "problem": [5, object(), type("Problem", (), {})],
    "task": [5, type("Task", (), {"load": None}), LAW],
    "command": [5, LAW],
    "aggregator": [5, Fixed(), dict],
    "detector": [Fixed],
    "teleport": [Fixed],
}


@pytest.mark.parametrize(
    ("kind", "target"), [(k, t) for k, targets in WRONG.items() for t in targets], ids=type_or_text
)
def test_what_is_no_plugin_is_broken_whatever_its_kind(kind, target):
    registry = quietly(Plugin("p", "d", "1", lambda: module(KINDS[kind], lambda register: register("mine", target))))
    with pytest.warns(PluginWarning, match="is set aside"):
        (entry,) = registry.entries(kind)
    assert entry.status == "broken"


def test_a_law_answers_to_its_own_id_only():
    """One that is registered under another name would be found by a claim that it does not state."""
    sound = Plugin("a", "a", "1", lambda: module("mtlcore_register_laws", lambda register: register("mine", LAW)))
    assert [e.status for e in quietly(sound).entries("law")] == ["ok"]
    other = Plugin("b", "b", "1", lambda: module("mtlcore_register_laws", lambda register: register("other", LAW)))
    with pytest.warns(
        PluginWarning, match=r"a law is registered under its id: register\('mine', \.\.\.\), not 'other'"
    ):
        assert quietly(other).entries("law")[0].status == "broken"


def test_a_class_that_raises_when_it_is_looked_at_is_broken():
    class Meta(type(Aggregator)):
        def __getattribute__(cls, name):
            if name in ("needs", "__abstractmethods__"):
                raise SystemExit(0)
            return super().__getattribute__(name)

    registry = quietly(Plugin("p", "d", "1", lambda: module("mtlcore_register_aggregators", lambda r: r("odd", odd))))
    odd = Meta("Odd", (Aggregator,), {"aggregate": lambda self, view, state: Aggregation(weights=view.losses)})
    with pytest.warns(PluginWarning, match="looking at .* raised SystemExit"):
        assert registry.entries("aggregator")[0].status == "broken"


@pytest.mark.parametrize(
    "name",
    ["", "A", "a_b", "a b", "-a", "a-", "a--b", "1a", "ä", "a\x1b[0m", "a\n", "a" * 65, "\udcff", "a.b", 3, None,
     type("Text", (str,), {})("a")],
    ids=ascii,
)  # fmt: skip
def test_one_rule_for_names(name):
    assert not is_name(name)
    registry = quietly(Plugin("p", "d", "1", lambda: module("mtlcore_register_aggregators", lambda r: r(name, Fixed))))
    with pytest.warns(PluginWarning, match="a name is a lower-case kebab string"):
        (entry,) = registry.entries("aggregator")
    assert entry.status == "broken"
    assert (entry.name + entry.problem).isprintable()


def test_names_that_are_right():
    assert all(map(is_name, ["a", "a1", "a-b-3", "a" * 64]))
    assert is_name("detector.finite", "law")
    assert not is_name("detector.finite")


def test_a_plugin_that_hangs_is_interrupted_where_a_time_is_set(monkeypatch):
    monkeypatch.setenv(patience.VARIABLE, "0.2")

    def stubborn():
        while True:
            with contextlib.suppress(Exception):
                time.sleep(10)

    began = time.monotonic()
    registry = quietly(Plugin("bad", "bad-dist", "2", stubborn), GOOD)
    assert time.monotonic() - began < 2
    assert "it took longer than 0.2 s" in registry.problems()[0].problem
    assert [e.name for e in registry.entries("aggregator")] == ["good"]


def test_who_is_waited_for_is_said_once(monkeypatch):
    monkeypatch.setattr(patience, "PATIENCE", 0.1)
    said = []
    patience.tell(said.append)
    with patience.waiting("plugin 'slow' of distribution 'd 1'"):
        time.sleep(0.9)
    assert [s.partition(" (")[0] for s in said] == ["waiting for plugin 'slow' of distribution 'd 1'"]


def test_a_plugin_can_be_taken_out_again():
    plugin = module("mtlcore_register_aggregators", lambda register: register("mine", Fixed))
    for known_as in (plugin, "some-plugin"):
        mtlcore.add_plugin(plugin, "some-plugin")
        assert "mine" in mtlcore.available("aggregator")
        mtlcore.remove_plugin(known_as)
        assert "mine" not in mtlcore.available("aggregator")
    with pytest.raises(
        UnknownPluginError, match="there is no plugin 'mtl-plugins' to be removed. Did you mean 'mtlplugins'"
    ):
        mtlcore.remove_plugin("mtl-plugins")


def test_a_law_that_is_no_law_does_not_break_the_others():
    """A law registered as 5 used to break the certifier, and a certifier that broke opened the benchmark's gate."""
    from mtlverify.runner import laws

    before = [law.id for law in laws("detector")]
    vandal = module("mtlcore_register_laws", lambda register: [register("five", 5), register("six", "not_there:six")])
    mtlcore.add_plugin(vandal, "vandal")
    try:
        with pytest.warns(PluginWarning, match="law 'five' .* is set aside: 5 is not a law"):
            assert [law.id for law in laws("detector")] == before
    finally:
        mtlcore.remove_plugin(vandal)
