"""What a view hands out: copies, numbers, and features that are looked at only when asked for."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from mtlcore import StepView


def test_losses_as_a_tensor_or_as_plain_numbers() -> None:
    graph = torch.tensor([1.5, 2.0], requires_grad=True) * 2.0
    for view in (StepView(losses=graph), StepView(losses=[3.0, 4.0]), StepView(losses=torch.tensor([3, 4]))):
        assert view.n_tasks == 2
        assert view.loss_values == (3.0, 4.0)
        assert all(isinstance(value, float) for value in view.loss_values)
        assert torch.equal(view.losses, torch.tensor([3.0, 4.0], dtype=torch.float64))
        assert not view.losses.requires_grad
        view.losses.zero_()
        assert view.loss_values == (3.0, 4.0)
        assert view.losses.tolist() == [3.0, 4.0], "the view was written to"


def test_the_view_of_some_tasks() -> None:
    part = StepView(losses=[1.0, 2.0, 3.0]).restricted(torch.tensor([True, False, True]))
    assert part.loss_values == (1.0, 3.0)
    assert part.task_index == (0, 2)


def test_features_come_without_a_graph() -> None:
    z = torch.ones(2, 3, requires_grad=True) * 2.0
    handed = [z]
    view = StepView(losses=[1.0], features=handed)
    handed.clear()
    assert not view.features[0].requires_grad
    assert torch.equal(view.features[0], z)
    assert StepView(losses=[1.0]).features == ()


@pytest.mark.parametrize("name", ["losses", "loss_values", "features"])
def test_a_view_is_immutable(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(StepView(losses=[1.0]), name, None)


@pytest.mark.parametrize("take", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_view_says_that_it_cannot_be_copied(take) -> None:
    """It used to say that a method cannot set view._complete."""
    with pytest.raises(TypeError, match=r"cannot be copied or pickled: keep what you need of it, such as view\.losses"):
        take(StepView(losses=[1.0, 2.0], gramian=torch.eye(2)))
