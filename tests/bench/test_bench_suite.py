"""Suite files: short, validated, with errors that name the place."""

from __future__ import annotations

import pytest

from mtlbench import jobs, runner
from mtlbench.suite import Suite, digest, read, shipped
from mtlcore.errors import ConfigurationError
from support import bench_tiny

SMALL = """
title = "mine"
tasks = ["multimnist"]
[[methods]]
name = "gradops with COST"
aggregator = "gradops"
options = {alpha = 0.5}
detector = "dominated"
teleport = "lora"
brakes = {start_step = 10}
"""


def test_a_suite_holds_only_differences(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(SMALL)
    suite = read(str(path))
    assert (suite.name, suite.seeds, suite.tuning.trials) == ("mine", 3, 0)
    (method,) = suite.methods
    assert method.plugins() == [
        ("aggregator", "gradops", {"alpha": 0.5}), ("detector", "dominated", {}), ("teleport", "lora", {}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("seeds", "seed"), r"valid: seed: there is no such key. Did you mean 'seeds'\?$"),
        (("seeds", "xyz"), "xyz: there is no such key. Allowed: name, title, about, tasks, methods, seeds, budget"),
        (("title", "titel"), r"valid: titel: there is no such key. Did you mean 'title'\?$"),
        (("title", "TITLE"), r"valid: TITLE: there is no such key. Did you mean 'title'\?$"),
        (("[[methods]]", "[[method]]"), r"valid: method: there is no such key. Did you mean 'methods'\?$"),
        (("brakes", "zzz"), r"valid: methods.0.zzz: there is no such key. Allowed: name, aggregator, [^;]*, front\.?$"),
        (("seeds = 2", "budget = {stepz = 1}"), r"valid: budget.stepz: there is no such key. Did you mean 'steps'\?$"),
        (("seeds = 2", "tuning = {trials = 1}"), "tuning: .*cannot try 3 learning rates"),
        (('tasks = ["multimnist"]', "tasks = []"), "tasks"),
        (("brakes", "breaks"), "methods.0.breaks"),
        (('name = "gradops with COST"', 'name = "single-task"'), "is the baseline"),
        (("title", "x = ["), "not valid TOML"),
    ],
)
def test_mistakes_are_named(tmp_path, change, complaint):
    path = tmp_path / "mine.toml"
    path.write_text(("seeds = 2\n" + SMALL).replace(*change))
    with pytest.raises(ConfigurationError, match=complaint):
        read(str(path))


@pytest.mark.parametrize(
    ("reference", "complaint"),
    [("gradops with COTS", "Did you mean 'gradops with COST'"), ("zzz", "Allowed: gradops with COST, extra")],
)
def test_the_reference_must_be_one_of_the_methods(tmp_path, reference, complaint):
    """Found after the training otherwise, in a report that compares with nothing."""
    path = tmp_path / "mine.toml"
    more = '[[methods]]\nname = "extra"\noptional = true\n'
    path.write_text(f'reference = "{reference}"\n{SMALL}{more}')
    with pytest.raises(ConfigurationError, match=f"reference: there is no method '{reference}'. {complaint}"):
        read(str(path))
    path.write_text(f'reference = "extra"\n{SMALL}{more}')
    assert read(str(path)).reference == "extra", "it may be left out where no plugin of that name exists"


def test_names_must_differ():
    with pytest.raises(ValueError, match="'a' is listed twice"):
        Suite.model_validate({"name": "s", "title": "s", "tasks": ["t"], "methods": ["a", "a"]})


def test_unknown_suite_names_the_shipped_ones():
    with pytest.raises(ConfigurationError, match="demo"):
        read("dmeo")


@pytest.mark.parametrize("name", shipped())
def test_shipped_suites_are_valid_and_have_three_seeds(name):
    suite = read(name)
    assert suite.seeds >= 3
    assert suite.reference in {m.name for m in suite.methods}


@pytest.mark.parametrize("name", shipped())
def test_shipped_suites_name_plugins_and_options_that_exist(name):
    suite = read(name)
    methods = runner._existing_methods(suite, runner.Summary(), bench_tiny.quiet())
    assert {m.name for m in methods} == {m.name for m in suite.methods}
    for entry in suite.tasks:
        assert jobs.make_task(entry).tasks


def test_the_hash_of_a_configuration_ignores_order_only():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
