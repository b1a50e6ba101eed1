"""An optimizer's memory across a jump of the parameters.

Two cases. After an **exact linear reparametrisation** theta' = D theta the loss is the same function of the point, so
every past gradient has a known value in the new coordinates, g' = D^{-T} g, and the history can be *transported*: it
becomes the moments of the same path, expressed in the new coordinates (:func:`transport`; not those of a run there, which
would have taken other steps). After any **other jump** the past says little about the new place: *historical trajectory reuse* keeps of it what points the
same way as the jump (:func:`reuse`).

Both write into the optimizer's own state and never replace a parameter or a parameter group, so learning-rate
schedulers go on working. Only parameters named by the caller are touched.
"""

from __future__ import annotations

import copy
import enum
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlcore.contracts import Map, MatrixMap
from mtlcore.errors import TeleportError


class Memory(enum.Enum):
    """What an entry of an optimizer's state averages; decides how it is carried along."""

    MEAN = "running mean of gradients"
    MEAN_SQUARE = "running mean of squared gradients"
    MAX_SQUARE = "running maximum of a mean square"
    MAX = "running maximum of |gradient|"
    SUM = "momentum: decayed sum of gradients"
    SUM_SQUARE = "sum of squared gradients"
    LAST = "the last gradient"
    SCALE_FREE = "steps already divided by the size of the gradient, or step sizes"

    @property
    def power(self) -> int:
        """The power of the gradient it is made of: it is divided by D to this power."""
        if self in (Memory.MEAN_SQUARE, Memory.MAX_SQUARE, Memory.SUM_SQUARE):
            return 2
        return 0 if self is Memory.SCALE_FREE else 1


_ADAM = {"exp_avg": Memory.MEAN, "exp_avg_sq": Memory.MEAN_SQUARE, "max_exp_avg_sq": Memory.MAX_SQUARE}
_SUPPORTED: dict[type[torch.optim.Optimizer], dict[str, Memory]] = {
    torch.optim.SGD: {"momentum_buffer": Memory.SUM},
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
    torch.optim.NAdam: _ADAM,
    torch.optim.RAdam: _ADAM,
    torch.optim.Adamax: {"exp_avg": Memory.MEAN, "exp_inf": Memory.MAX},
    torch.optim.RMSprop: {
        "square_avg": Memory.MEAN_SQUARE,
        "grad_avg": Memory.MEAN,
        # RMSprop's momentum adds up g / sqrt(square_avg), from which D cancels.
        "momentum_buffer": Memory.SCALE_FREE,
    },
    torch.optim.Adagrad: {"sum": Memory.SUM_SQUARE},
    torch.optim.Rprop: {"prev": Memory.LAST, "step_size": Memory.SCALE_FREE},
}
_COUNTERS = frozenset({"step", "mu_product"})


def check_supported(optimizer: torch.optim.Optimizer | None) -> None:
    """Raise if the history of this optimizer cannot be carried over.

    Raises:
        TeleportError: names the class, and the way out.
    """
    if optimizer is not None and _entries(optimizer) is None:
        known = ", ".join(sorted(c.__name__ for c in _SUPPORTED))
        raise TeleportError(
            f"the history of optimizer {type(optimizer).__module__}.{type(optimizer).__qualname__} cannot be carried "
            f"across a teleport: known are {known}. Use one of these, or leave the teleport out. (A Teleporter that is "
            f"used without MultiTask can let it forget the parameters that moved: history='reset'.)"
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
                f"cannot be carried across a teleport. Use the optimizer that it extends, or leave the teleport out."
            )
        found.append((key, value, entries[key]))
    return found


def _base(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, memory: Memory) -> float:
    """What a memory starts from, which is no gradient's doing: Adagrad's ``initial_accumulator_value``."""
    if memory is not Memory.SUM_SQUARE:
        return 0.0
    return float(_group(optimizer, parameter).get("initial_accumulator_value", 0.0))


def _group(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Any]:
    """The options of a parameter; empty if the optimizer does not hold it."""
    return next((g for g in optimizer.param_groups if any(p is parameter for p in g["params"])), {})


# --- exact transport ----------------------------------------------------------------------------------------------


def transport(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, map: Map) -> None:
    """Carry one parameter's history through theta' = D theta, in place. [derived, seeds 2.5]

    Diagonal D: m <- m / D and v <- v / D^2, exactly the state that the same optimizer would have reached in the new
    coordinates (weight decay that is added to the gradient, as in ``Adam``, is not invariant: D changes the decay).

    Matrix M: linear entries by M^{-T}, exactly. Squares are not determined by the old squares; they are re-estimated as
    if a column's entries were uncorrelated, v' = (M^{-T})^{o2} v. [choice]
    """
    for _, value, memory in _memories(optimizer, parameter):
        if memory.power:
            base = _base(optimizer, parameter, memory)
            value.copy_(base + _pulled(value - base, map, memory))


def _pulled(value: Tensor, map: Map, memory: Memory) -> Tensor:
    if isinstance(map, MatrixMap):
        factor = torch.linalg.inv(map.matrix.to(torch.float64)).T
    else:
        factor = map.to(value).reciprocal()
    if memory.power == 2:
        factor = factor.square()
    elif memory is Memory.MAX:
        factor = factor.abs()
    return apply_along(factor, value, map.dim) if isinstance(map, MatrixMap) else value * factor


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


def reuse(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], sigma: float) -> None:
    """Historical trajectory reuse. [paper Eq. 13; how it meets the buffers is a choice]

    The paper runs the first step after the jump with the decay rates sigma*beta. That step is, for each running mean,
    sigma*beta*m + (1 - sigma*beta)*g = beta*m~ + (1 - beta)*g with m~ = sigma*m + (1 - sigma)*g: the ordinary step
    from a blended buffer. So the buffers are blended once, when the optimizer is about to take that step and g is
    known; the settings of the optimizer are never touched. Step counter and bias correction go on. sigma = 0: moments
    and step counter are zeroed at once. [choice]

    Memories that are sums, not means (SGD's momentum), are scaled by sigma.
    """
    if sigma <= 0.0:
        for parameter in parameters:
            _PENDING.get(optimizer, {}).pop(parameter, None)
        forget(optimizer, parameters, counters=True)
        return
    if optimizer not in _PENDING:
        # Stays for good: a hook that removed itself while the optimizer runs its hooks would break the others.
        optimizer.register_step_pre_hook(_blend_pending)
        # Only now, so that an interrupt in between leaves no optimizer that counts as watched and is not.
        _PENDING[optimizer] = {}
    pending = _PENDING[optimizer]
    for parameter in parameters:
        pending[parameter] = pending.get(parameter, 1.0) * sigma


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
    for _, value, memory in _memories(optimizer, parameter):
        if memory is Memory.SCALE_FREE and not isinstance(optimizer, torch.optim.RMSprop):
            continue  # step sizes are not history
        new: Tensor | float = 0.0
        if gradient is not None and memory is Memory.MEAN:
            new = gradient.to(value)
        elif gradient is not None and memory in (Memory.MEAN_SQUARE, Memory.MAX_SQUARE):
            new = gradient.to(value).square()
        elif memory is Memory.SUM_SQUARE:
            new = _base(optimizer, parameter, memory)
        value.mul_(sigma).add_((1.0 - sigma) * new)


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
    decoupled = group.get("decoupled_weight_decay", isinstance(optimizer, torch.optim.AdamW))
    decay = 0.0 if decoupled else group.get("weight_decay", 0.0)
    return gradient.add(parameter, alpha=decay) if decay else gradient


@torch.no_grad()
def forget(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], *, counters: bool) -> None:
    """Put the history of these parameters where it starts, in place; with ``counters`` the step counters too."""
    for parameter in parameters:
        for _, value, memory in _memories(optimizer, parameter):
            if memory is not Memory.SCALE_FREE or isinstance(optimizer, torch.optim.RMSprop):
                value.fill_(_base(optimizer, parameter, memory))
        if counters:
            state = optimizer.state.get(parameter, {})
            for key, start in (("step", 0.0), ("mu_product", 1.0)):
                if isinstance(state.get(key), Tensor):
                    state[key].fill_(start)
                elif key in state:
                    state[key] = start


def reset(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Drop the state of these parameters: the optimizer starts them afresh. Works with any optimizer."""
    for parameter in parameters:
        optimizer.state.pop(parameter, None)


# --- snapshots ------------------------------------------------------------------------------------------------------


class Snapshot:
    """The state of some parameters in an optimizer, and what awaits its next step, deeply copied; :meth:`restore` puts
    both back bit for bit."""

    def __init__(self, optimizer: torch.optim.Optimizer | None, parameters: Sequence[nn.Parameter]) -> None:
        self._optimizer = optimizer
        self._parameters = list(parameters)
        self._entries: dict[nn.Parameter, tuple[Any, dict[Any, tuple[Any, Any]]]] = {}
        self._pending: dict[nn.Parameter, float] = {}
        if optimizer is not None:
            self._pending = dict(_PENDING.get(optimizer, {}))
            for p in self._parameters:
                if p in optimizer.state:
                    state = optimizer.state[p]
                    self._entries[p] = (state, {k: (v, _copied(v)) for k, v in _items(state)})

    def restore(self) -> None:
        """As at construction: same objects, same bits."""
        if self._optimizer is None:
            return
        if self._optimizer in _PENDING:
            _PENDING[self._optimizer].clear()
            _PENDING[self._optimizer].update(self._pending)
        for p in self._parameters:
            if p not in self._entries:
                self._optimizer.state.pop(p, None)
                continue
            state, entries = self._entries[p]
            state.clear()
            for key, (value, bits) in entries.items():
                if isinstance(value, Tensor):
                    value.data.copy_(bits)
                    state[key] = value
                else:
                    state[key] = bits
            self._optimizer.state[p] = state


def _items(state: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    return list(state.items())


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
