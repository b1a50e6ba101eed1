"""A hyper-parameter out of range is refused with its name, its value and what is allowed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import mtlcore
from mtlcore import Aggregation, Aggregator, Brakes, choice, flag, integer, number, text, texts, vector
from mtlcore.errors import ConfigurationError, UnknownPluginError
from mtlcore.gradients.refresh import Refresh
from mtlcore.hyperparameters import allowed
from mtlcore.registry import registry
from mtlcore.teleporting import Teleporter


@dataclass(frozen=True)
class Method(Aggregator):
    c: float = number(0.5, low=0.0, high=2.0, open_high=True)
    n: int = integer(3, low=1)
    mode: str = choice("a", ["a", "b"])
    safe: bool = flag(True)
    weights: tuple[float, ...] | None = vector(None, low=0.0)
    title: str = text("")
    layers: tuple[str, ...] = texts()

    def aggregate(self, view, state):
        return Aggregation(weights=view.losses)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"c": -1.0}, r"Method\(c=-1.0\): c must be a finite number in \[0, 2\)"),
        ({"c": 2.0}, r"in \[0, 2\)"),
        ({"c": float("nan")}, "c must be"),
        ({"c": "0.5"}, "c must be"),
        ({"c": True}, "c must be"),
        ({"n": 0}, r"n must be an integer in \[1, inf\)"),
        ({"n": 1.5}, "n must be an integer"),
        ({"mode": "c"}, "mode must be one of 'a', 'b'"),
        ({"safe": "False"}, "safe must be True or False"),
        ({"mode": 1}, "mode must be one of"),
        ({"mode": np.ones(2)}, "mode must be one of"),
        ({"title": 3}, "title must be a string"),
        ({"layers": (1,)}, "layers must be a sequence of strings"),
        ({"layers": None}, "layers must be a sequence of strings"),
        ({"weights": (1.0, -1.0)}, r"each in \[0, inf\) or None"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        Method(**options)


def test_accepted_and_readable_back():
    method = Method(c=0, n=5, mode="b", safe=False, weights=[1, 2.5])
    assert method.weights == (1, 2.5)
    assert Method(layers=["x", "y"]).layers == ("x", "y")
    assert Method(layers="x").layers == ("x",)
    assert allowed(Method)["c"].high == 2.0
    with pytest.raises(AttributeError):
        method.c = 1.0


# --- every option of everything that is registered --------------------------------------------------------------

KINDS = ("aggregator", "detector", "teleport", "explorer", "merger")
PLUGINS = [(kind, e.name) for kind in KINDS for e in registry().entries(kind)]
WRONG = [None, "x", "", float("nan"), float("inf"), -1, 0, 1.5, True, [], ["x"], (True,), {}, 1j, object(),
         torch.ones(2), torch.tensor(1.0), np.ones(2), np.float32(0.5), np.int64(2)]  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), PLUGINS)
def test_no_option_takes_what_it_does_not_declare(kind, name):
    cls = type(mtlcore.create(kind, name))
    for field in dataclasses.fields(cls):
        for value in WRONG if field.init else ():
            try:
                made = mtlcore.create(kind, name, **{field.name: value})
            except (ConfigurationError, UnknownPluginError) as error:  # the second for the name of another plugin
                said = str(error) if isinstance(error, ConfigurationError) else field.name
            else:
                said = field.name if allowed(cls)[field.name].contains(getattr(made, field.name)) else "accepted"
            assert field.name in said, (field.name, value, said)


OPTIONS = ["tolerance", "trials", "accept", "horizon", "history", "reuse_sign", "reuse_direction", "reuse_over",
           "batch_norm"]  # fmt: skip


@pytest.mark.parametrize("value", [None, "x", float("nan"), -2, True, [], torch.ones(2)])
def test_options_of_the_core_are_checked_alike(value):
    trunk = torch.nn.Linear(2, 2)
    for option in OPTIONS:
        with pytest.raises(ConfigurationError, match=rf"{option} must be"):
            Teleporter("lora", **{option: value})
    for make in (mtlcore.cost, mtlcore.MultiTask):
        with pytest.raises(ConfigurationError, match="tolerance must be"):
            make(trunk, tolerance=value)
    for option in ("check_source", "taken"):
        if value is not True:
            with pytest.raises(ConfigurationError, match=f"{option} must be True or False"):
                mtlcore.MultiTask(trunk, **{option: value})
    with pytest.raises(ConfigurationError, match="start_epoch must be"):
        mtlcore.cost(trunk, start_epoch=value, steps_per_epoch=3)
    refused = [{"gradients": value}, {"refresh": value}, *([] if repr(value) == "-2" else [{"seed": value}])]
    for options in refused:
        with pytest.raises(ConfigurationError):
            mtlcore.MultiTask(trunk, **options)
    for field in dataclasses.fields(Brakes):
        if value is not None or field.name in ("start_step", "cooldown", "detect_every"):
            with pytest.raises(ConfigurationError, match=field.name):
                Brakes(**{field.name: value})
    with pytest.raises(ConfigurationError, match="every must be"):
        Refresh(value)
