"""``pytest --mtl NAME``: one test per law for a registered plugin.

Expected failures stand in the project's pytest configuration, each with a reason::

    [tool.pytest.ini_options]
    mtl_expected_failures = ["my-method non-conflicting: conflicts for K >= 3, see the paper's section 4"]

An expected failure that no longer fails, and a line that matches no law, fail the run: the list cannot go stale.

Nothing of the harness is imported unless the option is given, because pytest loads this module in every run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

OPTION = "mtl_names"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options and the list of expected failures."""
    group = parser.getgroup("mtlcore")
    group.addoption("--mtl", action="append", default=[], dest=OPTION, metavar="NAME", help="check this mtlcore plugin")
    group.addoption("--mtl-examples", type=int, default=100, metavar="N", help="inputs per law")
    group.addoption("--mtl-seed", type=int, default=0, metavar="S", help="seed of the search")
    parser.addini("mtl_expected_failures", "'NAME LAW: REASON', one per line", type="linelist", default=[])


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """With --mtl and no paths, the laws are all there is to run."""
    if config.getoption(OPTION) and config.args_source is not pytest.Config.ArgsSource.ARGS:
        return True
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Append one test per law, before -k and the like make their choice."""
    names = config.getoption(OPTION)
    if not names:
        return
    expected = _expected(config)
    collected = [
        item
        for name in names
        for item in _Plugin.from_parent(session, name=f"mtl:{name}", nodeid=f"mtl:{name}").collect()
    ]
    for item in collected:
        item.reason = expected.pop((item.parent.name.removeprefix("mtl:"), item.law.id), None)
    stale = [f"{name} {law}" for name, law in expected if name in names]
    if stale:
        raise pytest.UsageError(f"mtl_expected_failures names what is not there: {'; '.join(stale)}")
    items += collected


def _expected(config: pytest.Config) -> dict[tuple[str, str], str]:
    found = {}
    for line in config.getini("mtl_expected_failures"):
        head, colon, reason = line.partition(":")
        words = head.split()
        if len(words) != 2 or not colon or not reason.strip():
            raise pytest.UsageError(f"mtl_expected_failures: {line!r} is not of the form 'NAME LAW: REASON'")
        found[words[0], words[1]] = reason.strip()
    return found


class _Plugin(pytest.Collector):
    """All laws about one plugin."""

    def collect(self) -> Iterator[Any]:
        """Node ids read ``mtl:NAME::LAW``."""
        from mtlcore.errors import MtlError
        from mtlcore.hosting import registry
        from mtlverify.runner import kind_of_name, laws
        from mtlverify.search import require_hypothesis

        name = self.name.removeprefix("mtl:")
        try:
            require_hypothesis()
            kind = kind_of_name(name)
            plugin = registry().create(kind, name)
        except MtlError as error:
            raise pytest.UsageError(f"--mtl {name}: {error}") from error
        known = laws(kind)
        for law in known:
            yield _Law.from_parent(self, name=law.id, law=law, plugin=plugin)
        for claim in sorted(plugin.claims - {law.id for law in known}):
            raise pytest.UsageError(f"--mtl {name}: it claims {claim!r}, but there is no such law about {kind}s")


class Refuted(Exception):
    """A promise is broken; the message is the report."""


class _Law(pytest.Item):
    """One law about one plugin. A law that is not claimed may be refuted: that is shown as skipped, with the reason."""

    reason: str | None = None

    def __init__(self, *, law: Any, plugin: Any, **others: Any) -> None:
        super().__init__(**others)
        self.law, self.plugin = law, plugin

    def runtest(self) -> None:
        """Search; compare with what is expected."""
        from mtlverify.runner import examine

        options = self.config.option
        promised = self.law.universal or self.law.id in self.plugin.claims
        result = examine(self.plugin, self.law, options.mtl_examples, options.mtl_seed, shrink=promised)
        self.user_properties += [("examples", result.examples), ("worst_margin", result.worst_margin)]
        if result.examples == 0 and result.status == "error":
            raise Refuted(f"{self.law.id} could not be checked: {result.detail}")  # which nobody can expect
        broken = result.status in ("refuted", "error")
        if self.reason is not None:
            if not broken:
                raise Refuted(f"expected to fail ({self.reason}), but it is {result.status}: take the line out")
            pytest.xfail(self.reason)
        if result.failed:
            raise Refuted(
                f"{result.name} {'promises' if result.claimed else 'was asked'}: {self.law.statement}\n"
                f"{result.status} after {result.examples} inputs, margin {result.worst_margin} ({self.law.margin})\n"
                f"{result.detail}\n{result.reason}\ncounterexample: {result.counterexample}"
            )
        if result.status == "not-applicable":
            pytest.skip(result.detail)
        if broken:
            pytest.skip(f"not promised, and refuted: {result.counterexample}")

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        """The report without a traceback, which would show only this file."""
        return str(excinfo.value) if isinstance(excinfo.value, Refuted) else super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """Where it "is"."""
        return self.path, None, f"{self.parent.name if self.parent else ''}::{self.name}"
