"""The written test file is formatted, stable, complete and true."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import mtlcore
from mtlverify import ghostwriter
from support import command


def test_one_test_per_promise_and_a_reason_for_every_silence():
    text = ghostwriter.write_tests("pcgrad")
    names = {f.name for f in ast.parse(text).body if isinstance(f, ast.FunctionDef)}
    claims = mtlcore.create("aggregator", "pcgrad").claims
    universal = {"finite", "pure", "deterministic", "shape-dtype-device"}
    assert {"test_law_" + c.replace("-", "_") for c in claims | universal} <= names
    assert "test_law_non_conflicting" not in names
    assert '"matches-reference"' in text
    assert "no exact reference is known" in text
    assert text == ghostwriter.write_tests("pcgrad")


@pytest.mark.parametrize(("name", "kind"), [("pcgrad", "aggregator"), ("mgda", None), ("cosine", "detector")])
def test_the_file_is_formatted(name, kind, tmp_path):
    ruff = shutil.which("ruff", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if ruff is None:
        pytest.skip("ruff is not installed")
    file = tmp_path / "test_it.py"
    file.write_text(ghostwriter.write_tests(name, kind))
    for wanted in (["format", "--check", "--diff"], ["check", "--select", "E,F,I"]):
        done = subprocess.run(
            [ruff, *wanted, "--isolated", str(file)], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_file_passes_for_a_built_in_and_fails_when_a_claim_has_no_test(tmp_path):
    text = ghostwriter.write_tests("ls").replace("EXAMPLES = 100", "EXAMPLES = 3")
    (tmp_path / "test_kept.py").write_text(text)
    (tmp_path / "test_forgotten.py").write_text(text.replace("def test_law_conic_combination", "def check_nothing"))
    done = command.python("-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path, cwd=tmp_path)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 1, done.stdout
    assert "test_forgotten.py::test_every_claim_has_a_test" in failed[0]


def test_command_line(tmp_path):
    runner = CliRunner()
    file = tmp_path / "new" / "test_mgda.py"
    assert runner.invoke(ghostwriter.app, ["mgda", "--write", str(file)]).exit_code == 0
    assert file.read_text() == ghostwriter.write_tests("mgda")
    again = runner.invoke(ghostwriter.app, ["mgda", "--write", str(file)])
    assert again.exit_code == 2
    assert "nothing was written" in again.output
    unknown = runner.invoke(ghostwriter.app, ["mgdaa"])
    assert unknown.exit_code == 2
    assert "'mgda'" in unknown.output
    assert runner.invoke(ghostwriter.app, ["mgda", "--kind", "law"]).exit_code == 2
