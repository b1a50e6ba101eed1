"""An optimizer's memory across a jump of the parameters.

Two cases. After an **exact linear reparametrisation** theta' = D theta the loss is the same function of the point, so
every past gradient has a known value in the new coordinates, g' = D^{-T} g, and the history can be *transported*: it
becomes the memory of the same path, written down in the new coordinates (:func:`transport`). It is not what training in
the new coordinates from the start would have left: a gradient method takes other steps there, and so does Adam. After
any **other jump** the past says little about the new place: *historical trajectory reuse* keeps of it what points the
same way as the jump (:func:`reuse`).

Both write into the optimizer's own state and never replace a parameter or a parameter group, so learning-rate
schedulers go on working. Only parameters named by the caller are touched. Where several optimizers share the
parameters, each is told of its own; wrappers (accelerate's, Lightning's) are looked into.
"""

from __future__ import annotations

import enum
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlcore.contracts import Map, MatrixMap
from mtlcore.errors import TeleportError

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None
"""One, several (each for parameters of its own), or none."""


def each(optimizer: Optimizers) -> list[torch.optim.Optimizer]:
    """The optimizers themselves, out of wrappers (accelerate's, Lightning's) that keep them in ``.optimizer``."""
    if optimizer is None:
        return []
    several = list(optimizer) if isinstance(optimizer, Sequence) else [optimizer]
    return [_unwrapped(one) for one in several]


def _unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    return optimizer


class Memory(enum.Enum):
    """What an entry of an optimizer's state averages; decides how it is carried along."""

    MEAN = "running mean of gradients"
    MEAN_SQUARE = "running mean of squared gradients"
    FACTOR = "running mean of squared gradients, averaged over rows or columns"
    MAX_SQUARE = "running maximum of a mean square"
    MAX = "running maximum of |gradient|"
    SUM = "momentum: decayed sum of gradients"
    SUM_SQUARE = "sum of squared gradients"
    LAST = "the last gradient"
    POINT = "running mean of the parameter itself"
    STEP_SQUARE = "running mean of squared steps of the parameter"
    SCALE_FREE = "steps already divided by the size of the gradient, or step sizes"

    @property
    def power(self) -> int:
        """How it goes with the gradient under theta' = D theta: it is divided by D to this power."""
        return _POWERS.get(self, 1)


_POWERS = {
    Memory.MEAN_SQUARE: 2, Memory.FACTOR: 2, Memory.MAX_SQUARE: 2, Memory.SUM_SQUARE: 2,
    Memory.SCALE_FREE: 0, Memory.POINT: -1, Memory.STEP_SQUARE: -2,
}  # fmt: skip

_ADAM = {"exp_avg": Memory.MEAN, "exp_avg_sq": Memory.MEAN_SQUARE, "max_exp_avg_sq": Memory.MAX_SQUARE}
_SUPPORTED: dict[type[torch.optim.Optimizer], dict[str, Memory]] = {
    torch.optim.SGD: {"momentum_buffer": Memory.SUM},
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
    torch.optim.NAdam: _ADAM,
    torch.optim.RAdam: _ADAM,
    torch.optim.SparseAdam: _ADAM,
    torch.optim.Adamax: {"exp_avg": Memory.MEAN, "exp_inf": Memory.MAX},
    torch.optim.RMSprop: {
        "square_avg": Memory.MEAN_SQUARE,
        "grad_avg": Memory.MEAN,
        # RMSprop's momentum adds up g / sqrt(square_avg), from which D cancels.
        "momentum_buffer": Memory.SCALE_FREE,
    },
    torch.optim.Adagrad: {"sum": Memory.SUM_SQUARE},
    torch.optim.Rprop: {"prev": Memory.LAST, "step_size": Memory.SCALE_FREE},
    # The path's steps in the new coordinates are D times those in the old: with both moments carried, the next step is
    # D times what it would have been (except for eps): the unit correction that Adadelta was made for.
    torch.optim.Adadelta: {"square_avg": Memory.MEAN_SQUARE, "acc_delta": Memory.STEP_SQUARE},
    torch.optim.ASGD: {"ax": Memory.POINT},
}
for _name, _known in (
    ("Adafactor", {"row_var": Memory.FACTOR, "col_var": Memory.FACTOR, "variance": Memory.MEAN_SQUARE}),
    ("Muon", {"momentum_buffer": Memory.MEAN}),
):
    if hasattr(torch.optim, _name):  # torch has them since 2.5 and 2.9
        _SUPPORTED[getattr(torch.optim, _name)] = _known
_COUNTERS = frozenset({"step", "mu_product", "mu", "eta"})


def check_supported(optimizer: Optimizers) -> None:
    """Raise if the history of this optimizer, or of one of these, cannot be carried over.

    Raises:
        TeleportError: names the class, and two ways out.
    """
    for one in each(optimizer):
        if _entries(one) is None:
            known = ", ".join(sorted(c.__name__ for c in _SUPPORTED))
            raise TeleportError(
                f"the history of optimizer {type(one).__module__}.{type(one).__qualname__} cannot be carried across a "
                f"teleport: the meaning of its entries is not known. {_WAYS_OUT.format('one of ' + known)}"
            )


_WAYS_OUT = (
    "Two ways out: use {}; or let it forget the parameters that moved, with "
    "teleport=mtlcore.Teleporter('lora', history='reset') (any strategy instead of 'lora')."
)


def _entries(optimizer: torch.optim.Optimizer) -> dict[str, Memory] | None:
    return next((_SUPPORTED[c] for c in type(optimizer).__mro__ if c in _SUPPORTED), None)


def _memories(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> list[tuple[str, Tensor, Memory]]:
    """The entries of one parameter's state, with their meaning; counters left out.

    Raises:
        TeleportError: an entry that is as large as the parameter and unknown (a subclass of a known optimizer).
    """
    entries = _entries(optimizer)
    assert entries is not None, "check_supported comes first"
    found = []
    for key, value in optimizer.state.get(parameter, {}).items():
        if not isinstance(value, Tensor) or key in _COUNTERS:
            continue
        if key not in entries:
            raise TeleportError(
                f"optimizer {type(optimizer).__qualname__} keeps an entry {key!r} whose meaning is unknown, so it "
                f"cannot be carried across a teleport. {_WAYS_OUT.format('the optimizer that it extends')}"
            )
        found.append((key, value, entries[key]))
    return found


def _base(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, memory: Memory) -> float:
    """What a memory starts from, which no gradient has made: Adagrad's ``initial_accumulator_value``."""
    if memory is not Memory.SUM_SQUARE:
        return 0.0
    return float(_group(optimizer, parameter).get("initial_accumulator_value", 0.0))


def _group(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Any]:
    """The options of a parameter; empty if the optimizer does not hold it."""
    return next((g for g in optimizer.param_groups if any(p is parameter for p in g["params"])), {})


# --- exact transport ----------------------------------------------------------------------------------------------


@torch.no_grad()
def transport(optimizer: Optimizers, parameter: nn.Parameter, map: Map) -> None:
    """Carry one parameter's history through theta' = D theta, in place. [derived, seeds 2.5]

    Diagonal D: m <- m / D and v <- v / D^2: the same averages of the same path's gradients, which are g / D in the new
    coordinates. (Weight decay that is added to the gradient, as in ``Adam``, is not invariant: D changes the decay.)
    A mean of the parameter itself (ASGD) goes with it, D ax; the mean square of its steps (Adadelta) grows by D^2.

    Matrix M: linear entries by M^{-T}, exactly; a mean of the parameter by M. Squares are not determined by the old
    squares; they are re-estimated as if a column's entries were uncorrelated, v' = (M^{-T})^{o2} v. M and then M^{-1}
    therefore does not give v back. [choice]

    Adafactor keeps row and column means of v only, and uses v_ij = row_i col_j / mean(row). That v is carried and its
    means are taken: exactly the transported v if D is constant along rows or columns, or a product a_i b_j, as those of
    ``relu-rescaling`` are, for which v keeps its form; else the nearest that two means can say. [choice]
    """
    for one in each(optimizer):
        memories = _memories(one, parameter)
        for _, value, memory in memories:
            if memory.power and memory is not Memory.FACTOR:
                base = _base(one, parameter, memory)
                value.copy_(base + pulled(value - base, map, memory.power, positive=memory is Memory.MAX))
        factors = {key: value for key, value, memory in memories if memory is Memory.FACTOR}
        if factors:
            _pull_factors(factors["row_var"], factors["col_var"], map)


def pulled(value: Tensor, map: Map, power: int, *, positive: bool = False) -> Tensor:
    """``value`` divided by D to the power (1: a gradient, 2: its square; -1: a point, -2: the square of a step); by
    |D|, if it is ``positive``. For a matrix: multiplied by M^{-T} or M, or by the square of each entry."""
    if isinstance(map, MatrixMap):
        matrix = map.matrix.to(torch.float64)
        factor = matrix if power < 0 else torch.linalg.inv(matrix).T
        return apply_along(factor.square() if abs(power) == 2 else factor, value, map.dim)
    factor = map.to(value)
    if power > 0:
        factor = factor.reciprocal()
    if abs(power) == 2:
        factor = factor.square()
    return value * (factor.abs() if positive else factor)


def _pull_factors(row: Tensor, column: Tensor, map: Map) -> None:
    mean = row.mean(dim=-2, keepdim=True)
    square = row * column / torch.where(mean > 0.0, mean, torch.ones_like(mean))
    square = pulled(square, map, 2)
    row.copy_(square.mean(dim=-1, keepdim=True))
    column.copy_(square.mean(dim=-2, keepdim=True))


def apply_along(matrix: Tensor, value: Tensor, dim: int) -> Tensor:
    """``matrix`` (n, n) times ``value`` along ``dim``, computed in float64, in the dtype of ``value``."""
    moved = torch.tensordot(matrix.to(torch.float64), value.to(torch.float64), dims=([1], [dim]))
    back: Tensor = moved.movedim(0, dim).to(value.dtype)
    return back


# --- historical trajectory reuse ------------------------------------------------------------------------------------


def similarity(displacements: Sequence[Tensor], directions: Sequence[Tensor], sign: int = 1) -> float:
    """The cosine of theta' - theta and g' over the parameters that moved; clamped to [0, 1] it is sigma. [paper Eq. 12]

    Args:
        displacements: theta' - theta, parameter by parameter.
        directions: the combined gradient g' at the point that is left, in the same order.
        sign: +1 as in paper and code; -1 compares with the descent direction -g'. [choice]
    """
    inner = sum(float(torch.sum(a.double() * b.double())) for a, b in zip(displacements, directions))
    squares = [sum(float(torch.sum(t.double().square())) for t in tensors) for tensors in (displacements, directions)]
    norm = (squares[0] ** 0.5) * (squares[1] ** 0.5)
    return sign * inner / norm if norm > 0.0 else 0.0


def reuse(optimizer: Optimizers, parameters: Sequence[nn.Parameter], sigma: float) -> None:
    """Historical trajectory reuse. [paper Eq. 13; how it meets the buffers is a choice]

    The paper runs the first step after the jump with the decay rates sigma*beta. That step is, for each running mean,
    sigma*beta*m + (1 - sigma*beta)*g = beta*m~ + (1 - beta)*g with m~ = sigma*m + (1 - sigma)*g: the ordinary step
    from a blended buffer. So the buffers are blended once, when the optimizer is about to take that step and g is
    known; the settings of the optimizer are never touched. Step counter and bias correction go on. sigma = 0: moments
    and step counter are zeroed at once. [choice]

    Memories that are sums, not means (SGD's momentum), are scaled by sigma. A mean of the parameter (ASGD) is blended
    with where it is now. Sizes of steps (Rprop, Adadelta) are not directions, and stay. [choice]
    """
    for one in each(optimizer):
        own = [p for p in parameters if _group(one, p)]
        if sigma <= 0.0:
            for parameter in own:
                _PENDING.get(one, {}).pop(parameter, None)
            forget(one, own, counters=True)
        elif own:
            _order(one, own, sigma)


def _order(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], sigma: float) -> None:
    if optimizer not in _PENDING:
        # Stays for good: a hook that removed itself while the optimizer runs its hooks would break the others.
        optimizer.register_step_pre_hook(_blend_pending)
        # Only now, so that an interrupt in between leaves no optimizer that counts as watched and is not.
        _PENDING[optimizer] = {}
    pending = _PENDING[optimizer]
    for parameter in parameters:
        pending[parameter] = pending.get(parameter, 1.0) * sigma


def waiting(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, float]:
    """What remains of each parameter's past, and is blended in at the optimizer's next step; a snapshot keeps it."""
    return _PENDING.get(optimizer, {})


_PENDING: weakref.WeakKeyDictionary[torch.optim.Optimizer, dict[nn.Parameter, float]] = weakref.WeakKeyDictionary()
"""What remains of each parameter's past, until the optimizer's next step."""


def _blend_pending(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    pending = _PENDING.get(optimizer, {})
    for parameter, sigma in pending.items():
        _blend(optimizer, parameter, sigma)
    pending.clear()


@torch.no_grad()
def _blend(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, sigma: float) -> None:
    gradient = _averaged(optimizer, parameter)
    for key, value, memory in _memories(optimizer, parameter):
        if not _is_history(optimizer, memory):
            continue
        new: Tensor | float = 0.0
        if memory is Memory.POINT:
            new = parameter.to(value)
        elif memory is Memory.SUM_SQUARE:
            new = _base(optimizer, parameter, memory)
        elif gradient is not None and memory is Memory.MEAN:
            new = gradient.to(value)
        elif gradient is not None and memory in (Memory.MEAN_SQUARE, Memory.MAX_SQUARE):
            new = gradient.to(value).square()
        elif gradient is not None and memory is Memory.FACTOR:
            new = gradient.to(value).square().mean(dim=-1 if key == "row_var" else -2, keepdim=True)
        value.mul_(sigma).add_((1.0 - sigma) * new)


def _is_history(optimizer: torch.optim.Optimizer, memory: Memory) -> bool:
    """Step sizes are none."""
    if memory is Memory.SCALE_FREE:
        return isinstance(optimizer, torch.optim.RMSprop)
    return memory is not Memory.STEP_SQUARE


def _averaged(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> Tensor | None:
    """What the optimizer is about to average: the gradient turned round if it maximises, plus weight decay where that
    is added to the gradient."""
    gradient = parameter.grad
    group = _group(optimizer, parameter)
    if gradient is None:
        return None
    if gradient.is_sparse:
        gradient = gradient.to_dense()
    if group.get("maximize", False):
        gradient = -gradient
    decoupled = group.get("decoupled_weight_decay", isinstance(optimizer, _DECOUPLED))
    decay = 0.0 if decoupled else group.get("weight_decay", 0.0)
    return gradient.add(parameter, alpha=decay) if decay else gradient


_DECOUPLED = tuple(getattr(torch.optim, n) for n in ("AdamW", "Adafactor", "Muon") if hasattr(torch.optim, n))


@torch.no_grad()
def forget(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], *, counters: bool) -> None:
    """Put the history of these parameters where it starts, in place; with ``counters`` the step counters too."""
    for parameter in parameters:
        for _, value, memory in _memories(optimizer, parameter):
            if memory is Memory.POINT:
                value.copy_(parameter)
            elif _is_history(optimizer, memory):
                value.fill_(_base(optimizer, parameter, memory))
        if counters:
            _restart_counters(optimizer, parameter)


def _restart_counters(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> None:
    if isinstance(optimizer, torch.optim.ASGD):
        return  # its steps are counted for a schedule of the whole run, not for a correction of what it averages
    state = optimizer.state.get(parameter, {})
    for key, start in (("step", 0.0), ("mu_product", 1.0)):
        if isinstance(state.get(key), Tensor):
            state[key].fill_(start)
        elif key in state:
            state[key] = start


def reset(optimizer: Optimizers, parameters: Sequence[nn.Parameter]) -> None:
    """Drop the state of these parameters: the optimizer starts them afresh. Works with any optimizer that keeps it by
    parameter."""
    for one in each(optimizer):
        for parameter in parameters:
            one.state.pop(parameter, None)
