"""Bits and gradients of tensors, as values."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor
from torch.nn.parameter import is_lazy


def do_all(actions: Iterable[Callable[[], None]]) -> None:
    """Do every one, whatever one of them raises; then raise the first error."""
    errors = []
    for action in actions:
        try:
            action()
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]


def put_back(tensor: Tensor, bits: Tensor) -> None:
    """Write into ``.data``: a graph that has saved the tensor finds its old bits again, and must stay usable."""
    try:
        tensor.data.copy_(bits)
    except RuntimeError:
        # Memory that overlaps (an expanded buffer) cannot be written to, and need not be if nobody did.
        same = (tensor == bits) | ((tensor != tensor) & (bits != bits))
        if not bool(same.all()):
            raise


def bits_of(tensor: Tensor) -> Tensor:
    """A copy without a graph."""
    return tensor.detach().clone() if tensor.requires_grad else tensor.clone()


class Parameters:
    """Bits and ``requires_grad`` of tensors. What is not yet initialized (lazy) has no bits and is left out."""

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        self._saved: dict[Tensor, tuple[Tensor, bool]] = {}
        self.add(tensors)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Save further tensors as they are now; those known already stay as they were saved."""
        for tensor in tensors:
            if tensor not in self._saved and not is_lazy(tensor):
                self._saved[tensor] = (bits_of(tensor), tensor.requires_grad)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._saved)

    def saved(self, tensor: Tensor) -> Tensor:
        """The value it had."""
        return self._saved[tensor][0]

    def restore(self) -> None:
        """As saved, bit for bit."""
        do_all(functools.partial(_restore, tensor, *saved) for tensor, saved in self._saved.items())


def _restore(tensor: Tensor, bits: Tensor, requires_grad: bool) -> None:
    put_back(tensor, bits)
    if tensor.is_leaf and tensor.requires_grad != requires_grad:
        tensor.requires_grad_(requires_grad)


class Gradients:
    """The ``.grad`` of tensors; those that are not leaves have none.

    Args:
        tensors: whose.
        copies: whether the bits are copied; else only which tensor it is, and nobody may write into it.
    """

    def __init__(self, tensors: Iterable[Tensor] = (), *, copies: bool = True) -> None:
        self._copies = copies
        self._saved: dict[Tensor, tuple[Tensor | None, Tensor | None]] = {}
        self.add(tensors)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Save further ones as they are now."""
        for tensor in tensors:
            if tensor.is_leaf and tensor not in self._saved:
                grad = tensor.grad
                self._saved[tensor] = (grad, None if grad is None or not self._copies else bits_of(grad))

    def take(self) -> None:
        """Set them to None."""
        for tensor in self._saved:
            tensor.grad = None

    def restore(self) -> None:
        """The same objects; with the same bits, if those were copied."""
        for tensor, (grad, bits) in self._saved.items():
            tensor.grad = grad
            if grad is not None and bits is not None:
                grad.data.copy_(bits)
