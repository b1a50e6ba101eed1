"""The program of docs/how-to/torchrun.md, under torchrun."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

AT_EXIT = "terminate called without an active exception"
"""What torch's own threads say when a process with a gloo group ends at the wrong moment: a program of four calls of
``all_reduce``, without mtlcore, was aborted so in one of 14 runs. Such a run says nothing, and is made again."""
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "torchrun.md"


def test_two_processes_print_the_same_weights(tmp_path):
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "train.py").write_text(program)
    # A file for each process: what two print into one pipe mixes.
    options = ["--standalone", "--nproc-per-node", "2", "--redirects", "1", "--log-dir", "logs"]
    command = ["-m", "torch.distributed.run", *options, "train.py"]
    for _ in range(5):
        shutil.rmtree(tmp_path / "logs", ignore_errors=True)
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *command],
            cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if AT_EXIT not in done.stderr:
            break
    assert done.returncode == 0, done.stderr[-3000:]
    told = [file.read_text() for file in (tmp_path / "logs").rglob("stdout.log")]
    steps = [[line for line in text.splitlines() if re.match(r"\d+ \[", line)] for text in told]
    assert len(steps) == 2, told
    assert steps[0] == steps[1]
    assert len(steps[0]) == 2, "two steps of 2 x 16 samples, told by both"
