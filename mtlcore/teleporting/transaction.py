"""What a teleport may disturb, saved and put back bit for bit; and the frozen network in which it searches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mtlcore import trajectory
from mtlcore.contracts import Displacement
from mtlcore.snapshot import Gradients, History, Noise, Parameters, Structure, Switches, copied_buffers, do_all

_Norm = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


class Transaction:
    """Everything that a teleport may disturb, saved; and the frozen network in which it searches."""

    def __init__(
        self,
        trunk: nn.Module,
        heads: nn.Module | None,
        optimizer: trajectory.Optimizers,
        *,
        frozen_statistics: bool,
    ) -> None:
        self.trunk = trunk
        self.heads = heads
        self.optimizer = optimizer
        self._running = frozen_statistics
        self.trunk_parameters = dict(trunk.named_parameters())
        self.head_parameters = {} if heads is None else dict(heads.named_parameters())
        self._modules = Structure()
        self._parameters = Parameters()
        self._buffers = Parameters()
        self._copies = Parameters()
        self._gradients = Gradients()
        self._noise = Noise()
        self._switches = Switches()
        for module in (trunk, *(() if heads is None else (heads,))):
            for part in module.modules():
                self._remember(part)
        self._history = History(optimizer, list(self._parameters))

    def _remember(self, module: nn.Module) -> None:
        if module in self._modules:
            return
        self._modules.add(module)
        parameters = [p for p in module._parameters.values() if p is not None]
        buffers = [b for b in module._buffers.values() if b is not None]
        self._parameters.add(parameters)
        self._buffers.add(buffers)
        self._gradients.add([*parameters, *buffers])

    def keep(self, tensors: Iterable[Tensor]) -> None:
        """Further tensors that a roll back puts back: those of averaged copies."""
        self._copies.add(tensors)

    def saved(self, parameter: Tensor) -> Tensor:
        """The value at the start."""
        return self._parameters.saved(parameter)

    def at_start(self) -> bool:
        """Whether every trainable parameter of the trunk has the value it had."""
        return all(torch.equal(p, self.saved(p)) for p in self.trunk_parameters.values() if p.requires_grad)

    def has_batch_statistics(self) -> bool:
        """Whether some norm was training on batch statistics while it also keeps running ones."""
        return bool(self._learning_norms())

    def _learning_norms(self) -> list[nn.Module]:
        norms = [m for m in self._modules if isinstance(m, _Norm) and m.track_running_stats]
        return [m for m in norms if self._modules.was_training(m)]

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
        module.training = self._modules.was_training(module)
        if isinstance(module, nn.RNNBase):
            module.dropout = self._modules.saved(module, "dropout")

    def was_training(self) -> bool:
        """Whether some module behaves otherwise when it is not frozen."""
        return any(self._modules.was_training(module) for module in self._modules)

    def as_found(self) -> _AsFound:
        """While open: a frozen network is in the modes in which it was found; buffers come back afterwards."""
        return _AsFound(self)

    def other_statistics(self) -> _OtherStatistics:
        """While open: batch norms that were training work as they do in a training step."""
        return _OtherStatistics(self._learning_norms(), self)

    def restore_buffers(self) -> None:
        """Batch norms learn their statistics from every evaluation; take that back."""
        self._buffers.restore()

    def same_noise(self) -> None:
        """Every evaluation starts here: same random state, same buffers."""
        self._noise.restore()
        if not self._running:
            self.restore_buffers()

    def undo_search(self) -> None:
        """Structure and values of the network as at the start; modes too, unless they are frozen right now."""
        kinds = (self._modules, self._parameters, self._buffers, self._gradients)
        do_all(each.restore for each in kinds)
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
        self._switches.restore()
        do_all((self.undo_search, self._copies.restore, self._history.restore, self._noise.restore))


class _Frozen:
    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction

    def __enter__(self) -> None:
        transaction = self._transaction
        transaction._is_frozen = True
        for module in transaction._modules:
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
        transaction._switches.restore()
        torch.clear_autocast_cache()
        do_all((transaction.restore_buffers, transaction._noise.restore))


class _AsFound:
    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self._buffers = copied_buffers(transaction._modules)

    def __enter__(self) -> None:
        self._transaction._is_frozen = False
        for module in self._transaction._modules:
            self._transaction.thaw(module)
        self._buffers.__enter__()

    def __exit__(self, *error: object) -> None:
        self._buffers.__exit__(None, None, None)
        self._transaction._is_frozen = True
        for module in self._transaction._modules:
            self._transaction.freeze(module)
        self._transaction.restore_buffers()


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
