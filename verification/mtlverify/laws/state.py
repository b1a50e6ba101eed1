"""Laws about runs of several steps."""

from __future__ import annotations

from typing import Any

from mtlverify.example import Example
from mtlverify.law import anything, law
from mtlverify.laws.runs import histories, reopened, step, steps
from mtlverify.laws.universal import VERDICT, differences, tensors, verdict


@law(
    "resume-equivalent",
    statement="A run that is saved, loaded into a new object and continued equals the uninterrupted run, bit for bit.",
    source="contract of mtlcore.Aggregator: state is a dict of tensors and there is no other memory",
    margin=VERDICT,
    examples=histories,
    within=anything,
    effort=0.5,
)
def resume_equivalent(plugin: Any, example: Example) -> float:
    """The state goes through a file that may hold tensors only; the method is made anew from its fields. The seed
    decides after which step: at any single one, a counter outside of the state might be right by chance."""
    last = steps(example)
    state, saved = plugin.init(example.n_tasks), 1 + example.seed % (last - 1)
    for number in range(saved):
        _, state = step(plugin, example, number, state)
    resumed, resumed_state = reopened(plugin, state)
    straight = []
    for number in range(saved, last):
        answer, state = step(plugin, example, number, state)
        straight.append(answer)
    for number, expected in zip(range(saved, last), straight, strict=True):
        answer, resumed_state = step(resumed, example, number, resumed_state)
        faults = differences(tensors(expected), tensors(answer))
        if faults:
            return verdict(False, f"in step {number}, after saving and loading the state: {'; '.join(faults)}")
    return verdict(True)
