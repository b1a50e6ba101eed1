"""What a teleport may disturb, saved and put back bit for bit; and the frozen network in which it searches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mtlcore import trajectory
from mtlcore.contracts import Displacement
from mtlcore.module_state import ModuleState, copied_buffers, put_back
from mtlcore.noise import Noise

_Norm = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


class Transaction:
    """Everything that a teleport may disturb, saved; and the frozen network in which it searches."""

    def __init__(
        self,
        trunk: nn.Module,
        heads: nn.Module | None,
        optimizer: torch.optim.Optimizer | None,
        *,
        frozen_statistics: bool,
    ) -> None:
        self.trunk = trunk
        self.heads = heads
        self.optimizer = optimizer
        self._running = frozen_statistics
        self.trunk_parameters = dict(trunk.named_parameters())
        self.head_parameters = {} if heads is None else dict(heads.named_parameters())
        self._modules: dict[nn.Module, ModuleState] = {}
        self._tensors: dict[Tensor, _TensorState] = {}
        self._noise = Noise()
        self._switches = (torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled())
        for module in (trunk, *(() if heads is None else (heads,))):
            for part in module.modules():
                self._remember(part)
        known = [t for t in self._tensors if isinstance(t, nn.Parameter)]
        self._optimizer_state = trajectory.Snapshot(optimizer, known)

    def _remember(self, module: nn.Module) -> None:
        if module in self._modules:
            return
        self._modules[module] = ModuleState(module)
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and tensor not in self._tensors:
                self._tensors[tensor] = _TensorState(tensor)

    def saved(self, parameter: Tensor) -> Tensor:
        """The value at the start."""
        return self._tensors[parameter].bits

    def at_start(self) -> bool:
        """Whether every trainable parameter of the trunk has the value it had."""
        return all(torch.equal(p, self.saved(p)) for p in self.trunk_parameters.values() if p.requires_grad)

    def has_batch_statistics(self) -> bool:
        """Whether some norm was training on batch statistics while it also keeps running ones."""
        return any(isinstance(m, _Norm) and m.track_running_stats and s.training for m, s in self._modules.items())

    def frozen(self) -> _Frozen:
        """While open: evaluation mode, gradients on, and modules nobody handed over are saved when first called."""
        return _Frozen(self)

    def freeze(self, module: nn.Module) -> None:
        """Take noise and learning of statistics out of one module."""
        if isinstance(module, nn.RNNBase):
            # Accelerators refuse the backward pass of a recurrent net in evaluation mode; its only noise is dropout.
            module.dropout = 0.0
        elif not (isinstance(module, _Norm) and not self._running):
            module.training = False

    def thaw(self, module: nn.Module) -> None:
        """The modes in which a module was found."""
        state = self._modules[module]
        module.training = state.training
        if isinstance(module, nn.RNNBase):
            module.dropout = state.attribute("dropout")

    def was_training(self) -> bool:
        """Whether some module behaves otherwise when it is not frozen."""
        return any(state.training for state in self._modules.values())

    @contextlib.contextmanager
    def as_found(self) -> Iterator[None]:
        """While open: a frozen network is in the modes in which it was found; buffers come back afterwards."""
        self._is_frozen = False
        for module in self._modules:
            self.thaw(module)
        try:
            with copied_buffers(list(self._modules)):
                yield
        finally:
            self._is_frozen = True
            for module in self._modules:
                self.freeze(module)
            self.restore_buffers()

    def other_statistics(self) -> _OtherStatistics:
        """While open: batch norms that were training work as they do in a training step."""
        norms = [m for m, s in self._modules.items() if isinstance(m, _Norm) and m.track_running_stats and s.training]
        return _OtherStatistics(norms, self)

    def restore_switches(self) -> None:
        """Gradient mode, and whether attention may take its inference path."""
        torch.set_grad_enabled(self._switches[0])
        torch.backends.mha.set_fastpath_enabled(self._switches[1])

    def restore_buffers(self) -> None:
        """Batch norms learn their statistics from every evaluation; take that back."""
        _do_all(s.restore_value for t, s in self._tensors.items() if not isinstance(t, nn.Parameter))

    def same_noise(self) -> None:
        """Every evaluation starts here: same random state, same buffers."""
        self._noise.restore()
        if not self._running:
            self.restore_buffers()

    def undo_search(self) -> None:
        """Structure and values of the network as at the start; modes too, unless they are frozen right now."""
        _do_all([*(m.restore for m in self._modules.values()), *(t.restore for t in self._tensors.values())])
        if self._is_frozen:
            for module in self._modules:
                self.freeze(module)

    _is_frozen = False
    meeting: RemovableHandle | None = None
    """The hook by which a frozen network meets modules that nobody handed over."""

    @torch.no_grad()
    def move(self, proposal: Displacement, scale: float) -> None:
        """Go to start + scale * (proposal - start). ``.data``: a step's own graph must survive a later rollback."""
        for known, values in (
            (self.trunk_parameters, proposal.parameters),
            (self.head_parameters, proposal.head_parameters),
        ):
            for name, value in values.items():
                parameter = known[name]
                start = self.saved(parameter)
                target = value.to(start) if scale == 1.0 else start + scale * (value.to(start) - start)
                parameter.data.copy_(target)

    def commit(self, proposal: Displacement) -> None:
        """Tell autograd what moved, so that a graph from before cannot be used by mistake."""
        moved = [self.trunk_parameters[n] for n in proposal.parameters]
        torch.autograd.graph.increment_version([*moved, *(self.head_parameters[n] for n in proposal.head_parameters)])

    def roll_back(self) -> None:
        """As if nothing had happened."""
        self._is_frozen = False
        if self.meeting is not None:
            self.meeting.remove()
        self.restore_switches()
        _do_all((self.undo_search, self._optimizer_state.restore, self._noise.restore))


def _do_all(actions: Iterable[Callable[[], None]]) -> None:
    """Do every one, whatever one of them raises; then raise the first error."""
    errors = []
    for action in actions:
        try:
            action()
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]


class _Frozen:
    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction

    def __enter__(self) -> None:
        transaction = self._transaction
        transaction._is_frozen = True
        for module in list(transaction._modules):
            transaction.freeze(module)
        torch.set_grad_enabled(True)
        # Without gradients, torch's encoder layers in evaluation mode leave out padding: other losses than with them.
        torch.backends.mha.set_fastpath_enabled(False)

        # The compiler would trace the hook into a compiled network, and fails at what it does to modules.
        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def meet(module: nn.Module, args: Any) -> None:
            if module not in transaction._modules:
                transaction._remember(module)
                if transaction._is_frozen:
                    transaction.freeze(module)

        # Heads that only the closure knows must not learn statistics or draw dropout masks either.
        transaction.meeting = nn.modules.module.register_module_forward_pre_hook(meet)

    def __exit__(self, *error: object) -> None:
        transaction = self._transaction
        if transaction.meeting is not None:
            transaction.meeting.remove()
        transaction._is_frozen = False
        for module in transaction._modules:
            transaction.thaw(module)
        transaction.restore_switches()
        torch.clear_autocast_cache()
        _do_all((transaction.restore_buffers, transaction._noise.restore))


class _OtherStatistics:
    def __init__(self, norms: Sequence[nn.Module], transaction: Transaction) -> None:
        self._norms = norms
        self._transaction = transaction

    def __enter__(self) -> None:
        for module in self._norms:
            module.training = not module.training

    def __exit__(self, *error: object) -> None:
        for module in self._norms:
            module.training = not module.training
        self._transaction.restore_buffers()


class _TensorState:
    """One parameter or buffer: bits, requires_grad, .grad."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self.bits = tensor.detach().clone()
        self._requires_grad = tensor.requires_grad
        self._grad = tensor.grad if tensor.is_leaf else None
        self._grad_bits = None if self._grad is None else self._grad.detach().clone()

    def restore_value(self) -> None:
        put_back(self._tensor, self.bits)

    def restore(self) -> None:
        tensor = self._tensor
        self.restore_value()
        if tensor.is_leaf:
            tensor.requires_grad_(self._requires_grad)
            tensor.grad = self._grad
            if self._grad is not None and self._grad_bits is not None:
                self._grad.data.copy_(self._grad_bits)
