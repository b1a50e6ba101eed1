"""Everyday training: tasks that come and go, micro-batches, vectors of losses, sparse tables, wrapped features."""

from __future__ import annotations

import pytest
import torch

import mtlcore
from mtlcore import MultiTask, StepView, roster
from mtlcore.errors import ConfigurationError, MtlError, StateError
from support.architectures import build
from support.methods import Fixed

OPTIONS = {"excess-mtl": {}, "sdmgrad": {"double_sampling": True}, "nash-mtl": {"update_every": 3}}
WRAPPED = ("ema", "cr-mogm")


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
        return torch.stack([torch.randn(7, generator=torch.Generator().manual_seed(seed + 31 * t + 997 * batch)).double()
                            for t in tasks])  # fmt: skip

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
    view = view_of(7, rest, method.batches - 1, index)
    if method.handles_absent:
        pytest.skip("reads absent tasks itself; covered by the numbers of its state")
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
            assert len(changed[key]) == 4 and not changed[key][3].any()
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
    assert torch.equal(found[[1, 2, 0]], wanted) and len(set(wanted.tolist())) == 3
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
    with pytest.raises(ConfigurationError, match="cannot remove task 'nobody'"):
        mt.remove_task("nobody")
    fixed = MultiTask(work.trunk, aggregator=mtlcore.create("aggregator", "ls", weights=(1.0, 2.0, 3.0)))
    fixed.backward(*work.evaluate())
    with pytest.raises(ConfigurationError, match="3"):  # an option per task
        fixed.add_task("new")
    odd = MultiTask(work.trunk, aggregator=Fixed((1.0,) * 3))
    with pytest.raises(StateError, match="'n'"):
        roster.moved(odd.aggregator, {"n": torch.zeros(3)}, [1, 0, 2], 3)
