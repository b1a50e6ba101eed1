"""The result of a suite in sentences."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """The result in sentences, first what was found, then what could not have been found."""
    if not summary["tasks"] or not summary["state"]["finished"]:
        return ["There are no finished runs in this folder yet, so there is nothing to conclude."]
    reference = summary["suite"]["reference"]
    lines: list[str] = []
    for task in summary["tasks"]:
        methods = [m for m in task["methods"] if "delta_m" in m]
        if not methods:
            lines.append(f"{task['name']}: only the single-task baselines have finished.")
            continue
        compared = {m["name"]: m["versus_reference"] for m in methods if m["versus_reference"]}
        if reference not in {m["name"] for m in methods}:
            lines.append(
                f"{task['name']}: no finished run of the reference {reference}, so nothing is compared with it."
            )
        better = [m for m, c in compared.items() if c["verdict"] == "better"]
        worse = [m for m, c in compared.items() if c["verdict"] == "worse"]
        judged = [c for c in compared.values() if c["p"] is not None]
        unjudged = [m for m, c in compared.items() if c["p"] is None]
        seeds = _span([c["difference"]["n"] for c in judged])
        if compared and not judged:
            lines.append(
                f"{task['name']}: no method shares two seeds with {reference}: one run shows a number, not a "
                "difference; add seeds."
            )
        elif judged and not better and not worse:
            whom = "the other method" if len(judged) == 1 else f"any of the other {len(judged)} methods"
            lines.append(
                f"{task['name']}: no significant difference in delta-m between {reference} and {whom} ({seeds} paired "
                f"seeds). This does not show that they are equal: {_reach(judged)}."
            )
        elif judged:
            parts = []
            for word, group in (("better than", better), ("worse than", worse)):
                if group:
                    named = ", ".join(f"{m} ({compared[m]['difference']['estimate']:+.1f})" for m in group)
                    parts.append(f"{word} {reference}: {named}")
            rest = len(judged) - len(better) - len(worse)
            others = "the other one shows" if rest == 1 else f"the other {rest} show"
            tail = f"; {others} no significant difference" if rest else ""
            lines.append(
                f"{task['name']}: in points of delta-m, {'; '.join(parts)}{tail} ({seeds} paired seeds, "
                "Holm-corrected)."
            )
        if judged and unjudged:
            lines.append(f"{task['name']}: not enough paired seeds to compare {', '.join(unjudged)} with {reference}.")
        single = {m["name"]: m["versus_single_task"]["verdict"] for m in methods}
        lines.append(f"{task['name']}, against training each task alone: " + _grouped(single) + ".")
        costs = [(m["ratio_to_sum"], m["name"]) for m in methods if m["ratio_to_sum"]]
        if costs:
            low, high = min(costs), max(costs)
            lines.append(
                f"{task['name']}, cost of a step: from {low[0]:.2f} ({low[1]}) to {high[0]:.2f} ({high[1]}) times a "
                "plain summed-loss step."
            )
        plain = next((m for m in methods if m["name"] == reference), methods[0])
        conflict = plain["conflict"].get("min_cosine")
        if conflict is not None:
            extent = "little or no" if conflict > -0.1 else "clear" if conflict < -0.3 else "moderate"
            text = f"{conflict:+.2f}".replace("-", "−")
            lines.append(
                f"{task['name']} has {extent} gradient conflict: with {plain['name']} the smallest cosine between two "
                f"task gradients is {text} on average over training."
            )
        twins = _same_results(methods)
        if twins:
            groups = "; ".join(" and ".join(group) for group in twins)
            lines.append(f"{task['name']}: exactly the same results from {groups}, in every seed.")
    known = [c for c in summary["certificates"] if c["passed"] is not None]
    if known:
        good = sum(c["passed"] for c in known)
        lines.append(f"{good} of {len(known)} verified plugins keep every law they claim.")
    return lines


def _reach(judged: Sequence[Mapping[str, Any]]) -> str:
    """How far these comparisons, none of them significant, could see."""
    correction = f", with Holm's correction for {len(judged)} comparisons" if len(judged) > 1 else ""
    # Runs that are equal to the last bit (two names of one method) say nothing about it.
    reach = statistics.median([c["detectable"] for c in judged if c["detectable"]] or [0.0])
    if math.isinf(reach):
        return f"so few pairs cannot show any difference, however large{correction}; add seeds"
    return f"a difference below about {reach:.1f} points would typically have gone unseen{correction}"


def _span(counts: Sequence[int]) -> str:
    """ "3", or "2 to 3" where not everybody has the same number."""
    return " to ".join(str(n) for n in sorted({min(counts), max(counts)})) if counts else "0"


def _same_results(methods: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Groups of methods that gave the same loss curves and the same delta-m in every seed."""
    groups: dict[str, list[str]] = {}
    for m in methods:
        mark = json.dumps([m["delta_m"]["values"], m["metrics"], m["curves"]["loss"]], sort_keys=True)
        groups.setdefault(mark, []).append(m["name"])
    return [group for group in groups.values() if len(group) > 1]


def _grouped(verdicts: Mapping[str, str]) -> str:
    parts = []
    for verdict in ("better", "worse", "no significant difference", "not enough runs"):
        group = [m for m, v in verdicts.items() if v == verdict]
        if group:
            parts.append(f"{verdict}: {'all methods' if len(group) == len(verdicts) else ', '.join(group)}")
    return "; ".join(parts)
