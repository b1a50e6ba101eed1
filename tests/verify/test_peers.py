"""TorchJD's own failures are found from scratch, and its state is carried as a checkpoint would."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from typer.testing import CliRunner

from mtlverify.ledger.store import example_of
from mtlverify.peers import torchjd as adapter
from mtlverify.predicates import escapable


@pytest.fixture
def without_torchjd(monkeypatch):
    for name in ("torchjd", "torchjd.aggregation"):
        monkeypatch.setitem(sys.modules, name, None)  # Python's own way of saying "not there"


def test_without_the_library_the_error_has_the_pip_line(without_torchjd):
    with pytest.raises(adapter.MissingPeerError, match=r"pip install 'torchjd\[full\]'"):
        adapter.peers()
    from mtlverify.peers.command import app

    done = CliRunner().invoke(app, [])
    assert done.exit_code == 2
    assert "pip install" in done.output


def test_an_unknown_law_is_bad_usage(monkeypatch):
    from mtlverify.peers import command

    monkeypatch.setattr(command, "peers", list)
    done = CliRunner().invoke(command.app, ["--law", "non-conflictin"])
    assert done.exit_code == 2
    assert "there is no law called 'non-conflictin'" in done.output


def test_what_cannot_be_made_here_is_named_and_json_is_alone_on_standard_output(monkeypatch):
    pytest.importorskip("torchjd", reason="torchjd is not installed: nothing to examine")
    from mtlverify.peers import command

    mean = peer("Mean")
    monkeypatch.setattr(command, "peers", lambda: ([mean], {"UPGrad": "no solver"}))
    run = lambda *arguments: CliRunner().invoke(command.app, [*arguments, "--law", "finite", "--max-examples", "2"])
    done = run("--json", "-")
    assert done.exit_code == 0
    assert [row["name"] for row in json.loads(done.stdout)] == ["Mean"]
    assert "left out, because a package is missing: UPGrad" in done.stderr
    refused = run("UPGrad")
    assert refused.exit_code == 2
    assert "UPGrad cannot be made here: no solver. Install" in refused.output
    assert "left out" not in run("Mean").stderr


def peer(name):
    pytest.importorskip("torchjd", reason="torchjd is not installed: nothing to examine")
    found = {p.name: p for p in adapter.peers()[0]}
    if name not in found:
        pytest.skip(f"{name} needs an optional solver of torchjd that is not installed")
    return found[name]


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("UPGrad", "non-conflicting"),
        ("DualProj", "non-conflicting"),
        ("CAGrad(c=1)", "non-conflicting"),
        ("CAGrad(c=1)", "zero-only-if-stationary"),
    ],
)
def test_a_stated_property_is_refuted_where_a_common_descent_direction_exists(name, law):
    from mtlverify.peers.examine import rows

    [row] = rows(peer(name), [law], max_examples=60)
    assert row.claimed
    assert row.status == "refuted"
    assert row.worst_margin < 0
    assert row.detail.startswith("the numerics"), "the mathematics of the method is sound"
    example = example_of(row.counterexample)
    assert example.jacobian.numel() <= 9, "it is shrunk"
    assert escapable(example.jacobian)


def test_a_property_that_holds_raises_no_alarm():
    from mtlverify.peers.examine import rows

    found = {r.law: r for r in rows(peer("Mean"), ["linear-under-scaling", "matches-reference"], max_examples=20)}
    assert {r.status for r in found.values()} == {"verified"}


def test_known_counterexample_from_the_literature_of_this_project():
    """Rows of unequal norm, ordinary scale: cosine -0.3."""
    upgrad = peer("UPGrad")
    rows = torch.tensor([[0.0, 1.0], [-0.01, -0.01]], dtype=torch.float64)
    from mtlverify.answer import ask
    from mtlverify.example import Example
    from mtlverify.ledger.planar import worst_cosine

    assert worst_cosine(ask(upgrad, Example(rows, torch.ones(2, dtype=torch.float64)))) < -0.25
