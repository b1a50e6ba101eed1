"""Measures in closed form."""

import math
from pathlib import Path

import pytest
import torch

from mtlbench.measures.calibration import expected_calibration_error
from mtlbench.measures.disentanglement import feature_disentanglement
from mtlbench.measures.ensemble import self_ensembled
from mtlbench.measures.gradients import condition_number, magnitude_similarity
from mtlbench.measures.ranking import ranking_similarity
from mtlcore.errors import ConfigurationError


def test_calibration_error_by_hand():
    # Two at 0.9, one right: |1 - 1.8|; two at 0.6, both right: |2 - 1.2|. Over four: (0.8 + 0.8) / 4.
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    labels = torch.tensor([0, 1, 0, 0])
    assert expected_calibration_error(p, labels) == pytest.approx(0.4, abs=1e-6)
    # In one bin the two gaps cancel.
    assert expected_calibration_error(p, labels, bins=1) == pytest.approx(0.0, abs=1e-6)
    assert expected_calibration_error(torch.eye(3), torch.arange(3)) == 0.0
    assert expected_calibration_error(torch.eye(3), torch.tensor([1, 2, 0])) == 1.0


def test_logits_are_refused():
    with pytest.raises(ConfigurationError, match="softmax"):
        expected_calibration_error(torch.tensor([[3.0, -1.0]]), torch.tensor([0]))


def use(*rows):
    """Gradients (K, 1, C) of tasks that use channels like this."""
    return torch.tensor(rows, dtype=torch.float64)[:, None]


def measured(gradients, features=None):
    found = feature_disentanglement(gradients, features)
    return [found.overlap, found.cosine, found.entropy]


def test_disentanglement_is_0_for_equal_use_and_1_for_disjoint_channels():
    assert measured(use([1.0, 3.0], [-2.0, 6.0])) == pytest.approx([0.0] * 3, abs=1e-12)
    for disjoint in (use([1.0, 0.0], [0.0, 5.0]), use([1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 3e-200])):
        assert measured(disjoint) == pytest.approx([1.0] * 3, abs=1e-12)


def test_disentanglement_by_hand():
    # (1/4, 3/4) and (3/4, 1/4): they share 1/2; cos = 6 / 10; 1/4 and 3/4 of each channel, with H = 2 - 3/4 log2 3.
    half = use([1.0, 3.0], [3e-200, 1e-200])
    expected = [0.5, 0.4, 1.0 - (2.0 - 0.75 * math.log2(3.0))]
    assert measured(half) == pytest.approx(expected)
    # Three tasks, two alike: of three pairs two are disjoint. H = log 2 in the channel of two tasks, and w = 2/3.
    third = [2 / 3, 2 / 3, 1.0 - 2 / 3 * math.log(2) / math.log(3)]
    assert measured(use([1.0, 0.0], [1.0, 0.0], [0.0, 1.0])) == pytest.approx(third)


def test_disentanglement_depends_on_neither_scale_nor_order_nor_size_of_the_map():
    draws = torch.Generator().manual_seed(0)
    gradients = torch.randn(3, 4, 5, 2, 2, generator=draws, dtype=torch.float64)
    features = torch.randn(4, 5, 2, 2, generator=draws, dtype=torch.float64)
    for z in (None, features):
        expected = measured(gradients, z)
        assert all(0.0 < v < 1.0 for v in expected)
        scaled = gradients * torch.tensor([1e-150, 1.0, 1e150], dtype=torch.float64).view(3, 1, 1, 1, 1)
        assert measured(scaled, None if z is None else 1e100 * z) == pytest.approx(expected)
        order = torch.randperm(5, generator=draws)
        assert measured(gradients[:, :, order], None if z is None else z[:, order]) == pytest.approx(expected)
        assert measured(gradients.flip(0), z) == pytest.approx(expected)
        twice = [t if t is None else torch.cat([t, t], dim=-1) for t in (gradients, z)]
        assert measured(*twice) == pytest.approx(expected)


def test_entropy_is_the_jensen_shannon_divergence_of_the_shares():
    q = torch.rand(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    q = q / q.sum(1, keepdim=True)
    middle = q.mean(0)
    divergence = torch.stack([(row * (row / middle).log()).sum() for row in q]).mean()
    assert feature_disentanglement(q[:, None]).entropy == pytest.approx(float(divergence) / math.log(3))


def test_gradient_times_input_counts_what_reaches_the_loss():
    gradients, features = use([1.0, 3.0], [3.0, 1.0]), torch.tensor([[3.0, 1.0]])
    # |g z| = (3, 3) and (9, 1): shares 1/2, 1/2 and 9/10, 1/10 share 6/10.
    assert feature_disentanglement(gradients, features).overlap == pytest.approx(0.4)
    # The mean is over sizes: opposite signs of two examples do not cancel.
    signs = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]], [[0.0, 1.0], [0.0, -1.0]]])
    assert feature_disentanglement(signs).overlap == 1.0


@pytest.mark.parametrize(
    ("gradients", "features", "complaint"),
    [
        (torch.tensor([[[1.0]], [[0.0]]]), None, "task 1"),
        (torch.ones(2, 1, 2), torch.zeros(1, 2), "task 0 has no gradient at the features, or only where they are zero"),
        (torch.ones(2, 1, 2), torch.ones(2, 2), r"\(1, 2\) like"),
        (torch.ones(1, 3, 2), None, "K >= 2"),
        (torch.full((2, 1, 2), math.nan), None, "finite"),
    ],
)
def test_what_has_no_disentanglement_is_refused(gradients, features, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        feature_disentanglement(gradients, features)


def test_gradients_of_two_tasks_in_closed_form():
    # Lengths 1 and 3 at a right angle: 2 * 3 / (1 + 9), and singular values 3 and 1.
    assert magnitude_similarity(torch.diag(torch.tensor([1.0, 9.0]))) == pytest.approx(0.6)
    assert condition_number(torch.diag(torch.tensor([1.0, 9.0]))) == pytest.approx(3.0)
    rows = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    assert magnitude_similarity(rows @ rows.T) == pytest.approx(1.0)
    sizes = torch.linalg.svdvals(rows)
    assert condition_number(1e-200 * rows @ rows.T) == pytest.approx(float(sizes[0] / sizes[1]))
    assert condition_number(torch.ones(2, 2)) == math.inf
    assert magnitude_similarity(torch.diag(torch.tensor([1.0, 0.0]))) == 0.0
    assert magnitude_similarity(torch.zeros(2, 2)) == 1.0


def test_ranking_similarity_is_that_of_orders():
    for coefficient in ("kendall", "spearman"):
        assert ranking_similarity([1, 2, 3, 4], [-1e9, 0, 1e-9, math.inf], coefficient).similarity == pytest.approx(1.0)
        assert ranking_similarity([1, 2, 3, 4], [4, 3, 2, 1], coefficient).similarity == pytest.approx(-1.0)
        assert ranking_similarity([1, 2, 3], [5, 5, 5], coefficient) == ranking_similarity([1, 2], [1, 2], coefficient)
    # Of six pairs one is in another order: (5 - 1) / 6; probability of |tau| >= 2/3 among 24 orders: 8 / 24.
    found = ranking_similarity([1, 2, 3, 4], [1, 2, 4, 3])
    assert (found.similarity, found.p) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert ranking_similarity([1, 2, 3, 4], [1, 2, 4, 3], "spearman").similarity == pytest.approx(0.8)
    # A tie: 2 concordant pairs of 3, one tied in the first: tau-b = 2 / sqrt(2 * 3).
    assert ranking_similarity([1, 1, 2], [1, 2, 3]).similarity == pytest.approx(2 / 6**0.5)
    for first, second, coefficient in (([1], [1, 2], "kendall"), ([1, math.nan], [1, 2], "kendall"), ([1], [1], "x")):
        with pytest.raises(ConfigurationError):
            ranking_similarity(first, second, coefficient)


def test_the_page_says_what_the_committed_records_say():
    from mtlbench.studies import identifiers

    root = Path(__file__).parents[2]
    page = (root / "docs" / "explanation" / "measures.md").read_text(encoding="utf-8")
    for suite in ("identifiers", "standard"):
        assert identifiers.table(root / "benchmarks" / "results" / suite) in page


def test_the_surest_member_answers():
    members = torch.tensor([[[0.9, 0.1], [0.4, 0.6]], [[0.2, 0.8], [0.1, 0.9]]])
    assert torch.equal(self_ensembled(members), torch.tensor([[0.9, 0.1], [0.1, 0.9]]))
    assert torch.equal(self_ensembled(members[:1]), members[0])
    assert torch.equal(self_ensembled(members[[0, 0]]), members[0])
    with pytest.raises(ConfigurationError, match="needs probabilities"):
        self_ensembled(members[0])


@pytest.mark.slow
def test_merging_study_has_every_arm(monkeypatch, tmp_path, capsys):
    from mtlbench.studies import merging

    monkeypatch.setattr(merging, "BASE_STEPS", 2)
    monkeypatch.setattr(merging, "EXPERT_STEPS", 2)
    few = {n: merging.MERGERS[n] for n in ("weight-average", "adamerging, per task")}
    few["adamerging, per task"] = ("adamerging", {"per": "task", "steps": 1})
    monkeypatch.setattr(merging, "MERGERS", few)
    merging.main(["--seeds", "1", "--out", str(tmp_path)])
    first = capsys.readouterr().out
    assert sum(line.startswith("| ") for line in first.splitlines()) == 1 + 2 + 2 * 4
    merging.main(["--seeds", "1", "--out", str(tmp_path)])  # nothing is missing
    assert capsys.readouterr().out == first


def test_calibration_of_a_classification_task_does_not_depend_on_its_batches():
    import mtlcore

    task = mtlcore.create("task", "multimnist")
    draws = torch.Generator().manual_seed(0)
    logits, labels = 3 * torch.randn(50, 10, generator=draws), torch.randint(10, (50,), generator=draws)
    whole = task.score("top-left", task.tally("top-left", logits, labels))
    parts = sum(task.tally("top-left", a, b) for a, b in zip(logits.split(7), labels.split(7), strict=True))
    assert task.score("top-left", parts) == pytest.approx(whole)
    assert whole["calibration error"] == pytest.approx(100 * expected_calibration_error(logits.softmax(1), labels))
    assert [m.judged for m in task.metrics if m.task == "top-left"] == [True, False]


@pytest.mark.parametrize(("weights", "expected"), [(((1.0, 0.0), (0.0, 1.0)), 1.0), (((1.0, 2.0), (3.0, 6.0)), 0.0)])
def test_a_run_measures_how_far_its_tasks_share_features(weights, expected):
    from mtlbench.measures import names
    from mtlbench.protocol import conflict
    from mtlbench.tasks.base import Network
    from support.bench_tiny import Tiny

    class Two(Tiny):
        def trunk(self):
            return torch.nn.Linear(5, 2)

        def head(self, task):
            return torch.nn.Linear(2, 1)

    task = Two()
    network = Network(task)
    with torch.no_grad():
        for head, row in zip(network.heads.values(), weights, strict=True):
            head.weight.copy_(torch.tensor([row]))
    probe = conflict.ConflictProbe("two", task, task.load().train, 0, 8)
    probe.look(network, 0)
    probe.look(network, 1)
    found = probe.summary()
    *of_gradients, times_input = (found[name] for name in names.OF_FEATURES)
    assert of_gradients == pytest.approx([expected] * 3, abs=1e-6)
    # Each example counts by its residual, which differs from task to task, times its features.
    assert times_input == pytest.approx(1.0) if expected == 1.0 else 0.0 < times_input < 0.5
