"""Merging on real data: experts for MNIST, Fashion-MNIST and optdigits from one base, and one model of them.

    python -m mtlbench.studies.merging --seeds 5 --out bench-results/merging

The base is a network that was trained on all three for a short time, heads included. Then the heads are frozen, as the
classifiers of vision-language models are in the literature on merging [choice]. An expert is the base after training
its trunk on one task: all weights, or LoRA adapters through PEFT. Trained together: the base's trunk after as many
steps on the batches of all tasks, which is as many examples as all experts saw together. Nothing is tuned.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mtlcore
from mtlbench.jobs import one_thread
from mtlbench.measures.calibration import expected_calibration_error
from mtlbench.measures.ensemble import self_ensembled
from mtlbench.protocol.randomness import batches, own_randomness, seed_for
from mtlbench.studies.lines import called, span
from mtlbench.tasks.base import BenchmarkTask, MultiSplit, Network, Split

NAME = "digits-domains"
BASE_STEPS, EXPERT_STEPS, BATCH, RATE = 60, 240, 64, 2e-3
LORA_RANK = 4
MERGERS: dict[str, tuple[str, dict[str, Any]]] = {
    "weight-average": ("weight-average", {}),
    "task-arithmetic, c = 0.3": ("task-arithmetic", {"coefficient": 0.3}),
    "task-arithmetic, c = 1": ("task-arithmetic", {"coefficient": 1.0}),
    "ties": ("ties", {}),
    "doge, rows": ("doge", {}),
    "doge, full": ("doge", {"reduce": "full"}),
    "doge, eta = 1": ("doge", {"eta": 1.0}),
    "adamerging, per layer": ("adamerging", {"steps": 100, "lr": 1e-2}),
    "adamerging, per task": ("adamerging", {"per": "task", "steps": 100, "lr": 1e-2}),
}
"""How the report calls it -> merger and options. AdaMerging: a fifth of the paper's steps, at ten times its rate."""

Logits = dict[str, Tensor]


def run(seed: int) -> Iterator[dict[str, Any]]:
    """One record per arm: {task: accuracy in %} and {task: calibration error in %} on the test part."""
    task = mtlcore.create("task", NAME)
    assert isinstance(task, BenchmarkTask)
    with own_randomness(seed_for("weights", NAME, seed)):
        base = Network(task)
        _train(task, base, list(base.parameters()), task.tasks, BASE_STEPS, seed, "base")
        yield _record("base", seed, _logits(task, base))
        together = copy.deepcopy(base)
        _train(task, together, list(together.trunk.parameters()), task.tasks, EXPERT_STEPS, seed, "expert")
        yield _record("trained together", seed, _logits(task, together))
        for kind in ("full weights", "LoRA"):
            experts = [_expert(task, base, name, seed, kind) for name in task.tasks]
            yield from _arms(task, base, experts, seed, kind)


def _arms(
    task: BenchmarkTask, base: Network, experts: Sequence[nn.Module], seed: int, kind: str
) -> Iterator[dict[str, Any]]:
    whole = [_with(base, trunk) for trunk in experts]
    seen = [_logits(task, w) for w in whole]
    own = {name: seen[i][name] for i, name in enumerate(task.tasks)}
    yield _record(f"each task's own expert ({kind})", seed, own)
    sure = {n: self_ensembled(torch.stack([s[n].softmax(1) for s in seen])).log() for n in task.tasks}
    yield _record(f"all experts, the surest answers ({kind})", seed, sure)
    for label, (method, options) in MERGERS.items():
        merger = mtlcore.create("merger", method, **options)
        objective = _entropy(task, base, seed) if merger.reads_data else None
        merged = mtlcore.merge(base.trunk, list(experts), merger, objective=objective)
        yield _record(f"{label} ({kind})", seed, _logits(task, _with(base, merged)))


def _expert(task: BenchmarkTask, base: Network, name: str, seed: int, kind: str) -> nn.Module:
    made = copy.deepcopy(base)
    if kind == "LoRA":
        import peft

        layers = [n for n, m in made.trunk.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        made.trunk = peft.get_peft_model(made.trunk, peft.LoraConfig(r=LORA_RANK, target_modules=layers))
    parameters = [p for p in made.trunk.parameters() if p.requires_grad]
    _train(task, made, parameters, (name,), EXPERT_STEPS, seed, "expert")
    trunk = made.trunk
    assert isinstance(trunk, nn.Module)
    return trunk


def _train(
    task: BenchmarkTask,
    network: Network,
    parameters: list[nn.Parameter],
    names: Sequence[str],
    steps: int,
    seed: int,
    phase: str,
) -> None:
    """The mean of the losses of the tasks named, with Adam and a cosine schedule; the same batches for all arms."""
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    drawn = {n: batches(len(_part(task, "train", n)), BATCH, seed_for(f"{phase} {n}", NAME, seed)) for n in names}
    network.train()
    for _ in range(steps):
        losses = []
        for name in names:
            inputs, targets = _part(task, "train", name).batch(next(drawn[name]))
            losses.append(task.loss(name, network.heads[name](network.trunk(inputs)), targets[name]))
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
        schedule.step()


def _entropy(task: BenchmarkTask, base: Network, seed: int) -> Callable[[Any, int], Tensor]:
    """The mean entropy of predictions on batches of the validation part, whose labels are not looked at."""
    drawn: dict[str, list[Tensor]] = {}
    for name in task.tasks:
        order = batches(len(_part(task, "validation", name)), BATCH, seed_for(f"entropy {name}", NAME, seed))
        drawn[name] = [next(order) for _ in range(8)]

    def objective(trunk: Any, step: int) -> Tensor:
        found = []
        for name in task.tasks:
            inputs, _ = _part(task, "validation", name).batch(drawn[name][step % 8])
            log = F.log_softmax(base.heads[name](trunk(inputs)), dim=1)
            found.append(-(log.exp() * log).sum(1).mean())
        return torch.stack(found).mean()

    return objective


def _part(task: BenchmarkTask, part: str, name: str) -> Split:
    split = getattr(task.load(), part)
    assert isinstance(split, MultiSplit)
    return split.parts[name]


def _with(base: Network, trunk: nn.Module) -> Network:
    made = copy.copy(base)
    made._modules = dict(base._modules)
    made.trunk = trunk
    return made


@torch.no_grad()
def _logits(task: BenchmarkTask, network: Network) -> Logits:
    network.eval()
    out = {}
    for name in task.tasks:
        inputs = _part(task, "test", name).inputs
        out[name] = torch.cat([network.heads[name](network.trunk(x)) for x in inputs.split(500)])
    return out


def _record(arm: str, seed: int, logits: Logits) -> dict[str, Any]:
    task = mtlcore.create("task", NAME)
    accuracy, calibration = {}, {}
    for name, found in logits.items():
        labels = _part(task, "test", name).targets[name]
        accuracy[name] = 100.0 * float((found.argmax(1) == labels).double().mean())
        calibration[name] = 100.0 * expected_calibration_error(found.softmax(1), labels)
    return {"arm": arm, "seed": seed, "accuracy": accuracy, "calibration": calibration}


# --- the table --------------------------------------------------------------------------------------------------------


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: accuracies with 95 % intervals over the seeds, and the mean calibration error."""
    tasks = list(lines[0]["accuracy"])
    out = ["| model | " + " | ".join(tasks) + " | mean | calibration error |", "|---" * (len(tasks) + 3) + "|"]
    for arm in dict.fromkeys(line["arm"] for line in lines):
        own = [line for line in lines if line["arm"] == arm]
        cells = [span([x["accuracy"][t] for x in own]) for t in tasks]
        cells.append(span([statistics.fmean(x["accuracy"].values()) for x in own]))
        cells.append(f"{statistics.fmean(v for x in own for v in x['calibration'].values()):.1f}")
        out.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and print the table."""
    study = called(__doc__, "bench-results/merging", arguments)
    for seed in range(study.seeds):
        if any(line["seed"] == seed for line in study.lines):
            continue
        with one_thread():
            made = list(run(seed))
        study.add(made)  # a seed is written as a whole
    print(table(study.lines))


if __name__ == "__main__":
    main()
