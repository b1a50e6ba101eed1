"""Code in README and docs runs: Python blocks page by page in one namespace, `$ mtl ...` lines of console blocks."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import re
import runpy
import shlex
import traceback
from pathlib import Path

import pytest

from mtlcore.registry import registry
from support import command

ROOT = Path(__file__).parents[2]
# README runs in a clean environment: tests/core/test_packaging.py.
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
METHODS = ("aggregator", "detector", "teleport", "explorer", "merger")
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    """Blocks of a language; one whose fence says "not run" is left out, and must say why in the page."""
    return [text for lang, note, text in BLOCK.findall(page.read_text()) if lang == language and "not run" not in note]


def identifier(page: Path) -> str:
    return str(page.relative_to(ROOT))


def run_page(program: str, folder: str, answer) -> None:
    """In a process of its own: a page may add plugins, and write files where it stands."""
    os.chdir(folder)
    try:
        runpy.run_path(program, run_name="__main__")
        answer.send("")
    except BaseException:
        answer.send(traceback.format_exc())


@pytest.fixture(scope="module")
def processes():
    """A server that has imported torch, with what an optimizer imports, and forks: a page costs its own code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "mtlcore.multitask", "mtlverify.runner"])
    return context


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python") and p.name != "README.md"], ids=identifier)
def test_python_blocks_run(page, tmp_path, processes):
    program = tmp_path / "page.py"
    program.write_text("\n\n".join(blocks(page, "python")))
    here, there = processes.Pipe(duplex=False)
    process = processes.Process(target=run_page, args=(str(program), str(tmp_path), there))
    process.start()
    there.close()
    try:
        problem = here.recv()
    except EOFError:
        problem = "the process ended without an answer"
    process.join()
    assert not problem, problem


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "console") and p.name != "README.md"], ids=identifier)
def test_mtl_commands_run(page, tmp_path):
    for block in blocks(page, "console"):
        for line in block.splitlines():
            if line.startswith("$ mtl "):
                words = shlex.split(line.removeprefix("$ mtl "), comments=True)
                done = command.mtl(*words, cwd=tmp_path, env={**os.environ, "COLUMNS": "120"})
                assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def test_links_between_pages_are_not_broken():
    broken = []
    for page in PAGES:
        prose = re.sub(r"`[^`]*`", "", BLOCK.sub("", page.read_text()))
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{identifier(page)} -> {target}")
    assert not broken


def test_links_into_a_page_find_their_heading():
    """As GitHub names headings: lower case, without punctuation, blanks as hyphens; underscores stay."""
    broken = []
    for page in PAGES:
        prose = BLOCK.sub("", page.read_text())
        for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose)):
            if "://" not in target:
                text = BLOCK.sub("", (page.parent / target if target else page).read_text())
                headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
                if anchor not in [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]:
                    broken.append(f"{identifier(page)} -> {target}#{anchor}")
    assert not broken


def test_every_page_is_linked_from_the_first_page_of_its_folder():
    """A page that nobody links to is not found: neither on GitHub nor on the site."""
    lost = []
    for folder in ("how-to", "explanation", "tutorial", "reference", "results"):
        index = (ROOT / "docs" / folder / "index.md").read_text()
        pages = {p.stem for p in (ROOT / "docs" / folder).glob("*.md")} - {"index"}
        lost += [
            f"{folder}/{name}" for name in sorted(pages) if f"({name}.md" not in index or f"\n{name}\n" not in index
        ]
    assert not lost, "give these a line in the text and in the toctree of the index.md of their folder"


def test_the_readme_names_every_method():
    """By kind, so that a new one must find its place, and the numbers of the comparison are those of `mtl list`."""
    readme = (ROOT / "README.md").read_text()
    table = readme.split("## Methods")[1].split("\n\n")[1]
    named = set(re.findall(r"`([\w-]+)`", table))
    built_in = {k: [e.name for e in registry().entries(k) if e.distribution == "mtlcore"] for k in METHODS}
    assert named == set(itertools.chain(*built_in.values()))
    counts = ", ".join(str(len(built_in[k])) for k in ("teleport", "detector", "merger", "explorer"))
    assert f"| teleports, conflict detectors, mergers, explorers of the Pareto set | {counts} |" in readme


def test_no_page_installs_what_no_index_has():
    """mtlcore is on no package index: only the page about installing may name it, and says when that works."""
    told = re.compile(r"pip install[^\n]*['\" ]mtlcore(?:\[|['\" ]|$)", re.MULTILINE)
    found = [identifier(p) for p in PAGES if told.search(p.read_text())]
    assert found == ["docs/install.md"]
    assert "Once mtlcore is installed" in (ROOT / "docs" / "install.md").read_text()
