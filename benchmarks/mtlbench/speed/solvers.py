"""Time and soundness of the weights alone: the K x K problems, given the Gramian, against TorchJD.

Speed: random Gaussian gradients at K = 2, 3, 11, 40, 100 (``--large``: 250 and 500, our side alone, for the other's
takes minutes); both libraries get the same float64 Gramian (TorchJD's Nash-MTL and ConFIG the rows, which is what they
take), in interleaved rounds, in processor time of one thread. Soundness: on :mod:`mtlbench.speed.hostile`, how many
answers conflict with a task beyond rounding, fail, or stand still although a common descent direction exists.

Run ``mtl speed solvers``. Without TorchJD (or what its methods need) only our side is measured.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mtlcore
from mtlbench.speed import hostile, measure
from mtlcore import StepView, linalg

Weigh = Callable[[Tensor, Tensor], Tensor]
"""(rows, Gramian) -> weights."""

METHODS: dict[str, dict[str, Any]] = {
    "nash-mtl": {},
    "fairgrad": {"alpha": 2.0},
    "cagrad": {"c": 0.5},
    "upgrad": {},
    "mgda": {},
    "pcgrad": {},
    "gradvac": {},
    "config": {},
}
PROMISED = ("nash-mtl", "fairgrad", "cagrad (c=1)", "upgrad", "mgda", "dualproj", "gradops")
"""Methods that promise not to conflict."""
TASKS = (2, 3, 11, 40, 100)
LARGE = (250, 500)
OURS, PEER = "mtlcore", "torchjd"


def ours(name: str, options: Mapping[str, Any]) -> Weigh:
    """Our method, called as a step calls it."""
    method = mtlcore.create("aggregator", name, **options)
    state: dict[str, Tensor] | None = None
    generator = torch.Generator().manual_seed(0)

    def weigh(rows: Tensor, gramian: Tensor) -> Tensor:
        nonlocal state
        n = len(gramian)
        view = StepView(losses=torch.ones(n), gramian=gramian, generator=generator)
        answer = method.aggregate(view, method.init(n) if state is None else state)
        state = answer.state  # as in training, and as the peer keeps its own
        assert answer.weights is not None  # it weighs rows; none of these answers with a direction
        return answer.weights

    return weigh


def peer(name: str, n_tasks: int) -> Weigh | None:
    """TorchJD's weighting of the same name with the same hyper-parameters; None if it is not installed."""
    try:
        import torchjd.aggregation as jd

        if name == "nash-mtl":
            nash: Any = jd.NashMTL(n_tasks=n_tasks, max_norm=0.0)
            return lambda rows, gramian: nash.weighting(rows)
        if name == "config":  # has no weights: its direction, which is less than ours answers with
            whole: Any = jd.ConFIG()
            return lambda rows, gramian: whole(rows)
        weighting: Callable[[], Any] | None = {
            "fairgrad": lambda: jd.FairGradWeighting(alpha=2.0),
            "cagrad": lambda: jd.CAGradWeighting(c=0.5),
            "cagrad (c=1)": lambda: jd.CAGradWeighting(c=1.0),
            "upgrad": jd.UPGradWeighting,
            "dualproj": jd.DualProjWeighting,
            "mgda": jd.MGDAWeighting,
            "pcgrad": jd.PCGradWeighting,
            "gradvac": jd.GradVacWeighting,
        }.get(name)
        made = None if weighting is None else weighting()
    except ImportError:
        return None
    return None if made is None else lambda rows, gramian: made(gramian)


def speed(
    seconds: float,
    methods: Sequence[str] = tuple(METHODS),
    tasks: Sequence[int] = TASKS,
    problems: int = 8,
    against: bool = True,
) -> list[dict[str, Any]]:
    """One record per method and K: median microseconds of both sides and the median of the paired ratios."""
    records = []
    for name in methods:
        options = METHODS[name]
        for k in tasks:
            generator = torch.Generator().manual_seed(k)
            count = problems if k < 100 else min(problems, 2)  # the other side's take a second each
            data = [torch.randn(k, 2 * k + 40, generator=generator, dtype=torch.float64) for _ in range(count)]
            sides = {OURS: ours(name, options), PEER: peer(name, k) if against else None}
            steps = {side: _over(weigh, data) for side, weigh in sides.items() if weigh is not None}
            for step in steps.values():
                step()
            # This process's own time: all is done on one thread, and a busy machine would lengthen the long calls most.
            times = measure.interleaved(steps, seconds, clock=time.process_time)
            record: dict[str, Any] = {"method": name, "tasks": k, "rounds": len(times[OURS])}
            record |= {f"{side}_us": 1e6 * statistics.median(t) / count for side, t in times.items()}
            if PEER in times:
                record["speed_up"] = measure.ratio(times, PEER, OURS)
            records.append(record)
            print(_line(record), flush=True)
    return records


def _over(weigh: Weigh, data: Sequence[Tensor]) -> Callable[[], None]:
    pairs = [(rows, rows @ rows.T) for rows in data]

    def step() -> None:
        for rows, gramian in pairs:
            weigh(rows, gramian)

    return step


def _line(record: Mapping[str, Any]) -> str:
    text = f"  {record['method']:10} K = {record['tasks']:<3} {record[f'{OURS}_us']:10.0f} us"
    if "speed_up" in record:
        text += f"   TorchJD {record[f'{PEER}_us']:10.0f} us   {record['speed_up']:7.1f} x"
    return text


def conflicts() -> list[dict[str, Any]]:
    """One record per method and side: how many hostile answers conflict, fail or stand still."""
    records = []
    for name in PROMISED:
        base, options = ("cagrad", {"c": 1.0}) if name == "cagrad (c=1)" else (name, METHODS.get(name, {}))
        for side in (OURS, PEER):
            record: dict[str, Any] = {"method": name, "side": side, "examples": 0}
            counts = dict.fromkeys(("conflicting", "failed", "standing still"), 0)
            for example in hostile.examples():
                weigh = ours(base, options) if side == OURS else peer(name, len(example.rows))
                if weigh is None:
                    break
                record["examples"] += 1
                verdict = _judge(example.rows, weigh, exact=side == OURS)
                if verdict in counts:
                    counts[verdict] += 1
            if record["examples"]:
                records.append({**record, **counts})
                shown = ", ".join(f"{n} {what}" for what, n in counts.items())
                print(f"  {name:14} {side:8} of {record['examples']}: {shown}", flush=True)
    return records


def _judge(rows: Tensor, weigh: Weigh, exact: bool) -> str:
    """The worst cosine of one answer against the rounding of the rows' dtype.

    Each library gets the Gramian that it would compute itself: ours float64, TorchJD's in the dtype of the rows.
    """
    gramian = linalg.gramian(rows) if exact else rows @ rows.T
    try:
        weights = weigh(rows, gramian).double()
    except Exception:
        return "failed"
    if not bool(weights.isfinite().all()):
        return "failed"
    direction = linalg.combine(rows, weights).double()
    norms, length = rows.double().norm(dim=1), float(direction.norm())
    if length == 0:
        return "standing still"
    size = float((weights.abs() * norms).sum())
    noise = (rows.shape[1] + 64) * torch.finfo(rows.dtype).eps * size / length
    return "conflicting" if float((rows.double() @ direction / norms).min()) / length < -noise else "sound"


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Geometric mean and least of the speed-ups of each method over K."""
    out = {}
    for name in METHODS:
        ratios = [r["speed_up"] for r in records if r["method"] == name and "speed_up" in r]
        if ratios:
            out[f"{name}: geometric mean"] = measure.geometric_mean(ratios)
            out[f"{name}: least"] = min(ratios)
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="mtl speed solvers", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/speed"), help="folder of solvers.json")
    parser.add_argument("--seconds", type=float, default=2.0, help="measuring time per method and K")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--tasks", type=int, nargs="+", default=list(TASKS), help="numbers of tasks")
    parser.add_argument("--large", action="store_true", help="measure 250 and 500 tasks, too, on our side alone")
    parser.add_argument("--no-speed", action="store_true", help="only count conflicts")
    parser.add_argument("--no-conflicts", action="store_true", help="only measure time")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    result: dict[str, Any] = {"torch": torch.__version__, "machine": platform.machine(), "threads": 1}
    with warnings.catch_warnings():
        # The peers' solvers warn about every ill-conditioned problem; what they answer is counted instead.
        warnings.simplefilter("ignore")
        if not options.no_speed:
            print("time for the weights, given the Gramian")
            result["speed"] = speed(options.seconds, options.methods, options.tasks)
            if options.large:
                result["speed"] += speed(options.seconds, options.methods, LARGE, problems=1, against=False)
            result["summary"] = summary(result["speed"])
            for name, value in result["summary"].items():
                print(f"  {name:28}{value:8.1f} x")
        if not options.no_conflicts:
            print("conflicts on hostile Jacobians that have a common descent direction")
            result["conflicts"] = conflicts()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "solvers.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {options.out / 'solvers.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
