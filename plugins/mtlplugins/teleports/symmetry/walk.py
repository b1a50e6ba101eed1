"""One pass over the graph of a module; it assigns a space of units to every value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mtlplugins.teleports.symmetry import operations as ops
from mtlplugins.teleports.symmetry.encoder_layer import feed_forward
from mtlplugins.teleports.symmetry.scaling import Group, Member


@dataclass(eq=False)
class Space:
    """Units that can only be rescaled together, and the elements that produce and consume them."""

    units: int
    name: str
    members: list[Member] = field(default_factory=list)
    pinned: bool = False
    parent: Space | None = None

    def root(self) -> Space:
        """The space that this one was merged into, or itself."""
        space = self
        while space.parent is not None:
            space = space.parent
        return space


@dataclass(frozen=True)
class Value:
    """A value in the graph: its space, the dimension of the units (1 or -1), and its number of dimensions if known."""

    space: Space
    dim: int
    ndim: int | None
    flattened: bool = False


class Walk:
    """One pass over a graph of one module."""

    def __init__(self, module: nn.Module, prefix: str, unsafe: set[nn.Module], graph: fx.Graph) -> None:
        self._module = module
        self._prefix = prefix
        self._graph = graph
        # A layer whose weight is read beside its calls does more than its calls tell.
        read = [str(n.target).rpartition(".")[0] for n in graph.nodes if n.op == "get_attr"]
        self._unsafe = unsafe | {module.get_submodule(name) for name in read}
        self._called = {module.get_submodule(str(n.target)) for n in graph.nodes if n.op == "call_module"}
        self._values: dict[fx.Node, Value | None] = {}
        self._spaces: list[Space] = []
        self._inputs: dict[nn.Module, Value | None] = {}
        self._outputs: dict[nn.Module, Space] = {}
        self._unknown: set[nn.Module] = set()  # modules with a call that was not understood
        self._extra: dict[str, Group] = {}

    def groups(self) -> tuple[Group, ...]:
        """The groups of spaces that are produced, consumed and never pinned."""
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

    def _visit(self, node: fx.Node) -> Value | None:
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

    def _pin(self, node: fx.Node) -> Value | None:
        for source in node.all_input_nodes:
            self._pin_value(self._values.get(source))
        return None

    @staticmethod
    def _pin_value(value: Value | None) -> None:
        if value is not None:
            value.space.root().pinned = True

    def _only_input(self, node: fx.Node) -> Value | None:
        """The value that a unitwise call passes on: its first argument, if that is its only tensor."""
        if len(node.all_input_nodes) == 1 and node.args and node.args[0] is node.all_input_nodes[0]:
            return self._values[node.all_input_nodes[0]]
        return None

    def _call_module(self, node: fx.Node, module: nn.Module, path: str) -> Value | None:
        kind = type(module)
        value = self._only_input(node)
        if module in self._unsafe:
            return self._pin(node)
        if kind is nn.TransformerEncoderLayer or kind is nn.TransformerEncoder:  # masks do not reach what is found
            for name, layer in module.named_modules(prefix=path):
                # Parts that are also called on their own do more than the layer's call tells.
                if type(layer) is nn.TransformerEncoderLayer and not self._called & {*layer.modules()} - {layer}:
                    for group in feed_forward(layer, f"{name}.", self._unsafe):
                        self._extra[group.name] = group
            return self._pin(node)
        if len(node.args) != 1 or node.kwargs:
            return self._pin(node)
        if kind in ops.UNITWISE:
            return value
        if kind in ops.POOLS:
            return self._pool(node, ops.POOLS[kind], bool(getattr(module, "return_indices", False)))
        if isinstance(module, nn.Flatten) and kind is nn.Flatten:
            return self._flatten(node, module.start_dim, module.end_dim)
        if kind is nn.Upsample and value is not None and value.dim == 1:
            return value
        if kind is nn.Embedding and module.max_norm is None:
            return self._produce(module, path, -1, None, ops.indices(module.weight).T.contiguous())
        if kind is nn.Linear:
            self._consume(module, value, path, -1, ops.linear_columns)
            return self._produce(module, path, -1, value.ndim if value is not None else None, ops.rows(module.weight))  # type: ignore[arg-type]
        if kind in ops.CONVS:
            self._consume(module, value, path, 1, ops.conv_columns)
            return self._produce(module, path, 1, ops.CONVS[kind], ops.rows(module.weight))  # type: ignore[arg-type]
        if kind in ops.TRANSPOSED and module.groups == 1:
            self._consume(module, value, path, 1, ops.transposed_columns)
            rows = ops.indices(module.weight).transpose(0, 1).flatten(1)  # type: ignore[arg-type]
            return self._produce(module, path, 1, ops.TRANSPOSED[kind], rows)
        if kind in ops.CHANNEL_NORMS or kind in ops.FEATURE_NORMS:
            return self._norm(node, module, path, value)
        return self._pin(node)

    def _norm(self, node: fx.Node, module: nn.Module, path: str, value: Value | None) -> Value | None:
        self._pin(node)
        weight = module._parameters.get("weight")
        if weight is None or weight.dim() != 1:
            return None
        if type(module) in ops.FEATURE_NORMS:
            return self._produce(module, path, -1, None if value is None else value.ndim, ops.rows(weight))
        ndim = ops.CHANNEL_NORMS[type(module)]
        if ndim is not None:
            return self._produce(module, path, 1, ndim, ops.rows(weight))
        if value is None or (value.dim != 1 and value.ndim not in (2, None)):
            return None
        # Behind a linear layer on inputs of unknown shape: (N, C) nearly always; that it is not (N, C, L) with C = L is
        # seen on the batch only.
        return self._produce(module, path, value.dim, value.ndim, ops.rows(weight))

    def _produce(self, module: nn.Module, path: str, dim: int, ndim: int | None, rows: Tensor) -> Value:
        if module not in self._outputs:
            space = Space(rows.shape[0], path)
            space.members.append(Member(f"{path}.weight", rows, True))
            bias = module._parameters.get("bias")
            if bias is not None:
                space.members.append(Member(f"{path}.bias", ops.rows(bias), True))
            self._outputs[module] = space
            self._spaces.append(space)
        return Value(self._outputs[module].root(), dim, ndim)

    def _consume(
        self,
        module: nn.Module,
        value: Value | None,
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
        expected_ndim = ops.CONVS.get(type(module), ops.TRANSPOSED.get(type(module)))
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

    def _merge(self, a: Value | None, b: Value | None) -> None:
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

    def _call_function(self, node: fx.Node) -> Value | None:
        target = node.target
        if target in ops.UNITWISE_CALLS:
            value = self._only_input(node)
            return value if value is not None else self._pin(node)
        if target in ops.POOL_CALLS:
            return self._pool(node, ops.POOL_CALLS[target], bool(node.kwargs.get("return_indices", False)))
        if target in ops.SUMS:
            return self._sum(node)
        if target in ops.PRODUCTS:
            return self._times_number(node)
        if target is torch.flatten:
            return self._flatten(node, *ops.flatten_arguments(node))
        if target is torch.mean:
            return self._mean(node)
        if target is F.interpolate:
            value = self._only_input(node)
            return value if value is not None and value.dim == 1 else self._pin(node)
        return None if target is getattr and node.args[1] in ops.LOOKS else self._pin(node)

    def _call_method(self, node: fx.Node) -> Value | None:
        target = str(node.target)
        if target in ops.UNITWISE_METHODS:
            return self._values[node.all_input_nodes[0]] if len(node.args) == 1 else self._pin(node)
        if target in ("add", "add_", "sub", "sub_"):
            return self._sum(node)
        if target in ("mul", "div"):
            return self._times_number(node)
        if target == "flatten":
            return self._flatten(node, *ops.flatten_arguments(node))
        if target in ("view", "reshape"):
            return self._flatten(node, 1, -1) if ops.keeps_batch(node) else self._pin(node)
        if target == "mean":
            return self._mean(node)
        return None if target in ("size", "dim", "numel") else self._pin(node)

    def _pool(self, node: fx.Node, ndim: int, indices: bool) -> Value | None:
        value = self._only_input(node)
        if value is None or value.dim != 1 or value.ndim != ndim or indices:
            return self._pin(node)
        return value

    def _sum(self, node: fx.Node) -> Value | None:
        if len(node.args) != 2 or node.kwargs or not all(isinstance(a, fx.Node) for a in node.args):
            return self._pin(node)  # adding a constant is not homogeneous
        a, b = (self._values[n] for n in node.args)  # type: ignore[index]
        if a is None or b is None or (a.dim, a.ndim, a.flattened) != (b.dim, b.ndim, b.flattened):
            return self._pin(node)
        self._merge(a, b)
        return a

    def _times_number(self, node: fx.Node) -> Value | None:
        value = self._only_input(node)
        numbers = [a for a in node.args if isinstance(a, (int, float))]
        if value is None or len(numbers) != 1 or node.kwargs:
            return self._pin(node)
        return value

    def _flatten(self, node: fx.Node, start: Any, end: Any) -> Value | None:
        value = self._only_input(node) if node.op != "call_method" else self._values[node.args[0]]  # type: ignore[index]
        if value is None or value.dim != 1 or start != 1 or end != -1 or value.flattened:
            return self._pin(node)
        # The batch is dimension 0, so (N, C, ...) becomes (N, C * rest): rest neighbouring columns per unit.
        return Value(value.space, -1, 2, flattened=True)

    def _mean(self, node: fx.Node) -> Value | None:
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
        return Value(value.space, -1 if ndim == 2 else 1, ndim)
