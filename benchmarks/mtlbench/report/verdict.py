"""The result of a suite in sentences."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

from mtlbench.report.model import MethodRow, Report, TaskReport, Versus
from mtlbench.statistics import Comparison


def verdict(report: Report) -> list[str]:
    """The result in sentences, first what was found, then what could not have been found."""
    if not report.tasks or not report.state.finished:
        return ["There are no finished runs in this folder yet, so there is nothing to conclude."]
    lines = [line for task in report.tasks for line in _of_task(task, report.suite.reference)]
    known = [c for c in report.certificates if c.passed is not None]
    if known:
        good = sum(bool(c.passed) for c in known)
        lines.append(f"{good} of {len(known)} verified plugins keep every law they claim.")
    return lines


def _of_task(task: TaskReport, reference: str) -> Iterator[str]:
    """What is to be said of one task."""
    methods = task.scored()
    if not methods:
        yield f"{task.name}: only the single-task baselines have finished."
        return
    if reference not in {m.name for m in methods}:
        yield f"{task.name}: no finished run of the reference {reference}, so nothing is compared with it."
    compared = {m.name: m.versus_reference for m in methods if m.versus_reference is not None}
    yield from _against_reference(task.name, reference, compared)
    single = {m.name: m.versus_single_task.verdict for m in methods if m.versus_single_task is not None}
    yield f"{task.name}, against training each task alone: {_grouped(single)}."
    yield from _cost(task.name, methods)
    yield from _conflict(task.name, next((m for m in methods if m.name == reference), methods[0]))
    twins = _same_results(methods)
    if twins:
        groups = "; ".join(" and ".join(group) for group in twins)
        yield f"{task.name}: exactly the same results from {groups}, in every seed."


def _against_reference(task: str, reference: str, compared: Mapping[str, Versus]) -> Iterator[str]:
    """What the paired comparisons with the reference show."""
    judged = {m: c for m, c in compared.items() if c.p is not None}
    if not compared:
        return
    if not judged:
        yield (
            f"{task}: no method shares two seeds with {reference}: one run shows a number, not a difference; add seeds."
        )
        return
    found = {word: [m for m, c in judged.items() if c.verdict == word] for word in ("better", "worse")}
    seeds = _span([c.difference.n for c in judged.values()])
    if any(found.values()):
        yield _differences(task, reference, judged, found, seeds)
    else:
        whom = "the other method" if len(judged) == 1 else f"any of the other {len(judged)} methods"
        yield (
            f"{task}: no significant difference in delta-m between {reference} and {whom} ({seeds} paired seeds). This "
            f"does not show that they are equal: {_reach(list(judged.values()))}."
        )
    unjudged = [m for m in compared if m not in judged]
    if unjudged:
        yield f"{task}: not enough paired seeds to compare {', '.join(unjudged)} with {reference}."


def _differences(
    task: str, reference: str, judged: Mapping[str, Versus], found: Mapping[str, list[str]], seeds: str
) -> str:
    parts = []
    for word, group in found.items():
        if group:
            named = ", ".join(f"{m} ({judged[m].difference.estimate:+.1f})" for m in group)
            parts.append(f"{word} than {reference}: {named}")
    rest = len(judged) - sum(map(len, found.values()))
    others = "the other one shows" if rest == 1 else f"the other {rest} show"
    tail = f"; {others} no significant difference" if rest else ""
    return f"{task}: in points of delta-m, {'; '.join(parts)}{tail} ({seeds} paired seeds, Holm-corrected)."


def _cost(task: str, methods: Sequence[MethodRow]) -> Iterator[str]:
    costs = [(m.ratio_to_sum, m.name) for m in methods if m.ratio_to_sum]
    if costs:
        low, high = min(costs), max(costs)
        yield (
            f"{task}, cost of a step: from {low[0]:.2f} ({low[1]}) to {high[0]:.2f} ({high[1]}) times a plain "
            "summed-loss step."
        )


def _conflict(task: str, plain: MethodRow) -> Iterator[str]:
    cosine = plain.conflict.get("min_cosine")
    if cosine is not None:
        extent = "little or no" if cosine > -0.1 else "clear" if cosine < -0.3 else "moderate"
        text = f"{cosine:+.2f}".replace("-", "−")
        yield (
            f"{task} has {extent} gradient conflict: with {plain.name} the smallest cosine between two task gradients "
            f"is {text} on average over training."
        )


def _reach(judged: Sequence[Comparison]) -> str:
    """How far these comparisons, none of them significant, could see."""
    correction = f", with Holm's correction for {len(judged)} comparisons" if len(judged) > 1 else ""
    # Runs that are equal to the last bit (two names of one method) say nothing about it.
    reach = statistics.median([c.detectable for c in judged if c.detectable] or [0.0])
    if math.isinf(reach):
        return f"so few pairs cannot show any difference, however large{correction}; add seeds"
    return f"a difference below about {reach:.1f} points would typically have gone unseen{correction}"


def _span(counts: Sequence[int]) -> str:
    """ "3", or "2 to 3" where not everybody has the same number."""
    return " to ".join(str(n) for n in sorted({min(counts), max(counts)})) if counts else "0"


def _same_results(methods: Sequence[MethodRow]) -> list[list[str]]:
    """Groups of methods that gave the same loss curves and the same delta-m in every seed."""
    groups: dict[str, list[str]] = {}
    for m in methods:
        deltas = m.delta_m.values if m.delta_m else None
        metrics = {key: v and dataclasses.asdict(v) for key, v in m.metrics.items()}
        loss = dataclasses.asdict(m.curves.loss) if m.curves.loss else None
        groups.setdefault(json.dumps([deltas, metrics, loss], sort_keys=True), []).append(m.name)
    return [group for group in groups.values() if len(group) > 1]


def _grouped(verdicts: Mapping[str, str]) -> str:
    parts = []
    for word in ("better", "worse", "no significant difference", "not enough runs"):
        group = [m for m, v in verdicts.items() if v == word]
        if group:
            parts.append(f"{word}: {'all methods' if len(group) == len(verdicts) else ', '.join(group)}")
    return "; ".join(parts)
