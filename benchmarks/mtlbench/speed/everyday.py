"""What everyday training costs: many objectives, micro-batches, sparse tables, hundreds of dependent gradients.

    mtl speed everyday [--out build/speed] [--seconds 10] [--only samples micro-batches sparse metrics dependent]

* samples: one loss for each of 256 samples, all of them objectives, of an MLP, a CNN and a physics-informed network.
  Against a plain backward pass of their sum, and against what a careful user writes: ``vmap(grad)``, a Gramian, and a
  pass of the weighted losses. The weights are given, so that no solver's time is in the ratio.
* micro-batches: a step of four, K = 3, by what the method reads. Against a plain loop that calls backward four times.
* sparse: a table of 400,000 x 16 with ``sparse=True``, three tasks, SparseAdam. Against a plain step; a dense table
  beside it.
* metrics: a step of ``upgrad`` under Adam, K = 3, that looks at what the optimizer did (``taken=True``), and one in
  each metric. Against the same step without.
* dependent: seconds of a call of gradops and upgrad on 500 gradients of rank 150, and of other ranks.

Ratios are medians over interleaved rounds, in processor time of one thread. Prints a table and writes everyday.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import mtlcore
from mtlbench.speed import measure
from mtlbench.speed.contenders import FixedWeights
from mtlbench.speed.workloads import Workload, build, cnn, mlp
from mtlcore import StepView

Step = Callable[[], object]
PLAIN = "plain step"
BY_HAND = "vmap(grad) and a Gramian"


class Row(NamedTuple):
    """One line of the table."""

    section: str
    what: str
    against: str
    value: float
    """A ratio of times; seconds where ``against`` is empty."""
    most: float | None
    """The target."""

    @property
    def missed(self) -> bool:
        """Whether the target is missed."""
        return self.most is not None and self.value > self.most


# --- one objective for every sample -----------------------------------------------------------------------------


class PerSample(NamedTuple):
    """A network with one loss for each sample of a batch, written for the batch and for a sample."""

    name: str
    trunk: nn.Sequential
    head: nn.Module
    losses: Callable[[], Tensor]
    """(K,)."""
    loss: Callable[[dict[str, Tensor], Sequence[Tensor]], Tensor]
    """Of the trunk's parameters and the data of one sample."""
    data: tuple[Tensor, ...]
    """Each (K, ...)."""

    def zero_grad(self) -> None:
        """Gradients to None."""
        self.trunk.zero_grad(set_to_none=True)
        self.head.zero_grad(set_to_none=True)


def _regression(name: str, trunk: nn.Sequential, x: Tensor) -> PerSample:
    head, y = nn.Linear(64, 1), torch.randn(len(x), 1)

    def losses() -> Tensor:
        found: Tensor = (head(trunk(x)) - y).square().sum(1)
        return found

    def loss(parameters: dict[str, Tensor], sample: Sequence[Tensor]) -> Tensor:
        z = torch.func.functional_call(trunk, parameters, (sample[0][None],))
        found: Tensor = (head(z) - sample[1]).square().sum()
        return found

    return PerSample(name, trunk, head, losses, loss, (x, y))


def perceptron(k: int, width: int = 64) -> PerSample:
    """Three linear layers and a head."""
    layers = [nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 64), nn.Tanh()]
    return _regression("MLP", nn.Sequential(*layers), torch.randn(k, 64))


def convolutions(k: int) -> PerSample:
    """Two convolutions on 16 x 16 images, a linear layer and a head."""
    return _regression(
        "CNN",
        nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 16, 64), nn.ReLU(),
        ),
        torch.randn(k, 3, 16, 16),
    )  # fmt: skip


def residuals(k: int, width: int = 32) -> PerSample:
    """The squared residual of u_t = u_xx at each of K points, by a network of three layers."""
    net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
    points = torch.rand(k, 2)

    def losses() -> Tensor:
        x = points.clone().requires_grad_()
        (first,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first[:, 0].sum(), x, create_graph=True)
        return (first[:, 1] - second[:, 0]).square()

    def loss(parameters: dict[str, Tensor], sample: Sequence[Tensor]) -> Tensor:
        def value(point: Tensor) -> Tensor:
            found: Tensor = torch.func.functional_call(net, parameters, (point[None],)).squeeze()
            return found

        first = torch.func.grad(value)
        residual: Tensor = first(sample[0])[1] - torch.func.grad(lambda q: first(q)[0])(sample[0])[0]
        return residual.square()

    return PerSample("PINN", net, nn.Identity(), losses, loss, (points,))


NETWORKS: tuple[Callable[[int], PerSample], ...] = (perceptron, convolutions, residuals)


def made(make: Callable[[int], PerSample], k: int) -> PerSample:
    """The same network each time; the global random state is left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(k)


def by_hand(work: PerSample, weights: Tensor) -> Step:
    """``vmap(grad)`` over the samples, their Gramian, then a backward pass of the weighted losses."""
    rows_of = torch.func.vmap(torch.func.grad(work.loss), in_dims=(None, 0))
    heads, trunk = list(work.head.parameters()), list(work.trunk.parameters())

    def step() -> Tensor:
        work.zero_grad()
        found = rows_of({n: p.detach() for n, p in work.trunk.named_parameters()}, work.data)
        rows = torch.cat([g.flatten(1) for g in found.values()], 1)
        gramian = rows @ rows.T
        losses = work.losses()
        if heads:
            losses.backward(torch.ones_like(losses), retain_graph=True, inputs=heads)
        losses.backward(weights.to(losses), inputs=trunk)
        return gramian

    return step


def through_mtlcore(work: PerSample, weights: Tensor) -> Step:
    """The same by ``MultiTask.backward``."""
    mt = mtlcore.MultiTask(work.trunk, FixedWeights(tuple(weights.tolist())))

    def step() -> Tensor | None:
        work.zero_grad()
        return mt.backward(work.losses()).gramian

    return step


def samples(seconds: float, k: int = 256) -> list[Row]:
    """K per-sample losses of each network."""
    rows, weights = [], torch.linspace(0.5, 1.5, k, dtype=torch.float64)
    for make in NETWORKS:
        work = made(make, k)

        def plain(work: PerSample = work) -> None:
            work.zero_grad()
            work.losses().sum().backward()

        steps = {PLAIN: plain, BY_HAND: by_hand(work, weights), "mtlcore": through_mtlcore(work, weights)}
        times = timed(steps, seconds / len(NETWORKS))
        what = f"{work.name}, {k} losses, one for each sample"
        rows += [
            Row("samples", what, BY_HAND, measure.ratio(times, "mtlcore", BY_HAND), 2.0),
            Row("samples", what, PLAIN, measure.ratio(times, "mtlcore", PLAIN), None),
            Row("samples", f"{work.name}, {BY_HAND}", PLAIN, measure.ratio(times, BY_HAND, PLAIN), None),
        ]
    return rows


# --- micro-batches ----------------------------------------------------------------------------------------------

LOSS_LEVEL = ("sum", "ls", "uw", "dwa", "bilb4mtl", "famo")
GRADIENT_LEVEL = ("upgrad", "graddrop")
AT_MOST = 1.10
PARTS = 4


def accumulated(work: Workload, name: str, **options: Any) -> Step:
    """One step of several micro-batches; the plain loop for ``name=""``."""
    optimizer = torch.optim.SGD([*work.trunk.parameters(), *work.heads.parameters()], lr=1e-6)
    mt = mtlcore.MultiTask(work.trunk, name, **options) if name else None

    def step() -> None:
        optimizer.zero_grad()
        for part in range(PARTS):
            losses, z = work.forward()
            scaled = [loss / PARTS for loss in losses]
            if mt is None:
                torch.stack(scaled).sum().backward()
            elif part < PARTS - 1:
                mt.accumulate(scaled, features=z)
            else:
                mt.backward(scaled, features=z)
        optimizer.step()
        if mt is not None and type(mt.aggregator).looks_twice():
            mt.observe([loss.detach() for loss in work.forward()[0]])

    return step


def second_look(work: Workload) -> Step:
    """The plain loop, and a forward pass after it: what a method that looks twice cannot do without."""
    plain = accumulated(work, "")

    def step() -> None:
        plain()
        work.forward()

    return step


def micro_batches(seconds: float, make: Callable[[], Workload] = lambda: mlp(3)) -> list[Row]:
    """Methods by what they read, against a loop that calls backward once per micro-batch."""
    work, again = build(make), "plain step and a forward pass"
    kept = "uw, gradients='sequential'"
    steps = {PLAIN: accumulated(work, ""), again: second_look(work)}
    steps |= {name: accumulated(work, name) for name in (*LOSS_LEVEL, *GRADIENT_LEVEL)}
    steps[kept] = accumulated(work, "uw", gradients="sequential")
    times = timed(steps, seconds)
    rows = []
    for name in (*LOSS_LEVEL, *GRADIENT_LEVEL, kept):
        against = again if name == "famo" else PLAIN
        most = AT_MOST if name in LOSS_LEVEL else None
        rows.append(Row("micro-batches", name, against, measure.ratio(times, name, against), most))
    return rows


# --- a sparse table ---------------------------------------------------------------------------------------------


class Recommender(NamedTuple):
    """A table and a tower, which are the trunk, and three heads."""

    trunk: nn.Sequential
    heads: nn.ModuleList
    items: Tensor

    def forward(self) -> tuple[list[Tensor], Tensor]:
        """The losses and the features."""
        z = self.trunk(self.items)
        return [(head(z) - i).square().mean() for i, head in enumerate(self.heads)], z


def recommender(rows: int, sparse: bool) -> tuple[Recommender, list[torch.optim.Optimizer]]:
    """The network, and its optimizers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        table = nn.Embedding(rows, 16, sparse=sparse)
        tower = [nn.Flatten(), nn.Linear(4 * 16, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU()]
        heads = nn.ModuleList(nn.Linear(64, 1) for _ in range(3))
        work = Recommender(nn.Sequential(table, *tower), heads, torch.randint(rows, (512, 4)))
    dense = [p for m in (*tower, heads) for p in m.parameters()]
    of_table: torch.optim.Optimizer = (
        torch.optim.SparseAdam([table.weight], lr=1e-6) if sparse else torch.optim.Adam([table.weight], lr=1e-6)
    )
    return work, [of_table, torch.optim.Adam(dense, lr=1e-6)]


def training(rows: int, sparse: bool, name: str) -> Step:
    """A whole step; plain for ``name=""``."""
    work, optimizers = recommender(rows, sparse)
    mt = mtlcore.MultiTask(work.trunk, name) if name else None

    def step() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        losses, z = work.forward()
        if mt is None:
            torch.stack(losses).sum().backward()
        else:
            mt.backward(losses, features=z)
        for optimizer in optimizers:
            optimizer.step()

    return step


def sparse(seconds: float, rows: int = 400_000) -> list[Row]:
    """Methods on a sparse table, against a plain step with the same table."""
    dense = "a dense table, plain step"
    steps = {PLAIN: training(rows, True, ""), **{m: training(rows, True, m) for m in ("uw", "upgrad", "nash-mtl")}}
    steps[dense] = training(rows, False, "")
    times = timed(steps, seconds)
    what = f"{rows:,} x 16 sparse"
    methods = [m for m in steps if m not in (PLAIN, dense)]
    out = [Row("sparse", f"{what}, {m}", PLAIN, measure.ratio(times, m, PLAIN), 2.0) for m in methods]
    return [*out, Row("sparse", dense, PLAIN, measure.ratio(times, dense, PLAIN), None)]


# --- the step that the optimizer makes ----------------------------------------------------------------------------

LOOKS: dict[str, dict[str, Any]] = {
    "taken=True": {"taken": True},
    'metric="optimizer"': {"metric": "optimizer"},
    'metric="step"': {"metric": "step"},
}


def looking(work: Workload, **options: Any) -> Step:
    """A whole step under Adam, and the report of what the optimizer did where it is asked for."""
    optimizer = torch.optim.Adam([*work.trunk.parameters(), *work.heads.parameters()], lr=1e-6)
    mt = mtlcore.MultiTask(work.trunk, "upgrad", optimizer, **options)
    return lambda: mt.step(work.forward).taken


LARGER: dict[str, Callable[[], Workload]] = {
    "8.4 million parameters, 64 samples": lambda: mlp(3, width=2048),
    "512 samples": lambda: mlp(3, batch=512),
    "CNN": lambda: cnn(3, batch_norm=False),
}


def metrics(
    seconds: float,
    make: Callable[[], Workload] = lambda: mlp(3),
    larger: Mapping[str, Callable[[], Workload]] = LARGER,
) -> list[Row]:
    """What it costs to look at the optimizer's step, and to answer in its metric. The look depends on the number of
    parameters, and not on the work of a step."""
    rows = _looks("", make, LOOKS, seconds)
    for what, network in larger.items():
        rows += _looks(f", {what}", network, {"taken=True": LOOKS["taken=True"]}, seconds)
    return rows


def _looks(what: str, make: Callable[[], Workload], looks: Mapping[str, dict[str, Any]], seconds: float) -> list[Row]:
    work, without = build(make), "step without"
    steps = {without: looking(work), **{name: looking(work, **options) for name, options in looks.items()}}
    times = timed(steps, seconds)
    return [Row("metrics", f"upgrad, {n}{what}", without, measure.ratio(times, n, without), None) for n in looks]


# --- hundreds of dependent gradients ------------------------------------------------------------------------------


def gradients_of_rank(k: int, rank: int) -> Tensor:
    """(K, 1000) Gaussian rows of a given rank."""
    generator = torch.Generator().manual_seed(rank)
    left = torch.randn(k, rank, generator=generator, dtype=torch.float64)
    return left @ torch.randn(rank, 1000, generator=generator, dtype=torch.float64)


def dependent(seconds: float, k: int = 500, ranks: Sequence[int] = (20, 150, 260, 300, 400)) -> list[Row]:
    """Seconds of a call, given the Gramian. ``seconds`` is what one method may take for all calls on one problem."""
    out = []
    for name in ("gradops", "upgrad"):
        for rank in ranks:
            method = mtlcore.create("aggregator", name)
            rows = gradients_of_rank(k, rank)
            view = StepView(losses=torch.ones(k), gramian=rows @ rows.T)
            spent: list[float] = []
            while not spent or (len(spent) < 5 and sum(spent) < seconds):
                start = time.process_time()
                method.aggregate(view, method.init(k))
                spent.append(time.process_time() - start)
            out.append(Row("dependent", f"{name}, {k} gradients of rank {rank}", "", statistics.median(spent), 0.5))
    return out


# --- the command ------------------------------------------------------------------------------------------------

SECTIONS: dict[str, Callable[[float], list[Row]]] = {
    "samples": samples,
    "micro-batches": micro_batches,
    "sparse": sparse,
    "metrics": metrics,
    "dependent": dependent,
}


def timed(steps: Mapping[str, Step], seconds: float) -> dict[str, list[float]]:
    """Warmed up, so that no source is compared and no plan is made while the clock runs."""
    for step in steps.values():
        for _ in range(3):
            step()
    return measure.interleaved(steps, seconds, clock=time.process_time)


def table(rows: Sequence[Row]) -> str:
    """Lines; a mark where a target is missed."""
    lines = []
    for row in rows:
        value = f"{row.value:.2f} of a {row.against}" if row.against else f"{row.value:.2f} s"
        value = value.replace("of a vmap", "of vmap")
        target = "" if row.most is None else f"   (at most {row.most:.2f}{', missed !' if row.missed else ''})"
        lines.append(f"{row.section:14} {row.what:44} {value}{target}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="mtl speed everyday", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/speed"), help="folder for everyday.json")
    parser.add_argument("--seconds", type=float, default=10.0, help="measuring time per section, or per call on a rank")
    parser.add_argument("--only", nargs="+", default=list(SECTIONS), choices=list(SECTIONS))
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    measure.keep_memory()
    rows: list[Row] = []
    for section in chosen.only:
        found = SECTIONS[section](chosen.seconds)
        print(table(found), flush=True)
        rows += found
    environment = {"torch": torch.__version__, "threads": measure.threads(), "machine": platform.machine()}
    chosen.out.mkdir(parents=True, exist_ok=True)
    path = chosen.out / "everyday.json"
    path.write_text(json.dumps({"environment": environment, "rows": [r._asdict() for r in rows]}, indent=1) + "\n")
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
