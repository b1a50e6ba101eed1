"""Task gradients as columns of parts: one per trunk parameter, or per weight and bias, stored whole or as factors.

A part knows where autograd has to be asked (its targets), how many numbers per task it stores, what it adds to the
Gramian, and how stored numbers become a gradient again. Storing is linear: combining the stored numbers of all tasks
with weights and unfolding the result is the same as combining the gradients.

The gradient of a weight used in y = A W^T is D^T A with the cotangent D (N, out) of y. Every use of the weight is
included by stacking the A's and D's along N (recurrent nets, shared layers), cross terms too. A bias is a weight whose
input is 1, so that it needs nothing of its own where D is stored.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mtlcore import linalg
from mtlcore.gradients import torch_internals
from mtlcore.gradients.graph import Use
from mtlcore.gradients.lookup import Lookup, is_known
from mtlcore.gradients.torch_internals import saved


class Part(abc.ABC):
    """The share of one trunk parameter, or of a weight and its bias, in the task gradients."""

    width: int
    """How many numbers per task are stored."""
    plain = True
    """Whether the stored numbers are the gradient itself."""
    factored = False
    """Whether inner products of stored numbers are not those of the gradients."""

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter
        self.bias: Tensor | None = None
        """A second parameter, whose gradient comes from the same numbers."""
        self.used = False
        """Whether any task depends on them."""

    @property
    def parameters(self) -> list[Tensor]:
        """All of them."""
        return [self.parameter] if self.bias is None else [self.parameter, self.bias]

    @property
    @abc.abstractmethod
    def targets(self) -> list[Any]:
        """What to differentiate with respect to."""

    @property
    def nodes(self) -> list[Any]:
        """The functions among the targets."""
        return []

    def store(self, out: Tensor, found: Sequence[Tensor | None]) -> None:
        """Write into ``out`` (c, width) what autograd found for c tasks at each target, each (c, ...); None at a use
        that none of them reaches. Not for a part without targets."""
        raise NotImplementedError

    def factors(self, stored: Tensor) -> linalg.Factored:
        """What inner products of the gradients are made of, for a factored part."""
        raise NotImplementedError

    def met(self, vectors: Sequence[Tensor]) -> Tensor:
        """(m, width) by which stored numbers are multiplied in the inner products of the gradient with m vectors.

        Args:
            vectors: (m, numel) for each of ``parameters``.
        """
        return vectors[0]

    def gradients(self, stored: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Stored numbers (width,) as (parameter, gradient of its shape) pairs."""
        return [(self.parameter, self.gradient(stored))]

    @abc.abstractmethod
    def gradient(self, stored: Tensor) -> Tensor:
        """Stored numbers (width,) as a gradient of ``parameter``'s shape."""


class Whole(Part):
    """As autograd gives it: any module, any use."""

    def __init__(self, parameter: Tensor) -> None:
        super().__init__(parameter)
        self.width = parameter.numel()

    @property
    def targets(self) -> list[Any]:
        """See :class:`Part`."""
        return [self.parameter]

    def store(self, out: Tensor, found: Sequence[Tensor | None]) -> None:
        """See :class:`Part`."""
        (gradient,) = found
        assert gradient is not None
        dense = gradient.to_dense() if gradient.is_sparse else gradient
        out.view(-1, *self.parameter.shape).copy_(dense)

    def put(self, out: Tensor, gradient: Tensor) -> None:
        """Write a gradient of one task into ``out`` (width,)."""
        out.view(self.parameter.shape).copy_(gradient.to_dense() if gradient.is_sparse else gradient)

    def gradient(self, stored: Tensor) -> Tensor:
        """See :class:`Part`."""
        return stored.view(self.parameter.shape)


class _Used(Part):
    """A parameter whose every use is known."""

    def __init__(self, parameter: Tensor, uses: Sequence[Use]) -> None:
        super().__init__(parameter)
        self._targets = [torch.autograd.graph.GradientEdge(u.node, 0) for u in uses]

    @property
    def targets(self) -> list[Any]:
        """See :class:`Part`."""
        return self._targets

    @property
    def nodes(self) -> list[Any]:
        """See :class:`Part`."""
        return [t.node for t in self._targets]


class Matrix(_Used):
    """The weight of matrix products, multiplied out here: one product for all tasks and uses, straight into place."""

    def __init__(self, parameter: Tensor, uses: Sequence[Use], inputs: Sequence[Tensor]) -> None:
        super().__init__(parameter, uses)
        self._inputs = _joined(inputs)
        self._sizes = [len(a) for a in inputs]
        self._transposed = uses[0].kind == "matmul"
        self.width = parameter.numel()

    def store(self, out: Tensor, found: Sequence[Tensor | None]) -> None:
        """See :class:`Part`."""
        out_features = self.parameter.shape[1 if self._transposed else 0]
        cotangents = _stack(found, [(n, out_features) for n in self._sizes])
        inputs = self._inputs.expand(len(out), *self._inputs.shape)
        place = out.view(-1, *self.parameter.shape)
        if self._transposed:
            torch.bmm(inputs.transpose(1, 2), cotangents, out=place)
        else:
            torch.bmm(cotangents.transpose(1, 2), inputs, out=place)

    def gradient(self, stored: Tensor) -> Tensor:
        """See :class:`Part`."""
        return stored.view(self.parameter.shape)


class Factors(_Used):
    """The weight of matrix products or convolutions, of which only the cotangents D are stored (N < fan-in), with the
    bias that is added to every one of these products."""

    plain = False
    factored = True

    def __init__(self, parameter: Tensor, uses: Sequence[Use], inputs: Sequence[Tensor], bias: Tensor | None) -> None:
        super().__init__(parameter, uses)
        self.bias = bias
        self._inputs = _joined(inputs)
        self._sizes = [len(a) for a in inputs]
        self._kind = uses[0].kind
        self._out = parameter.shape[1] if self._kind == "matmul" else parameter.shape[0]
        self.width = len(self._inputs) * self._out

    def store(self, out: Tensor, found: Sequence[Tensor | None]) -> None:
        """See :class:`Part`."""
        places = out.view(len(out), -1, self._out).split(self._sizes, 1)
        for place, g in zip(places, found):
            if g is None:
                place.zero_()
            else:
                place.copy_(g.flatten(3).transpose(2, 3).flatten(1, 2) if self._kind == "convolution" else g)

    def factors(self, stored: Tensor) -> linalg.Factored:
        """See :class:`Part`."""
        cotangents = stored.view(len(stored), -1, self._out)
        return linalg.Factored(cotangents, self._inputs, bias=self.bias is not None)

    def gradients(self, stored: Tensor) -> list[tuple[Tensor, Tensor]]:
        """See :class:`Part`."""
        weight = super().gradients(stored)
        return weight if self.bias is None else [*weight, (self.bias, stored.view(-1, self._out).sum(0))]

    def met(self, vectors: Sequence[Tensor]) -> Tensor:
        """<D^T A, V> = <D, A V^T>: (N, out) numbers for each V. A bias has the input 1."""
        weights = vectors[0].unflatten(1, (-1, self._out) if self._kind == "matmul" else (self._out, -1))
        met: Tensor = self._inputs @ (weights if self._kind == "matmul" else weights.mT)
        if self.bias is not None:
            met += vectors[1].unsqueeze(1)
        return met.flatten(1)

    def gradient(self, stored: Tensor) -> Tensor:
        """See :class:`Part`."""
        cotangent = stored.view(-1, self._out)
        if self._kind == "matmul":
            return self._inputs.T @ cotangent
        return (cotangent.T @ self._inputs).view(self.parameter.shape)


class SomeRows(_Used):
    """A table of which some rows alone have a gradient; only these are stored.

    Args:
        parameter: the table, of any shape from two dimensions on.
        rows: which, in ascending order, each once.
        sparse: whether its gradient is, as the user asked.
        uses: where it is read.
    """

    plain = False

    def __init__(self, parameter: Tensor, rows: Tensor, sparse: bool = True, uses: Sequence[Use] = ()) -> None:
        super().__init__(parameter, uses)
        self._rows = rows
        self._sparse = sparse
        self.width = len(rows) * parameter[0].numel()

    def put(self, out: Tensor, gradient: Tensor) -> None:
        """Write a sparse gradient of one task, with no other rows than these, into ``out`` (width,) of zeros."""
        gradient = gradient.coalesce()
        where = torch.searchsorted(self._rows, gradient.indices()[0])
        out.view(len(self._rows), *self.parameter.shape[1:])[where] = gradient.values().to(out)

    def met(self, vectors: Sequence[Tensor]) -> Tensor:
        """See :class:`Part`."""
        (tables,) = vectors
        met: Tensor = tables.unflatten(1, (len(self.parameter), -1))[:, self._rows]
        return met.flatten(1)

    def gradient(self, stored: Tensor) -> Tensor:
        """See :class:`Part`."""
        values, shape = stored.view(len(self._rows), *self.parameter.shape[1:]), self.parameter.shape
        if self._sparse:
            return torch.sparse_coo_tensor(self._rows[None], values, shape, is_coalesced=True, check_invariants=False)
        return torch.zeros_like(self.parameter).index_copy_(0, self._rows, values)


class Table(SomeRows):
    """An embedding, or bags of them: the rows looked up in this batch. Its gradient is sparse if the user asked for
    that in one of its uses."""

    def __init__(self, parameter: Tensor, uses: Sequence[Use]) -> None:
        self._lookups = [Lookup.of(u.node) for u in uses]
        read, self._order = torch.cat([look.rows for look in self._lookups]).sort(stable=True)
        rows, times = torch.unique_consecutive(read, return_counts=True)
        self._starts = times.cumsum(0) - times
        super().__init__(parameter, rows, any(saved(u.node, "sparse") for u in uses), uses)

    def store(self, out: Tensor, found: Sequence[Tensor | None]) -> None:
        """See :class:`Part`."""
        columns = self.parameter.shape[1]
        read = [
            out.new_zeros(len(out), len(look.rows), columns) if g is None else look.spread(g).to(out)
            for look, g in zip(self._lookups, found)
        ]
        # What was read several times is added up: a bag of rows for each row of the table, one call for all tasks.
        numbers = _joined(read, 1)
        task = torch.arange(len(out), device=out.device)[:, None]
        order, starts = self._order + task * numbers.shape[1], self._starts + task * numbers.shape[1]
        bags = functional.embedding_bag(order.flatten(), numbers.flatten(0, 1), starts.flatten(), mode="sum")
        out.copy_(bags.view(out.shape))


def _joined(pieces: Sequence[Tensor], dimension: int = 0) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces), dimension)


def _stack(found: Sequence[Tensor | None], shapes: Sequence[tuple[int, int]]) -> Tensor:
    """(c, sum of N, out) of the cotangents at all uses; a use that was not reached has zeros."""
    first = next(g for g in found if g is not None)
    if len(found) == 1:
        return first
    return torch.cat([first.new_zeros(len(first), *s) if g is None else g for g, s in zip(found, shapes)], 1)


def parts(
    shared: Sequence[Tensor], uses: Mapping[int, Sequence[Use] | None], factors: bool, products: bool = True
) -> list[Part]:
    """The cheapest exact form of every parameter's share. Products are written into rows of their own dtype only.

    Args:
        shared: the trunk's parameters.
        uses: by identity of a parameter all its uses, or None if some are of an unknown kind.
        factors: False to store whole gradients only, except for sparse tables.
        products: whether the rest of known weights is multiplied out here. For a task alone autograd is faster.
    """
    dtype = linalg.row_dtype(shared)
    known = {id(p): None if torch_internals.tensor_hooks(p) else _told(p, uses.get(id(p)), dtype) for p in shared}
    biases = {}
    for p in shared if factors else ():
        mine = known[id(p)]
        if mine and {u.kind for u in mine} == {"bias"}:
            biases[frozenset(u.node for u in mine)] = p
    out = [_part(p, known[id(p)], factors, products, biases) for p in shared]
    joined = {id(piece.bias) for piece in out}
    return [piece for piece in out if id(piece.parameter) not in joined]


def _told(parameter: Tensor, uses: Sequence[Use] | None, dtype: torch.dtype) -> Sequence[Use] | None:
    """The uses, if their gradients can be written into rows of this dtype: a table's are copied, products are not."""
    written = parameter.dtype == dtype or all(u.kind == "table" for u in uses or ())
    return uses if written else None


Biases = Mapping[frozenset[Any], Tensor]
"""By the functions that add a parameter, and no others: that parameter."""


def _part(parameter: Tensor, uses: Sequence[Use] | None, factors: bool, products: bool, biases: Biases) -> Part:
    kinds = {u.kind for u in uses or ()}
    if not uses or len(kinds) != 1:
        return Whole(parameter)
    (kind,) = kinds
    if kind == "bias":
        return Whole(parameter)
    if kind == "table":
        known = all(is_known(u.node) for u in uses) and parameter.numel() > 0
        wanted = factors or any(saved(u.node, "sparse") for u in uses)
        return Table(parameter, uses) if wanted and known else Whole(parameter)
    bias = biases.get(frozenset(u.node for u in uses))
    if bias is not None and not _is_added(bias, parameter, kind, uses):
        bias = None
    if kind == "convolution":
        return _convolution(parameter, uses, factors, bias)
    added = [type(u.node).__name__ == "AddmmBackward0" for u in uses]
    inputs = [saved(u.node, "mat1" if a else "self").detach() for u, a in zip(uses, added)]
    scaled = any(a and saved(u.node, "alpha") != 1 for u, a in zip(uses, added))
    strange = any(a.dtype != parameter.dtype or a.ndim != 2 or a.layout != torch.strided for a in inputs)
    if scaled or strange or parameter.numel() == 0:
        return Whole(parameter)
    # Half of the fan-in: below it the K x K products of factors cost less than forming K gradients.
    small = 2 * sum(len(a) for a in inputs) <= inputs[0].shape[1]
    if factors and small:
        return Factors(parameter, uses, inputs, bias)
    return Matrix(parameter, uses, inputs) if products else Whole(parameter)


def _is_added(bias: Tensor, weight: Tensor, kind: str, uses: Sequence[Use]) -> bool:
    """Whether y = ... + bias in all uses of the weight, the same for every row."""
    out = weight.shape[1] if kind == "matmul" else weight.shape[0]
    same = bias.shape == (out,) and bias.dtype == weight.dtype
    added = [u for u in uses if type(u.node).__name__ == "AddmmBackward0"]
    return same and all(saved(u.node, "beta") == 1 for u in added)


def _convolution(parameter: Tensor, uses: Sequence[Use], factors: bool, bias: Tensor | None) -> Part:
    fan_in = parameter[0].numel()
    found = []
    for use in uses if factors else ():
        node = use.node
        if not unfolds(node, parameter):
            return Whole(parameter)
        kernel, stride = parameter.shape[2:], _signed(saved(node, "stride"))
        padding, dilation = _signed(saved(node, "padding")), _signed(saved(node, "dilation"))
        image = saved(node, "input")
        sites = image.shape[0]
        for size, k, s, p, d in zip(image.shape[2:], kernel, stride, padding, dilation):
            sites *= (size + 2 * p - d * (k - 1) - 1) // s + 1
        if 2 * sites * len(uses) > fan_in:
            return Whole(parameter)
        found.append(patches(node, parameter).flatten(0, 1))
    return Factors(parameter, uses, found, bias) if found else Whole(parameter)


def unfolds(node: Any, parameter: Tensor) -> bool:
    """Whether this convolution of images is a matrix product of :func:`patches`."""
    image = saved(node, "input")
    plain = saved(node, "groups") == 1 and not saved(node, "transposed")
    return plain and parameter.ndim == image.ndim == 4 and bool(image.dtype == parameter.dtype)


def patches(node: Any, parameter: Tensor, part: slice = slice(None)) -> Tensor:
    """What the kernel meets at every site of the images of this convolution: (images, sites, fan-in)."""
    stride, padding = _signed(saved(node, "stride")), _signed(saved(node, "padding"))
    image, kernel = saved(node, "input").detach()[part], tuple(parameter.shape[2:])
    columns = torch.nn.functional.unfold(image, kernel, _signed(saved(node, "dilation")), padding, stride)
    return columns.transpose(1, 2)


def _signed(values: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(v) for v in values)
