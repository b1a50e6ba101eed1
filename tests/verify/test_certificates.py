"""A certificate is reused while nothing it depends on changed, and no longer."""

from __future__ import annotations

import importlib
import sys
import textwrap

import pytest

from mtlcore import hookimpl
from mtlcore.registry import registry
from mtlverify import certificates


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

    monkeypatch.setattr(certificates, "check", again)
    assert certificates.certify("aggregator", "certified", {}, 2) == first
    with pytest.raises(AssertionError, match="cache"):
        certificates.certify("aggregator", "certified", {"size": 2.0}, 2)
    with pytest.raises(AssertionError, match="cache"):
        certificates.certify("aggregator", "certified", {}, 3)


def test_a_change_of_an_imported_module_of_the_package_makes_a_new_certificate(package):
    cls = registry().load("aggregator", "certified")
    before = certificates.source_hash(cls)
    (package / "other.py").write_text("UNUSED = 2\n")
    assert certificates.source_hash(cls) == before
    (package / "share.py").write_text("SHARE = 2.0\n")
    assert certificates.source_hash(cls) != before


def test_half_a_file_is_no_certificate(package):
    certificates.certify("aggregator", "certified", {}, 1)
    (path,) = certificates.folder().glob("aggregator-certified-*.json")
    path.write_text(path.read_text()[:50])
    assert certificates.lookup("aggregator", "certified", {}, 1) is None


def test_the_hook_answers_for_plugins_and_for_nothing_else(package, monkeypatch):
    monkeypatch.setattr(certificates, "DEPTH", 1)
    ask = registry().ask
    assert ask("mtlcore_certify", kind="task", name="multimnist", options={}) is None
    answer = ask("mtlcore_certify", kind="detector", name="cosine", options={})
    assert answer.keys() == {"passed", "summary", "rows"}


def test_the_users_cache_folder_is_the_default(monkeypatch, tmp_path):
    monkeypatch.delenv("MTLCORE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform.startswith("linux"):
        assert certificates.folder() == tmp_path / "mtlcore" / "certificates"
