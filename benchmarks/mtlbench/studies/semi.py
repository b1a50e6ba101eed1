"""Two tasks on two domains, each labelled on one of them only: what adversarial alignment gains over labels alone.

    python -m mtlbench.studies.semi --seeds 5 --out bench-results/semi

In the manner of SemiMTL (Wang et al. 2022): one data set has labels of one task, the other one those of the other task
[paper, abstract]. Here both are MultiMNIST images of their own; those of the second domain are fainter, brighter, and
noisy. The digit at the top left is labelled in the first domain only, the one at the bottom right in the second.

A discriminator per task looks at predictions (softmax). It is domain-aware: it tells three sources apart, true labels,
predictions on the labelled domain, and predictions on the other one [choice; the paper's formulas could not be read].
The network is trained to make it err on the domain without labels: "cross" asks for "prediction on the labelled
domain", "gt" for "true label", "both" for either. "plain" has a discriminator of two sources, which knows no labels.
The adversarial losses are further tasks of the same step, so any aggregator may weigh them. Nothing is tuned: withheld
labels are looked at once, in the end. The benchmark task ``withheld-digits`` is the same as a task of a suite.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import mtlcore
from mtlbench import statistics as stats
from mtlbench.jobs import one_thread
from mtlbench.networks.judge import Judge, fooling_loss, own_loss
from mtlbench.protocol.randomness import batches, own_randomness, seed_for
from mtlbench.studies.lines import called, span
from mtlbench.tasks.base import BenchmarkTask, Network, Split
from mtlbench.tasks.withheld import LABELLED, domain

NAME = "multimnist"
STEPS, BATCH, RATE = 200, 32, 3e-3
"""Of the network; ``BATCH`` of each domain."""
D_RATE, D_BETAS = 1e-4, (0.9, 0.99)
"""Of the discriminators [choice]."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train.

    Args:
        alignment: "cross", "gt", "both" or "plain"; "" for labels alone.
        weight: lambda of the adversarial losses.
        aggregator: of the task losses.
    """

    alignment: str = ""
    weight: float = 0.0
    aggregator: str = "sum"

    @property
    def label(self) -> str:
        """How the table calls it."""
        how = "" if self.aggregator == "sum" else f", {self.aggregator}"
        return f"{self.alignment}, lambda = {self.weight:g}{how}" if self.alignment else f"labels alone{how}"


ARMS = (
    Arm(),
    Arm("plain", 0.03),
    Arm("cross", 0.001),
    Arm("cross", 0.03),
    Arm("cross", 0.3),
    Arm("gt", 0.03),
    Arm("both", 0.03),
)


def run(seed: int, arm: Arm) -> dict[str, float]:
    """{"TASK, labelled" and "TASK, withheld": accuracy in % on the test part}."""
    task = mtlcore.create("task", NAME)
    assert isinstance(task, BenchmarkTask)
    splits = task.load()
    half = len(splits.train) // 2
    sides = [torch.arange(half), torch.arange(half, 2 * half)]
    parts = [_rows(domain(splits.train, d, 1), sides[d]) for d in (0, 1)]
    with own_randomness(seed_for("weights", NAME, seed)):
        network = Network(task)
        judges = {n: Judge(10, arm.alignment) for n in task.tasks}
        _train(task, network, judges, parts, arm, seed)
    found = {}
    for name in task.tasks:
        for d in (0, 1):
            where = "labelled" if d == LABELLED[name] else "withheld"
            found[f"{name}, {where}"] = _accuracy(network, name, domain(splits.test, d, 2))
    return found


def _train(
    task: BenchmarkTask,
    network: Network,
    judges: Mapping[str, Judge],
    parts: Sequence[Split],
    arm: Arm,
    seed: int,
) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    own = torch.optim.Adam([p for j in judges.values() for p in j.parameters()], lr=D_RATE, betas=D_BETAS)
    names = [*task.tasks, *(f"{n}, adversarial" for n in task.tasks if arm.alignment)]
    multi = mtlcore.MultiTask(network.trunk, arm.aggregator, optimizer, tasks=names, seed=seed, heads=network.heads)
    orders = [batches(len(p), BATCH, seed_for(f"order {d}", NAME, seed)) for d, p in enumerate(parts)]
    for _ in range(STEPS):
        drawn = [p.batch(next(order)) for p, order in zip(parts, orders, strict=True)]
        seen: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

        def closure(drawn: Any = drawn, seen: Any = seen) -> dict[str, Tensor]:
            return _losses(task, network, judges, drawn, arm, seen)

        multi.step(closure)
        schedule.step()
        if arm.alignment:
            own.zero_grad()
            torch.stack([_own_loss(judges[n], *seen[n]) for n in task.tasks]).sum().backward()
            own.step()


def _losses(
    task: BenchmarkTask,
    network: Network,
    judges: Mapping[str, Judge],
    drawn: Sequence[Any],
    arm: Arm,
    seen: dict[str, tuple[Tensor, Tensor, Tensor]],
) -> dict[str, Tensor]:
    """Labels count on their own domain; what the judges will look at goes into ``seen``."""
    outputs = [network(inputs)[0] for inputs, _ in drawn]
    losses = {}
    for name, d in LABELLED.items():
        label = drawn[d][1][name]
        losses[name] = task.loss(name, outputs[d][name], label)
        seen[name] = (label, outputs[d][name].softmax(1), outputs[1 - d][name].softmax(1))
    for name in LABELLED if arm.alignment else ():
        losses[f"{name}, adversarial"] = arm.weight * fooling_loss(judges[name].frozen(seen[name][2]), arm.alignment)
    return losses


def _own_loss(judge: Judge, label: Tensor, seen: Tensor, unseen: Tensor) -> Tensor:
    """Nothing of it reaches the network."""
    labels = judge.of_labels(label) if judge.sources == 3 else None
    return own_loss(labels, judge(seen.detach()), judge(unseen.detach()))


def _rows(split: Split, index: Tensor) -> Split:
    inputs, targets = split.batch(index)
    assert isinstance(inputs, Tensor)
    return Split(inputs, targets, split.sources[index.numpy()])


@torch.no_grad()
def _accuracy(network: Network, name: str, split: Split) -> float:
    network.eval()
    guesses = torch.cat([network(x)[0][name].argmax(1) for x in split.inputs.split(500)])
    return 100.0 * float((guesses == split.targets[name]).double().mean())


# --- the table --------------------------------------------------------------------------------------------------------


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: accuracies where labels were there and where they were withheld, and the paired gain of the latter."""
    base = {x["seed"]: x["accuracy"] for x in lines if x["arm"] == Arm().label}
    arms = list(dict.fromkeys(x["arm"] for x in lines))
    own = {a: {x["seed"]: x["accuracy"] for x in lines if x["arm"] == a} for a in arms}
    gains = {
        a: stats.paired([[_mean(base[s], "withheld") - _mean(x, "withheld") for s, x in own[a].items() if s in base]])
        for a in arms
        if a != Arm().label and own[a].keys() & base.keys()
    }
    gains = stats.corrected(gains)
    out = ["| training | labelled | withheld | gain on withheld | verdict |", "|---|---|---|---|---|"]
    for a in arms:
        cells = [span([_mean(x, what) for x in own[a].values()]) for what in ("labelled", "withheld")]
        c = gains.get(a)
        cells += ["", "reference"] if c is None else [_gain(c.difference), c.verdict]
        out.append(f"| {a} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def _gain(fall: stats.Interval) -> str:
    """A gain with its 95 % interval, of a fall."""
    if fall.low is None or fall.high is None:
        return f"{-fall.estimate:+.1f}"
    return f"{-fall.estimate:+.1f} [{-fall.high:+.1f}, {-fall.low:+.1f}]"


def _mean(accuracy: Mapping[str, float], what: str) -> float:
    return statistics.fmean(v for k, v in accuracy.items() if k.endswith(what))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and print the table."""
    study = called(__doc__, "bench-results/semi", arguments)
    done = {(x["arm"], x["seed"]) for x in study.lines}
    for seed in range(study.seeds):
        for arm in ARMS:
            if (arm.label, seed) not in done:
                with one_thread():
                    study.add([{"arm": arm.label, "seed": seed, "accuracy": run(seed, arm)}])
    print(table(study.lines))


if __name__ == "__main__":
    main()
