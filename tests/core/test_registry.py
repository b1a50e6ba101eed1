"""A broken plugin never takes the others down; names, order and environment behave as documented."""

from __future__ import annotations

import importlib.metadata
import random
import re
import sys
import types
import warnings
import zipfile

import pytest

from mtlcore import discovery, hookimpl
from mtlcore.discovery import Plugin
from mtlcore.errors import ConfigurationError, PluginError, PluginWarning, UnknownPluginError
from mtlcore.registry import Registry
from support.methods import Fixed


def plugin(distribution, load, name=None):
    return Plugin(name or distribution, distribution, "1.0", load)


def registers(*pairs, hook="mtlcore_register_aggregators"):
    """A plugin module whose hook registers these (name, target) pairs."""
    module = types.ModuleType("made")

    def function(register):
        for name, target in pairs:
            register(name, target)

    function.__name__ = hook
    setattr(module, hook, hookimpl(function))
    return lambda: module


def fails(error):
    def load():
        raise error

    return load


def raising_hook():
    module = types.ModuleType("raising")

    def mtlcore_register_aggregators(register):
        register("half", Fixed)
        raise ValueError("in the middle")

    module.mtlcore_register_aggregators = hookimpl(mtlcore_register_aggregators)
    return module


def unknown_hook():
    module = types.ModuleType("unknown")

    def mtlcore_register_agregators(register):
        pass

    module.mtlcore_register_agregators = hookimpl(mtlcore_register_agregators)
    return module


def wrong_signature():
    module = types.ModuleType("wrong")

    def mtlcore_register_aggregators(registrar):
        pass

    module.mtlcore_register_aggregators = hookimpl(mtlcore_register_aggregators)
    return module


def hook_in_capitals():
    module = types.ModuleType("capitals")

    def register(register):
        pass

    module.MTLCORE_REGISTER_AGGREGATORS = hookimpl(register)
    return module


def unmarked_hook():
    module = types.ModuleType("unmarked")

    def mtlcore_register_aggregators(register):
        register("never", Fixed)

    module.mtlcore_register_aggregators = mtlcore_register_aggregators
    return module


def hook_wrapper():
    module = types.ModuleType("wrapping")

    def mtlcore_register_aggregators(register):
        return (yield)

    module.mtlcore_register_aggregators = hookimpl(wrapper=True)(mtlcore_register_aggregators)
    return module


def event_wrapper():
    module = types.ModuleType("wrapping")

    def mtlcore_step_finished(report):
        return (yield)

    module.mtlcore_step_finished = hookimpl(wrapper=True)(mtlcore_step_finished)
    return module


BROKEN = {
    "import-error": (fails(ImportError("no module named nothing")), "ImportError: no module named nothing"),
    "exit": (fails(SystemExit(3)), r"called sys.exit\(3\)"),
    "missing-attribute": (fails(AttributeError("no such thing")), "AttributeError"),
    "unknown-hook": (
        unknown_hook,
        "unknown hook 'mtlcore_register_agregators'; did you mean 'mtlcore_register_aggregators'",
    ),
    "hook-in-capitals": (
        hook_in_capitals,
        "unknown hook 'MTLCORE_REGISTER_AGGREGATORS'; did you mean 'mtlcore_register_aggregators'",
    ),
    "unmarked-hook": (unmarked_hook, "mtlcore_register_aggregators is not marked with @mtlcore.hookimpl"),
    "wrong-signature": (wrong_signature, r"aggregators\(registrar\): the hook takes only: register$"),
    "wrapper": (hook_wrapper, "mtlcore_register_aggregators is a hook wrapper"),
    "event-wrapper": (event_wrapper, "mtlcore_step_finished is a hook wrapper"),
    "raising": (raising_hook, "ValueError: in the middle"),
    "no-aggregator": (registers(("odd", dict)), "dict is not a subclass of mtlcore.Aggregator"),
    "instance": (registers(("odd", Fixed())), r"Fixed\(values=\(\)\) is not a subclass"),
    "abstract": (registers(("odd", type("Abstract", (Fixed.__mro__[1],), {}))), "does not implement aggregate"),
    "claims-a-string": (
        registers(("odd", type("Text", (Fixed,), {"claims": "non-conflicting"}))),
        "Text.claims is 'non-conflicting'; it must be a frozenset of law ids",
    ),
    "claims-a-list": (
        registers(("odd", type("List", (Fixed,), {"claims": ["x"]}))),
        "List.claims is \\['x'\\]; it must",
    ),
    "claims-no-strings": (registers(("odd", type("One", (Fixed,), {"claims": frozenset({1})}))), "One.claims is"),
    "needs-a-string": (
        registers(("odd", type("Text", (Fixed,), {"needs": "gramian"}))),
        "Text.needs is 'gramian'; it must be Needs.LOSSES or Needs.GRAMIAN or Needs.JACOBIAN",
    ),
    "bad-name": (registers(("My Method", Fixed)), "lower-case kebab"),
    "lazy-no-module": (registers(("odd", "not_installed_anywhere:X")), "No module named 'not_installed_anywhere'"),
    "lazy-no-attribute": (registers(("odd", "support.methods:Absent")), "no attribute 'Absent'"),
    "lazy-form": (registers(("odd", "justaname")), "not of the form"),
    "duplicate": (registers(("good", Fixed)), "already taken by distribution 'aaa 1.0', which stays.*'zzz 1.0'"),
}


def test_two_plugins_of_one_distribution_that_register_the_same_name_are_told_apart():
    pair = registers(("same", Fixed)), registers(("same", Fixed))
    registry = Registry([plugin("d", load, name) for load, name in zip(pair, ("first", "second"))])
    with pytest.warns(PluginWarning, match="taken by plugin 'first', which stays; rename the one in plugin 'second'"):
        registry.entries("aggregator")


@pytest.mark.parametrize("case", BROKEN)
def test_broken_plugin_is_isolated_named_and_reported_once(case):
    load, message = BROKEN[case]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        registry = Registry([plugin("zzz", load), plugin("aaa", registers(("good", Fixed), ("other", Fixed)))])
        for _ in range(3):
            rows = registry.entries("aggregator") + registry.problems()
    assert [r.name for r in rows if r.status == "ok"] == ["good", "other"]
    bad = [r for r in rows if r.status != "ok"]
    assert len(bad) == 1
    assert bad[0].distribution == "zzz"
    assert len(seen) == 1
    assert issubclass(seen[0].category, PluginWarning)
    assert "zzz 1.0" in str(seen[0].message)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(bad[0].problem)
    assert registry.create("aggregator", "good", values=(1.0,)) == Fixed((1.0,))


def test_a_hook_may_go_by_another_name_and_ask_for_nothing():
    class Plugin:
        @hookimpl(specname="mtlcore_register_aggregators")
        def ours(self, register):
            register("renamed", Fixed)

        @hookimpl
        def mtlcore_register_detectors(self):
            pass

    registry = Registry([plugin("aaa", Plugin)])
    assert [e.name for e in registry.entries("aggregator")] == ["renamed"]
    assert registry.entries("detector") == []


@pytest.mark.parametrize("same_object", [True, False])
def test_adding_again_replaces_what_was_added_before(same_object):
    """A notebook's cell that is run again: no old class may go on under the name of the new one."""
    first = registers(("method", Fixed), ("gone", Fixed))()
    registry = Registry([])
    registry.add(first, "cell")
    assert registry.load("aggregator", "method") is Fixed
    changed = type("Changed", (Fixed,), {})
    again = registers(("method", changed))()
    if same_object:
        first.mtlcore_register_aggregators = again.mtlcore_register_aggregators
    registry.add(first if same_object else again, "cell")
    assert [e.name for e in registry.entries("aggregator")] == ["method"]
    assert registry.load("aggregator", "method") is changed
    registry.add(types.ModuleType("empty"), "another")
    assert registry.load("aggregator", "method") is changed
    assert not registry.problems()


def test_built_in_names_stay():
    with pytest.warns(PluginWarning, match="already taken by distribution 'mtlcore 1.0'"):
        registry = Registry([plugin("aaa", registers(("x", Fixed))), plugin("mtlcore", registers(("x", Fixed)))])
        assert registry.find("aggregator", "x").distribution == "mtlcore"


def test_load_order_does_not_matter():
    plugins = [plugin(d, registers((d, Fixed), ("same", Fixed))) for d in "edcba"]
    answers = set()
    for seed in range(5):
        random.Random(seed).shuffle(plugins)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            registry = Registry(plugins)
            answers.add(tuple((e.name, e.distribution, e.status) for e in registry.entries("aggregator")))
    assert len(answers) == 1


def test_strict_mode_is_fatal(monkeypatch):
    monkeypatch.setenv("MTLCORE_STRICT", "1")
    with pytest.raises(PluginError, match="zzz 1.0.*boom.*MTLCORE_STRICT"):
        Registry([plugin("zzz", fails(RuntimeError("boom")))])


def test_lazy_target_is_imported_on_first_use(tmp_path, monkeypatch):
    (tmp_path / "lazy_one.py").write_text(
        "from mtlcore import Aggregation, Aggregator\n"
        "class Lazy(Aggregator):\n"
        "    def aggregate(self, view, state):\n"
        "        return Aggregation(weights=view.losses, state=state)\n"
    )
    (tmp_path / "lazy_bad.py").write_text("class Lazy:\n    pass\nraise OSError('at import')\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry([plugin("aaa", registers(("one", "lazy_one:Lazy"), ("bad", "lazy_bad:Lazy")))])
    assert [e.status for e in registry.entries("aggregator")] == ["ok", "ok"]
    assert "lazy_one" not in sys.modules
    assert type(registry.create("aggregator", "one")).__name__ == "Lazy"
    with pytest.raises(PluginError, match=r"'bad' of distribution 'aaa 1.0' is broken: OSError: at import"):
        registry.create("aggregator", "bad")
    assert [e.status for e in registry.entries("aggregator")] == ["broken", "ok"]


_MODULE = """
from mtlcore import Aggregation, Aggregator
class Lazy(Aggregator):
    def aggregate(self, view, state):
        return Aggregation(weights=view.losses, state=state)
"""


@pytest.mark.parametrize("case", ["byte-order-mark", "encoding", "dynamic", "zip"])
def test_lazy_target_is_sound_wherever_python_can_import_it(tmp_path, monkeypatch, case):
    name = f"lazy_{case.replace('-', '_')}"
    source = {
        "byte-order-mark": b"\xef\xbb\xbf" + _MODULE.encode(),
        "encoding": b"# -*- coding: latin-1 -*-\n# caf\xe9\n" + _MODULE.encode(),
        "dynamic": _MODULE.replace("Lazy", "Made").encode() + b"globals()['Lazy'] = Made\n",
        "zip": _MODULE.encode(),
    }[case]
    place = tmp_path
    if case == "zip":
        place = tmp_path / "plugins.zip"
        with zipfile.ZipFile(place, "w") as archive:
            archive.writestr(f"{name}.py", source)
    else:
        (tmp_path / f"{name}.py").write_bytes(source)
    monkeypatch.syspath_prepend(place)
    registry = Registry([plugin("aaa", registers(("lazy", f"{name}:Lazy")))])
    assert [e.problem for e in registry.entries("aggregator")] == [None]
    assert name not in sys.modules
    assert registry.create("aggregator", "lazy") is not None


def test_a_class_has_one_name_whoever_made_the_instance_and_whatever_was_loaded_before():
    pairs = [("second", Fixed), ("first", "support.methods:Fixed")]
    later = plugin("zzz", registers(("earlier", Fixed)))
    answers = set()
    for before in ([], ["first"], ["second"], ["second", "first"]):
        registry = Registry([later, plugin("aaa", registers(*pairs))])
        for name in before:
            registry.create("aggregator", name)
        answers |= {registry.name_of(Fixed()), registry.identify(Fixed())}
    assert answers == {"first", "'first' of distribution 'aaa 1.0'"}
    assert Registry([]).name_of(Fixed()) == "Fixed"


def test_unknown_name_suggests_the_nearest():
    registry = Registry([plugin("aaa", registers(("gradient-vaccine", Fixed), ("other", Fixed)))])
    with pytest.raises(UnknownPluginError, match="Did you mean 'gradient-vaccine'"):
        registry.create("aggregator", "gradient-vacine")
    with pytest.raises(UnknownPluginError, match="Did you mean 'gradient-vaccine'"):
        registry.create("aggregator", "Gradient_VACCINE")
    with pytest.raises(UnknownPluginError, match="there is no aggregator called 3"):
        registry.create("aggregator", 3)
    with pytest.raises(UnknownPluginError, match="Available: gradient-vaccine, other"):
        registry.create("aggregator", "zzzzzz")
    many = Registry([plugin("aaa", registers(*((f"method-{i}", Fixed) for i in range(20))))])
    with pytest.raises(UnknownPluginError, match="there is no aggregator called 'zzzzzz'. `mtl list` shows them.$"):
        many.create("aggregator", "zzzzzz")
    with pytest.raises(ConfigurationError, match="has no hyper-parameter 'valeus'. Did you mean 'values'"):
        registry.create("aggregator", "other", valeus=1)
    with pytest.raises(ConfigurationError, match="unknown kind"):
        registry.entries("agregator")


def test_environment_allow_list(monkeypatch):
    class Point:
        def __init__(self, name, dist):
            metadata = {"Name": dist, "Version": "1"}
            self.name, self.dist, self.load = name, types.SimpleNamespace(metadata=metadata), lambda: None

    points = [Point("mtlplugins", "mtlcore"), Point("a", "dist-a"), Point("b", "dist-b")]
    monkeypatch.setattr(discovery.importlib.metadata, "entry_points", lambda group: points)
    for wish, expected in [
        ("", ["mtlplugins", "a", "b"]),
        ("off", ["mtlplugins"]),
        ("a", ["mtlplugins", "a"]),
        ("dist-b, a", ["mtlplugins", "a", "b"]),
    ]:
        monkeypatch.setenv("MTLCORE_PLUGINS", wish)
        assert [p.name for p in discovery.discover()] == expected


def test_a_distribution_without_metadata_harms_nobody(tmp_path, monkeypatch):
    """What an interrupted uninstall leaves behind; beside another third party's it could not even be sorted."""
    for name in ("left-over", "another", "whole"):
        (tmp_path / f"{name}.dist-info").mkdir()
        (tmp_path / f"{name}.dist-info" / "entry_points.txt").write_text(f"[mtlcore]\n{name} = not_there_anymore\n")
    (tmp_path / "whole.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: whole\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(PluginWarning, match="No module named 'not_there_anymore'"):
        registry = Registry()
    left = {p.name: p for p in registry.problems()}
    assert [left[n].provenance for n in ("left-over", "another", "whole")] == ["?", "?", "whole 1.0"]
    assert registry.find("aggregator", "gradops").distribution == "mtlcore"


@pytest.mark.parametrize("value", ["not a module:!", "", ":x", "json:", "json;x"])
def test_a_malformed_entry_point_is_quoted(tmp_path, monkeypatch, value):
    """It used to be "'NoneType' object has no attribute 'group'", whatever Python made of it."""
    folder = tmp_path / "bad-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[mtlcore]\nfoo = {value}\n")
    monkeypatch.syspath_prepend(tmp_path)
    says = (
        f"plugin 'foo' of distribution 'bad 1.0' is set aside: PluginError: its entry point foo = {value!r} is not of"
    )
    with pytest.warns(PluginWarning, match=re.escape(says)) as told:
        registry = Registry()
    assert "correct it in the table project.entry-points.mtlcore" in str(told[0].message)
    assert registry.find("aggregator", "gradops").distribution == "mtlcore"


def test_an_event_listener_that_raises_is_silenced_and_harms_nobody(monkeypatch, capsys):
    heard = []

    def make(action):
        module = types.ModuleType("listener")

        def mtlcore_step_finished(report):
            action(report)

        module.mtlcore_step_finished = hookimpl(mtlcore_step_finished)
        return lambda: module

    registry = Registry([plugin("bad", make(lambda r: 1 / 0)), plugin("good", make(heard.append))])
    with pytest.warns(PluginWarning, match="bad.*mtlcore_step_finished raised ZeroDivisionError"):
        registry.announce("mtlcore_step_finished", report="one")
    monkeypatch.setenv("MTLCORE_TRACE", "1")
    registry.announce("mtlcore_step_finished", report="two")
    assert heard == ["one", "two"]
    assert "mtlcore: mtlcore_step_finished(report=two)" in capsys.readouterr().err


def test_fields_without_the_dataclass_decorator_are_refused():
    from mtlcore import Aggregator

    class Forgot(Aggregator):
        c: float = 1.0

        def aggregate(self, view, state):
            raise NotImplementedError

    with pytest.warns(PluginWarning, match=r"Forgot has fields \(c\) but is not decorated"):
        assert Registry([plugin("aaa", registers(("forgot", Forgot)))]).entries("aggregator")[0].status == "broken"


def test_claims_that_a_property_computes_are_looked_at_when_an_instance_is_made():
    sloppy = type("Sloppy", (Fixed,), {"claims": property(lambda self: "finite" if self.values else frozenset())})
    registry = Registry([plugin("aaa", registers(("sloppy", sloppy)))])
    assert registry.create("aggregator", "sloppy").claims == frozenset()
    with pytest.raises(PluginError, match="'sloppy' of distribution 'aaa 1.0' is broken: Sloppy.claims is 'finite'"):
        registry.create("aggregator", "sloppy", values=(1.0,))


def test_a_wrong_argument_is_not_taken_for_an_unknown_hook_whatever_the_plugin_is_called():
    """Its module's name, too, begins like a hook's."""
    with pytest.warns(PluginWarning, match="set aside: .*the hook takes only: register"):
        Registry([plugin("mtlcore-my-method", wrong_signature, name="mtlcore_my_method")])


@pytest.mark.parametrize(
    ("module", "text", "problem"),
    [
        ("located_a", "import math\nmath.sqrt(-1)\n", r"ValueError: .* \(located_a.py, line 2\)$"),
        ("located_b", "import json\n\njson.loads('[')\n", r"JSONDecodeError: .* \(located_b.py, line 3\)$"),
        ("located_c", "import sys\nsys.exit(3)\n", r"called sys.exit\(3\) \(located_c.py, line 2\)$"),
        ("located_d", "import not_there_at_all\n", r"No module named .* \(located_d.py, line 1\)$"),
        ("located_e", "x = 1 +\n", r"SyntaxError: .* \(located_e.py, line 1\)$"),
    ],
)
def test_an_error_at_import_says_where_in_the_plugin(tmp_path, monkeypatch, module, text, problem):
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    point = importlib.metadata.EntryPoint(name="x", value=module, group="mtlcore")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (broken,) = Registry([plugin("aaa", point.load)]).problems()
    assert re.search(problem, broken.problem), broken.problem


def test_a_forgotten_frozen_is_explained(tmp_path, monkeypatch):
    (tmp_path / "thawed.py").write_text(
        "from dataclasses import dataclass\nfrom mtlcore import Aggregator\n\n\n"
        "@dataclass\nclass Thawed(Aggregator):\n    c: float = 1.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry([plugin("aaa", registers(("thawed", "thawed:Thawed")))])
    with pytest.raises(PluginError, match=r"decorate the class with @dataclass\(frozen=True\) \(thawed.py, line \d\)"):
        registry.create("aggregator", "thawed")
