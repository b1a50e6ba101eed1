"""The program of docs/how-to/torchrun.md, under torchrun."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

AT_EXIT = "terminate called without an active exception"
"""What torch's own threads say when a process with a gloo group ends at the wrong moment: a program of four calls of
``all_reduce``, without mtlcore, was aborted so in one of 14 runs. Such a run says nothing, and is made again."""
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "torchrun.md"


def test_two_processes_print_the_same_weights(tmp_path):
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "train.py").write_text(program)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    whole_lines = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}  # else they mix
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *command],
            cwd=tmp_path, env=whole_lines, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if AT_EXIT not in done.stderr:
            break
    assert done.returncode == 0, done.stderr[-3000:]
    lines = Counter(line for line in done.stdout.splitlines() if re.match(r"\d+ \[", line))
    assert sorted(lines.values()) == [2, 2], done.stdout  # two steps of 2 x 16 samples, told by both
