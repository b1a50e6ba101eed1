"""The program of docs/how-to/torchrun.md, under torchrun."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "torchrun.md"


def test_two_processes_print_the_same_weights(tmp_path):
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "train.py").write_text(program)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    whole_lines = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}  # else they mix
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command],
        cwd=tmp_path, env=whole_lines, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = Counter(line for line in done.stdout.splitlines() if re.match(r"\d+ \[", line))
    assert sorted(lines.values()) == [2, 2], done.stdout  # two steps of 2 x 16 samples, told by both
