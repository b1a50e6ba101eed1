"""A certificate is reused while nothing it depends on changed, and no longer."""

from __future__ import annotations

import dataclasses
import importlib
import sys
import textwrap

import pytest

from mtlcore import hookimpl
from mtlcore.hosting import limited
from mtlcore.registry import registry
from mtlverify import certificates, runner, sources


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A third-party package of two modules, whose method leans on the second one."""
    folder = tmp_path / "thirdparty_cert"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "share.py").write_text("SHARE = 1.0\n")
    (folder / "other.py").write_text("UNUSED = 1\n")
    (folder / "method.py").write_text(
        textwrap.dedent(
            """
            import dataclasses
            import torch
            from mtlcore import Aggregation, Aggregator, number
            from thirdparty_cert.share import SHARE

            @dataclasses.dataclass(frozen=True)
            class Method(Aggregator):
                size: float = number(1.0, low=0.0)
                def aggregate(self, view, state):
                    weights = torch.full((view.n_tasks,), SHARE * self.size / view.n_tasks, dtype=torch.float64)
                    return Aggregation(weights=weights, state=state)
            """
        )
    )
    monkeypatch.setenv("MTLCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()

    class Hooks:
        @hookimpl
        def mtlcore_register_aggregators(self, register):
            register("certified", "thirdparty_cert.method:Method")

    hooks = Hooks()
    registry().add(hooks, "certificate-tests")
    yield folder
    registry().remove(hooks)
    for name in [n for n in sys.modules if n.startswith("thirdparty_cert")]:
        del sys.modules[name]


def test_a_certificate_is_made_once_and_asked_for_through_the_hook(package, monkeypatch):
    assert certificates.lookup("aggregator", "certified", {}, 2) is None
    first = certificates.certify("aggregator", "certified", {}, 2)
    assert first["passed"] is True
    assert "promises kept on" in first["summary"]
    assert {"finite", "non-conflicting"} <= {row["law"] for row in first["rows"]}

    def again(*arguments, **options):
        raise AssertionError("the cache was not used")

    monkeypatch.setattr(runner, "check", again)
    assert certificates.certify("aggregator", "certified", {}, 2) == first
    with pytest.raises(AssertionError, match="cache"):
        certificates.certify("aggregator", "certified", {"size": 2.0}, 2)
    with pytest.raises(AssertionError, match="cache"):
        certificates.certify("aggregator", "certified", {}, 3)
    assert certificates.certify("aggregator", "certified", {}, 1) == first, "deeper is enough"


@pytest.mark.parametrize("ending", ["SystemExit(0)", "GeneratorExit", "KeyboardInterrupt"])
def test_a_method_that_ends_the_process_fails_its_own_certificate_only(package, ending):
    """It used to count as a failure of the certifier: "plugin 'mtlverify' is set aside"."""
    method = package / "method.py"
    method.write_text(method.read_text().replace("weights = torch", f"raise {ending}\n        weights = torch"))
    found = certificates.certify("aggregator", "certified", {}, 1)
    assert found["passed"] is False
    assert any(row["law"] == "finite" and row["status"] == "error" for row in found["rows"])


def test_a_method_that_hangs_is_not_certified_and_the_certifier_not_blamed(package):
    method = package / "method.py"
    method.write_text(
        method.read_text().replace("weights = torch", "import time; time.sleep(60)\n        weights = torch")
    )
    with limited(1.0):
        found = registry().ask("mtlcore_certify", kind="aggregator", name="certified", options={})
    assert found["passed"] is None
    assert "took longer than 1 s" in found["summary"]
    assert certificates.lookup("aggregator", "certified", {}, 1) is None, "another day it may be fast enough"


def test_a_change_of_an_imported_module_of_the_package_makes_a_new_certificate(package):
    certificates.certify("aggregator", "certified", {}, 1)
    (package / "other.py").write_text("UNUSED = 2\n")
    assert certificates.lookup("aggregator", "certified", {}, 1) is not None
    (package / "share.py").write_text("SHARE = 2.0\n")
    assert certificates.lookup("aggregator", "certified", {}, 1) is None
    (package / "share.py").write_text("SHARE = 1.0\n")
    assert certificates.lookup("aggregator", "certified", {}, 1) is not None
    made_of = sources.plugin(registry().load("aggregator", "certified"))
    assert list(made_of) == ["thirdparty_cert", "thirdparty_cert.method", "thirdparty_cert.share"]


CODE = b'''"""What it is."""

# a remark
def f(x):
    """More
    of it."""
    return x + 1  # counted


SIZE = 2
"""Of what."""


class Method:
    paper = "an address"
    other = "an option"


class Optional:
    paper: str = "a field"


paper = "a variable"


TEXT = """
# not a comment
"""
'''


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        (b"What it is", b"What it does", True),
        (b"    of it", b"    of it,\n    and more of it", True),
        (b"# a remark\n", b"", True),
        (b"# a remark", b"# another\n\n# remark", True),
        (b"Of what", b"Of whom", True),
        (b"an address", b"another", True),
        (b'"an address"', b'("one", "two")', True),
        (b'"an address"', b"print(1)", False),
        (b"an option", b"another", False),
        (b"a field", b"another", False),
        (b"a variable", b"another", False),
        (b"\n", b"\r\n", True),
        (b"x + 1", b"x + 2", False),
        (b"SIZE = 2", b"SIZE = 3", False),
        (b"# not a comment", b"# not the same", False),
        (b"# not a comment", b"# not a comment ", False),
        (b"    return", b"    return not", False),
    ],
)
def test_an_explanation_is_not_what_a_verdict_depends_on(old, new, same):
    assert CODE.replace(old, new) != CODE
    assert (sources.digest(CODE.replace(old, new)) == sources.digest(CODE)) is same


def test_a_source_that_cannot_be_parsed_counts_whole():
    assert sources.digest(b"def (") != sources.digest(b"def ( # remark")


def test_another_harness_or_version_asks_anew(package, monkeypatch):
    certificates.certify("aggregator", "certified", {}, 1)
    with monkeypatch.context() as patch:
        patch.setattr(sources, "harness", lambda: "another")
        assert certificates.lookup("aggregator", "certified", {}, 1) is None
    entry = registry().find("aggregator", "certified")
    with monkeypatch.context() as patch:
        patch.setattr(registry(), "find", lambda kind, name: dataclasses.replace(entry, version="2"))
        assert certificates.lookup("aggregator", "certified", {}, 1) is None
    assert certificates.lookup("aggregator", "certified", {}, 1) is not None


def test_a_refutation_wins_and_old_files_go(package):
    good = runner.Result("aggregator", "certified", "d", "finite", True, "verified", 1, 1.0)
    bad = dataclasses.replace(good, status="refuted")

    def keep(result, depth, seed):
        certificates.store("aggregator", "certified", {}, [result], depth, seed)

    keep(good, 100, 0)
    keep(bad, 50, 0)
    keep(good, 200, 0)
    assert certificates.lookup("aggregator", "certified", {}, 100)["passed"] is True
    assert certificates.lookup("aggregator", "certified", {}, 10)["passed"] is False
    for seed in range(1, 20):
        keep(good, 100, seed)
    assert len(list(certificates.folder().glob("*.json"))) == certificates.KEPT


def test_a_class_without_a_source_gets_an_answer_but_no_certificate(package):
    namespace = {"__name__": "typed_into_a_notebook"}
    exec(
        "import dataclasses, torch\nfrom mtlcore import Aggregation, Aggregator, hookimpl\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Typed(Aggregator):\n"
        "    def aggregate(self, view, state):\n"
        "        return Aggregation(weights=torch.ones(view.n_tasks, dtype=torch.float64), state=state)\n"
        "class Hooks:\n"
        "    @hookimpl\n"
        "    def mtlcore_register_aggregators(self, register):\n"
        "        register('typed', Typed)\n",
        namespace,
    )
    hooks = namespace["Hooks"]()
    registry().add(hooks, "typed-tests")
    try:
        assert certificates.certify("aggregator", "typed", {}, 1)["passed"] is True
        assert certificates.lookup("aggregator", "typed", {}, 1) is None
    finally:
        registry().remove(hooks)


def test_a_cache_that_cannot_be_written_is_no_obstacle(package, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MTLCORE_CACHE", str(tmp_path / "file"))
    assert certificates.certify("detector", "cosine", {}, 1)["passed"] is True


def test_half_a_file_is_no_certificate(package):
    certificates.certify("aggregator", "certified", {}, 1)
    (path,) = certificates.folder().glob("aggregator-certified-*.json")
    path.write_text(path.read_text()[:50])
    assert certificates.lookup("aggregator", "certified", {}, 1) is None


def test_the_hook_answers_for_plugins_and_for_nothing_else(package, monkeypatch):
    monkeypatch.setattr(certificates.certify, "__defaults__", (1,))
    ask = registry().ask
    assert ask("mtlcore_certify", kind="task", name="multimnist", options={}) is None
    answer = ask("mtlcore_certify", kind="detector", name="cosine", options={})
    assert answer.keys() == {"passed", "summary", "rows", "date"}
    assert ask("mtlcore_certified", kind="detector", name="dominated", options={}) is None
    assert ask("mtlcore_certified", kind="task", name="multimnist", options={}) is None


def test_the_users_cache_folder_is_the_default(monkeypatch, tmp_path):
    monkeypatch.delenv("MTLCORE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform.startswith("linux"):
        assert certificates.folder() == tmp_path / "mtlcore" / "certificates"


def test_without_the_library_that_searched_a_certificate_is_not_valid_and_no_error(monkeypatch):
    """A core-only install lists plugins beside certificates of another environment."""
    import importlib.metadata

    from mtlverify import sources

    def version(name):
        if name == "hypothesis":
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    sources.harness.cache_clear()
    here, known = sources.harness(), importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", version)
    sources.harness.cache_clear()
    try:
        assert sources.harness() != here
    finally:
        sources.harness.cache_clear()
