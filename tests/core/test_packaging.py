"""A wheel, installed in an environment of its own, gives all four packages, the command and the entry points."""

from __future__ import annotations

import json
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("mtlcore", "mtlplugins", "mtlverify", "mtlbench")


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(autouse=True)
def _no_path(monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)  # it would stand before what is installed


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of what git would hand to a stranger, so that stray files cannot help."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
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


def test_clean_install_lists_the_plugins(wheel, tmp_path):
    place = tmp_path / "env"
    venv.create(place, with_pip=False)
    packages = next(place.glob("lib/python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(packages)
    # Dependencies come from this environment; its own editable mtlcore stands behind the wheel's.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    python = place / "bin" / "python"
    where = run(python, "-c", f"import {', '.join(PACKAGES)}; print(mtlbench.__file__)", cwd=tmp_path)
    assert str(place) in where
    rows = json.loads(run(python, "-m", "mtlcore", "list", "--json", cwd=tmp_path))
    assert {r["kind"] for r in rows if r["distribution"] == "mtlcore"} >= {
        "aggregator",
        "detector",
        "teleport",
        "law",
        "task",
    }
    assert all(r["status"] == "ok" for r in rows)
    text = next(packages.glob("mtlcore-*.dist-info/entry_points.txt")).read_text()
    assert "mtl = mtlcore.cli:main" in text
    for folder in ("plugins", "benchmarks", "verification", "tests"):
        done = subprocess.run([python, "-c", f"import {folder}"], cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode != 0, f"a top-level package {folder!r} is on the user's path"
