"""Resumed equals uninterrupted; a state that does not fit is refused before anything changes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from mtlcore import Aggregation, Aggregator, MultiTask, create
from mtlcore.errors import PluginWarning, StateError
from support.architectures import build
from support.methods import Fixed


@dataclass(frozen=True)
class Momentum(Aggregator):
    """Random weights with memory: state, randomness and step all matter."""

    def init(self, n_tasks):
        return {"w": torch.ones(n_tasks, dtype=torch.float64), "t": torch.zeros((), dtype=torch.int64)}

    def aggregate(self, view, state):
        w = 0.5 * state["w"] + torch.rand(view.n_tasks, generator=view.generator, dtype=torch.float64)
        return Aggregation(weights=w, state={"w": w, "t": state["t"] + 1})

    def observe(self, view, state):
        return {**state, "w": state["w"] + view.losses.cpu() / view.losses.sum().cpu()}


def train(work, optimizer, mt, steps):
    return [mt.step(work.evaluate).weights for _ in range(steps)]


def start(seed=5):
    work = build("mlp")
    optimizer = torch.optim.Adam(work.parameters(), lr=1e-2)
    return work, optimizer, MultiTask(work.trunk, aggregator=Momentum(), optimizer=optimizer, seed=seed)


def test_resumed_equals_uninterrupted():
    work, optimizer, mt = start()
    train(work, optimizer, mt, 8)
    first, first_optimizer, first_mt = start()
    train(first, first_optimizer, first_mt, 3)
    file = io.BytesIO()
    torch.save(
        {"trunk": first.trunk.state_dict(), "heads": first.heads.state_dict(), "mt": first_mt.state_dict(),
         "optimizer": first_optimizer.state_dict()}, file,
    )  # fmt: skip
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second, second_optimizer, second_mt = start(seed=99)
    second.trunk.load_state_dict(saved["trunk"])
    second.heads.load_state_dict(saved["heads"])
    second_optimizer.load_state_dict(saved["optimizer"])
    second_mt.load_state_dict(saved["mt"])
    train(second, second_optimizer, second_mt, 5)
    for a, b in zip(work.parameters(), second.parameters()):
        assert torch.equal(a, b)
    assert torch.equal(mt.state_dict()["state"]["w"], second_mt.state_dict()["state"]["w"])


@pytest.mark.parametrize("seed", [np.int64(5), torch.tensor(5)])
def test_a_seed_from_elsewhere_is_the_same_seed_and_can_be_saved(seed):
    """As a number of numpy's it used to make a checkpoint that ``weights_only=True`` refuses."""
    file = io.BytesIO()
    work, optimizer, mt = start(seed)
    weights = train(work, optimizer, mt, 1)[0]
    torch.save(mt.state_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["seed"] == 5
    assert torch.equal(weights, train(*start(5), 1)[0])


def test_the_global_random_state_is_untouched():
    work, optimizer, mt = start()
    before = torch.get_rng_state()
    train(work, optimizer, mt, 2)
    assert torch.equal(before, torch.get_rng_state())


def test_saved_state_is_a_copy():
    work, optimizer, mt = start()
    train(work, optimizer, mt, 1)
    mt.state_dict()["state"]["w"].zero_()
    assert mt.state_dict()["state"]["w"].abs().sum() > 0


@pytest.mark.parametrize("damage", [torch.Tensor.to_sparse, lambda t: t.to("meta")])
@pytest.mark.parametrize(("entry", "key"), [("state", "w"), ("state", "t"), ("refresh", "present"), ("refresh", "age")])
def test_a_tensor_without_numbers_in_rows_is_named(entry, key, damage):
    """A sparse one, or one on the device meta: the first was a raw error of torch, here or in the next step."""
    work = build("mlp")
    optimizer = torch.optim.SGD(work.parameters(), lr=1e-2)
    mt = MultiTask(work.trunk, aggregator=Momentum(), optimizer=optimizer, refresh=3)
    train(work, optimizer, mt, 1)
    state, before = mt.state_dict(), str(mt.state_dict())
    state[entry][key] = damage(state[entry][key])
    with pytest.raises(StateError, match=f"{key!r}.* not a dense one"):
        mt.load_state_dict(state)
    assert str(mt.state_dict()) == before


def test_state_of_another_method():
    work, optimizer, mt = start()
    train(work, optimizer, mt, 1)
    other = MultiTask(work.trunk, aggregator=Fixed((1.0,) * 3))
    with pytest.raises(StateError, match=r"'Momentum'; this run uses 'Fixed'"):
        other.load_state_dict(mt.state_dict())


def test_state_of_the_same_method_by_name_and_by_class():
    """Whether the class is known by its name must not depend on what was created before in the process."""
    from mtlplugins.aggregators.ls import LS

    work = build("mlp")
    mt = MultiTask(work.trunk, aggregator=LS())
    mt.backward(*work.evaluate())
    saved = mt.state_dict()
    MultiTask(work.trunk, aggregator="ls").load_state_dict(saved)
    mt.load_state_dict(saved)


def test_state_of_other_tasks():
    work, optimizer, mt = start()
    train(work, optimizer, mt, 1)
    other = MultiTask(work.trunk, aggregator=Momentum(), tasks=["a", "b"])
    with pytest.raises(StateError, match=r"3 tasks \(t0, t1, t2\); this run has 2 \(a, b\)"):
        other.load_state_dict(mt.state_dict())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", "x"),
        ("seed", None),
        ("step", 10**30),
        ("tasks", 5),
        ("tasks", ["t0", "t1", []]),
        ("tasks", ["t0", "t1", {}]),
        ("teleport_steps", 3),
        ("detections", [1]),
        ("gradient_sources", None),
        ("refresh", None),
        ("methods", 5),
        ("methods", {"aggregator": {"name": "Momentum"}}),
        ("state", {"w": 3}),
    ],
)
def test_a_damaged_state_is_refused_before_anything_changes(key, value):
    work, optimizer, mt = start()
    train(work, optimizer, mt, 1)
    other = start(seed=7)[2]
    before = str(other.state_dict())
    with pytest.raises(StateError, match="not the state of a MultiTask, or a damaged one"):
        other.load_state_dict({**mt.state_dict(), key: value})
    assert str(other.state_dict()) == before


def test_something_else_entirely():
    work, optimizer, mt = start()
    with pytest.raises(StateError, match="not the state of a MultiTask"):
        mt.load_state_dict({"weights": 1})
    state = mt.state_dict()
    with pytest.raises(StateError, match="version 99"):
        mt.load_state_dict({**state, "version": 99})
    train(work, optimizer, mt, 1)
    broken = mt.state_dict()
    del broken["state"]["w"]
    with pytest.raises(StateError, match="lacks 'w'"):
        mt.load_state_dict(broken)


# --- hyper-parameters ---------------------------------------------------------------------------------------------


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def saved_by(**arguments):
    work = build("mlp")
    mt = MultiTask(work.trunk, **arguments)
    mt.backward(*work.evaluate())
    return through_a_file(mt.state_dict())


def loaded_into(state, **arguments):
    """The differences that loading tells of."""
    mt = MultiTask(build("mlp").trunk, **arguments)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        mt.load_state_dict(state)
    assert mt.state_dict()["step"] == state["step"]
    assert all(w.category is PluginWarning and w.filename == __file__ for w in told)
    return [str(w.message) for w in told]


def test_other_hyper_parameters_are_named_with_both_values():
    state = saved_by(aggregator=create("aggregator", "cagrad", c=0.1))
    assert loaded_into(state, aggregator=create("aggregator", "cagrad", c=np.float64(0.1))) == []
    (told,) = loaded_into(state, aggregator=create("aggregator", "cagrad", c=0.9))
    assert "saved with other methods, versions or hyper-parameters: aggregator.c was 0.1, is 0.9. The run" in told


def test_hyper_parameters_of_numpy_are_the_same_numbers_and_can_be_saved():
    options = {"c": np.float64(0.25)}
    state = saved_by(aggregator=create("aggregator", "cagrad", **options))
    assert loaded_into(state, aggregator=create("aggregator", "cagrad", c=0.25)) == []


def test_another_detector_or_teleport_is_named_without_its_options():
    state = saved_by(aggregator="ls", detector=create("detector", "cosine"))
    assert loaded_into(state, aggregator="ls", detector="cosine") == []
    (told,) = loaded_into(state, aggregator="ls")
    assert ": detector was 'cosine', is None. The run" in told
    (told,) = loaded_into(state, aggregator="ls", detector="dominated", teleport="lora")
    assert ": detector was 'cosine', is 'dominated'; teleport was None, is 'lora'. The run" in told


def test_another_version_is_named():
    state = saved_by(aggregator="ls")
    state["methods"]["aggregator"]["distribution"] = "mtlcore 0.0.1"
    (told,) = loaded_into(state, aggregator="ls")
    assert "aggregator (distribution) was 'mtlcore 0.0.1', is 'mtlcore " in told


def test_a_hyper_parameter_that_one_version_lacks():
    state = saved_by(aggregator=create("aggregator", "cagrad", c=0.1))
    options = state["methods"]["aggregator"]["options"]
    options["old"] = options.pop("c")
    (told,) = loaded_into(state, aggregator=create("aggregator", "cagrad", c=0.1))
    assert ": aggregator.c was not there, is 0.1; aggregator.old was 0.1, is not there. The run" in told


@dataclass(frozen=True)
class Around(Aggregator):
    """A method around another one."""

    inner: Aggregator = field(default_factory=Momentum)
    scales: tuple[float, ...] = ()
    function: Callable = len

    def aggregate(self, view, state):
        return self.inner.aggregate(view, state)


def test_hyper_parameters_of_a_method_inside_another_and_sequences():
    cagrad = create("aggregator", "cagrad", c=0.1)
    state = saved_by(aggregator=Around(cagrad, (1.0, 2.0)))
    assert loaded_into(state, aggregator=Around(cagrad, [1.0, 2.0])) == []
    (told,) = loaded_into(state, aggregator=Around(create("aggregator", "cagrad", c=0.2), (1.0, 3.0)))
    assert ": aggregator.inner.c was 0.1, is 0.2; aggregator.scales was [1.0, 2.0], is [1.0, 3.0]. The run" in told
    (told,) = loaded_into(state, aggregator=Around(create("aggregator", "ls"), (1.0, 2.0)))
    assert ": aggregator.inner was 'cagrad', is 'ls'. The run" in told


def test_what_has_no_plain_form_is_not_compared():
    """A function is another object in every process."""
    state = saved_by(aggregator=Around(create("aggregator", "ls"), function=lambda: None))
    assert "function" not in state["methods"]["aggregator"]["options"]
    assert loaded_into(state, aggregator=Around(create("aggregator", "ls"))) == []


def test_a_state_that_does_not_fit_says_which_hyper_parameter_changed():
    state = saved_by(aggregator=create("aggregator", "bilb4mtl", router_optimizer="adam"))
    other = MultiTask(build("mlp").trunk, aggregator=create("aggregator", "bilb4mtl", router_optimizer="sgd"))
    with pytest.raises(StateError, match=r"expected \(1, 3\): aggregator.router_optimizer was 'adam', is 'sgd'\.$"):
        other.load_state_dict(state)


def test_a_warning_that_is_an_error_comes_before_anything_changes():
    other = MultiTask(build("mlp").trunk, aggregator=create("aggregator", "cagrad", c=0.9), seed=7)
    before = str(other.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PluginWarning, match=r"aggregator\.c was 0\.1, is 0\.9"):
            other.load_state_dict(saved_by(aggregator=create("aggregator", "cagrad", c=0.1)))
    assert str(other.state_dict()) == before


@pytest.mark.parametrize(
    ("entry", "value", "culprit"),
    [
        ("first", lambda old: old.long(), "'first'.* has dtype torch.int64"),
        ("first", lambda old: old.to(torch.complex64), "'first'.* has dtype torch.complex64"),
        ("first", lambda old: old[:-1], r"'first'.* has shape \(\d+, \d+\), expected \(\d, 0\)"),
        ("pseudo", lambda old: old > 0, "'pseudo'.* has dtype torch.bool"),
    ],
)
def test_an_entry_that_begins_empty_keeps_its_sort_and_its_tasks(entry, value, culprit):
    """Its size is known after the first step only: the next step blamed the method."""
    made = [build("mlp") for _ in range(2)]
    first, other = (
        MultiTask(work.trunk, "m-config", torch.optim.SGD(work.trunk.parameters(), lr=0.1)) for work in made
    )
    first.step(made[0].evaluate)
    state = first.state_dict()
    other.load_state_dict(state)
    before = str(other.state_dict())
    state["state"] = {**state["state"], entry: value(state["state"][entry])}
    with pytest.raises(StateError, match=culprit):
        other.load_state_dict(state)
    assert str(other.state_dict()) == before
