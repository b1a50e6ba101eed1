"""What comes back from the device in a step: losses, Gramian, and whether the heads' gradients are finite."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mtlcore import inputs
from mtlcore.errors import NonFiniteError, listed
from mtlcore.gradients import graph
from mtlcore.gradients.batch import Batch
from mtlcore.gradients.task_gradients import Pair, TaskGradients


def read(batch: Batch, found: TaskGradients, gram: Tensor | None) -> tuple[list[float], Tensor | None]:
    """Losses and Gramian on the processor, all finite, heads' gradients too: one wait for an accelerator.

    Raises:
        NonFiniteError: names the tasks, and what of theirs is NaN or infinite.
    """
    names, stacked = batch.names, batch.stacked
    if gram is None or stacked is None or gram.device != stacked.device or gram.device.type == "cpu":
        values = inputs.values_of(batch.losses, stacked, names)
        _check_heads(found.heads, names, _sum(found.heads))
        return values, None if gram is None else checked(gram.cpu(), names)
    total = _sum(found.heads)
    numbers = [stacked.detach().to(gram.dtype), gram.flatten()]
    if total is not None:
        numbers.append(total.to(gram).view(1))
    both = torch.cat(numbers).cpu()
    k = len(names)
    values = inputs.finite(both[:k].tolist(), names)
    _check_heads(found.heads, names, both[-1] if total is not None else None)
    return values, checked(both[k : k + k * k].view(k, k), names)


def checked(gram: Tensor, names: Sequence[str]) -> Tensor:
    """The Gramian, if it is finite.

    Raises:
        NonFiniteError: names the tasks.
    """
    # A NaN or an infinity survives the sum; a finite Gramian whose sum overflows is looked at entry by entry.
    if not math.isfinite(gram.sum().item()) and not bool(torch.isfinite(gram).all()):
        squares = gram.diagonal()
        bad = [repr(n) for n, s in zip(names, squares) if not torch.isfinite(s)]
        who = listed(bad, joint=" and ") or listed(names)
        raise NonFiniteError(
            f"the gradient of task {who} is NaN or infinite (or its squared norm overflows float64). Parameters, "
            f"method state and .grad are untouched."
        )
    return gram


def _sum(heads: Sequence[list[Pair]]) -> Tensor | None:
    """One number that is finite if all gradients are (except for an overflow of the sum)."""
    found = [g for pairs in heads for _, g in pairs]
    if not found:
        return None
    return graph.total([(g._values() if g.is_sparse else g).sum() for g in found])


def check_heads(heads: Sequence[list[Pair]], names: Sequence[str]) -> None:
    """
    Args:
        heads: for each task of ``names`` its gradients outside of the trunk.

    Raises:
        NonFiniteError: names the tasks of which one is NaN or infinite.
    """
    _check_heads(heads, names, _sum(heads))


def _check_heads(heads: Sequence[list[Pair]], names: Sequence[str], total: Tensor | None) -> None:
    if total is None or math.isfinite(float(total)):
        return
    bad = [repr(n) for n, pairs in zip(names, heads) if not graph.finite([g for _, g in pairs])]
    if bad:
        raise NonFiniteError(
            f"the gradient of task {listed(bad, joint=' and ')} is NaN or infinite at parameters outside of the trunk "
            f"(its head), although its loss is finite. Parameters, method state and .grad are untouched. Look for "
            f"sqrt, log or a division at zero in the head."
        )
