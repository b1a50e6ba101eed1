"""Everyday training: tasks that come and go, micro-batches, vectors of losses, sparse tables, wrapped features."""

from __future__ import annotations

import pytest
import torch

import mtlcore
from mtlcore import MultiTask, StepView, roster
from mtlcore.errors import ConfigurationError, MtlError, StateError
from mtlcore.gradients import graph
from mtlcore.gradients.jacobian import Stored
from support.architectures import build
from support.methods import Fixed

OPTIONS = {"excess-mtl": {}, "sdmgrad": {"double_sampling": True}, "nash-mtl": {"update_every": 3}}


def every_stateful():
    for info in mtlcore.available("aggregator"):
        name = info if isinstance(info, str) else info.name
        try:
            method = mtlcore.create("aggregator", name, **OPTIONS.get(name, {}))
            if method.init(3):
                yield name
        except MtlError:
            continue


STATEFUL = sorted(every_stateful())


def view_of(seed, tasks, n_others, index=None):
    """Losses and rows that depend on the task's name only, so that its place in the order does not matter."""

    def rows(batch):
        seeds = [torch.Generator().manual_seed(seed + 31 * t + 997 * batch) for t in tasks]
        return torch.stack([torch.randn(7, generator=g, dtype=torch.float64) for g in seeds])

    def one(batch, others=()):
        made = torch.Generator().manual_seed(seed + batch)
        losses = [0.5 + float(torch.rand((), generator=torch.Generator().manual_seed(seed + 17 * t))) for t in tasks]
        return StepView(losses=losses, jacobian=rows(batch), generator=made, others=others, step=seed,
                        task_names=[str(t) for t in tasks], task_index=index)  # fmt: skip

    return one(0, [one(1 + i) for i in range(n_others)])


def after_steps(method, tasks, steps=4):
    state = method.init(len(tasks))
    for seed in range(steps):
        view = view_of(100 + seed, tasks, method.batches - 1)
        state = method.aggregate(view, state).state
        if method.looks_twice():
            state = method.observe(view_of(200 + seed, tasks, 0), state)
    return state


def answer(method, state, tasks, rest):
    """To a batch in which only ``rest`` of the run's tasks are present."""
    index = [tasks.index(t) for t in rest]
    if method.handles_absent:  # absent tasks take part in its answer: what it remembers of the others is compared
        mine = [v for k, v in sorted(state.items()) if v.ndim and len(v) == len(tasks) == len(method.init(5)[k]) - 1]
        assert mine, "it has numbers for each task"
        return torch.cat([v[index].flatten().double() for v in mine])
    view = view_of(7, rest, method.batches - 1, index)
    found = method.aggregate(view, state)
    return found.weights if found.direction is None else found.direction


@pytest.mark.parametrize("name", STATEFUL)
def test_removing_and_adding_a_task_leaves_the_weights_of_the_rest_alone(name):
    method = mtlcore.create("aggregator", name, **OPTIONS.get(name, {}))
    state, tasks = after_steps(method, [1, 2, 3, 4]), [1, 2, 3, 4]
    without = roster.moved(method, state, [0, 1, 3], 4)  # 3 goes, 5 comes, and 4 is now before 1
    changed = roster.moved(method, without, [2, 0, 1, None], 3)
    before, now = (answer(method, s, t, [1, 2, 4]) for s, t in ((state, tasks), (changed, [4, 1, 2, 5])))
    torch.testing.assert_close(now, before, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", STATEFUL)
def test_a_task_that_joins_starts_with_what_init_gives(name):
    method = mtlcore.create("aggregator", name, **OPTIONS.get(name, {}))
    state, fresh = after_steps(method, [1, 2, 3]), method.init(4)
    changed = roster.moved(method, state, [0, 1, 2, None], 3)
    for key, value in fresh.items():
        if value.ndim and value.shape[-1] == 4:
            assert torch.equal(changed[key][..., 3], value[..., 3].to(changed[key]))
        elif value.numel() == 0 and changed[key].ndim > 1:
            assert len(changed[key]) == 4
            assert not changed[key][3].any()
        else:
            assert torch.equal(changed[key], state[key])


def reordered(work, order):
    def evaluate():
        losses, z = work.evaluate()
        return {n: losses[n] for n in order}, z

    return evaluate


def test_a_state_is_matched_by_the_names_of_its_tasks():
    """A run that goes on with its tasks in another order used to be refused; with the state taken over as it is, each
    task would have gone on with the weights of another."""
    work = build("mlp")
    optimizer = torch.optim.SGD(work.parameters(), lr=0.05)
    mt = MultiTask(work.trunk, aggregator="uw", optimizer=optimizer)
    for _ in range(3):
        mt.step(work.evaluate)
    saved = mt.state_dict()
    other = MultiTask(work.trunk, aggregator="uw", tasks=["t2", "t0", "t1"])
    other.load_state_dict(saved)
    wanted = mt.backward(*work.evaluate()).weights
    found = other.backward(*reordered(work, ["t0", "t1", "t2"])()).weights
    assert torch.equal(found[[1, 2, 0]], wanted)
    assert len(set(wanted.tolist())) == 3
    kept, moved = mt.state_dict()["state"], other.state_dict()["state"]
    assert all(torch.equal(kept[k], moved[k][..., [1, 2, 0]]) for k in kept)


def test_tasks_come_and_go_in_a_run():
    work = build("mlp")
    optimizer = torch.optim.SGD(work.parameters(), lr=0.05)
    mt = MultiTask(work.trunk, aggregator="famo", optimizer=optimizer)
    mt.step(work.evaluate)
    before = mt.state_dict()["state"]["logits"]
    mt.remove_task("t1")
    assert torch.equal(mt.state_dict()["state"]["logits"], before[[0, 2]])
    with pytest.raises(MtlError, match="unknown task 't1'"):
        mt.backward(*work.evaluate())
    assert mt.step(reordered(work, ["t0", "t2"])).task_names == ("t0", "t2")
    mt.add_task("t1")
    assert mt.state_dict()["state"]["logits"][2] == 0
    assert mt.step(work.evaluate).task_names == ("t0", "t2", "t1")


def test_what_cannot_come_or_go_is_said():
    work = build("mlp")
    mt = MultiTask(work.trunk, aggregator="famo")
    with pytest.raises(ConfigurationError, match="no tasks yet"):
        mt.add_task("new")
    mt.backward(*work.evaluate())
    with pytest.raises(ConfigurationError, match="between two steps"):
        mt.add_task("new")
    mt.observe(work.evaluate()[0])
    with pytest.raises(ConfigurationError, match="there is a task 't0' already"):
        mt.add_task("t0")
    with pytest.raises(ConfigurationError, match="no task 'nobody' to remove"):
        mt.remove_task("nobody")
    fixed = MultiTask(work.trunk, aggregator=mtlcore.create("aggregator", "ls", weights=(1.0, 2.0, 3.0)))
    fixed.backward(*work.evaluate())
    with pytest.raises(ConfigurationError, match="3"):  # an option per task
        fixed.add_task("new")
    odd = MultiTask(work.trunk, aggregator=Fixed((1.0,) * 3))
    with pytest.raises(StateError, match="'n'"):
        roster.moved(odd.aggregator, {"n": torch.zeros(3)}, [1, 0, 2], 3)


def halves(work_of, n=2):
    """A small network, the closures of its micro-batches, and that of the whole batch."""
    work_of.setdefault("x", torch.randn(8, 6, generator=torch.Generator().manual_seed(3)))
    torch.manual_seed(1)
    trunk = torch.nn.Sequential(torch.nn.Linear(6, 10), torch.nn.Tanh())
    heads = torch.nn.ModuleDict({"a": torch.nn.Linear(10, 1), "b": torch.nn.Linear(10, 2)})

    def closure(x, share):
        def evaluate():
            z = trunk(x)
            return {t: ((h(z) - x[:, :1]).square().mean() + 0.1) * share for t, h in heads.items()}, z

        return evaluate

    parts = [closure(x, 1 / n) for x in work_of["x"].chunk(n)]
    return trunk, heads, parts, closure(work_of["x"], 1.0)


@pytest.mark.parametrize("method", ["ls", "uw", "dwa", "famo", "gradops"])
@pytest.mark.parametrize("forced", ["auto", "sequential"])
def test_micro_batches_are_one_large_batch(method, forced):
    def gradients(split):
        trunk, heads, parts, whole = halves({})
        mt = MultiTask(trunk, aggregator=method, gradients=forced)
        for part in parts[:-1] if split else []:
            mt.accumulate(*part())
        report = mt.backward(*(parts[-1] if split else whole)())
        return report, [p.grad.clone() for p in [*trunk.parameters(), *heads.parameters()]]

    (found, mine), (wanted, right) = gradients(True), gradients(False)
    torch.testing.assert_close(found.weights, wanted.weights, rtol=1e-5, atol=1e-6)
    for a, b in zip(mine, right):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    if forced == "auto" and method != "gradops":  # no K x P rows: one pass through all graphs
        assert found.gradient_source.startswith("losses")
        assert found.gradient_source.endswith("through the graphs of 2 micro-batches")


def test_a_method_that_looks_twice_after_micro_batches():
    def state(split):
        trunk, heads, parts, whole = halves({})
        optimizer = torch.optim.SGD([*trunk.parameters(), *heads.parameters()], lr=0.1)
        mt = MultiTask(trunk, aggregator="famo")
        if split:
            mt.accumulate(*parts[0]())
        mt.backward(*(parts[1] if split else whole)())
        optimizer.step()
        with pytest.raises(ConfigurationError, match="looks at the losses twice"):
            mt.accumulate(*parts[0]())
        with torch.no_grad():
            mt.observe({t: sum(part()[0][t] for part in parts) for t in heads} if split else whole()[0])
        return mt.state_dict()["state"]["logits"]

    assert state(False).any()
    torch.testing.assert_close(state(True), state(False), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("options", [{"aggregator": "famo"}, {"aggregator": "gradops"},
                                     {"aggregator": "gradops", "detector": "gcd", "teleport": "cost"}])  # fmt: skip
def test_a_step_takes_the_closures_of_micro_batches(options):
    if options.get("detector") and options["detector"] not in names_of("detector"):
        options = {**options, "detector": names_of("detector")[0]}
    if options.get("teleport") and options["teleport"] not in names_of("teleport"):
        options = {**options, "teleport": names_of("teleport")[0]}

    def train(split):
        trunk, heads, parts, whole = halves({})
        optimizer = torch.optim.SGD([*trunk.parameters(), *heads.parameters()], lr=0.1)
        mt = MultiTask(trunk, optimizer=optimizer, heads=heads, seed=4, **options)
        losses = [mt.step(parts if split else whole).losses for _ in range(3)]
        return losses, list(trunk.parameters())

    (found, mine), (wanted, right) = train(True), train(False)
    for a, b in [*zip(found, wanted), *zip(mine, right)]:
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def names_of(kind):
    return [n if isinstance(n, str) else n.name for n in mtlcore.available(kind)]


def test_an_error_in_a_later_micro_batch_leaves_nothing_behind():
    trunk, heads, parts, whole = halves({})
    optimizer = torch.optim.SGD([*trunk.parameters(), *heads.parameters()], lr=0.1)
    mt = MultiTask(trunk, aggregator="uw", optimizer=optimizer)
    with pytest.raises(ZeroDivisionError):
        mt.step([parts[0], lambda: 1 / 0])
    assert mt.step(whole).step == 0
    with pytest.raises(ConfigurationError, match="needs 1 closures"):
        mt.step([])


@pytest.mark.parametrize("source", ["auto", "sequential", "batched", "streaming", "streaming-together", "features"])
def test_a_sparse_table_in_the_trunk_keeps_sparse_gradients(source):
    """It used to become a dense gradient of the whole table, which SparseAdam refuses."""

    def train(sparse, source):
        torch.manual_seed(0)
        table = torch.nn.Embedding(500, 4, sparse=sparse, padding_idx=3)
        trunk = torch.nn.Sequential(table, torch.nn.Flatten(), torch.nn.Linear(8, 6), torch.nn.Tanh())
        heads = [torch.nn.Linear(6, 1) for _ in range(3)]
        mt = MultiTask(trunk, aggregator="upgrad", gradients=source)
        for _ in range(2):  # adds to what is there
            z = trunk(torch.tensor([[1, 2], [2, 3], [7, 7]]))
            report = mt.backward([(h(z) - i).square().mean() for i, h in enumerate(heads)], features=z)
        return report, table

    (found, table), (wanted, dense) = train(True, source), train(False, "sequential")
    assert table.weight.grad.is_sparse
    assert table.weight.grad.coalesce().indices().tolist()[0] in ([1, 2, 7], [1, 2, 3, 7])
    if source != "features":
        torch.testing.assert_close(found.gramian, wanted.gramian, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(table.weight.grad.to_dense(), dense.weight.grad, rtol=1e-4, atol=1e-6)
    torch.optim.SparseAdam(table.parameters(), lr=0.1).step()


def bags(sparse, mode="sum", **options):
    """Three bags of a table, one of them empty, one with padding, with weights where they are allowed."""
    torch.manual_seed(0)
    table = torch.nn.EmbeddingBag(500, 4, mode=mode, sparse=sparse, padding_idx=3, **options)
    tower, heads = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh()), [torch.nn.Linear(6, 1) for _ in "abc"]
    indices, starts = torch.tensor([1, 2, 2, 3, 7, 7, 7]), torch.tensor([0, 4, 4])
    weights = torch.linspace(0.5, 2.0, 7) if mode == "sum" else None
    if options.get("include_last_offset"):
        starts = torch.tensor([0, 4, 4, 7])

    def losses():
        z = tower(table(indices, starts, per_sample_weights=weights))
        return [(head(z) - i).square().mean() for i, head in enumerate(heads)], z

    return table, torch.nn.ModuleList([table, tower]), losses


@pytest.mark.parametrize("source", ["auto", "sequential", "batched", "streaming", "streaming-together"])
@pytest.mark.parametrize("options", [{"mode": "sum"}, {"mode": "mean"}, {"include_last_offset": True}])
def test_bags_of_a_sparse_table_keep_sparse_gradients(source, options):
    """They used to become a dense gradient of the whole table."""

    def train(sparse, source):
        table, trunk, losses = bags(sparse, **options)
        mt = MultiTask(trunk, aggregator="upgrad", gradients=source)
        for _ in range(2):
            evaluated, z = losses()
            report = mt.backward(evaluated, features=z)
        return report, table

    (found, table), (wanted, dense) = train(True, source), train(False, "sequential")
    assert table.weight.grad.is_sparse
    assert table.weight.grad.coalesce().indices().tolist() == [[1, 2, 7]]
    torch.testing.assert_close(found.gramian, wanted.gramian, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(table.weight.grad.to_dense(), dense.weight.grad, rtol=1e-4, atol=1e-6)
    torch.optim.SparseAdam(table.parameters(), lr=0.1).step()


def test_bags_of_the_largest_are_left_to_autograd():
    table, trunk, losses = bags(False, mode="max")
    mt = MultiTask(trunk, aggregator="upgrad", gradients="streaming")
    evaluated, z = losses()
    weights = mt.backward(evaluated, features=z).weights
    found, table.weight.grad = table.weight.grad, None
    torch.stack([w.float() * v for w, v in zip(weights, losses()[0])]).sum().backward()
    torch.testing.assert_close(found, table.weight.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_table_that_is_read_alone_and_in_bags_keeps_sparse_gradients(dtype):
    torch.manual_seed(0)
    table = torch.nn.Embedding(50, 4, sparse=True, dtype=dtype)
    x, read = torch.tensor([[1, 2], [2, 9]]), torch.nn.functional

    def losses(sparse=True):
        bag = read.embedding_bag(x, table.weight, mode="mean", sparse=sparse)
        one, fifth = (read.embedding(i, table.weight, sparse=sparse) for i in (x[:, 0], torch.tensor(5)))
        z = torch.cat([bag, one, fifth.expand(2, 4)], 1)
        return [z.square().mean(), (z - 1).square().mean(), z[:, :4].sum()]

    report = MultiTask(table, aggregator="upgrad").backward(losses())
    found, table.weight.grad = table.weight.grad, None
    assert found.is_sparse
    torch.stack([w.to(dtype) * v for w, v in zip(report.weights, losses(False))]).sum().backward()
    tolerance = {"rtol": 0.1, "atol": 0.02} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(found.to_dense(), table.weight.grad, **tolerance)


@pytest.mark.parametrize("method", ["upgrad", "graddrop"])
@pytest.mark.parametrize("one_by_one", [False, True])
def test_a_sparse_table_in_micro_batches(method, one_by_one):
    """It used to become a dense gradient of the whole table; so do methods that return a direction still."""

    def train(sparse):
        torch.manual_seed(0)
        tables = torch.nn.ModuleList([torch.nn.Embedding(500, 4, sparse=sparse, padding_idx=3) for _ in "ab"])
        tower, heads = torch.nn.Linear(8, 6), torch.nn.ModuleList([torch.nn.Linear(6, 1) for _ in "ab"])
        mt = MultiTask(torch.nn.ModuleList([tables, tower]), aggregator=method, tasks=["a", "b"], seed=1)

        def losses(table, items, of):
            z = torch.tanh(tower(tables[table](torch.tensor(items)).flatten(1)))
            return {t: (head(z) - i).square().mean() for i, (t, head) in enumerate(zip("ab", heads)) if t in of}

        if one_by_one:  # the second table is in the last micro-batches only
            mt.accumulate(losses(0, [[1, 2], [2, 3]], "a"))
            mt.accumulate(losses(0, [[9, 2], [4, 3]], "a"))
            mt.accumulate(losses(1, [[9, 2], [4, 3]], "a"))
            report = mt.backward(losses(1, [[7, 7]], "b"))
        else:
            mt.accumulate(losses(0, [[1, 2], [2, 3]], "ab"))
            report = mt.backward(losses(0, [[7, 2]], "ab"))
        return report, tables, tower

    (found, tables, tower), (wanted, dense, other) = train(True), train(False)
    torch.testing.assert_close(found.gramian, wanted.gramian, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(tower.weight.grad, other.weight.grad)
    assert (tables[1].weight.grad is None) is not one_by_one
    for mine, theirs in list(zip(tables, dense))[: 1 + one_by_one]:
        assert mine.weight.grad.is_sparse is (method == "upgrad")
        torch.testing.assert_close(mine.weight.grad.to_dense(), theirs.weight.grad)
    if method == "upgrad":
        torch.optim.SparseAdam(list(tables[: 1 + one_by_one].parameters()), lr=0.1).step()


def test_a_table_that_is_sparse_in_one_micro_batch_only():
    table = torch.nn.Embedding(9, 4, sparse=True)
    mt = MultiTask(table, aggregator="mgda")
    mt.accumulate([table(torch.tensor([1])).sum(), table(torch.tensor([2])).sum()])
    report = mt.backward([table.weight.sum(), table(torch.tensor([2, 3])).sum()])
    rows = torch.zeros(2, 9, 4)
    rows[0] += 1.0
    rows[0, 1] += 1.0
    rows[1, 2], rows[1, 3] = 2.0, 1.0
    torch.testing.assert_close(report.gramian, (rows.flatten(1) @ rows.flatten(1).T).double())
    torch.testing.assert_close(table.weight.grad, (report.weights.float()[:, None, None] * rows).sum(0))


def test_the_step_taken_by_a_sparse_table(monkeypatch):
    """It used to need whole rows: K times the table."""

    def train(sparse):
        torch.manual_seed(0)
        table, linear = torch.nn.Embedding(500, 4, sparse=sparse), torch.nn.Linear(8, 6)
        trunk, heads = torch.nn.Sequential(table, torch.nn.Flatten(), linear), [torch.nn.Linear(6, 1) for _ in "abc"]
        optimizer = torch.optim.SGD([*trunk.parameters(), *[p for h in heads for p in h.parameters()]], lr=0.1)
        mt = MultiTask(trunk, "upgrad", optimizer, taken=True)

        def closure():
            z = trunk(torch.tensor([[1, 2], [2, 3], [7, 7]]))
            return [(h(z) - i).square().mean() for i, h in enumerate(heads)], z

        return table, mt.step(closure).taken

    dense, wanted = train(False)
    assert not dense.weight.grad.is_sparse
    monkeypatch.setattr(Stored, "rows", lambda self: pytest.fail("whole rows"))
    table, found = train(True)
    assert table.weight.grad.is_sparse
    torch.testing.assert_close(found.changes, wanted.changes, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(found.cosines, wanted.cosines, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.direction, wanted.direction, rtol=1e-4, atol=1e-6)
    assert found.shares == pytest.approx(wanted.shares, abs=1e-6)


def test_a_sparse_table_under_a_method_that_reads_rows():
    table = torch.nn.Embedding(9, 4, sparse=True)
    trunk = torch.nn.Sequential(table, torch.nn.Flatten(), torch.nn.Linear(8, 6))
    mt, z = MultiTask(trunk, aggregator="graddrop"), trunk(torch.tensor([[1, 2], [2, 3]]))
    mt.backward([z[:, 0].sum(), z[:, 1].square().sum()], features=z)
    assert table.weight.grad.abs().sum(1).nonzero().flatten().tolist() == [1, 2, 3]


def per_sample(n, norm=False, seed=0):
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(5, 8), torch.nn.BatchNorm1d(8) if norm else torch.nn.Tanh(), torch.nn.Linear(8, 8)]
    trunk, head = torch.nn.Sequential(*layers).double(), torch.nn.Linear(8, 1).double()
    x = torch.randn(n, 5, dtype=torch.float64)

    def evaluate():
        z = trunk(x)
        return (head(z) - x[:, :1]).square().sum(1), z

    return trunk, head, evaluate


def rows_of(losses, parameters):
    return torch.stack([torch.cat([g.flatten() for g in torch.autograd.grad(v, parameters, retain_graph=True)])
                        for v in losses])  # fmt: skip


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("features", [False, True])
def test_a_vector_of_losses_is_a_batch_of_anonymous_tasks(norm, features):
    """K varying with the batch used to be refused, and the heads were differentiated one loss at a time."""
    trunk, head, _ = per_sample(4, norm)
    mt = MultiTask(trunk, aggregator="upgrad")
    for n in (6, 9, 20):
        x = torch.randn(n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
        for p in [*trunk.parameters(), *head.parameters()]:
            p.grad = None
        z = trunk(x)
        losses = (head(z) - x[:, :1]).square().sum(1)
        jacobian = rows_of(losses, list(trunk.parameters()))
        wanted_head = torch.autograd.grad(losses.sum(), head.weight, retain_graph=True)[0]
        report = mt.backward(losses, features=z if features else None)
        torch.testing.assert_close(report.gramian, jacobian @ jacobian.T, rtol=1e-6, atol=1e-9)
        found = torch.cat([p.grad.flatten() for p in trunk.parameters()])
        torch.testing.assert_close(found, jacobian.T @ report.weights, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(head.weight.grad, wanted_head)
        assert report.gradient_source.startswith("samples") is not norm  # a batch norm mixes the samples
    saved = mt.state_dict()
    MultiTask(trunk, aggregator="upgrad").load_state_dict(saved)
    with pytest.raises(ConfigurationError, match="have no names"):
        mt.accumulate((head(trunk(x)) - x[:, :1]).square().sum(1))


def residuals(x):
    """Of the heat equation at the points of x, by a network of two layers."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8), torch.nn.Tanh(),
                              torch.nn.Linear(8, 1)).double()  # fmt: skip

    def derivative(y):
        return torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)[0]

    first = derivative(net(x))
    return net, (first[:, 1] - derivative(first[:, 0])[:, 0]).square()


def images(x):
    """A loss for each image, by two convolutions, with stride and padding, and a linear layer."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv2d(3, 4, (2, 3), stride=2), torch.nn.Tanh(),
        torch.nn.Flatten(), torch.nn.Linear(4 * 3 * 2, 3),
    ).double()  # fmt: skip
    return net, net(x).square().sum(1)


def repeated(x):
    """One convolution, used twice; two images for each loss."""
    torch.manual_seed(0)
    net = torch.nn.Conv2d(2, 2, 3, padding=1).double()
    return net, net(net(x).tanh()).square().flatten(1).sum(1).view(-1, 2).sum(1)


@pytest.mark.parametrize(("make", "shape"), [(residuals, (7, 2)), (images, (5, 2, 6, 6)), (repeated, (6, 2, 4, 4))])
@pytest.mark.parametrize("patches", [1 << 24, 1])
def test_residuals_and_images_are_anonymous_tasks_from_one_pass(make, shape, patches, monkeypatch):
    """Both used to take a pass through the graph for each loss: 1.2 s instead of 0.03 for 256 residuals."""
    monkeypatch.setattr("mtlcore.gradients.samples._PATCHES", patches)
    monkeypatch.setattr("mtlcore.gradients.samples._ROWS", patches)
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    net, losses = make(x)
    everything = torch.autograd.grad(losses.sum(), list(net.parameters()), retain_graph=True, allow_unused=True)
    parameters = [p for p, g in zip(net.parameters(), everything) if g is not None]  # a last bias has no derivative
    jacobian = rows_of(losses, parameters)
    report = MultiTask(net, aggregator="upgrad").backward(losses)
    assert report.gradient_source.startswith("samples")
    torch.testing.assert_close(report.gramian, jacobian @ jacobian.T, rtol=1e-9, atol=1e-12)
    found = torch.cat([p.grad.flatten() for p in parameters])
    torch.testing.assert_close(found, jacobian.T @ report.weights, rtol=1e-9, atol=1e-12)


def test_an_error_about_hundreds_of_losses_is_short():
    trunk, head, evaluate = per_sample(300)
    with pytest.raises(mtlcore.errors.LossError, match=r"'task5' and 294 more\) reaches") as error:
        MultiTask(per_sample(2)[0], "upgrad").backward(evaluate()[0])
    assert len(str(error.value)) < 500
    with pytest.raises(mtlcore.errors.NonFiniteError, match="task 'task0' and 'task1' .* and 294 more is NaN") as error:
        MultiTask(trunk, "upgrad").backward((head(trunk(torch.ones(300, 5).double())) * 0.0).abs().sqrt().squeeze(1))
    assert len(str(error.value)) < 500


def test_a_weight_that_is_transposed_twice_is_known_for_what_it_is():
    a, w = torch.randn(4, 3), torch.randn(3, 2, requires_grad=True)
    loss = a.mm(w.t().t()).square().sum() + a.mm(w).sum() + a[:, :2].mm(w.t()).sum()
    assert sorted(u.kind for u in graph.uses([loss])[id(w)]) == ["linear", "matmul", "matmul"]
    assert graph.uses([w.t().t().square().sum()])[id(w)] is None
    assert graph.uses([w.t().t()])[id(w)] is None


def test_a_vector_of_losses_of_a_method_with_a_state_keeps_its_tasks():
    trunk, _, evaluate = per_sample(4)
    mt = MultiTask(trunk, aggregator="uw")
    mt.backward(evaluate()[0])
    _, _, more = per_sample(6)
    with pytest.raises(MtlError, match="6 losses for 4 tasks"):
        mt.backward(more()[0])


@pytest.mark.parametrize("change", [lambda z: z.clone(), lambda z: z.double(), lambda z: z.view(-1, 2, 5)])
def test_features_that_a_wrapper_copied_are_found(change):
    trunk, _, _, whole = halves({})
    losses, z = whole()
    MultiTask(trunk, aggregator="upgrad").backward(losses, features=change(z))
    found = [p.grad.clone() for p in trunk.parameters()]
    trunk, _, _, whole = halves({})
    report = MultiTask(trunk, aggregator="upgrad").backward(*whole())
    for a, p in zip(found, trunk.parameters()):
        torch.testing.assert_close(a, p.grad)
    assert report.weights is not None


def test_features_that_cannot_be_found():
    trunk, _, _, whole = halves({})
    losses, _ = whole()
    with pytest.raises(mtlcore.errors.FeaturesError, match="each task then costs a pass through the whole graph"):
        MultiTask(trunk, aggregator="upgrad").backward(losses, features=trunk(torch.randn(8, 6)))
