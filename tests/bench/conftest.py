from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest

from mtlcore.registry import registry
from support import bench_tiny


@pytest.fixture
def tiny():
    """The tiny task and its methods, registered for one test."""
    plugin = bench_tiny.Plugin()
    registry().add(plugin, "tiny")
    yield bench_tiny
    registry().remove(plugin)


SUITE = """
title = "killed"
tasks = ["tiny"]
seeds = 2
reference = "tiny-equal"
tuning = { trials = 3 }
[[methods]]
name = "tiny-equal"
[[methods]]
name = "tiny-slow"
"""


class Site(NamedTuple):
    """What a process needs that runs a suite on the tiny task."""

    suite: Path
    environment: dict[str, str]


@pytest.fixture
def bench_site(tmp_path):
    """The tiny plugins, installed for processes with this environment, and a suite of them."""
    site = tmp_path / "site"
    metadata = site / "tiny-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[mtlcore]\ntiny = tiny_plugin:plugin\n")
    (site / "tiny_plugin.py").write_text("from support.bench_tiny import Plugin\n\nplugin = Plugin()\n")
    (tmp_path / "killed.toml").write_text(SUITE)
    (site / "support").symlink_to(Path(bench_tiny.__file__).parent)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(site), "PYTHONWARNINGS": "ignore"}
    return Site(tmp_path / "killed.toml", environment)
