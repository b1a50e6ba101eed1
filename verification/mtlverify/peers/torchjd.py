"""TorchJD's aggregators as mtlcore aggregators."""

from __future__ import annotations

import dataclasses
import importlib
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtlcore import Aggregation, Aggregator, Needs, StepView
from mtlcore.errors import MtlError

State = dict[str, Tensor]


class MissingPeerError(MtlError, ImportError):
    """The library to be examined is not installed."""


def library() -> ModuleType:
    """``torchjd.aggregation``.

    Raises:
        MissingPeerError: with the pip line.
    """
    try:
        return importlib.import_module("torchjd.aggregation")
    except ImportError as error:
        raise MissingPeerError(
            f"examining TorchJD's aggregators needs the package 'torchjd' ({error}). Install it with: "
            f"pip install 'torchjd[full]'"
        ) from error


@dataclasses.dataclass(frozen=True)
class Peer(Aggregator):
    """One of TorchJD's aggregators.

    A fresh one is made for every step and given the state by ``load_state_dict``, the one way in which a module of
    torch promises to carry its state; what is kept elsewhere is lost, as it is in a checkpoint.

    Args:
        name: what the ledger calls it.
        make: number of tasks -> the aggregator.
        promised: laws that its documentation or the paper behind it states.
        reference: registered name of the method whose exact reference applies, or "".
        hyper: hyper-parameters as that reference reads them.
    """

    name: str = ""
    make: Callable[[int], Any] = dataclasses.field(default=lambda k: None, compare=False)
    promised: frozenset[str] = frozenset()
    reference: str = ""
    hyper: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    needs: ClassVar[Needs] = Needs.JACOBIAN

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is stated elsewhere, in our words."""
        return self.promised

    def __getattr__(self, name: str) -> Any:
        """Hyper-parameters, for the references."""
        hyper = self.__dict__.get("hyper", {})
        if name in hyper:
            return hyper[name]
        raise AttributeError(f"{type(self).__name__} has no {name!r}")

    def init(self, n_tasks: int) -> State:
        """What a fresh one has in its ``state_dict``."""
        return {k: v.clone() for k, v in self.make(n_tasks).state_dict().items()}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Load, call, save."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about their own solvers
            aggregator = self.make(view.n_tasks)
            aggregator.load_state_dict(state)
            direction = aggregator(view.jacobian)
        return Aggregation(
            direction=direction.detach(), state={k: v.clone() for k, v in aggregator.state_dict().items()}
        )


SYMMETRIC = frozenset({"permutation-equivariant"})


def peers() -> tuple[list[Peer], dict[str, str]]:
    """The aggregators that can be made without knowing the data, and those that cannot be made here: name -> why.

    Promises: non-conflict and linearity under scaling as in the table of Quinton & Rey 2024 [paper*]; CAGrad with
    c >= 1 by the same table; that they vanish at Pareto-stationary points only, by Liu et al. 2021 and TorchJD's tests
    [note]; permutation where the definition names no task.

    Raises:
        MissingPeerError: TorchJD is not installed.
    """
    jd = library()
    lus = frozenset({"linear-under-scaling"})
    safe = frozenset({"non-conflicting"})
    honest = frozenset({"zero-only-if-stationary"})
    every = [
        Peer("AlignedMTL", lambda k: jd.AlignedMTL(), SYMMETRIC, "aligned-mtl", {"scale": "min", "reduction": "mean"}),
        Peer("CAGrad(c=0.5)", lambda k: jd.CAGrad(c=0.5), SYMMETRIC, "cagrad", {"c": 0.5, "rescale": "none"}),
        Peer(
            "CAGrad(c=1)",
            lambda k: jd.CAGrad(c=1.0),
            SYMMETRIC | safe | honest,
            "cagrad",
            {"c": 1.0, "rescale": "none"},
        ),
        Peer("ConFIG", lambda k: jd.ConFIG(), SYMMETRIC | lus, "config"),
        Peer("DualProj", lambda k: jd.DualProj(), SYMMETRIC | safe | honest, "dualproj"),
        Peer(
            "FairGrad(alpha=1)", lambda k: jd.FairGrad(alpha=1.0), SYMMETRIC, "fairgrad", {"alpha": 1.0, "degree": 0.0}
        ),
        Peer("GradDrop", lambda k: jd.GradDrop()),
        Peer("IMTLG", lambda k: jd.IMTLG(), SYMMETRIC, "imtl-g"),
        Peer("MGDA", lambda k: jd.MGDA(), SYMMETRIC | safe, "mgda", {"normalize": "none"}),
        Peer("Mean", lambda k: jd.Mean(), SYMMETRIC | lus, "ls"),
        Peer("NashMTL", lambda k: jd.NashMTL(n_tasks=k), safe, "", {"degree": 0.0}),
        Peer("PCGrad", lambda k: jd.PCGrad(), lus),
        Peer("Random", lambda k: jd.Random()),
        Peer("Sum", lambda k: jd.Sum(), SYMMETRIC | lus, "sum"),
        Peer("UPGrad", lambda k: jd.UPGrad(), SYMMETRIC | safe | lus | honest, "upgrad"),
    ]
    there = [p for p in every if hasattr(jd, p.name.partition("(")[0])]
    missing = {p.name: problem for p in there if (problem := _problem(p))}
    return [p for p in there if p.name not in missing], missing


def _problem(peer: Peer) -> str:
    """Some need a solver of their own that may be missing: what their library says then, else ""."""
    rng = torch.get_rng_state()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peer.make(2)(torch.eye(2))
    except ImportError as error:
        return str(error) or type(error).__name__
    finally:
        torch.set_rng_state(rng)
    return ""
