"""The benchmark task whose labels are withheld on one domain: who learns from what, and what validation may know."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import mtlcore
from mtlbench import protocol
from mtlbench.protocol import plan
from mtlbench.suite import MethodEntry
from mtlbench.tasks import withheld
from mtlbench.tasks.base import Network, Split, Splits, evaluate, losses_of

HALF = 24


@pytest.fixture
def small(monkeypatch):
    """The task on random pictures: the parts of MultiMNIST are replaced, all that follows is the task's own."""

    def part(count, seed):
        generator = torch.Generator().manual_seed(seed)
        labels = {n: torch.randint(10, (count,), generator=generator) for n in withheld.LABELLED}
        pictures = torch.randn(count, 1, 36, 36, generator=generator)
        return Split(pictures, labels, torch.arange(seed * 1000, seed * 1000 + count).numpy())

    whole = Splits(train=part(2 * HALF, 1), validation=part(2 * HALF, 2), test=part(2 * HALF, 3))
    monkeypatch.setattr(withheld.MultiMNIST, "load", lambda self: whole)
    withheld._load.cache_clear()
    yield whole
    withheld._load.cache_clear()


def test_each_domain_has_the_labels_of_one_task_and_only_the_test_part_has_all(small):
    splits = mtlcore.create("task", "withheld-digits").load()
    for name in ("train", "validation", "test"):
        split, plain = getattr(splits, name), getattr(small, name)
        for task, domain in withheld.LABELLED.items():
            rows = [slice(0, HALF), slice(HALF, 2 * HALF)]
            seen, other = split.targets[task][rows[domain]], split.targets[task][rows[1 - domain]]
            assert torch.equal(seen, plain.targets[task][rows[domain]])
            if name == "test":
                assert torch.equal(other - 10, plain.targets[task][rows[1 - domain]])
            else:
                assert bool((other == withheld.UNKNOWN).all())
    train = splits.train.inputs
    assert float(train.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(train.std()) == pytest.approx(1.0, abs=1e-5)
    assert not torch.allclose(train[HALF:].mean(), train[:HALF].mean(), atol=0.3)  # the domains differ


def _network(**options):
    torch.manual_seed(0)
    task = mtlcore.create("task", "withheld-digits", **options)
    return task, Network(task), task.load().train.batch(torch.arange(0, 2 * HALF, 3))


@pytest.mark.parametrize("alignment", ["cross", "gt", "both", "plain"])
def test_the_network_learns_from_fooling_and_the_judge_from_telling_apart(small, alignment):
    """The gradients of the one loss are those of the two losses of the game, computed apart."""
    task, network, (inputs, targets) = _network(alignment=alignment, weight=0.5)
    name = "top-left alignment"
    losses_of(task, network(inputs)[0], targets)[name].backward()
    found = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    assert {n.split(".")[0] for n in found} == {"trunk", "heads"}
    assert all(name in n for n in found if n.startswith("heads"))
    network.zero_grad(set_to_none=True)
    judge, seen = network.heads[name].judge, targets[name] != withheld.UNKNOWN
    predictions = network.trunk(inputs)[:, :10].softmax(1)
    (0.5 * withheld.fooling_loss(judge.frozen(predictions[~seen]), alignment)).backward()
    known = judge.of_labels(targets[name][seen]) if judge.sources == 3 else None
    withheld.own_loss(known, judge(predictions[seen].detach()), judge(predictions[~seen].detach())).backward()
    for n, p in network.named_parameters():
        assert (p.grad is None) == (n not in found)
        if p.grad is not None:
            torch.testing.assert_close(found[n], p.grad)


def test_withheld_labels_reach_no_loss(small):
    task, network, (inputs, targets) = _network(alignment="none")
    before = losses_of(task, network(inputs)[0], targets)
    assert list(before) == list(withheld.LABELLED)
    seen = targets["top-left"] != withheld.UNKNOWN
    outputs = network(inputs)[0]["top-left"]
    by_hand = torch.nn.functional.cross_entropy(outputs[seen], targets["top-left"][seen])
    torch.testing.assert_close(before["top-left"], by_hand)


def test_a_batch_of_one_domain_has_no_alignment(small):
    task, network, _ = _network()
    inputs, targets = task.load().train.batch(torch.arange(8))
    assert list(losses_of(task, network(inputs)[0], targets)) == ["top-left"]


def test_accuracy_counts_what_is_known(small):
    task, network, _ = _network()
    splits = task.load()
    validation, test = (evaluate(task, network, p, batch_size=7) for p in (splits.validation, splits.test))
    for name, domain in withheld.LABELLED.items():
        right = network(splits.test.inputs)[0][name].argmax(1) == splits.test.targets[name] % 10
        other = right[HALF:] if domain == 0 else right[:HALF]
        assert test[f"{name}/accuracy"] == pytest.approx(100 * float(right.double().mean()))
        assert test[f"{name}/accuracy, withheld"] == pytest.approx(100 * float(other.double().mean()))
        assert math.isnan(validation[f"{name}/accuracy, withheld"])
        assert math.isfinite(validation[f"{name}/accuracy"])
    assert 0.0 <= test["top-left alignment/told apart"] <= 100.0
    assert set(test) == {m.key for m in task.metrics}


def test_validation_cannot_choose_by_withheld_labels(small):
    """Other withheld labels, the same validation metrics."""
    task, network, _ = _network()
    before = evaluate(task, network, task.load().validation)
    small.validation.targets["top-left"][HALF:] = (small.validation.targets["top-left"][HALF:] + 1) % 10
    withheld._load.cache_clear()
    after = evaluate(task, network, task.load().validation)
    assert {k: v for k, v in before.items() if v == v} == {k: v for k, v in after.items() if v == v}


@pytest.mark.parametrize("method", ["ls", "upgrad"])
def test_it_trains_by_the_protocol_with_its_baselines(small, monkeypatch, method):
    monkeypatch.setattr(plan, "PROBES", 1)
    task = mtlcore.create("task", "withheld-digits", weight=0.1)
    budget = dataclasses.replace(task.budget, steps=4, batch_size=12, evaluations=2)
    alone = protocol.train_single_tasks("withheld-digits", task, 0, budget)
    found = protocol.train("withheld-digits", task, MethodEntry(name=method), 0, budget, alone.validation)
    assert set(found.metrics) == set(alone.metrics) == {m.key for m in task.metrics}
    assert protocol.delta_m(found.metrics, alone.metrics, task.metrics) is not None
    assert found.conflict["min_cosine"] is not None
