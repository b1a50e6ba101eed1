"""What task gradients cost: mtlcore against the floor, TorchJD, LibMTL's form and hand-written loops.

    mtl speed gradients --out build/speed [--seconds 10] [--only mlp40 gru5] [--no-curves]
        [--threads 1 --processor-time] [--device cuda]

Prints a table of ratios and writes gradients.json and gradients.png. All contenders do the same job; before the
timing each is compared with the explicit Jacobian on fixed weights, and a contender that errs is reported, not timed.

* time: median over interleaved rounds of (contender / reference) in the same round.
* memory: peak bytes allocated between the end of the forward pass and the end of the first step, in units of K x P
  numbers; kept buffers are counted, for the contender is new.
* waits (on CUDA): how often the processor waits for the accelerator in a step.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mtlbench.speed import measure, workloads
from mtlbench.speed.contenders import (
    CONTENDERS,
    FORCED,
    Contender,
    DifferentiationAlone,
    Floor,
    HandWritten,
    MtlCore,
    Rule,
    TorchJd,
    TorchJdSequential,
)
from mtlbench.speed.workloads import Workload
from mtlcore.errors import MtlError

_DOCUMENTED = TorchJd.label
_PEERS = ("TorchJD documented", "TorchJD sequential", "TorchJD autogram")


def prepare(
    make: Callable[[], Workload], rule: Rule, kinds: Sequence[type[Contender]], device: torch.device = measure.CPU
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Contenders that do the right job on this workload, each with a network of its own, warmed up.

    Returns:
        (label -> contender, label -> why it is left out).
    """
    reference = HandWritten(workloads.build(make, device), Rule("fixed"))
    reference.step()
    expected = reference.work.gradients()
    ready: dict[str, Contender] = {}
    refused: dict[str, str] = {}
    for kind in kinds:
        try:
            trial = kind(workloads.build(make, device), Rule("fixed"))
            trial.step()
            if kind.complete:
                error = float((trial.work.gradients() - expected).norm() / expected.norm())
                if not error < 1e-4:
                    refused[kind.label] = f"wrong gradients: relative error {error:.1e}"
                    continue
            contender = kind(workloads.build(make, device), rule)
            for i in range(200):
                contender.step()
                if i >= 2 and contender.ready():
                    break
            ready[kind.label] = contender
        except Exception as error:
            refused[kind.label] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
    return ready, refused


def memory(
    make: Callable[[], Workload],
    rule: Rule,
    kind: type[Contender],
    device: torch.device = measure.CPU,
) -> float:
    """Peak of a new contender's first backward, in units of K x P numbers.

    Args:
        make: the workload.
        rule: the method.
        kind: the contender's class.
        device: where the network is.
    """
    contender = kind(workloads.build(make, device), rule)
    if isinstance(contender, MtlCore):
        contender.step()  # compares the source with plain autograd; the next begins without memory, as everybody does
        contender.mt._run.planner.storage.release()
    contender.work.zero_grad()
    losses, z = contender.work.forward()
    size = contender.work.n_tasks * contender.work.n_parameters * 4
    return measure.peak_bytes(lambda: contender.backward(losses, z), device) / size


def run(
    names: Sequence[str],
    rule: Rule,
    seconds: float,
    clock: Callable[[], float],
    device: torch.device = measure.CPU,
) -> list[dict[str, Any]]:
    """One record per workload."""
    records = []
    for name in names:
        make = {**workloads.WORKLOADS, **workloads.LARGE}[name]
        ready, refused = prepare(make, rule, CONTENDERS, device)
        for needed in (Floor.label, MtlCore.label):  # what everything is told in terms of
            if needed in refused:
                raise MtlError(f"{name}: {needed} failed, nothing can be compared: {refused[needed]}")
        times = measure.interleaved({label: c.step for label, c in ready.items()}, seconds, clock=clock)
        work = ready[Floor.label].work
        chosen = ready[MtlCore.label]
        assert isinstance(chosen, MtlCore)
        kinds = {c.label: c for c in CONTENDERS}
        peaks = {}
        for label in ready:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                peaks[label] = memory(make, rule, kinds[label], device)
        record = {
            "workload": work.name,
            "tasks": work.n_tasks,
            "parameters": work.n_parameters,
            "rounds": len(times[Floor.label]),
            "ratio_to_floor": {n: measure.ratio(times, n, Floor.label) for n in times},
            "ratio_to_torchjd": {n: measure.ratio(times, n, _DOCUMENTED) for n in times if _DOCUMENTED in times},
            "memory_in_rows": peaks,
            "waits": {n: measure.waits(c.step, device) for n, c in ready.items()},
            "left_out": refused,
            "source": chosen.reason,
        }
        best = min((p for p in _PEERS if p in times), key=lambda p: statistics.median(times[p]), default=None)
        fastest = min(
            (c.label for c in FORCED if c.label in times), key=lambda p: statistics.median(times[p]), default=None
        )
        if fastest is not None:
            record["fastest_source"] = fastest
            record["ratio_to_fastest_source"] = measure.ratio(times, MtlCore.label, fastest)
        if best is not None:
            record["best_torchjd"] = best
            record["ratio_to_best_torchjd"] = measure.ratio(times, MtlCore.label, best)
        records.append(record)
        print(table(record), flush=True)
    return records


def table(record: dict[str, Any]) -> str:
    """One workload in words."""
    lines = [f"\n{record['workload']}  (P = {record['parameters']:,}, {record['rounds']} rounds)  [{record['source']}]"]
    counted = any(n is not None for n in record["waits"].values())
    lines.append(f"  {'':24}{'/ floor':>9}{'/ TorchJD':>11}{'memory/KP':>11}{'waits' if counted else '':>7}")
    for name in record["ratio_to_floor"]:
        jd = record["ratio_to_torchjd"].get(name, float("nan"))
        held = record["memory_in_rows"].get(name, float("nan"))
        waits = f"{record['waits'][name]:7d}" if counted else ""
        lines.append(f"  {name:24}{record['ratio_to_floor'][name]:9.2f}{jd:11.2f}{held:11.2f}{waits}")
    lines += [f"  {name:24}left out: {why}" for name, why in record["left_out"].items()]
    return "\n".join(lines)


def summary(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The figures that the project promises."""
    ours = MtlCore.label
    to_jd = [r["ratio_to_torchjd"][ours] for r in records if r["ratio_to_torchjd"]]
    to_best = [r["ratio_to_best_torchjd"] for r in records if "ratio_to_best_torchjd" in r]
    to_floor = [r["ratio_to_floor"][ours] for r in records]
    out = {"geometric_mean_to_floor": measure.geometric_mean(to_floor), "worst_to_floor": max(to_floor)}
    to_own = [r["ratio_to_fastest_source"] for r in records if "ratio_to_fastest_source" in r]
    if to_own:
        out |= {
            "geometric_mean_to_fastest_source": measure.geometric_mean(to_own),
            "worst_to_fastest_source": max(to_own),
        }
    if to_jd:
        out |= {
            "geometric_mean_to_torchjd_documented": measure.geometric_mean(to_jd),
            "worst_to_torchjd_documented": max(to_jd),
            "geometric_mean_to_torchjd_best": measure.geometric_mean(to_best),
            "worst_to_torchjd_best": max(to_best),
        }
    if to_jd and all(DifferentiationAlone.label in r["ratio_to_torchjd"] for r in records):
        # What would be left if Gramian, method and checks took no time, by whichever way of differentiating is faster.
        least = [min(r["ratio_to_torchjd"][c.label] for c in (Floor, DifferentiationAlone)) for r in records]
        out["geometric_mean_of_differentiation_to_torchjd_documented"] = measure.geometric_mean(least)
    return out


def curves(seconds: float, clock: Callable[[], float], device: torch.device = measure.CPU) -> dict[str, Any]:
    """Step time against K (2 .. 100) and against P, with fitted lines; against K in forward passes of the trunk.

    With given weights instead of UPGrad, whose K projections, up to order K^4 in all, would bend the line.

    A line t = a + b x is fitted by least squares of relative errors; ``worst`` is the largest relative deviation.
    """
    kinds, rule = (Floor, MtlCore, TorchJd, TorchJdSequential), Rule("fixed")
    out: dict[str, Any] = {}
    points: dict[str, list[tuple[float, Callable[[], Workload]]]] = {
        "K": [(k, functools.partial(workloads.mlp, k, width=256)) for k in (2, 5, 10, 20, 40, 70, 100)],
        "P": [(_size(w), functools.partial(workloads.mlp, 10, width=w)) for w in (128, 256, 384, 512, 768, 1024)],
    }
    for axis, series in points.items():
        xs: list[float] = []
        ys: dict[str, list[float]] = {k.label: [] for k in kinds}
        for x, make in series:
            ready, _ = prepare(make, rule, kinds, device)
            forward = ready[Floor.label].work.trunk_forward
            steps = {"forward": forward, **{n: c.step for n, c in ready.items()}}
            times = measure.interleaved(steps, seconds / len(series), clock=clock)
            xs.append(x)
            for name, values in ys.items():
                values.append(statistics.median(times[name]) if axis == "P" else measure.ratio(times, name, "forward"))
        if axis == "P":
            # Ratios to the smallest network's floor, so that no absolute time of one machine enters the record.
            base = ys[Floor.label][0]
            ys = {n: [v / base for v in values] for n, values in ys.items()}
        out[axis] = {"x": xs, "y": ys, "fit": {n: _line(xs, values) for n, values in ys.items()}}
    return out


def _size(width: int) -> int:
    return workloads.mlp(1, width=width).n_parameters


def _line(xs: Sequence[float], ys: Sequence[float]) -> dict[str, float]:
    x, y = torch.tensor(xs, dtype=torch.float64), torch.tensor(ys, dtype=torch.float64)
    design = torch.stack([torch.ones_like(x), x], 1) / y[:, None]
    a, b = torch.linalg.lstsq(design, torch.ones_like(y)[:, None]).solution.flatten().tolist()
    return {"a": a, "b": b, "worst": float(((a + b * x) / y - 1).abs().max())}


def figure(records: Sequence[dict[str, Any]], lines: dict[str, Any], path: Path) -> None:
    """Bars of ratios to the floor; the two curves if they were measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [
        c.label for c in CONTENDERS if c.label != Floor.label and any(c.label in r["ratio_to_floor"] for r in records)
    ]
    # The same colour in every panel.
    colours = {c.label: pyplot.get_cmap("tab20")(i) for i, c in enumerate(CONTENDERS)}
    panels = 1 + len(lines)
    canvas, axes = pyplot.subplots(panels, 1, figsize=(11, 4.2 * panels), squeeze=False, layout="constrained")
    first = axes[0][0]
    width = 0.8 / len(shown)
    for i, label in enumerate(shown):
        heights = [r["ratio_to_floor"].get(label, float("nan")) for r in records]
        first.bar([j + i * width for j in range(len(records))], heights, width, label=label, color=colours[label])
    first.axhline(1.0, color="black", linewidth=1)
    first.set_xticks([j + 0.4 for j in range(len(records))], [r["workload"] for r in records], fontsize=8)
    first.set_ylabel("step time / floor")
    first.legend(fontsize=8, ncols=3)
    for axis, (name, curve) in zip((row[0] for row in axes[1:]), lines.items()):
        for label, values in curve["y"].items():
            fit = curve["fit"][label]
            fitted, colour = f"{label}: {fit['a']:.2g} + {fit['b']:.2g} {name}", colours[label]
            axis.plot(curve["x"], values, "o", label=fitted, color=colour)
            axis.plot(curve["x"], [fit["a"] + fit["b"] * x for x in curve["x"]], color=colour, linewidth=1)
        axis.set_xlabel(name)
        axis.set_ylabel("step / trunk's forward pass" if name == "K" else "step / floor of the smallest")
        axis.legend(fontsize=8)
    canvas.savefig(path, dpi=120)
    pyplot.close(canvas)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="mtl speed gradients", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("build/speed"), help="folder of gradients.json and gradients.png"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="measuring time per workload")
    everything = [*workloads.WORKLOADS, *workloads.LARGE]
    parser.add_argument("--only", nargs="+", choices=everything, default=list(workloads.WORKLOADS))
    parser.add_argument("--method", default="upgrad", choices=["upgrad", "fixed"])
    parser.add_argument("--threads", type=int, default=None, help="torch threads; default: torch's own")
    parser.add_argument("--processor-time", action="store_true", help="this process's own time; with --threads 1 only")
    parser.add_argument("--no-curves", action="store_true", help="leave out cost against K and P")
    parser.add_argument("--device", type=torch.device, default=measure.CPU, help="where the networks are; default: cpu")
    options = parser.parse_args(arguments)
    if options.processor_time and options.threads != 1:
        parser.error("--processor-time counts threads that wait for each other: use it with --threads 1")
    clock = time.process_time if options.processor_time else measure.wall_clock(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    torch.backends.cudnn.allow_tf32 = False  # in ten bits, contenders that do the same job could not be told to
    rule = Rule(options.method)
    records = run(options.only, rule, options.seconds, clock, options.device)
    result: dict[str, Any] = {
        "method": rule.name,
        "torch": torch.__version__,
        "threads": measure.threads(),
        "clock": "processor time" if options.processor_time else "wall time",
        "machine": platform.machine(),
        "device": measure.name_of(options.device),
        "summary": summary(records),
        "records": records,
        "curves": {} if options.no_curves else curves(3 * options.seconds, clock, options.device),
    }
    print("\nsummary")
    for name, value in result["summary"].items():
        print(f"  {name:58}{value:6.2f}")
    for axis, curve in result["curves"].items():
        for name, fit in curve["fit"].items():
            line = f"{fit['a']:.3g} + {fit['b']:.3g} {axis}"
            print(f"  {name:22} against {axis}: {line}, worst deviation {fit['worst']:.0%}")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gradients.json").write_text(json.dumps(result, indent=1) + "\n")
    figure(records, result["curves"], options.out / "gradients.png")
    print(f"written: {options.out / 'gradients.json'}, {options.out / 'gradients.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
