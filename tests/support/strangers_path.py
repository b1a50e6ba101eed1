"""What somebody does who has just heard of mtlcore, from the clone to a table for a paper, step by step and timed.

    python tests/support/strangers_path.py FOLDER

Dependencies come from the environment that runs this; everything else is new in FOLDER.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUITE = """\
title = "My method against three"
tasks = ["multimnist"]
seeds = 2
reference = "ls"

[budget]
steps = 60

[[methods]]
name = "ls"
[[methods]]
name = "mgda"
[[methods]]
name = "upgrad"
[[methods]]
name = "inverse-norm"
"""


class Stranger:
    """One folder, one environment, and a diary: (step, wall seconds)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "env" / "bin" / "python"
        self.diary: list[tuple[str, float]] = []

    def run(self, *command: object, code: int = 0) -> str:
        """The output of a command that has to end with ``code``."""
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MTLCORE_PLUGINS")}
        env |= {"COLUMNS": "120", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [str(c) for c in command], cwd=self.folder, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def mtl(self, *arguments: object, code: int = 0) -> str:
        return self.run(self.python.parent / "mtl", *arguments, code=code)

    def pip_install(self, *what: object) -> None:
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", self.python, "install", "-q")
        self.run(*pip, "--no-deps", "--no-index", "--no-build-isolation", *what)

    # --- the path -------------------------------------------------------------------------------------------

    def clones_and_installs(self) -> None:
        self.run("git", "clone", "--quiet", ROOT, "mtlcore")
        assert "## Install" in (self.folder / "mtlcore" / "README.md").read_text()
        venv.create(self.folder / "env", with_pip=False)
        packages = next((self.folder / "env").glob("lib/python*/site-packages"))
        (packages / "zz_dependencies.pth").write_text("\n".join(p for p in sys.path if p.endswith("-packages")))
        self.pip_install("./mtlcore")
        assert "upgrad" in self.mtl("list", "--kind", "aggregator")

    def runs_the_demo(self) -> None:
        """What `make demo` does after its set-up."""
        self.mtl("bench", "run", "demo", "--out", "demo", "--jobs", 2)
        self.mtl("bench", "report", "demo")
        report = (self.folder / "demo" / "report.html").read_text()
        assert "<svg" in report or "<img" in report
        assert 'src="http' not in report

    def writes_a_plugin(self) -> None:
        self.mtl("new-plugin", "inverse-norm")
        self.pip_install("-e", "./mtlcore-inverse-norm")
        assert "inverse-norm" in self.mtl("list", "--kind", "aggregator")

    def claims_too_much(self) -> None:
        """The false claim is refuted, with an input that a person can read."""
        method = self.folder / "mtlcore-inverse-norm" / "mtlcore_inverse_norm" / "method.py"
        text = method.read_text()
        assert '"conic-combination"' in text
        method.write_text(text.replace('"conic-combination"', '"conic-combination", "non-conflicting"'))
        told = self.mtl("verify", "inverse-norm", "--max-examples", 30, code=1)
        assert "non-conflicting" in told
        assert "refuted" in told
        assert "[[" in told, "the counterexample is not shown"
        method.write_text(text)

    def claims_what_holds(self) -> None:
        self.mtl("verify", "inverse-norm", "--max-examples", 30)
        self.run(self.python, "-m", "pytest", "-q", "mtlcore-inverse-norm")

    def compares_it(self) -> None:
        (self.folder / "mine.toml").write_text(SUITE)
        self.mtl("bench", "run", "mine.toml", "--out", "mine", "--jobs", 2)
        self.mtl("bench", "report", "mine")

    def exports_a_table(self) -> None:
        self.mtl("bench", "export", "mine", "--format", "markdown")
        tables = [p.read_text() for p in (self.folder / "mine" / "export").rglob("*.md")]
        assert any("inverse-norm" in t and "|" in t for t in tables)

    def walk(self) -> float:
        """All of it; the processor time that it took, in seconds."""
        for step in (
            self.clones_and_installs,
            self.runs_the_demo,
            self.writes_a_plugin,
            self.claims_too_much,
            self.claims_what_holds,
            self.compares_it,
            self.exports_a_table,
        ):
            start = time.monotonic()
            step()
            self.diary.append((step.__name__.replace("_", " "), time.monotonic() - start))
            print(f"{self.diary[-1][1]:7.1f} s  {self.diary[-1][0]}", flush=True)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{Stranger(folder).walk():7.1f} s  of processor time")
