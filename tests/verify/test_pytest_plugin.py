"""``pytest --mtl NAME``: one test id per law, expected failures with reasons, loud when they go stale."""

from __future__ import annotations

import pytest

from mtlcore import hookimpl
from mtlcore.errors import MissingExtraError
from mtlcore.registry import registry
from mtlverify.mutants.aggregators import SlightlyConflicting
from mtlverify.mutants.twins import Mean

pytest_plugins = ["pytester"]


def nothing(cls, examples):
    return examples.filter(lambda example: False)


class Package:
    @hookimpl
    def mtlcore_register_aggregators(self, register):
        register("plain-mean", Mean)
        register("vacuous", type("Vacuous", (Mean,), {"verification_examples": classmethod(nothing)}))
        register("boastful", type("Boastful", (SlightlyConflicting,), {"claims": frozenset({"non-conflicting"})}))


@pytest.fixture(autouse=True)
def plugins():
    package = Package()
    registry().add(package, "pytest-plugin-tests")
    yield
    registry().remove(package)


def run(pytester, *arguments, ini=""):
    pytester.makeini("[pytest]\n" + ini)
    return pytester.inline_run("--mtl-examples", "17", "-p", "no:cacheprovider", *arguments)


def test_without_hypothesis_the_extra_to_install_is_named(pytester, monkeypatch):
    """And not an internal error of pytest's, from laws that cannot be imported."""

    def missing():
        raise MissingExtraError("hypothesis", "verify", "Searching for counterexamples")

    monkeypatch.setattr("mtlverify.search.require_hypothesis", missing)
    record = run(pytester, "--mtl", "plain-mean")
    assert record.ret == pytest.ExitCode.USAGE_ERROR


def outcomes(record):
    passed, skipped, failed = record.listoutcomes()
    return [[r.nodeid for r in reports] for reports in (passed, skipped, failed)]


def test_one_test_per_law_and_an_unclaimed_refutation_is_a_skip(pytester):
    pytester.makepyfile("def test_of_the_project(): assert False")
    passed, skipped, failed = outcomes(
        run(pytester, "--mtl", "plain-mean", "-k", "finite or homogeneous or conflicting")
    )
    assert "mtl:plain-mean::finite" in passed
    assert "mtl:plain-mean::positively-homogeneous" in passed
    assert "mtl:plain-mean::non-conflicting" in skipped
    assert failed == []  # without paths, the laws are all there is to run


def test_a_broken_promise_fails_with_the_counterexample(pytester):
    record = run(pytester, "--mtl", "boastful", "-k", "non-conflicting")
    _, _, failed = record.listoutcomes()
    assert [r.nodeid for r in failed] == ["mtl:boastful::non-conflicting"]
    assert "No task gradient has a negative inner product" in failed[0].longreprtext
    assert "jacobian" in failed[0].longreprtext


def test_an_expected_failure_needs_a_reason_and_goes_stale_loudly(pytester):
    known = "mtl_expected_failures =\n    boastful non-conflicting: known, see the paper\n"
    record = run(pytester, "--mtl", "boastful", "-k", "non-conflicting", ini=known)
    assert record.listoutcomes()[2] == []
    (expected,) = record.listoutcomes()[1]
    assert expected.wasxfail.removeprefix("reason: ") == "known, see the paper"  # pytest 8.0 puts the prefix there

    stale = "mtl_expected_failures =\n    plain-mean finite: it used to break\n"
    record = run(pytester, "--mtl", "plain-mean", "-k", "finite", ini=stale)
    (failed,) = record.listoutcomes()[2]
    assert "take the line out" in failed.longreprtext


def test_a_vacuous_check_fails_even_where_a_failure_is_expected(pytester):
    known = "mtl_expected_failures =\n    vacuous finite: known\n"
    record = run(pytester, "--mtl", "vacuous", "-k", "finite or non-conflicting and not step", ini=known)
    passed, skipped, failed = record.listoutcomes()
    assert (passed, skipped) == ([], [])
    assert len(failed) == 2
    assert all("vacuous: not one input" in report.longreprtext for report in failed)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("plain-mean finite", "not of the form"),
        ("plain-mean no-such-law: because", "what is not there"),
    ],
)
def test_bad_lists_of_expected_failures_are_usage_errors(pytester, line, message):
    pytester.makeini(f"[pytest]\nmtl_expected_failures =\n    {line}\n")
    done = pytester.runpytest_inprocess("--mtl", "plain-mean")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert message in "\n".join(done.errlines + done.outlines)


def test_an_unknown_plugin_is_a_usage_error_that_suggests(pytester):
    done = pytester.runpytest_inprocess("--mtl", "plain-meen")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert "plain-mean" in "\n".join(done.errlines + done.outlines)


def test_without_the_option_nothing_is_imported(pytester):
    """pytest loads the plugin in every run of every project."""
    code = (
        "import sys, mtlverify.pytest_plugin\n"
        "heavy = [m for m in ('torch', 'hypothesis', 'cvxpy', 'mtlcore.contracts') if m in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
