"""What somebody does who has just heard of mtlcore, from the clone to a table for a paper, step by step and timed.

    python tests/support/strangers_path.py FOLDER           with the dependencies of the environment that runs this
    python tests/support/strangers_path.py FOLDER --own     with an environment that `make` installs, as a stranger has

Everything else is new in FOLDER. For each stage it prints wall seconds and processor seconds.
"""

from __future__ import annotations

import argparse
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


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Stranger:
    """One folder, one environment, and a diary: (stage, wall seconds, processor seconds).

    Args:
        folder: where everything is made.
        own: let `make demo` install the environment; else borrow the dependencies of the environment that runs this.
    """

    def __init__(self, folder: Path, own: bool = False) -> None:
        self.folder = folder
        self.own = own
        self.checkout = folder / "mtlcore"
        self.environment = self.checkout / ".venv" if own else folder / "env"
        self.python = self.environment / "bin" / "python"
        self.diary: list[tuple[str, float, float]] = []

    def run(self, *command: object, code: int = 0, cwd: Path | None = None) -> str:
        """The output of a command that has to end with ``code``."""
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MTLCORE_PLUGINS", "VIRTUAL_ENV")}
        # A cache of the stranger's own: certificates and data of whoever runs this must not help.
        env |= {"COLUMNS": "120", "OMP_NUM_THREADS": "1", "MTLCORE_CACHE": str(self.folder / "cache")}
        done = subprocess.run(
            [str(c) for c in command], cwd=cwd or self.folder, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def mtl(self, *arguments: object, code: int = 0) -> str:
        return self.run(self.python.parent / "mtl", *arguments, code=code)

    def pip_install(self, *what: object) -> None:
        if self.own:  # as the README says
            self.run(self.python, "-m", "pip", "--disable-pip-version-check", "install", "-q", *what)
            return
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", self.python, "install", "-q")
        self.run(*pip, "--no-deps", "--no-index", "--no-build-isolation", *what)

    # --- the path -------------------------------------------------------------------------------------------

    def clones_and_installs(self) -> None:
        self.run("git", "clone", "--quiet", ROOT, self.checkout)
        assert "## Install" in (self.checkout / "README.md").read_text()
        if self.own:
            self.run("make", ".venv/.ready", f"PYTHON={sys.executable}", cwd=self.checkout)
        else:
            venv.create(self.environment, with_pip=False)
            packages = next(self.environment.glob("lib/python*/site-packages"))
            (packages / "zz_dependencies.pth").write_text("\n".join(p for p in sys.path if p.endswith("-packages")))
            self.pip_install(self.checkout)
        assert "upgrad" in self.mtl("list", "--kind", "aggregator")

    def runs_the_demo(self) -> None:
        """`make demo`; with a borrowed environment, what it does after its set-up."""
        if self.own:
            self.run("make", "demo", f"PYTHON={sys.executable}", cwd=self.checkout)
            results = self.checkout / "out" / "demo"
        else:
            results = self.folder / "demo"
            self.mtl("bench", "run", "demo", "--out", results, "--jobs", 2)
            self.mtl("bench", "report", results)
        report = (results / "report.html").read_text()
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
        for stage in (
            self.clones_and_installs,
            self.runs_the_demo,
            self.writes_a_plugin,
            self.claims_too_much,
            self.claims_what_holds,
            self.compares_it,
            self.exports_a_table,
        ):
            wall, processor = time.monotonic(), _processor_seconds()
            stage()
            wall, processor = time.monotonic() - wall, _processor_seconds() - processor
            self.diary.append((stage.__name__.replace("_", " "), wall, processor))
            print(f"{wall:7.1f} s  {processor:7.1f} s of processor time  {self.diary[-1][0]}", flush=True)
        return sum(processor for _, _, processor in self.diary)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--own", action="store_true", help="install an environment, as `make demo` does")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    stranger = Stranger(given.folder.resolve(), given.own)
    total = stranger.walk()
    print(f"{sum(wall for _, wall, _ in stranger.diary):7.1f} s  {total:7.1f} s of processor time  in all")
