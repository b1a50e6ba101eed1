"""What lies below torch's public API, in one place. Each piece has a fallback on public API, chosen by a feature test.

Why at all: the argument checks of ``torch.autograd.grad`` take longer than a small head's whole backward pass, and the
search of ``torch.vmap`` through nested arguments longer than a pass through a small trunk. And a layer's inputs are
saved in the graph: reading them there is what lets a source keep factors instead of weight gradients. And one call per
small parameter takes longer than its sum.

Tests switch a piece off by the ``available`` table and expect the same gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlcore.errors import LossError

Function = Callable[[Sequence[Tensor]], Sequence[Tensor | None]]


def _leaf_type() -> Any:
    """The type of the graph's function that stands for a leaf, found by public means."""
    probe = torch.ones((), requires_grad=True, device="cpu") * 1.0
    return type(probe.grad_fn.next_functions[0][0])  # type: ignore[union-attr]


LEAF = _leaf_type()
"""Other functions may have an attribute ``variable``, too."""


def _engine() -> Any:
    return torch.autograd.Variable._execution_engine.run_backward


def _works(trial: Callable[[], bool]) -> bool:
    try:
        return bool(trial())
    except Exception:  # a torch that has the name for something else may raise anything
        return False


# --- feature tests ------------------------------------------------------------------------------------------


def _try_engine() -> bool:
    x = torch.ones(2, requires_grad=True, device="cpu")
    y = x * 3.0
    seeds = (torch.ones(2, device="cpu"),)
    (found,) = _engine()((y,), seeds, True, False, (x,), True, accumulate_grad=False)
    _engine()((y,), seeds, False, False, (x,), True, accumulate_grad=True)
    return found.tolist() == [3.0, 3.0] and x.grad is not None and x.grad.tolist() == [3.0, 3.0]


def _try_vmap() -> bool:
    found = _levels(lambda s: [s[0].sum(), None], [torch.ones(3, 2, device="cpu")])
    return found[0] is not None and found[0].tolist() == [2.0] * 3 and found[1] is None


def _try_saved() -> bool:
    """Whether functions show what they saved, under the names that are read."""
    w = torch.ones(2, 3, requires_grad=True, device="cpu")
    b = torch.ones(2, requires_grad=True, device="cpu")
    x = torch.arange(12.0, device="cpu").view(4, 3)
    added: Any = torch.addmm(b, x, w.t()).grad_fn
    plain: Any = torch.mm(x, w.t()).grad_fn
    image, kernel = torch.ones(1, 1, 4, 4, device="cpu"), torch.ones(1, 1, 2, 2, requires_grad=True, device="cpu")
    conv: Any = torch.nn.functional.conv2d(image, kernel, stride=2).grad_fn
    index = torch.tensor([1, 0], device="cpu")
    table: Any = torch.nn.functional.embedding(index, w).grad_fn
    starts = torch.tensor([0], device="cpu")
    bags: Any = torch.nn.functional.embedding_bag(index, w, starts, mode="mean").grad_fn
    return (
        torch.equal(added._saved_mat1, x)
        and (added._saved_alpha, added._saved_beta) == (1, 1)
        and torch.equal(plain._saved_self, x)
        and torch.equal(conv._saved_input, image)
        and tuple(conv._saved_stride) == (2, 2)
        and not conv._saved_transposed
        and (tuple(conv._saved_padding), tuple(conv._saved_dilation), conv._saved_groups) == ((0, 0), (1, 1), 1)
        and torch.equal(table._saved_indices, index)
        and not table._saved_sparse
        and not table._saved_scale_grad_by_freq
        and table._saved_padding_idx is not None
        and torch.equal(bags._saved_indices, index)
        and torch.equal(bags._saved_offsets, starts)
        and (bags._saved_mode, bags._saved_sparse, bags._saved_scale_grad_by_freq) == (1, False, False)
        and bags._saved_padding_idx is not None
        and bags._saved_per_sample_weights is None
    )


def _try_hooks() -> bool:
    """Whether a hook's handle shows who else is there, and a tensor its hooks."""
    x = torch.ones(1, requires_grad=True, device="cpu")
    node: Any = (x * 2.0).grad_fn
    first = node.register_hook(lambda returned, given: None)
    second = node.register_hook(lambda returned, given: None)
    seen = len(second.hooks_dict_ref())
    first.remove()
    second.remove()
    x.register_hook(lambda g: None)
    return seen == 2 and len(x._backward_hooks or ()) == 1


def _try_tables() -> bool:
    """Whether a module keeps its parameters and its parts in two tables, which replace and delete show at once."""
    first, inner = (nn.utils.skip_init(nn.Linear, 1, 1, device="cpu") for _ in range(2))  # nothing random is drawn
    outer = nn.Sequential(first, nn.ReLU())
    outer.append(inner)
    inner.register_parameter("bias", None)
    found = [id(p) for p in _from_tables(outer)]
    return found == [id(first.weight), id(first.bias), id(inner.weight)]


def _try_lists() -> bool:
    """Whether one call copies and adds whole lists, into views and across dtypes, too."""
    stored = torch.zeros(4, device="cpu")
    places, numbers = list(stored.split(2)), [torch.ones(2, device="cpu"), torch.full((2,), 2.0, device="cpu").half()]
    with torch.no_grad():
        torch._foreach_copy_(places, numbers)
        torch._foreach_add_(places, numbers)
    return stored.tolist() == [2.0, 2.0, 4.0, 4.0]


available: dict[str, bool] = {}
"""By piece ("engine", "vmap", "saved", "hooks", "tables", "lists") whether it works in this torch."""

_TRIALS: dict[str, Callable[[], bool]] = {
    "engine": _try_engine,
    "vmap": _try_vmap,
    "saved": _try_saved,
    "hooks": _try_hooks,
    "tables": _try_tables,
    "lists": _try_lists,
}


def _has(piece: str) -> bool:
    known = available.get(piece)
    if known is None:
        with torch.enable_grad():
            known = available[piece] = _works(_TRIALS[piece])
    return known


# --- modules ------------------------------------------------------------------------------------------------


def parameters(module: nn.Module) -> Iterable[Tensor]:
    """``module.parameters()``, perhaps with one of them twice; without the names, which take most of its time."""
    if type(module).named_parameters is nn.Module.named_parameters and _has("tables"):
        return _from_tables(module)
    return module.parameters()


def _from_tables(module: nn.Module) -> list[Tensor]:
    found: list[Tensor] = []
    for part in module.modules():
        found += [p for p in part._parameters.values() if p is not None]
    return found


# --- lists of tensors ---------------------------------------------------------------------------------------


def copy_in_place(into: list[Tensor], numbers: list[Tensor]) -> None:
    """Each of ``numbers`` into its place."""
    if _has("lists"):
        torch._foreach_copy_(into, numbers)  # one call for many small parameters
    else:
        for place, number in zip(into, numbers, strict=True):
            place.copy_(number)


def add_in_place(into: list[Tensor], numbers: list[Tensor]) -> None:
    """Each of ``numbers`` to its total."""
    if _has("lists"):
        torch._foreach_add_(into, numbers)
    else:
        for total, number in zip(into, numbers, strict=True):
            total.add_(number)


# --- the engine ---------------------------------------------------------------------------------------------


def vjp(
    outputs: tuple[Tensor, ...], seeds: tuple[Tensor, ...], inputs: tuple[Any, ...], retain: bool
) -> tuple[Tensor | None, ...]:
    """Gradients at ``inputs`` (tensors or gradient edges); None where nothing depends."""
    if _has("engine"):
        found: tuple[Tensor | None, ...] = _engine()(outputs, seeds, retain, False, inputs, True, accumulate_grad=False)
        return found
    return torch.autograd.grad(outputs, inputs, seeds, retain_graph=retain, allow_unused=True)


def accumulate(outputs: tuple[Tensor, ...], seeds: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> None:
    """Into the ``.grad`` of ``inputs``, or of all leaves if there are none; frees the graph."""
    if _has("engine"):
        _engine()(outputs, seeds, False, False, inputs, True, accumulate_grad=True)
    else:
        torch.autograd.backward(outputs, seeds, inputs=list(inputs) or None)


# --- vmap ---------------------------------------------------------------------------------------------------


def vmap(function: Function, seeds: Sequence[Tensor]) -> list[Tensor | None]:
    """``function`` of each (c, ...) seed's entries, for all c at once; a result may be None."""
    return _levels(function, seeds) if _has("vmap") else _public_vmap(function, seeds)


def _levels(function: Function, seeds: Sequence[Tensor]) -> list[Tensor | None]:
    """What ``torch.vmap`` does after its search through nested arguments."""
    from torch._functorch import vmap as inner

    functorch: Any = torch._C._functorch
    inner.lazy_load_decompositions()  # type: ignore[attr-defined]
    n = len(seeds[0])
    level = functorch._vmap_increment_nesting(n, "error")
    try:
        found = function([functorch._add_batch_dim(s, 0, level) for s in seeds])
        return [None if g is None else functorch._remove_batch_dim(g, level, n, 0) for g in found]
    finally:
        functorch._vmap_decrement_nesting()


def _public_vmap(function: Function, seeds: Sequence[Tensor]) -> list[Tensor | None]:
    places: list[int] = []
    size = 0

    def present(*entries: Tensor) -> tuple[Tensor, ...]:
        nonlocal size, places
        found = function(entries)
        size, places = len(found), [i for i, g in enumerate(found) if g is not None]
        return tuple(g for g in found if g is not None)

    values: Sequence[Tensor] = torch.vmap(present, randomness="error")(*seeds)
    out: list[Tensor | None] = [None] * size
    for i, value in zip(places, values):
        out[i] = value
    return out


# --- what functions saved, and who listens -------------------------------------------------------------------


def shows_saved() -> bool:
    """Whether a function's saved tensors and the hooks beside one's own can be seen. If not, every weight is left to
    autograd: the same gradients, without the saving."""
    return _has("saved") and _has("hooks")


FREED = (
    "the graph of these losses was freed already: was backward() called on one of them, or their sum, before? "
    "Hand over losses of a fresh forward pass."
)

MOVED = (
    "a tensor that these losses were computed from was changed in place after their forward pass, so that their "
    "gradients cannot be taken any more: did an optimizer step, a load_state_dict or other code write into the "
    "parameters (between accumulate and backward, say)? Call backward before anything writes into them, or compute the "
    "losses again."
)


def explained(error: RuntimeError) -> LossError | None:
    """What torch says of a graph that is spoilt, with what to do; None for any other error."""
    if "second time" in str(error):
        return LossError(FREED)
    if "modified by an inplace operation" in str(error):
        return LossError(f"{MOVED} (torch: {str(error).partition('Hint')[0].strip()})")
    return None


def saved(node: Any, name: str) -> Any:
    """What the function saved under this name.

    Raises:
        LossError: it was freed, or written to.
    """
    try:
        return getattr(node, f"_saved_{name}")
    except RuntimeError as error:
        spoilt = explained(error)
        if spoilt is None:
            raise
        raise spoilt from error


def saved_tensors(node: Any) -> Iterable[Tensor]:
    """All tensors that a function saved, under whatever names; none where that cannot be seen, or they were freed."""
    for name in dir(node) if _has("saved") else ():
        if name.startswith("_saved_"):
            try:
                value = getattr(node, name)
            except RuntimeError:  # freed already
                continue
            if isinstance(value, Tensor):
                yield value


def others_listen(handle: Any) -> bool:
    """Whether the function of this hook has other hooks, too."""
    return len(handle.hooks_dict_ref()) > 1


def tensor_hooks(tensor: Tensor) -> int:
    """How many hooks a tensor has; 1 where that cannot be seen, which is the careful answer."""
    return len(tensor._backward_hooks or ()) if _has("hooks") else 1


def fsdp_hooks(tensor: Tensor) -> int:
    """How many of its hooks are those of ``fully_shard``, which gather parameters and leave the gradient as it is."""
    hooks = (tensor._backward_hooks or {}).values() if _has("hooks") else ()
    return sum(getattr(h, "__module__", "").startswith("torch.distributed.fsdp") for h in hooks)


def group_store(group: Any) -> Any | None:
    """The store through which the processes of a group found each other; None where it cannot be seen."""
    from torch import distributed

    shown = getattr(distributed.distributed_c10d, "_get_process_group_store", None)
    return None if shown is None else shown(group)
