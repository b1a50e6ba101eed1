"""The documentation site builds without a network, and without a warning."""

from __future__ import annotations

import importlib.util
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import mtlcore
import mtlverify

DOCS = Path(__file__).parents[2] / "docs"
OFFLINE = """
import socket, sys

def refused(*args, **kwargs):
    raise OSError("the site was built with a network")

socket.socket.connect = socket.create_connection = refused
from sphinx.cmd.build import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("sphinx", reason="needs the extra docs: `make site` installs it")
    out = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-c",
        OFFLINE,
        "-W",
        "--keep-going",
        "-q",
        "-E",
        "-b",
        "html",
        "-d",
        out / "tree",
        DOCS,
        out / "html",
    ]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "html"


def test_docstrings_become_sound_markup():
    """|x| is no substitution, w_ no link, a formula keeps its lines, and the items of a section stay items."""
    spec = importlib.util.spec_from_file_location("docstrings", DOCS / "extensions" / "docstrings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    given = [
        "See :class:`~a.B`, |g| and w_ and ``|code|``:",
        "",
        "    d = |x|",
        "",
        "Args:",
        "    c: one",
        "        2",
    ]
    wanted = [
        "See ``a.B``, \\|g\\| and w\\_ and ``|code|``:", "", "::", "", "    d = |x|", "", "Args:", "    c: one",
        "        2",
    ]  # fmt: skip
    assert module.sound(given) == wanted


@pytest.mark.slow
def test_every_page_is_in_the_navigation(site):
    index = (site / "index.html").read_text()
    for page in DOCS.rglob("*.md"):
        address = page.relative_to(DOCS).with_suffix(".html").as_posix()
        assert (site / address).exists()
        assert f'href="{address}"' in index or address == "index.html", f"{address} is in no table of contents"


@pytest.mark.slow
def test_every_public_name_has_an_entry(site):
    from sphinx.util.inventory import InventoryFile

    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, path: path)
    known = {name for kind, entries in inventory.items() if kind.startswith("py:") for name in entries}
    public = {f"mtlcore.{n}" for n in mtlcore.__all__} | {f"mtlverify.{n}" for n in mtlverify.__all__}
    public -= {"mtlcore.__version__"}
    problems = {"mtlverify.Problem", "mtlverify.check_declarations"}  # described once, where they are written
    public = public - problems | {name.replace("mtlverify.", "mtlverify.problems.") for name in problems}
    public |= {"mtlcore.errors.NonFiniteError", "mtlcore.integrations.csv.CSVLogger", "mtlverify.law.given"}
    public |= {"mtlbench.tasks.base.BenchmarkTask", "mtlbench.tasks.base.Splits"}
    assert public <= known, sorted(public - known)


@pytest.mark.slow
def test_values_of_options_can_be_copied(site):
    page = (site / "reference" / "methods" / "lora.html").read_text()
    assert "one of 'tangent', 'penalty'" in page.replace("&#39;", "'")


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(site):
    loads = re.compile(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(https?:)?//[^"]+"')
    found = {p.name: m[0] for p in site.rglob("*.html") if (m := loads.search(p.read_text()))}
    assert not found
    assert "<math" in (site / "reference" / "methods" / "cagrad.html").read_text()


def test_the_offline_guard_of_these_tests_works():
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE.split("from sphinx")[0] + "socket.create_connection(('localhost', 9))"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "built with a network" in done.stderr
    assert socket.create_connection is not None
