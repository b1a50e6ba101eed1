"""A wheel, installed in an environment of its own, gives all four packages, the command and the entry points."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import mtlcore
from support import command

ROOT = Path(__file__).parents[2]
PACKAGES = ("mtlcore", "mtlplugins", "mtlverify", "mtlbench")


def run(*words: object, cwd: Path) -> str:
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(autouse=True)
def _no_path(monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)  # it would stand before what is installed


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what git would hand to a stranger, so that stray files cannot help."""
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name.startswith((*PACKAGES, "plugins", "verification", "benchmarks", "pyproject", "README", "LICENSE")):
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).exists():
                target.write_bytes((ROOT / name).read_bytes())
    return source


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out, source, cwd=source)
    return next(out.glob("*.whl"))


def test_wheel_holds_every_module_and_data_file_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names if ".dist-info" not in n} == set(PACKAGES)
    for package, folder in zip(PACKAGES, (".", "plugins", "verification", "benchmarks")):
        root = ROOT / folder
        listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", package, cwd=root)
        expected = {n for n in listed.splitlines() if (root / n).exists()}
        assert expected - set(names) == set(), "not in the wheel"


@pytest.fixture(scope="module")
def place(wheel, tmp_path_factory) -> Path:
    """A clean environment in which pip has installed the wheel. Dependencies come from the tests' own environment."""
    place = tmp_path_factory.mktemp("clean") / "env"
    venv.create(place, with_pip=False)
    python = place / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=place)
    # Behind what was installed: also the tests' own editable mtlcore stands behind the wheel's.
    packages = next(place.glob("lib/python*/site-packages"))
    (packages / "zz_dependencies.pth").write_text("\n".join(p for p in sys.path if p.endswith("-packages")))
    return place


def test_clean_install_lists_the_plugins(place, tmp_path):
    python = place / "bin" / "python"
    where = run(python, "-c", f"import {', '.join(PACKAGES)}; print(mtlbench.__file__)", cwd=tmp_path)
    assert str(place) in where
    rows = json.loads(run(place / "bin" / "mtl", "list", "--json", cwd=tmp_path))
    assert {r["kind"] for r in rows if r["distribution"] == "mtlcore"} >= {
        "aggregator",
        "detector",
        "teleport",
        "law",
        "task",
    }
    assert all(r["status"] == "ok" for r in rows)
    assert {r["version"] for r in rows if r["distribution"] == "mtlcore"} == {mtlcore.__version__}
    for folder in ("plugins", "benchmarks", "verification", "tests", "docs"):
        done = subprocess.run([python, "-c", f"import {folder}"], cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode != 0, f"a top-level package {folder!r} is on the user's path"


def test_readme_runs_in_the_clean_install(place, tmp_path):
    """What a stranger types after the install: the README's Python, and its commands."""
    readme = (ROOT / "README.md").read_text()
    program = tmp_path / "readme.py"
    program.write_text("\n\n".join(re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)))
    python = place / "bin" / "python"
    done = command.python(program, cwd=tmp_path, interpreter=python)
    assert done.returncode == 0, done.stderr
    assert "tensor(" in done.stdout
    where = command.python("-c", "import mtlcore; print(mtlcore.__file__)", cwd=tmp_path, interpreter=python)
    assert str(place) in where.stdout
    commands = re.findall(r"^\$ mtl (.*)$", readme, re.MULTILINE)
    assert len(commands) > 3
    for line in commands:
        done = command.mtl(*shlex.split(line), cwd=tmp_path, interpreter=python)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def test_the_version_stands_in_one_place():
    text = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in text
    assert 'attr = "mtlcore.__version__"' in text
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited is not None
    assert cited[1] == mtlcore.__version__, "CITATION.cff cites another version"
    assert f"## {mtlcore.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_addresses_are_given_when_there_are_some_and_not_before():
    """pip and citation tools show them as links: an invented one sends people somewhere else."""
    given = re.search(r"^\[project\.urls\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    cited = re.search(r"^(url|repository-code): ", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    said = "It has no public address yet" in (ROOT / "docs" / "install.md").read_text()
    assert (given is not None) == (cited is not None) == (not said)


def test_every_python_that_is_promised_is_tested():
    text = (ROOT / "pyproject.toml").read_text()
    promised = re.findall(r"Python :: (3\.\d+)", text)
    assert f'requires-python = ">={promised[0]}"' in text
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    tested = re.search(r"python: \[(.*)\]", workflow)
    assert tested is not None
    assert re.findall(r"3\.\d+", tested[1]) == promised
    assert "run: bash .ci/run" in workflow


@pytest.mark.slow
def test_make_wheel_builds_both_and_the_sdist_builds_the_same_wheel(source, wheel, tmp_path):
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, source, cwd=source)
    [built], [sdist] = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    assert sdist.name == f"mtlcore-{mtlcore.__version__}.tar.gz"
    # `build` makes the wheel from the sdist: a file that the sdist forgets is missing here.
    assert sorted(zipfile.ZipFile(built).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())
