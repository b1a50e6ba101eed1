"""The reference pages say what the code says."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """All pages, made anew in a process of their own, in which third-party plugins are switched off."""
    to = tmp_path_factory.mktemp("reference")
    program = (
        f"import sys, pathlib; sys.path.insert(0, {str(DOCS)!r})\n"
        f"import generate; generate.write(pathlib.Path({str(to)!r}))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    return to


def _as_pinned(name: str) -> bool:
    """Whether the installed version is the one of constraints.txt, which the pages are made with."""
    return f"{name}=={importlib.metadata.version(name)}" in (DOCS.parent / "constraints.txt").read_text().splitlines()


def test_reference_pages_are_not_stale(made):
    pages = {p.relative_to(made): p.read_text() for p in made.rglob("*.md")}
    assert len(pages) > 30
    if not (_as_pinned("typer") and _as_pinned("rich")):
        del pages[Path("command-line.md")]  # its tables are drawn by them, by every version in another way
    stale = [str(p) for p, text in pages.items() if not (DOCS / "reference" / p).exists() or
             (DOCS / "reference" / p).read_text() != text]  # fmt: skip
    kept = {p.relative_to(DOCS / "reference") for p in (DOCS / "reference" / "methods").glob("*.md")}
    assert not stale, f"run `make docs`: {', '.join(sorted(stale))}"
    assert kept <= pages.keys(), "pages of methods that are gone: run `make docs`"


def test_asking_for_help_writes_nothing():
    before = {p: p.stat().st_mtime_ns for p in (DOCS / "reference").rglob("*.md")}
    done = subprocess.run([sys.executable, DOCS / "generate.py", "--help"], capture_output=True, text=True, check=True)
    assert "Writes the reference pages" in done.stdout
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_every_method_has_a_docstring_with_a_source_tag(made):
    tag = re.compile(r"\[(paper|code|official code|lib\s+code|textbook|memory|choice|derived)\b")
    pages = sorted((made / "methods").glob("*.md"))
    assert len(pages) > 20
    missing = [p.stem for p in pages if not tag.search(p.read_text())]
    assert not missing, f"say where these come from: {', '.join(missing)}"


def test_every_method_has_an_equation_and_its_verdicts(made):
    pages = {p.stem: p.read_text() for p in (made / "methods").glob("*.md")}
    without = [name for name, text in pages.items() if "\n$$\n" not in text]
    assert not without, f"give the equation in docs/method_facts.py: {', '.join(sorted(without))}"
    cagrad = pages["cagrad"]
    assert "| `non-conflicting` |  | \u2717 refuted | stored | J = `[[" in cagrad
    assert "| `c` | `0.5` | a finite number in [0, inf) | radius of the ball" in cagrad
    assert "https://arxiv.org/abs/2110.14048" in cagrad
    assert "plugins/mtlplugins/aggregators/cagrad.py" in cagrad
