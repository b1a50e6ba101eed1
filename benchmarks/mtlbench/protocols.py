"""The protocols of the literature by name: which rules of training and selection a table follows.

Numbers made under different protocols do not compare, so a suite follows one, and its report says which.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mtlbench.suite import PROTOCOL_NAMES, BudgetChanges
from mtlcore.errors import ConfigurationError


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One line of work's rules.

    Args:
        name: how a suite names it.
        about: what it does, in a sentence.
        source: where its rules stand.
        traps: what makes its numbers differ from those of other lines.
        budgets: task -> what differs from the task's default. Empty: any task, with its default.
    """

    name: str
    about: str
    source: str
    traps: tuple[str, ...] = ()
    budgets: Mapping[str, BudgetChanges] = dataclasses.field(default_factory=dict)


_HALVED = {"step_size": 100, "gamma": 0.5}
_DENSE = BudgetChanges(
    epochs=200, batch_size=2, learning_rate=1e-4, evaluations=200, schedule="StepLR", schedule_options=_HALVED,
    selection="mean-of-last-epochs", last_epochs=10, train_on_validation=True, augment=True,
)  # fmt: skip
_PLATEAU = {"mode": "min", "factor": 0.7, "patience": 5, "min_lr": 1e-5}
_MOLECULES = BudgetChanges(
    epochs=300, batch_size=120, learning_rate=1e-3, evaluations=300, schedule="ReduceLROnPlateau",
    schedule_options=_PLATEAU,
)  # fmt: skip
_FOREVER = BudgetChanges(schedule="constant")

PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        Protocol(
            name="validation",
            about="The checkpoint with the best validation score is kept; the test part is looked at once.",
            source="[choice] this project",
        ),
        Protocol(
            name="nash-mtl",
            about=(
                "The line of CAGrad, Nash-MTL, FAMO and FairGrad. Scenes: no validation part, 200 epochs, and the test "
                "metrics of the last ten epochs are averaged. CelebA and molecules: the best validation epoch."
            ),
            source=(
                "[code] AvivNavon/nash-mtl cce1840, Cranial-XIX/FAMO 0a6ad06, OptMN-Lab/fairgrad 2b8cba1; the "
                "selection rule of CelebA and QM9 is [memory]"
            ),
            traps=(
                "the scenes' test part is looked at while the length of training was chosen, in the papers",
                "delta-m averages over metrics, and lower is better",
                "the mean rank depends on the methods compared, so it does not carry over from another paper's table",
            ),
            budgets={
                "nyuv2": _DENSE,
                "cityscapes": _DENSE.model_copy(update={"batch_size": 8}),
                "celeba": _FOREVER.model_copy(
                    update={"epochs": 15, "batch_size": 256, "learning_rate": 3e-4, "evaluations": 15}
                ),
                "qm9-graphs": _MOLECULES,
            },
        ),
        Protocol(
            name="ldc-mtl",
            about=(
                "The rules of BiLB4MTL (LDC-MTL): those of the line before with rates and schedules of their own. "
                "Scenes: the last ten epochs. CelebA and molecules: the best validation epoch."
            ),
            source="[code] OptMN-Lab/LDC-MTL 7c39465",
            traps=(
                "learning rates and schedules differ from the nash-mtl line, so its baselines do too",
                "targets of QM9 are standardised with the training part",
            ),
            budgets={
                "nyuv2": _DENSE.model_copy(update={"learning_rate": 8e-5}),
                "cityscapes": _DENSE.model_copy(update={"batch_size": 8, "learning_rate": 3e-4}),
                "qm9-graphs": _MOLECULES,
                "celeba": BudgetChanges(
                    epochs=15, batch_size=256, learning_rate=1e-3, evaluations=15, schedule="StepLR",
                    schedule_options={"step_size": 3, "gamma": 0.3},
                ),
            },
        ),
        Protocol(
            name="libmtl",
            about=(
                "The line of LibMTL, RLW and DB-MTL: DeepLabV3+ on a ResNet-50 trained on ImageNet, Adam with weight "
                "decay 1e-5, halved at epoch 100; Office on a ResNet-18."
            ),
            source="[paper] Lin et al. (DB-MTL); [code] median-research-group/LibMTL",
            traps=(
                "its networks start from ImageNet weights, which are not shipped here: give the task option weights",
                "its Delta_p averages metrics within a task first, and higher is better: not the delta-m here",
                "not comparable with the lines on SegNet and MTAN",
            ),
            budgets={
                "nyuv2": _DENSE.model_copy(update={"batch_size": 8, "weight_decay": 1e-5}),
                "cityscapes": _DENSE.model_copy(update={"batch_size": 64, "weight_decay": 1e-5}),
                "office": _FOREVER.model_copy(
                    update={
                        "epochs": 100, "batch_size": 64, "learning_rate": 1e-4, "weight_decay": 1e-5,
                        "evaluations": 100,
                    }
                ),
                "qm9-graphs": _MOLECULES.model_copy(update={"batch_size": 128}),
            },
        ),
    )
}  # fmt: skip
assert tuple(PROTOCOLS) == PROTOCOL_NAMES


def budget_for(protocol: str, task: str) -> BudgetChanges:
    """What a protocol changes in a task's default budget.

    Raises:
        ConfigurationError: it says nothing of this task.
    """
    found = PROTOCOLS[protocol]
    if not found.budgets:
        return BudgetChanges()
    if task not in found.budgets:
        raise ConfigurationError(
            f"protocol {protocol!r} has no rules for task {task!r}, only for {', '.join(found.budgets)}. Leave out "
            "`protocol`, or put the task into a suite of its own."
        )
    return found.budgets[task]
