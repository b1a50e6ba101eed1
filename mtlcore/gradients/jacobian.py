"""Task gradients stored part by part: what every plan but the cheapest two comes to."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mtlcore import linalg
from mtlcore.errors import ConfigurationError, PluginError
from mtlcore.gradients import graph, torch_internals
from mtlcore.gradients.batch import Batch
from mtlcore.gradients.front import Front
from mtlcore.gradients.plan import Plan
from mtlcore.gradients.rows import Part, Whole, parts
from mtlcore.gradients.storage import Storage
from mtlcore.gradients.taps import Taps
from mtlcore.gradients.task_gradients import Answer, Pair, TaskGradients, accumulate, all_or_nothing, write_heads


def collect(
    plan: Plan, batch: Batch, storage: Storage, *, keep_graph: bool = False, most: int | None = None
) -> Stored | Blocks:
    """Differentiate every task.

    Args:
        plan: how.
        batch: the forward pass.
        storage: the memory for the result, kept between steps.
        keep_graph: whether the graph is needed again.
        most: numbers that a capped plan may store. Beyond its limit the parameters are taken in blocks that fit, each
            with K passes of its own (down to the block only), and a weighted backward pass at the end.

    Raises:
        ConfigurationError: several tasks at once on a network that does not allow it; names the way out.
    """
    front = Front(batch, keep_graph)
    n_tasks = len(batch.losses)
    with _tapped(front, plan) as pieces:
        width = sum(p.width for p in pieces)
        limit = plan.limit(n_tasks, batch.size, most)
        if limit is not None and n_tasks * width > limit:
            return _in_blocks(front, storage, pieces, limit // n_tasks)
        return _in_one(front, storage, pieces, plan.tasks)


@contextlib.contextmanager
def _tapped(front: Front, plan: Plan) -> Iterator[list[Part]]:
    """The parts, whose targets are tapped inside."""
    shared, factors = front.batch.shared, plan.weights == "factors"
    known = (plan.weights != "autograd" or front.batch.reach.sparse) and torch_internals.shows_saved()
    uses = graph.uses(front.roots) if known else {}
    while True:
        with torch.no_grad():
            pieces = parts(shared, uses, factors, plan.together)
        taps = Taps(n for p in pieces for n in p.nodes)
        if not taps.hooked:
            break
        # What such a function returns is not known here, so that autograd is asked.
        taps.remove()
        uses = {k: None if u and any(x.node in taps.hooked for x in u) else u for k, u in uses.items()}
    front.tap(taps)
    try:
        yield pieces
    finally:
        taps.remove()


def _in_one(front: Front, storage: Storage, parts: Sequence[Part], chunk: int) -> Stored:
    # Whole gradients first: their block of columns is one matrix.
    order = sorted(parts, key=lambda p: p.factored)
    batch, n_tasks, width = front.batch, len(front.batch.losses), sum(p.width for p in parts)
    stored = storage.take(n_tasks, width, batch.shared[0], linalg.row_dtype(batch.shared))
    targets = [t for p in order for t in p.targets]
    places = _places(order, stored)
    freed = chunk > 1 or front.last_frees
    if chunk == 1:
        # One call for all tasks: a view takes as long as a small product.
        alone_at = [p.unbind() for p in places]
        for i in range(n_tasks):
            found = front.pull(i, targets, not freed or i + 1 < n_tasks)
            _store(order, [p[i] for p in alone_at], found, alone=True)
    else:
        for start in range(0, n_tasks, chunk):
            tasks = slice(start, min(start + chunk, n_tasks))
            _store(order, [p[tasks] for p in places], _together(front, tasks, targets, tasks.stop < n_tasks))
    if not freed:
        front.free()
    return Stored(batch.shared, stored, order, front.heads)


def _together(front: Front, tasks: slice, targets: Sequence[object], retain: bool) -> list[Tensor | None]:
    try:
        return front.pull_together(tasks, targets, retain)
    except (RuntimeError, NotImplementedError) as error:
        raise ConfigurationError(
            f"this network cannot be differentiated for several tasks at once (vmap): "
            f'{_short(error)} Use gradients="auto" or gradients="sequential".'
        ) from error


def _in_blocks(front: Front, storage: Storage, parts: Sequence[Part], columns: int) -> Blocks:
    batch = front.batch
    n_tasks = len(batch.losses)
    front.keep_graph()
    total = torch.zeros(n_tasks, n_tasks, dtype=torch.float64, device=batch.shared[0].device)
    # The widest first: a buffer that grows would be held beside the old one.
    for block in sorted(_blocks(parts, columns), key=_width, reverse=True):
        stored = storage.take(n_tasks, _width(block), batch.shared[0], linalg.row_dtype(batch.shared))
        pieces = [p for p, _, _ in block]
        targets = [t for p in pieces for t in p.targets]
        for i in range(n_tasks):
            found = front.pull(i, targets, retain=True)
            row = stored.new_empty(1, sum(p.width for p in pieces))
            _store(pieces, [p[0] for p in _places(pieces, row)], found, alone=True)
            cells = row.split([p.width for p in pieces], 1)
            torch.cat([c[:, a:b] for c, (_, a, b) in zip(cells, block)], 1, out=stored[i : i + 1])
            del found, row, cells
        front.heads_are_done()
        cells = stored.split([b - a for _, a, b in block], 1)
        layers = [piece.factors(cell) for piece, cell in zip(pieces, cells) if piece.factored]
        shares = [linalg.products(cell) for piece, cell in zip(pieces, cells) if not piece.factored]
        for share in [*shares, linalg.factored_products(layers)] if layers else shares:
            total += share
    return Blocks(batch, linalg.symmetric(total), front.heads)


Slice = tuple[Part, int, int]
"""Columns of a part."""


def _width(block: Sequence[Slice]) -> int:
    return sum(b - a for _, a, b in block)


def _blocks(parts: Sequence[Part], columns: int) -> list[list[Slice]]:
    """Runs of about ``columns`` numbers per task, the last parameters (nearest to the losses) first. Whole gradients
    are cut where a block is full; factors are not, they are small already."""
    out: list[list[Slice]] = [[]]
    room = columns = max(1, columns)
    for piece in reversed(parts):
        start = 0
        while start < piece.width:
            fits = piece.width - start if piece.factored else min(room, piece.width - start)
            if fits > room or room == 0:
                out.append([])
                room = columns
                if not piece.factored:
                    continue
            out[-1].append((piece, start, start + fits))
            start += fits
            room = max(0, room - fits)
    return [block for block in out if block]


def _gramian(parts: Sequence[Part], stored: Tensor) -> Tensor:
    """(K, K) of parts in any order; neighbours that are stored as they are make one matrix."""
    shares, layers = [], []
    start = end = 0
    for piece in (*parts, None):
        if piece is None or piece.factored:
            if end > start:
                shares.append(linalg.products(stored[:, start:end]))
            if piece is not None:
                layers.append(piece.factors(stored[:, end : end + piece.width]))
                start = end + piece.width
        end += 0 if piece is None else piece.width
    if layers:
        shares.append(linalg.factored_products(layers))
    if not shares:
        return torch.zeros(len(stored), len(stored), dtype=torch.float64, device=stored.device)
    return linalg.symmetric(functools.reduce(Tensor.add_, shares))


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 300 else text[:297] + "..."


def _places(parts: Sequence[Part], stored: Tensor) -> list[Tensor]:
    """Where each part's numbers go, (K, ...)."""
    cells = stored.split([p.width for p in parts], 1)
    return [c.view(len(stored), *p.parameter.shape) if isinstance(p, Whole) else c for p, c in zip(parts, cells)]


@torch.no_grad()
def _store(
    parts: Sequence[Part], places: Sequence[Tensor], found: Sequence[Tensor | None], alone: bool = False
) -> None:
    """What autograd found at the parts' targets, to where it belongs; ``alone``: of one task, without its dimension."""
    at = 0
    into, gradients = [], []
    for piece, place in zip(parts, places):
        mine = found[at : at + len(piece.targets)]
        at += len(mine)
        present = [g for g in mine if g is not None]
        if not present:
            place.zero_()
            continue
        piece.used = True
        if isinstance(piece, Whole):
            into.append(place)
            gradients.append(present[0].to_dense() if present[0].is_sparse else present[0])
            continue
        if alone:
            place, mine = place.unsqueeze(0), [None if g is None else g.unsqueeze(0) for g in mine]
        piece.store(place, mine)
    if into:
        torch_internals.copy_in_place(into, gradients)


class Stored(TaskGradients):
    """K task gradients in a buffer that the next step overwrites.

    Args:
        shared: the trunk's parameters, in the order of their columns in J.
        stored: (K, width of all parts).
        parts: whose numbers these are, in their order; factored ones last.
        heads: for each task the task-specific leaves and their gradients.
    """

    def __init__(
        self,
        shared: Sequence[Tensor],
        stored: Tensor,
        parts: Sequence[Part],
        heads: Sequence[list[Pair]],
    ) -> None:
        self._shared = shared
        self._stored = stored
        self._parts = parts
        self.heads = heads
        self._whole = sum(p.width for p in parts if not p.factored)
        self._gramian: Tensor | None = None

    @property
    def used(self) -> list[Tensor]:
        """The trunk parameters that some task depends on."""
        return [t for p in self._parts if p.used for t in p.parameters]

    @property
    def numbers(self) -> int:
        """How many numbers are stored for all tasks together; K x P for plain rows."""
        return self._stored.numel()

    def gramian(self) -> Tensor:
        """(K, K) float64; computed once."""
        if self._gramian is None:
            self._gramian = _gramian(self._parts, self._stored)
        return self._gramian

    def rows(self) -> Tensor:
        """(K, P); a new matrix if only factors are stored."""
        if all(p.plain for p in self._parts):
            return self._stored
        sizes = [p.numel() for p in self._shared]
        out = self._stored.new_empty(len(self._stored), sum(sizes))
        place = dict(zip(map(id, self._shared), out.split(sizes, 1)))
        for piece, block in _cut(self._parts, self._stored):
            for i, stored in enumerate(block):
                for parameter, gradient in piece.gradients(stored):
                    dense = gradient.to_dense() if gradient.is_sparse else gradient
                    place[id(parameter)][i].copy_(dense.flatten())
        return out

    @torch.no_grad()
    def across(self, vectors: Tensor) -> Tensor:
        """J V^T, (k, m) float64, without forming rows: what each part stores meets its share of the vectors."""
        shares = dict(zip(map(id, self._shared), vectors.split([p.numel() for p in self._shared], 1)))
        met = [piece.met([shares[id(p)] for p in piece.parameters]) for piece in self._parts]
        return linalg.across(self._stored, met[0] if len(met) == 1 else torch.cat(met, 1))

    def write(self, answer: Answer) -> None:
        """As :meth:`TaskGradients.write`; the graph is not needed any more."""
        with torch.no_grad():
            if answer.direction is not None:
                # A copy: the method may hold on to its direction, or have handed out a row.
                direction = answer.direction.to(self._stored.device, copy=True)
                pieces = direction.split([p.numel() for p in self._shared])
                gradients = [(p, d.view(p.shape)) for p, d in zip(self._shared, pieces)]
            else:
                assert answer.weights is not None
                gradients = self.combined(answer.weights)
            used = set(map(id, self.used))
            for parameter, gradient in gradients:
                # A parameter no task uses keeps grad None, as after sum(losses).backward().
                if id(parameter) in used:
                    accumulate(parameter, gradient, fresh=True)
        write_heads(self.heads, answer.head_weights)

    def of_task(self, i: int) -> list[Pair]:
        """The gradients of task i of the parameters that some task uses; they may share memory with the buffer."""
        pieces = [(piece, block[i]) for piece, block in _cut(self._parts, self._stored) if piece.used]
        return [pair for piece, stored in pieces for pair in piece.gradients(stored)]

    @torch.no_grad()
    def combined(self, weights: Tensor) -> list[tuple[Tensor, Tensor]]:
        """J^T w as (parameter, gradient of its shape) pairs, in any order."""
        n = sum(not p.factored for p in self._parts)
        blocks: list[tuple[Part, Tensor]] = []
        # Apart, because a .grad that is a view keeps all of its block alive.
        if n:
            blocks += _cut(self._parts[:n], linalg.combine(self._stored[:, : self._whole], weights))
        if n < len(self._parts):
            # Factors are multiplied out in their own dtype, so that a sum of them in float64 would gain nothing.
            rest = torch.mv(self._stored[:, self._whole :].T, linalg.placed(weights, self._stored))
            blocks += _cut(self._parts[n:], rest)
        return [pair for piece, block in blocks for pair in piece.gradients(block)]


def _cut(parts: Sequence[Part], stored: Tensor) -> Iterator[tuple[Part, Tensor]]:
    return zip(parts, stored.split([p.width for p in parts], -1))


class Blocks(TaskGradients):
    """A Gramian gathered block by block; the direction takes one more pass, from the weighted losses."""

    def __init__(self, batch: Batch, gramian: Tensor, heads: Sequence[list[Pair]]) -> None:
        self._batch = batch
        self._gramian = gramian
        self.heads = heads

    def gramian(self) -> Tensor:
        """(K, K) float64."""
        return self._gramian

    def rows(self) -> Tensor:
        """Not kept."""
        raise PluginError('gradients="streaming" keeps no rows; use gradients="sequential" or "batched".')

    def write(self, answer: Answer) -> None:
        """As :meth:`TaskGradients.write`; frees the graph."""
        if answer.weights is None:
            raise PluginError('a method that returns a direction cannot use gradients="streaming".')
        shared = self._batch.shared
        with all_or_nothing(shared):
            graph.backward(self._batch.losses, self._batch.seeds(answer.weights), shared)
        write_heads(self.heads, answer.head_weights)
