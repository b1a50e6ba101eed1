"""What a suite costs, before anybody runs it."""

from __future__ import annotations

from mtlbench.jobs import make_task
from mtlbench.suite import Suite
from mtlcore.errors import MtlError


def costs(suite: Suite) -> str:
    """How many trainings, and how many optimizer steps they are together, for instance "27 runs, 9,000 steps".

    The single-task baseline of one seed is one run of as many networks as there are sub-tasks. Where a budget is in
    epochs the number of steps depends on the data, and is not said.
    """
    from mtlbench.protocols import budget_for
    from mtlbench.runner import merged_budget

    runs, steps = 0, 0
    known = True
    each = suite.seeds + suite.tuning.trials
    for entry in suite.tasks:
        try:
            task = make_task(entry)
        except MtlError:
            known = False
            continue
        budget = merged_budget(task.budget, budget_for(suite.protocol, entry.name), suite.budget, entry.budget)
        known = known and budget.epochs is None
        runs += each * (len(suite.methods) + 1)
        steps += each * (len(suite.methods) + len(task.tasks)) * budget.steps
    return f"{runs:,} runs" + (f", {steps:,} steps" if known else "")
