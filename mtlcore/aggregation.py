"""One fresh step of a method on a Jacobian, for study and tests."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlcore import inputs, linalg
from mtlcore.asking.aggregator import call, start
from mtlcore.asking.seeds import step_seed
from mtlcore.contracts import Aggregator, Needs, StepView
from mtlcore.errors import ConfigurationError, NonFiniteError, PluginError


def aggregate(aggregator: str | Aggregator, jacobian: Tensor, losses: Tensor | None = None, seed: int = 0) -> Tensor:
    """One fresh step of a method on a Jacobian, for study and tests.

    Args:
        aggregator: an instance, or the name of a registered aggregator with its default hyper-parameters.
        jacobian: (K, P) task gradients; not modified.
        losses: (K,) task losses; ones if left out.
        seed: seed of the step's generator.

    Returns:
        d (P,), dtype and device of ``jacobian``. Parameters would move along -d.

    Raises:
        UnknownPluginError: no aggregator of that name.
        ConfigurationError: no aggregator at all, or one that needs several batches; wrong shapes or dtype; a seed
            that is not a whole number.
        NonFiniteError: NaN or infinity in ``jacobian`` or ``losses``, or gradients so long that their inner products
            (float64) or the direction (the dtype of ``jacobian``) overflow; names the task's row.
        PluginError: the method broke its contract.
    """
    method: Aggregator = inputs.plugin("aggregator", aggregator, Aggregator)
    is_tensor = isinstance(jacobian, Tensor)
    if not is_tensor or jacobian.ndim != 2 or not jacobian.is_floating_point() or jacobian.layout != torch.strided:
        found = type(jacobian).__name__
        if is_tensor:
            found = f"{tuple(jacobian.shape)} {jacobian.dtype} {jacobian.layout}"
        raise ConfigurationError(f"jacobian must be a dense floating-point tensor of shape (K, P), found {found}.")
    if method.batches > 1:
        raise ConfigurationError(
            f"aggregator {aggregator!r} compares {method.batches} independent batches in a step, and a Jacobian is one "
            f"of them: use MultiTask(...).step([closure, ...])."
        )
    k, seed = jacobian.shape[0], inputs.whole_number("seed", seed)
    if k == 0:
        raise ConfigurationError("jacobian has no rows: at least one task is needed.")
    if losses is None:
        losses = torch.ones(k, dtype=torch.float64, device="cpu")
    if not isinstance(losses, Tensor) or tuple(losses.shape) != (k,):
        found = str(tuple(losses.shape)) if isinstance(losses, Tensor) else type(losses).__name__
        raise ConfigurationError(f"losses must be a tensor of shape ({k},), one per row of jacobian; found {found}.")
    for what, finite in (("loss", torch.isfinite(losses)), ("gradient", torch.isfinite(jacobian).all(1))):
        if not bool(finite.all()):
            raise NonFiniteError(f"{what} of task{int((~finite).nonzero()[0])} is NaN or infinite.")
    # A plugin gets a copy: what the caller handed over is never at its mercy.
    view = StepView(losses=losses, jacobian=jacobian.detach().clone(), generator=step_seed(seed, 0))
    if method.needs == Needs.GRAMIAN:
        _fits(jacobian, torch.float64, squared=True)
    try:
        answer = call(method, view, start(method, k), jacobian.shape[1])
    except PluginError as error:
        if "not finite" in str(error):
            # Sums and inner products of rows that do not fit into their dtype are not the plugin's fault.
            _fits(jacobian, jacobian.dtype, squared=method.needs == Needs.JACOBIAN)
        raise
    if answer.direction is not None:
        return answer.direction.to(jacobian)
    assert answer.weights is not None
    direction = linalg.combine(jacobian.detach(), answer.weights)
    if not bool(torch.isfinite(direction).all()):
        parts = jacobian.detach().abs().amax(1).double() * answer.weights.to(jacobian.device).abs().double()
        raise _overflow(int(parts.argmax()), f"the direction, to which it adds most, in {jacobian.dtype}")
    return direction


def _fits(rows: Tensor, dtype: torch.dtype, squared: bool) -> None:
    """Raises NonFiniteError, with the longest row's name, if sums of rows, or their squares, overflow ``dtype``."""
    sizes = rows.detach().double().square().sum(1).to(dtype) if squared else rows.detach().double().abs().amax(1)
    if not bool(torch.isfinite(sizes.sum().to(dtype))):
        what = "inner products" if squared else "sums"
        raise _overflow(int(rows.detach().abs().amax(1).argmax()), f"{what} of gradients in {dtype}")


def _overflow(task: int, what: str) -> NonFiniteError:
    return NonFiniteError(
        f"gradient of task{task} is too long: it overflows {what}. Measure its loss in a larger unit."
    )
