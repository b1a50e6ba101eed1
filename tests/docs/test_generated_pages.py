"""The reference pages say what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_reference_pages_are_not_stale(tmp_path):
    """In a process of its own: the pages are made with third-party plugins switched off."""
    program = (
        f"import sys, pathlib; sys.path.insert(0, {str(DOCS)!r})\n"
        "import generate\n"
        "for page, make in generate.PAGES.items():\n"
        f"    (pathlib.Path({str(tmp_path)!r}) / page).write_text(generate.NOTE + make().rstrip() + '\\n')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    pages = sorted(tmp_path.iterdir())
    assert pages
    stale = [p.name for p in pages if (DOCS / "reference" / p.name).read_text() != p.read_text()]
    assert not stale, f"run `make docs`: {', '.join(stale)}"


def test_asking_for_help_writes_nothing():
    before = {p: p.stat().st_mtime_ns for p in (DOCS / "reference").glob("*.md")}
    done = subprocess.run([sys.executable, DOCS / "generate.py", "--help"], capture_output=True, text=True, check=True)
    assert "Writes the reference pages" in done.stdout
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_every_method_has_a_docstring_with_a_source_tag():
    text = (DOCS / "reference" / "methods.md").read_text()
    sections = text.split("\n### ")[1:]
    assert len(sections) > 20
    tag = re.compile(r"\[(paper|code|official code|lib\s+code|textbook|memory|choice)\b")
    missing = [s.split("\n")[0] for s in sections if not tag.search(s)]
    assert not missing, f"say where these come from: {', '.join(missing)}"
