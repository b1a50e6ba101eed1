"""Tuning: the learning rate first, then options; the same number of trials for everybody; validation only."""

from __future__ import annotations

import json
import math
import random

import pytest

from mtlbench import certification, protocol, records, runner, tuning
from mtlbench.report.page import write
from mtlbench.suite import SINGLE_TASK, MethodEntry, Tuning
from mtlbench.tasks.base import Budget
from mtlcore.errors import ConfigurationError

BUDGET = Budget(steps=10, batch_size=4, learning_rate=1e-3)
SIX = Tuning(trials=6)
LS = MethodEntry(name="ls")
CAGRAD = MethodEntry(name="cagrad", search={"c": [0.2, 0.5, 0.8, 1.0]})
ROUTER = MethodEntry(name="bilb4mtl", search={"lamb": [0.01, 0.1, 0.5], "normalisation": ["log", "identical"]})


@pytest.mark.parametrize("method", [None, LS, CAGRAD, ROUTER], ids=["baseline", "ls", "cagrad", "bilb4mtl"])
@pytest.mark.parametrize("trials", [3, 4, 6, 9])
def test_everybody_gets_the_same_number_of_different_trials(method, trials):
    plan = Tuning(trials=trials)
    first = tuning.first_stage(method, plan, BUDGET)
    second = tuning.second_stage(method, plan, BUDGET, 3e-3)
    assert len(first) + len(second) == trials
    assert len({json.dumps(setting, sort_keys=True) for setting in first + second}) == trials


def test_the_first_stage_is_the_grid_with_default_options_and_the_task_s_own_rate_first():
    for method, options in ((None, {}), (MethodEntry(name="gradops", options={"alpha": -1.0}), {"alpha": -1.0})):
        stage = tuning.first_stage(method, SIX, BUDGET)
        assert [rate for rate, _ in stage] == pytest.approx([1e-3, 1e-3 / 3, 3e-3])
        assert all(given == options for _, given in stage)


def test_the_second_stage_tries_options_at_the_best_rate_and_not_the_defaults_again():
    stage = tuning.second_stage(CAGRAD, SIX, BUDGET, 3e-3)
    assert {rate for rate, _ in stage} == {3e-3}
    assert {options["c"] for _, options in stage} == {0.2, 0.8, 1.0}  # 0.5 is what cagrad does anyway


def test_every_value_comes_once_before_any_comes_twice():
    stage = tuning.second_stage(ROUTER, SIX, BUDGET, 1e-3)
    assert sorted(options["lamb"] for _, options in stage) == [0.01, 0.1, 0.5]
    assert {options["normalisation"] for _, options in stage} == {"log", "identical"}


def test_with_cost_the_same_options_are_tried_as_without():
    with_cost = ROUTER.model_copy(update={"name": "router + COST", "teleport": "lora", "detector": "dominated"})
    assert tuning.second_stage(ROUTER, SIX, BUDGET, 1e-3) == tuning.second_stage(with_cost, SIX, BUDGET, 1e-3)


def test_without_options_the_second_stage_goes_nearer_to_the_best_rate():
    around = [rate for rate, _ in tuning.second_stage(LS, Tuning(trials=7), BUDGET, 1e-3)]
    assert around == pytest.approx([1e-3 * 3**0.5, 1e-3 / 3**0.5, 1e-3 * 3**0.25, 1e-3 / 3**0.25])
    assert tuning.second_stage(None, Tuning(trials=7), BUDGET, 1e-3) == [(rate, {}) for rate in around]
    beyond = [rate for rate, _ in tuning.second_stage(LS, Tuning(trials=5), BUDGET, 3e-3)]
    assert beyond == pytest.approx([3e-3 * 3**0.5, 3e-3 / 3**0.5])


def test_options_that_run_out_are_followed_by_learning_rates():
    few = MethodEntry(name="cagrad", options={"rescale": "1+c"}, search={"c": [0.5, 0.8]})
    stage = tuning.second_stage(few, SIX, BUDGET, 1e-3)
    assert stage[0] == (1e-3, {"rescale": "1+c", "c": 0.8})
    assert [options for _, options in stage[1:]] == [{"rescale": "1+c"}] * 2
    assert [rate for rate, _ in stage[1:]] == pytest.approx([1e-3 * 3**0.5, 1e-3 / 3**0.5])


def _searched(score, n_tasks, trials):
    """All weights that a search tries, in rounds, with their scores."""
    scores = {tuning.weights_of([0.0] * n_tasks): score(tuning.weights_of([0.0] * n_tasks))}
    while new := tuning.coordinate_search(n_tasks, scores, trials - len(scores) + 1):
        assert len(new) <= 2
        assert not set(new) & set(scores)
        scores |= {w: score(w) for w in new}
    return scores


@pytest.mark.parametrize("n_tasks", [2, 3, 5])
@pytest.mark.parametrize("trials", [1, 4, 21])
def test_a_search_of_weights_spends_its_trials_and_never_twice_on_the_same(n_tasks, trials):
    scores = _searched(lambda w: sum(x * i for i, x in enumerate(w)), n_tasks, trials)
    assert len(scores) == trials + 1
    assert all(sum(w) == pytest.approx(1.0, abs=1e-5) for w in scores)
    assert min(scores, key=scores.__getitem__)[0] > 1 / n_tasks  # who is cheapest gains


def test_a_search_of_weights_comes_closer_to_the_best_ones_than_as_many_draws():
    """In the mean over problems whose best weights are drawn; equal weights and one round are not enough."""
    generator = random.Random(0)
    gaps = {"searched": [], "drawn": [], "equal": []}
    for _ in range(40):
        wish = [generator.gauss(0.0, 1.2) for _ in range(3)]

        def score(w, wish=wish):
            logs = [math.log(x) - y for x, y in zip(w, wish)]
            return sum((x - sum(logs) / 3) ** 2 for x in logs)

        gaps["searched"].append(min(_searched(score, 3, 21).values()))
        draws = ([generator.expovariate(1.0) for _ in range(3)] for _ in range(21))
        gaps["drawn"].append(min(score([x / sum(d) for x in d]) for d in draws))
        gaps["equal"].append(score([1 / 3] * 3))
    means = {name: sum(found) / len(found) for name, found in gaps.items()}
    assert means["searched"] < 0.6 * means["drawn"] < 0.3 * means["equal"]


def test_a_trial_of_weights_without_a_score_is_not_asked_for_again():
    plan, equal = Tuning(trials=8), [({}, 1.0), ({}, 2.0), ({}, math.inf)]
    first = tuning.weights_stage(plan, 1e-3, 2, equal)
    assert [rate for rate, _ in first] == [1e-3, 1e-3]
    assert [options["weights"] for _, options in first] == [[0.8, 0.2], [0.2, 0.8]]
    then = tuning.weights_stage(plan, 1e-3, 2, [*equal, (first[0][1], math.inf), (first[1][1], 3.0)])
    assert [options["weights"] for _, options in then] == [[2 / 3, 1 / 3], [1 / 3, 2 / 3]] or len(then) == 2
    assert all(options["weights"] not in ([0.8, 0.2], [0.2, 0.8]) for _, options in then)


@pytest.mark.parametrize(
    "changes", [{"aggregator": "cagrad"}, {"search": {"draw": [1]}}, {"options": {"draw": 1}}]
)  # fmt: skip
def test_only_fixed_weights_are_searched(changes):
    with pytest.raises(ValueError, match="search_weights of 'mine' needs aggregator = 'ls'"):
        MethodEntry.model_validate({"name": "mine", "aggregator": "ls", "search_weights": True, **changes})


def test_the_edge_of_the_grid():
    edges = {rate: tuning.at_the_edge(SIX, BUDGET, rate) for rate in (1e-3 / 3, 1e-3, 2e-3, 3e-3, 5e-3)}
    assert edges == {1e-3 / 3: True, 1e-3: False, 2e-3: False, 3e-3: True, 5e-3: True}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"trials": 2}, "trials = 2 cannot try 3 learning rates"),
        ({"learning_rate_factors": [0.5, 2.0]}, "with 1.0"),
        ({"learning_rate_factors": [1.0]}, "at least one other"),
        ({"learning_rate_factors": [1.0, 3.0, 3.0]}, "different"),
        ({"learning_rate_factors": [1.0, -3.0]}, "greater than 0"),
    ],
)
def test_impossible_plans_are_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        Tuning.model_validate(changes)


def test_an_option_without_values_is_refused():
    with pytest.raises(ValueError, match=r"search.c"):
        MethodEntry(name="cagrad", search={"c": []})


def test_a_value_that_cannot_be_tried_is_refused_before_anything_is_trained(tiny, tmp_path):
    suite = tiny.suite({"name": "cagrad", "search": {"c": [0.2, -1.0]}}, reference="cagrad", tuning={"trials": 5})
    with pytest.raises(ConfigurationError, match=r"c=-1\.0"):
        runner.run(suite, tmp_path, certify=False, console=tiny.quiet())
    assert not (tmp_path / "trials.jsonl").exists()


# --- whole tunings with a trainer that only looks at the setting ---------------------------------------------------


@pytest.fixture
def trainer(tiny, monkeypatch):
    """Training gives ``error(learning rate, options)`` as every metric (None: it fails); returns where to put it."""
    task, rule = tiny.Tiny(), {}

    def outcome(rate, options):
        error = rule["error"](rate, options)
        if error is None:
            raise RuntimeError("diverged on purpose")
        return protocol.Outcome({m.key: error for m in task.metrics}, {m.key: error for m in task.metrics}, 1)

    monkeypatch.setattr(
        protocol,
        "train",
        lambda name, task, method, seed, budget, *a, **k: outcome(budget.learning_rate, method.options),
    )
    monkeypatch.setattr(
        protocol, "train_single_tasks", lambda name, task, seed, budget, *a, **k: outcome(budget.learning_rate, {})
    )
    return rule


def _tuned(tiny, folder, **changes):
    suite = tiny.suite("ls", {"name": "gradops", "search": {"alpha": [-2.0, -1.0, 1.0]}}, reference="ls",
                       tuning={"trials": 6}, seeds=1, **changes)  # fmt: skip
    summary = runner.run(suite, folder, certify=False, console=tiny.quiet())
    tuned = json.loads((folder / "suite.json").read_text())["tuned"]["tiny"]
    trials, _ = records.read(folder / "trials.jsonl")
    return summary, tuned, trials


def test_a_learning_rate_cannot_choose_the_options(tiny, tmp_path, trainer):
    """The mistake this is for: a high rate helps a lot, alpha = -1 a little, alpha = -2 harms."""
    trainer["error"] = lambda rate, options: (
        1.0 - 10 * rate + {0.0: 0.1, -2.0: 0.2, -1.0: 0.0, 1.0: 0.1}[options.get("alpha", 0.0)]
    )
    summary, tuned, trials = _tuned(tiny, tmp_path)
    assert summary.ok
    assert (tuned["gradops"]["learning_rate"], tuned["gradops"]["options"]) == (pytest.approx(3e-2), {"alpha": -1.0})
    assert tuned["gradops"]["at_the_edge"]
    assert tuned["ls"]["learning_rate"] == pytest.approx(3e-2 * 3**0.5)
    for method in (SINGLE_TASK, "ls", "gradops"):
        mine = [t for t in trials if t.method == method]
        assert sorted(t.trial for t in mine) == list(range(6))
        assert all(t.metrics is None and t.delta_m is None and t.seed == tuning.TRIAL_SEED for t in mine)
        used = next(r for r in records.read(tmp_path / "records.jsonl")[0] if r.method == method).hyperparameters
        assert used.budget.learning_rate == tuned[method]["learning_rate"]
        assert (used.method.options if used.method else {}) == tuned[method]["options"]


def test_what_tuning_chooses_is_certified_as_it_is_trained(tiny, tmp_path, trainer, monkeypatch):
    trainer["error"] = lambda rate, options: options.get("c", 1.0)
    asked = []

    def certify(kind, name, options):
        asked.append(options)
        found = {"kind": kind, "name": name, "options": options, "seconds": 0.0, "rows": []}
        return {**found, "passed": options != {"c": 0.8}, "summary": f"{options}"}

    monkeypatch.setattr(certification, "certify_one", certify)
    method = {"name": "cagrad", "search": {"c": [0.2, 0.6]}}
    runner.run(tiny.suite(method, reference="cagrad", tuning={"trials": 5}), tmp_path, console=tiny.quiet())
    assert sorted(asked, key=str) == [{"c": 0.2}, {"c": 0.6}, {}]
    for record in records.read(tmp_path / "records.jsonl")[0]:
        if record.method == "cagrad":
            assert record.hyperparameters.method.options == {"c": 0.2}
            assert record.certificate.summary == "cagrad: {'c': 0.2}"

    method["search"] = {"c": [0.8]}
    console = tiny.quiet()
    refused = runner.run(
        tiny.suite(method, reference="cagrad", tuning={"trials": 5}), tmp_path, console=console
    ).refused
    assert refused == ["cagrad"]
    assert "cagrad (c = 0.8)" in console.file.getvalue()


def test_weights_are_searched_by_validation_and_the_search_goes_on_where_it_stopped(tiny, tmp_path, trainer):
    """The best weights are 4 : 1; every arm has as many trials, and the search asks again for nothing."""

    def error(rate, options):
        w = options.get("weights", (0.5, 0.5))
        return 1.0 + abs(rate - 1e-2) + abs(math.log(w[0] / w[1]) - math.log(4.0))

    trainer["error"] = error
    methods = ["ls", {"name": "searched", "aggregator": "ls", "search_weights": True}]
    suite = tiny.suite(*methods, reference="ls", tuning={"trials": 9}, seeds=1)
    assert runner.run(suite, tmp_path / "whole", certify=False, console=tiny.quiet()).ok
    tuned = json.loads((tmp_path / "whole" / "suite.json").read_text())["tuned"]["tiny"]
    assert tuned["searched"]["options"] == {"weights": [0.8, 0.2]}
    assert tuned["searched"]["learning_rate"] == pytest.approx(1e-2)
    lines = (tmp_path / "whole" / "trials.jsonl").read_text().splitlines()
    trials, _ = records.read(tmp_path / "whole" / "trials.jsonl")
    assert [sum(t.method == m for t in trials) for m in (SINGLE_TASK, "ls", "searched")] == [9, 9, 9]
    used = [r for r in records.read(tmp_path / "whole" / "records.jsonl")[0] if r.method == "searched"]
    assert used[0].hyperparameters.method.options == {"weights": [0.8, 0.2]}
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "trials.jsonl").write_text("\n".join(lines[:-3]) + "\n")
    summary = runner.run(suite, tmp_path / "cut", certify=False, console=tiny.quiet())
    assert summary.already == len(lines) - 3
    assert json.loads((tmp_path / "cut" / "suite.json").read_text())["tuned"]["tiny"] == tuned


def test_searched_weights_are_certified_by_a_draw_that_stands_for_them(tiny, tmp_path, trainer, monkeypatch):
    trainer["error"] = lambda rate, options: 2.0 - options.get("weights", (0.5, 0.5))[0]
    asked = []

    def certify(kind, name, options):
        asked.append(options)
        return {
            "kind": kind, "name": name, "options": options, "seconds": 0.0, "rows": [], "passed": True,
            "summary": f"{options}",
        }  # fmt: skip

    monkeypatch.setattr(certification, "certify_one", certify)
    method = {"name": "searched", "aggregator": "ls", "search_weights": True}
    runner.run(tiny.suite(method, reference="searched", tuning={"trials": 5}), tmp_path, console=tiny.quiet())
    assert asked == [{}, {"draw": 1}]
    (used,) = {r.certificate.summary for r in records.read(tmp_path / "records.jsonl")[0] if r.method == "searched"}
    assert used == "ls: {'draw': 1}"


def test_defaults_win_ties(tiny, tmp_path, trainer):
    trainer["error"] = lambda rate, options: 1.0
    _, tuned, _ = _tuned(tiny, tmp_path)
    assert {name: (c["trial"], c["learning_rate"], c["options"]) for name, c in tuned.items()} == {
        name: (0, 1e-2, {}) for name in (SINGLE_TASK, "ls", "gradops")
    }


def test_an_interrupted_tuning_goes_on_and_chooses_the_same(tiny, tmp_path, trainer):
    trainer["error"] = lambda rate, options: abs(rate - 2e-2) + 0.001 * abs(options.get("alpha", 0.0) - 1)
    _, whole, _ = _tuned(tiny, tmp_path / "whole")
    lines = (tmp_path / "whole" / "trials.jsonl").read_text().splitlines()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "trials.jsonl").write_text("\n".join(lines[:11]) + "\n")
    summary, again, trials = _tuned(tiny, tmp_path / "cut")
    assert again == whole
    assert (summary.already, len(trials)) == (11, 18)
    assert _tuned(tiny, tmp_path / "cut")[0].finished == 0


def test_a_trial_that_fails_is_named_and_the_others_decide(tiny, tmp_path, trainer):
    trainer["error"] = lambda rate, options: None if rate > 2e-2 else 1.0 - rate
    summary, tuned, _ = _tuned(tiny, tmp_path)
    assert "gradops on tiny, trial 2" in summary.failed
    assert tuned["gradops"]["learning_rate"] == pytest.approx(1e-2)


def test_a_default_rate_that_fails_does_not_end_the_tuning(tiny, tmp_path, trainer):
    """The baseline's own first trial is what its others are held against, if there is one."""
    trainer["error"] = lambda rate, options: None if rate == 1e-2 else 1.0 - 10 * rate
    summary, tuned, _ = _tuned(tiny, tmp_path)
    assert f"{SINGLE_TASK} on tiny, trial 0" in summary.failed
    assert tuned.keys() == {SINGLE_TASK, "ls", "gradops"}
    assert all(c["learning_rate"] >= 3e-2 for c in tuned.values())


def test_without_any_score_the_defaults_are_used_and_it_is_said(tiny, tmp_path, trainer):
    trainer["error"] = lambda rate, options: None
    console = tiny.quiet()
    suite = tiny.suite("ls", reference="ls", tuning={"trials": 3}, seeds=1)
    assert not runner.run(suite, tmp_path, certify=False, console=console).ok
    assert "not tuned ls on tiny" in console.file.getvalue()


def test_the_report_says_what_was_chosen(tiny, tmp_path, trainer):
    trainer["error"] = lambda rate, options: 1.0 - 10 * rate + 0.01 * options.get("alpha", 0.0)
    _tuned(tiny, tmp_path)
    page = write(tmp_path, tmp_path / "report.html", tmp_path / "numbers.json").read_text()
    assert "tuned with 6 trials" in page
    assert "first 3 learning rates" in page
    assert "alpha = -2.0" in page
    assert "at the edge of the grid" in page
    rows = json.loads((tmp_path / "numbers.json").read_text())["tuned"]
    assert [(row["method"], row["options"]) for row in rows] == [
        (SINGLE_TASK, {}), ("ls", {}), ("gradops", {"alpha": -2.0}),
    ]  # fmt: skip
