"""Every hook is documented with its exact arguments, and every hook is really called."""

from __future__ import annotations

import inspect
import json
import re
import types
from pathlib import Path

import pytest
import torch

import mtlcore.registry as reg
from mtlcore import Brakes, MultiTask, hookimpl, hookspecs
from mtlcore.discovery import Plugin
from mtlcore.errors import PluginWarning
from mtlcore.registry import Registry
from support.architectures import build
from support.methods import Fixed
from support.teleports import Shift, always

DOCS = Path(__file__).parents[2] / "docs"
HOOKS = {n: f for n, f in vars(hookspecs).items() if n.startswith("mtlcore_")}


def test_every_hook_is_documented_with_its_exact_arguments():
    text = (DOCS / "reference" / "hooks.md").read_text()
    documented = re.findall(r"^### (mtlcore_\w+)\((.*)\)$", text, re.MULTILINE)
    assert [n for n, _ in documented] == list(HOOKS), "document the hooks in the order of hookspecs.py"
    for name, arguments in documented:
        assert arguments == ", ".join(inspect.signature(HOOKS[name]).parameters)
        assert HOOKS[name].__doc__


@pytest.fixture
def heard(monkeypatch):
    """A registry with one plugin that implements every hook and writes down what it is called with."""
    calls: dict[str, dict] = {}
    module = types.ModuleType("listener")

    def make(name, parameters):
        namespace: dict = {"calls": calls}
        exec(f"def {name}({', '.join(parameters)}):\n    calls[{name!r}] = dict(locals())", namespace)
        return hookimpl(namespace[name])

    for name, spec in HOOKS.items():
        setattr(module, name, make(name, inspect.signature(spec).parameters))
    registry = Registry([Plugin("listener", "listening", "1", lambda: module)])
    for name in (
        "mtlcore.registry",
        "mtlcore.multitask",
        "mtlcore.step.conflict",
        "mtlcore.step.tell",
        "mtlcore.asking.aggregator",
        "mtlcore.asking.detector",
        "mtlcore.cli",
        "mtlcore.listing",
        "mtlcore.showing",
    ):
        __import__(name)
        monkeypatch.setattr(f"{name}.registry", lambda: registry)
    return calls


def test_registration_hooks_are_called_when_their_kind_is_looked_up(heard):
    for kind, hook in hookspecs.KINDS.items():
        assert hook not in heard
        reg.registry().entries(kind)
        assert callable(heard[hook]["register"])


def test_command_hook_is_called_by_the_command_line(heard):
    from typer.testing import CliRunner

    from mtlcore.cli import app

    assert CliRunner().invoke(app, ["list", "--kind", "aggregator", "--json"]).exit_code == 0
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0
    assert "mtlcore_register_commands" in heard
    assert "mtlcore_register_aggregators" in heard


def test_step_events(heard):
    work = build("mlp", torch.float64)
    optimizer = torch.optim.SGD(work.parameters(), lr=0.1)
    mt = MultiTask(
        work.trunk, aggregator=Fixed((1.0,) * 3), optimizer=optimizer, detector=always(), teleport=Shift(),
        brakes=Brakes(), heads=work.heads,
    )  # fmt: skip
    report = mt.step(work.evaluate)
    assert torch.equal(heard["mtlcore_step_finished"]["report"].losses, report.losses)
    assert torch.equal(heard["mtlcore_conflict_detected"]["conflict"].pairs, report.conflict.pairs)
    assert heard["mtlcore_conflict_detected"]["report"].weights is None
    assert str(heard["mtlcore_teleported"]["result"]) == str(report.teleport)


def test_certify_is_a_question_whose_first_answer_wins(heard):
    assert reg.registry().ask("mtlcore_certify", kind="aggregator", name="x", options={}) is None
    assert heard["mtlcore_certify"] == {"kind": "aggregator", "name": "x", "options": {}}
    assert json.dumps(heard["mtlcore_certify"])


def test_certified_is_asked_by_the_list_of_plugins(heard):
    from typer.testing import CliRunner

    from mtlcore import cli, listing

    entry = reg.Entry("aggregator", "x", "d", "1")
    assert listing.certificate(entry) is None
    assert heard["mtlcore_certified"] == {"kind": "aggregator", "name": "x", "options": {}}
    assert CliRunner().invoke(cli.app, ["list"]).exit_code == 0


def test_recorded_is_asked_by_show_which_bears_a_bad_answer(heard, monkeypatch):
    from mtlcore import showing

    entry = reg.Entry("aggregator", "x", "d", "1")
    assert showing._recorded(entry) == {}
    assert heard["mtlcore_recorded"] == {"kind": "aggregator", "name": "x"}
    monkeypatch.setattr(reg.registry(), "ask", lambda hook, **_: 5)
    with pytest.warns(PluginWarning, match="mtlcore_recorded"):
        assert showing._recorded(entry) == {}
