"""The same numbers as TorchJD 0.18, where its answer is exact: closed forms, and solvers on well-conditioned rows."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

import mtlcore
from mtlcore import StepView

jd = pytest.importorskip("torchjd.aggregation")


def exact_projector():
    """Without the ridge of 1e-4 that it adds to the Gramian by default: only one that rounding asks for."""
    pytest.importorskip("quadprog")
    from torchjd.linalg import QuadprogProjector

    return QuadprogProjector(norm_eps=0.0, reg_eps=1e-12)


CASES = [
    ("sum", {}, lambda: jd.Sum()),
    ("ls", {}, lambda: jd.Mean()),
    (
        "constant",
        {"weights": (0.5, -1.0, 2.0, 3.0, 1.0, 0.0)},
        lambda: jd.Constant(torch.tensor([0.5, -1.0, 2.0, 3.0, 1.0, 0.0]).double()),
    ),
    ("config", {}, lambda: jd.ConFIG()),
    ("imtl-g", {}, lambda: jd.IMTLG()),
    ("aligned-mtl", {}, lambda: jd.AlignedMTL(scale_mode="min")),
    ("aligned-mtl", {"scale": "median"}, lambda: jd.AlignedMTL(scale_mode="median")),
    ("aligned-mtl", {"scale": "rmse"}, lambda: jd.AlignedMTL(scale_mode="rmse")),
    ("upgrad", {}, lambda: jd.UPGrad(projector=exact_projector())),
    ("dualproj", {}, lambda: jd.DualProj(projector=exact_projector())),
    ("krum", {"distance": "plain"}, lambda: jd.Krum(n_byzantine=1)),
    ("krum", {"distance": "plain", "selected": 2}, lambda: jd.Krum(n_byzantine=1, n_selected=2)),
    ("trimmed-mean", {}, lambda: jd.TrimmedMean(trim_number=1)),
    ("graddrop", {"leak": (1.0,) * 6}, lambda: jd.GradDrop(leak=torch.ones(6).double())),
    ("pcd", {"beta": 0.9}, lambda: jd.PCD(beta=0.9, eps=0.0)),
    ("pcd", {"tau": 0.5}, lambda: jd.PCD(tau=0.5, eps=0.0)),
]


def rows(number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    sizes = torch.rand(6, 1, generator=generator, dtype=torch.float64) * 3 + 0.1
    return sizes * torch.randn(6, 9, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("name", "options", "make"), CASES, ids=lambda v: str(v) if isinstance(v, (str, dict)) else "")
def test_a_run_of_60_steps_gives_the_same_directions(name, options, make):
    method = mtlcore.create("aggregator", name, **options)
    state, ones = method.init(6), torch.ones(6, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = make()
        for number in range(60):
            j = rows(number)
            answer = method.aggregate(StepView(losses=ones, jacobian=j, step=number, generator=number), state)
            state = answer.state
            d = j.T @ answer.weights if answer.direction is None else answer.direction
            expected = other(j.clone())
            assert float((d - expected).norm()) <= 1e-6 * float(expected.norm()), number
