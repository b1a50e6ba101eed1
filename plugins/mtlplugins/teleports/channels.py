"""Find, in the graph of a network, the units whose rescaling changes nothing.

torch.fx traces the trunk; each value that flows through it is given a *space* of units, and every operation either

* produces a new space: the outputs of Linear, Conv, Embedding, and of norms with an affine part (whose input, being
  normalised, is pinned: a rescaling in front of a norm would meet its epsilon);
* hands a space on: positively homogeneous, unit by unit (ReLU, LeakyReLU, PReLU, max and average pooling, dropout,
  flatten, upsampling, products with a number);
* merges spaces: a sum, e.g. an identity shortcut, whose terms can only be rescaled together;
* consumes a space: the inputs of Linear and Conv;
* or pins it: everything else, the trunk's output and what its forward keeps in attributes, modules with hooks,
  parametrisations, frozen or tied parameters, and modules whose parameters are read beside their calls.

What is left, in training and in evaluation mode alike, is a set of :class:`~mtlplugins.teleports.scaling.Group`. The
rule is one-sided: an operation that is not known to be safe pins what it touches. A trunk that cannot be traced as a
whole, or whose forward draws random numbers, is searched child by child; that its own forward does not reach into a
child is then no longer proved, only seen on the trigger batch (``sound``; by the transaction also in training) and on
the probe. Layers that a closure calls beside the trunk's forward are found there too. Hooks on the trunk itself are in
no graph: then nothing is searched.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mtlplugins.teleports.plainness import altered, fingerprint, shared_modules, uncompiled
from mtlplugins.teleports.scaling import Group, Member
from mtlplugins.teleports.tracing import traces

_CONVS: dict[type[nn.Module], int] = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}
_TRANSPOSED: dict[type[nn.Module], int] = {nn.ConvTranspose1d: 3, nn.ConvTranspose2d: 4, nn.ConvTranspose3d: 5}
_CHANNEL_NORMS: dict[type[nn.Module], int | None] = {
    nn.BatchNorm1d: None, nn.BatchNorm2d: 4, nn.BatchNorm3d: 5, nn.GroupNorm: None,
    nn.InstanceNorm1d: 3, nn.InstanceNorm2d: 4, nn.InstanceNorm3d: 5,
}  # fmt: skip
_FEATURE_NORMS: tuple[type[nn.Module], ...] = (nn.LayerNorm, *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else []))
_UNITWISE: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
)  # fmt: skip
_POOLS: dict[type[nn.Module], int] = {
    getattr(nn, f"{kind}Pool{d}d"): d + 2 for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg") for d in (1, 2, 3)
}
_UNITWISE_CALLS: frozenset[Any] = frozenset(
    {
        F.relu,
        torch.relu,
        torch.relu_,
        F.leaky_relu,
        F.dropout,
        F.dropout1d,
        F.dropout2d,
        F.dropout3d,
        torch.abs,
        operator.neg,
    }
)
_UNITWISE_METHODS = frozenset({"relu", "relu_", "contiguous", "clone", "abs", "neg"})
_POOL_CALLS: dict[Any, int] = {
    getattr(F, f"{kind}_pool{d}d"): d + 2 for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for d in (1, 2, 3)
}
_SUMS: frozenset[Any] = frozenset({operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub})
_PRODUCTS: frozenset[Any] = frozenset({operator.mul, operator.truediv, torch.mul, torch.div})
_LOOKS = frozenset({"shape", "ndim", "dtype", "device", "layout", "requires_grad", "is_cuda"})
"""Attributes that say nothing of the values; of others, ``h.T`` or ``h.data``, nobody knows where they go."""


@dataclass(eq=False)
class _Space:
    units: int
    name: str
    members: list[Member] = field(default_factory=list)
    pinned: bool = False
    parent: _Space | None = None

    def root(self) -> _Space:
        space = self
        while space.parent is not None:
            space = space.parent
        return space


@dataclass(frozen=True)
class _Value:
    """A tensor in flight: its space, the dimension of the units (1 or -1), and its number of dimensions if known."""

    space: _Space
    dim: int
    ndim: int | None
    flattened: bool = False


@dataclass(frozen=True)
class Found:
    """Groups, in words what was searched, and whether it was the whole forward of the trunk."""

    groups: tuple[Group, ...]
    note: str
    whole: bool = False


def find_groups(trunk: nn.Module) -> Found:
    """Every group of the trunk that can be shown to be free; a small trunk is searched anew only when it changed."""
    if sum(p.numel() for p in trunk.parameters()) > _SMALL:
        return _search(trunk)
    now = fingerprint(trunk)
    known = _SEEN.get(trunk)
    if known is None or known[0] != now:
        known = _SEEN[trunk] = (now, _search(trunk))
    return known[1]


_SMALL = 1 << 20
"""Parameters up to which groups are kept. A larger network's step takes longer than its trace, and the indices in its
groups, two of eight bytes for a weight of four, would be too much to hold."""


_SEEN: weakref.WeakKeyDictionary[nn.Module, tuple[Hashable, Found]] = weakref.WeakKeyDictionary()
"""Tracing takes as long as a training step of a small network, and says the same every time."""


def _search(trunk: nn.Module) -> Found:
    inner, prefix = uncompiled(trunk)
    if altered(trunk, inner):
        return Found((), "hooks or an own forward of the trunk do what its graph does not show")
    shared = shared_modules(inner)
    try:
        return Found(_free(inner, prefix, shared), "whole trunk traced", whole=True)
    except Exception as error:  # tracing runs the user's forward on proxies: anything can be raised
        groups, traced = _children(inner, prefix, shared)
        note = f"trunk cannot be traced ({type(error).__name__}); {traced} of its parts were traced one by one"
        return Found(tuple(groups), note)


def _children(module: nn.Module, prefix: str, unsafe: set[nn.Module]) -> tuple[list[Group], int]:
    groups: list[Group] = []
    traced = 0
    for name, child in module.named_children():
        path = f"{prefix}{name}."
        if altered(child):
            continue
        if type(child) is nn.TransformerEncoderLayer:
            groups += _feed_forward(child, path, unsafe)
            continue
        if child.__class__.__module__.startswith("torch.nn") and not isinstance(child, nn.Sequential):
            if isinstance(child, (nn.ModuleList, nn.ModuleDict, nn.TransformerEncoder)):
                inner, n = _children(child, path, unsafe)
                groups, traced = groups + inner, traced + n
            continue
        try:
            groups += _free(child, path, unsafe)
            traced += 1
        except Exception:
            inner, n = _children(child, path, unsafe)
            groups, traced = groups + inner, traced + n
    return groups, traced


def _free(module: nn.Module, prefix: str, unsafe: set[nn.Module]) -> tuple[Group, ...]:
    """The groups of one module that are free in every mode."""
    first, *others = (_Walk(module, prefix, unsafe, graph).groups() for graph in traces(module))
    return tuple(g for g in first if all(any(_same(g, o) for o in other) for other in others))


def _same(one: Group, other: Group) -> bool:
    if (one.name, one.units, len(one.members)) != (other.name, other.units, len(other.members)):
        return False
    return all(
        (a.parameter, a.produces) == (b.parameter, b.produces) and torch.equal(a.elements, b.elements)
        for a, b in zip(one.members, other.members)
    )


def _indices(parameter: Tensor) -> Tensor:
    return torch.arange(parameter.numel(), device="cpu").view(parameter.shape)


def _rows(parameter: Tensor) -> Tensor:
    return _indices(parameter).reshape(parameter.shape[0], -1)


def _feed_forward(layer: nn.TransformerEncoderLayer, path: str, unsafe: set[nn.Module]) -> list[Group]:
    """linear1 -> ReLU -> dropout -> linear2 inside a transformer layer, whose forward fx does not enter."""
    parts = (layer.linear1, layer.activation, layer.dropout, layer.linear2)
    relu = layer.activation is F.relu or type(layer.activation) is nn.ReLU
    kinds = [type(part) for part in parts if part is not layer.activation]
    if not relu or {layer, *parts} & unsafe or kinds != [nn.Linear, nn.Dropout, nn.Linear]:
        return []
    members = [Member(f"{path}linear1.weight", _rows(layer.linear1.weight), True)]
    if layer.linear1.bias is not None:
        members.append(Member(f"{path}linear1.bias", _rows(layer.linear1.bias), True))
    members.append(Member(f"{path}linear2.weight", _indices(layer.linear2.weight).T.contiguous(), False))
    return [Group(f"{path}linear1", layer.linear1.out_features, tuple(members))]


class _Walk:
    """One pass over a graph of one module."""

    def __init__(self, module: nn.Module, prefix: str, unsafe: set[nn.Module], graph: fx.Graph) -> None:
        self._module = module
        self._prefix = prefix
        self._graph = graph
        # A layer whose weight is read beside its calls does more than its calls tell.
        read = [str(n.target).rpartition(".")[0] for n in graph.nodes if n.op == "get_attr"]
        self._unsafe = unsafe | {module.get_submodule(name) for name in read}
        self._called = {module.get_submodule(str(n.target)) for n in graph.nodes if n.op == "call_module"}
        self._values: dict[fx.Node, _Value | None] = {}
        self._spaces: list[_Space] = []
        self._inputs: dict[nn.Module, _Value | None] = {}
        self._outputs: dict[nn.Module, _Space] = {}
        self._unknown: set[nn.Module] = set()  # modules with a call that was not understood
        self._extra: dict[str, Group] = {}

    def groups(self) -> tuple[Group, ...]:
        for node in self._graph.nodes:
            self._values[node] = self._visit(node)
        # Whatever such a call does with the module's weights, its other calls must find them as they were.
        for module in self._unknown:
            self._pin_value(self._inputs.get(module))
            if module in self._outputs:
                self._outputs[module].root().pinned = True
        found = [
            Group(s.name, s.units, tuple(s.members))
            for s in self._spaces
            if s.parent is None and not s.pinned and {m.produces for m in s.members} == {True, False}
        ]
        return (*found, *self._extra.values())

    # --- operations --------------------------------------------------------------------------------------------

    def _visit(self, node: fx.Node) -> _Value | None:
        if node.op == "call_module":
            module = self._module.get_submodule(str(node.target))
            value = self._call_module(node, module, f"{self._prefix}{node.target}")
            if value is None:
                self._unknown.add(module)
            return value
        if node.op == "call_function":
            return self._call_function(node)
        if node.op == "call_method":
            return self._call_method(node)
        return self._pin(node)  # placeholder, get_attr: nothing comes in; output: everything is pinned

    def _pin(self, node: fx.Node) -> _Value | None:
        for source in node.all_input_nodes:
            self._pin_value(self._values.get(source))
        return None

    @staticmethod
    def _pin_value(value: _Value | None) -> None:
        if value is not None:
            value.space.root().pinned = True

    def _only_input(self, node: fx.Node) -> _Value | None:
        """The value handed on by a unitwise call: its first argument, if that is its only tensor."""
        if len(node.all_input_nodes) == 1 and node.args and node.args[0] is node.all_input_nodes[0]:
            return self._values[node.all_input_nodes[0]]
        return None

    def _call_module(self, node: fx.Node, module: nn.Module, path: str) -> _Value | None:
        kind = type(module)
        value = self._only_input(node)
        if module in self._unsafe:
            return self._pin(node)
        if kind is nn.TransformerEncoderLayer or kind is nn.TransformerEncoder:  # masks do not reach what is found
            for name, layer in module.named_modules(prefix=path):
                # Parts that are also called on their own do more than the layer's call tells.
                if type(layer) is nn.TransformerEncoderLayer and not self._called & {*layer.modules()} - {layer}:
                    for group in _feed_forward(layer, f"{name}.", self._unsafe):
                        self._extra[group.name] = group
            return self._pin(node)
        if len(node.args) != 1 or node.kwargs:
            return self._pin(node)
        if kind in _UNITWISE:
            return value
        if kind in _POOLS:
            return self._pool(node, _POOLS[kind], bool(getattr(module, "return_indices", False)))
        if isinstance(module, nn.Flatten) and kind is nn.Flatten:
            return self._flatten(node, module.start_dim, module.end_dim)
        if kind is nn.Upsample and value is not None and value.dim == 1:
            return value
        if kind is nn.Embedding and module.max_norm is None:
            return self._produce(module, path, -1, None, _indices(module.weight).T.contiguous())
        if kind is nn.Linear:
            self._consume(module, value, path, -1, _linear_columns)
            return self._produce(module, path, -1, value.ndim if value is not None else None, _rows(module.weight))  # type: ignore[arg-type]
        if kind in _CONVS:
            self._consume(module, value, path, 1, _conv_columns)
            return self._produce(module, path, 1, _CONVS[kind], _rows(module.weight))  # type: ignore[arg-type]
        if kind in _TRANSPOSED and module.groups == 1:
            self._consume(module, value, path, 1, _transposed_columns)
            rows = _indices(module.weight).transpose(0, 1).flatten(1)  # type: ignore[arg-type]
            return self._produce(module, path, 1, _TRANSPOSED[kind], rows)
        if kind in _CHANNEL_NORMS or kind in _FEATURE_NORMS:
            return self._norm(node, module, path, value)
        return self._pin(node)

    def _norm(self, node: fx.Node, module: nn.Module, path: str, value: _Value | None) -> _Value | None:
        self._pin(node)
        weight = module._parameters.get("weight")
        if weight is None or weight.dim() != 1:
            return None
        if type(module) in _FEATURE_NORMS:
            return self._produce(module, path, -1, None if value is None else value.ndim, _rows(weight))
        ndim = _CHANNEL_NORMS[type(module)]
        if ndim is not None:
            return self._produce(module, path, 1, ndim, _rows(weight))
        if value is None or (value.dim != 1 and value.ndim not in (2, None)):
            return None
        # Behind a linear layer on inputs of unknown shape: (N, C) nearly always; that it is not (N, C, L) with C = L is
        # seen on the batch only.
        return self._produce(module, path, value.dim, value.ndim, _rows(weight))

    def _produce(self, module: nn.Module, path: str, dim: int, ndim: int | None, rows: Tensor) -> _Value:
        if module not in self._outputs:
            space = _Space(rows.shape[0], path)
            space.members.append(Member(f"{path}.weight", rows, True))
            bias = module._parameters.get("bias")
            if bias is not None:
                space.members.append(Member(f"{path}.bias", _rows(bias), True))
            self._outputs[module] = space
            self._spaces.append(space)
        return _Value(self._outputs[module].root(), dim, ndim)

    def _consume(
        self,
        module: nn.Module,
        value: _Value | None,
        path: str,
        dim: int,
        columns: Callable[[nn.Module, int], Tensor | None],
    ) -> None:
        if module in self._inputs:  # called again: both inputs must be rescaled alike
            first = self._inputs[module]
            if first is None or value is None or first.flattened != value.flattened or first.dim != value.dim:
                self._pin_value(first)
                self._pin_value(value)
            else:
                self._merge(first, value)
            return
        self._inputs[module] = value
        if value is None:
            return
        elements = columns(module, value.space.units) if value.dim == dim else None
        expected_ndim = _CONVS.get(type(module), _TRANSPOSED.get(type(module)))
        if elements is None or (expected_ndim is not None and value.ndim != expected_ndim):
            self._pin_value(value)
            return
        if not value.flattened and elements.shape[0] * self._width(module, elements) != module.weight.numel():  # type: ignore[operator]
            self._pin_value(value)
            return
        value.space.root().members.append(Member(f"{path}.weight", elements, False))

    @staticmethod
    def _width(module: nn.Module, elements: Tensor) -> int:
        """Elements per unit if the units fill the input exactly; flattened inputs have several columns per unit."""
        if type(module) is nn.Linear:
            return int(module.out_features)
        return int(elements.shape[1])

    def _merge(self, a: _Value | None, b: _Value | None) -> None:
        if a is None or b is None:
            self._pin_value(a)
            self._pin_value(b)
            return
        one, two = a.space.root(), b.space.root()
        if one is two:
            return
        if one.units != two.units:
            one.pinned = two.pinned = True
            return
        two.parent = one
        one.members += two.members
        one.pinned |= two.pinned

    def _call_function(self, node: fx.Node) -> _Value | None:
        target = node.target
        if target in _UNITWISE_CALLS:
            value = self._only_input(node)
            return value if value is not None else self._pin(node)
        if target in _POOL_CALLS:
            return self._pool(node, _POOL_CALLS[target], bool(node.kwargs.get("return_indices", False)))
        if target in _SUMS:
            return self._sum(node)
        if target in _PRODUCTS:
            return self._times_number(node)
        if target is torch.flatten:
            return self._flatten(node, *_flatten_arguments(node))
        if target is torch.mean:
            return self._mean(node)
        if target is F.interpolate:
            value = self._only_input(node)
            return value if value is not None and value.dim == 1 else self._pin(node)
        return None if target is getattr and node.args[1] in _LOOKS else self._pin(node)

    def _call_method(self, node: fx.Node) -> _Value | None:
        target = str(node.target)
        if target in _UNITWISE_METHODS:
            return self._values[node.all_input_nodes[0]] if len(node.args) == 1 else self._pin(node)
        if target in ("add", "add_", "sub", "sub_"):
            return self._sum(node)
        if target in ("mul", "div"):
            return self._times_number(node)
        if target == "flatten":
            return self._flatten(node, *_flatten_arguments(node))
        if target in ("view", "reshape"):
            return self._flatten(node, 1, -1) if _keeps_batch(node) else self._pin(node)
        if target == "mean":
            return self._mean(node)
        return None if target in ("size", "dim", "numel") else self._pin(node)

    def _pool(self, node: fx.Node, ndim: int, indices: bool) -> _Value | None:
        value = self._only_input(node)
        if value is None or value.dim != 1 or value.ndim != ndim or indices:
            return self._pin(node)
        return value

    def _sum(self, node: fx.Node) -> _Value | None:
        if len(node.args) != 2 or node.kwargs or not all(isinstance(a, fx.Node) for a in node.args):
            return self._pin(node)  # adding a constant is not homogeneous
        a, b = (self._values[n] for n in node.args)  # type: ignore[index]
        if a is None or b is None or (a.dim, a.ndim, a.flattened) != (b.dim, b.ndim, b.flattened):
            return self._pin(node)
        self._merge(a, b)
        return a

    def _times_number(self, node: fx.Node) -> _Value | None:
        value = self._only_input(node)
        numbers = [a for a in node.args if isinstance(a, (int, float))]
        if value is None or len(numbers) != 1 or node.kwargs:
            return self._pin(node)
        return value

    def _flatten(self, node: fx.Node, start: Any, end: Any) -> _Value | None:
        value = self._only_input(node) if node.op != "call_method" else self._values[node.args[0]]  # type: ignore[index]
        if value is None or value.dim != 1 or start != 1 or end != -1 or value.flattened:
            return self._pin(node)
        # The batch is dimension 0, so (N, C, ...) becomes (N, C * rest): rest neighbouring columns per unit.
        return _Value(value.space, -1, 2, flattened=True)

    def _mean(self, node: fx.Node) -> _Value | None:
        value = self._only_input(node)
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        dims = (dims,) if isinstance(dims, int) else dims
        keep = node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False)
        known = isinstance(dims, (tuple, list)) and all(isinstance(d, int) for d in dims)
        if value is None or value.dim != 1 or value.ndim is None or not known:
            return self._pin(node)
        reduced = {d % value.ndim for d in dims}  # type: ignore[union-attr, operator]
        if reduced & {0, 1}:
            return self._pin(node)
        if keep:
            return value
        ndim = value.ndim - len(reduced)
        return _Value(value.space, -1 if ndim == 2 else 1, ndim)


def _flatten_arguments(node: fx.Node) -> tuple[Any, Any]:
    start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
    end = node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)
    return start, end


def _keeps_batch(node: fx.Node) -> bool:
    """x.view(x.size(0), -1) or x.view(x.shape[0], -1) of the same x: a flatten. Anything else may mix samples."""
    if len(node.args) != 3 or node.args[2] != -1 or not isinstance(node.args[1], fx.Node):
        return False
    x, batch = node.args[0], node.args[1]
    if batch.op == "call_method" and batch.target == "size":
        return batch.args == (x, 0)
    shape = batch.args[0] if batch.target is operator.getitem and batch.args[1] == 0 else None
    return isinstance(shape, fx.Node) and shape.target is getattr and shape.args == (x, "shape")


def _linear_columns(module: nn.Module, units: int) -> Tensor | None:
    """(U, out * repeat): after a flatten each unit owns ``repeat`` neighbouring columns."""
    columns = int(module.in_features)  # type: ignore[arg-type]
    if columns % units:
        return None
    grid = _indices(module.weight).view(-1, units, columns // units)  # type: ignore[arg-type]
    return grid.transpose(0, 1).reshape(units, -1)


def _conv_columns(module: nn.Module, units: int) -> Tensor | None:
    """(U, out / groups * kernel): input channel i meets the outputs of its own group only."""
    if module.in_channels != units:
        return None
    grid = _indices(module.weight)  # type: ignore[arg-type]
    groups = int(module.groups)  # type: ignore[arg-type]
    per_group = grid.view(groups, grid.shape[0] // groups, grid.shape[1], -1)
    return per_group.transpose(1, 2).reshape(units, -1)


def _transposed_columns(module: nn.Module, units: int) -> Tensor | None:
    return _rows(module.weight) if module.in_channels == units else None  # type: ignore[arg-type]
