"""Networks of the kinds that users bring, in whole training loops: a language model with LoRA, a recommender with
sparse tables, a physics-informed network, a loader for each data set."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from mtlcore import MultiTask
from mtlcore.errors import ConfigurationError


def gradients(*modules):
    return [p.grad.clone() for m in modules for p in m.parameters() if p.grad is not None]


# --- a language model with LoRA, made from a config -----------------------------------------------------------------


class LanguageModel:
    """GPT-2 of two layers; the tasks are the next token, and the topic of the text."""

    def __init__(self):
        transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
        torch.manual_seed(0)
        config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.0,
                                         embd_pdrop=0.0, attn_pdrop=0.0)  # fmt: skip
        lora = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
        self.trunk = peft.get_peft_model(transformers.GPT2Model(config), lora)
        self.heads = nn.ModuleDict({"next": nn.Linear(16, 50), "topic": nn.Linear(16, 3)})
        self.tokens, self.topic = torch.randint(50, (8, 12)), torch.randint(3, (8,))
        self.lora = lora

    def losses(self, part=slice(None), share=1.0):
        z = self.trunk(self.tokens[part]).last_hidden_state
        scores, topic = self.heads["next"](z[:, :-1]), self.heads["topic"](z.mean(1))
        return {
            "next": functional.cross_entropy(scores.flatten(0, 1), self.tokens[part, 1:].flatten()) * share,
            "topic": functional.cross_entropy(topic, self.topic[part]) * share,
        }, z

    def optimizer(self):
        return torch.optim.AdamW([p for p in (*self.trunk.parameters(), *self.heads.parameters()) if p.requires_grad])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("method", ["nash-mtl", "famo", "graddrop"])
def test_a_language_model_with_lora_in_micro_batches(method):
    def train(parts):
        model = LanguageModel()
        optimizer, mt = model.optimizer(), MultiTask(model.trunk, method)
        values = []
        for _ in range(3):
            optimizer.zero_grad()
            for part in parts[:-1]:
                mt.accumulate(*model.losses(part, 1 / len(parts)))
            report = mt.backward(*model.losses(parts[-1], 1 / len(parts)))
            optimizer.step()
            with torch.no_grad():
                mt.observe(model.losses()[0])
            values.append(report.losses)
        return values, gradients(model.trunk, model.heads), model

    (values, found, model), (whole, wanted, _) = train([slice(0, 4), slice(4, 8)]), train([slice(None)])
    torch.testing.assert_close(torch.stack(values), torch.stack(whole), rtol=1e-4, atol=1e-5)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-5)
    assert all("lora" in n for n, p in model.trunk.named_parameters() if p.grad is not None)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_second_adapter_of_a_language_model():
    model = LanguageModel()
    mt = MultiTask(model.trunk, "uw")
    mt.backward(*model.losses())
    model.trunk.add_adapter("other", model.lora)
    model.trunk.set_adapter("other")
    with pytest.raises(ConfigurationError, match=r"other.*refresh_parameters"):
        mt.backward(*model.losses())
    mt.refresh_parameters()
    report = mt.backward(*model.losses())
    assert report.step == 1
    reached = {n for n, p in model.trunk.named_parameters() if p.requires_grad and p.grad is not None}
    assert any("other" in n for n in reached)


# --- a recommender with sparse tables -----------------------------------------------------------------------------


class Recommender:
    """Two tables and a tower; nobody may have clicked in a batch, and then two tasks are absent."""

    def __init__(self, sparse=True):
        torch.manual_seed(0)
        self.users, self.items = nn.Embedding(300, 4, sparse=sparse), nn.Embedding(200, 4, sparse=sparse)
        self.tower = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.trunk = nn.ModuleList([self.users, self.items, self.tower])
        self.heads = nn.ModuleDict({t: nn.Linear(16, 1) for t in ("click", "like", "watch")})
        dense = [*self.tower.parameters(), *self.heads.parameters()]
        tables = [self.users.weight, self.items.weight]
        adam = torch.optim.SparseAdam if sparse else torch.optim.Adam
        self.optimizers = [torch.optim.Adam(dense, lr=0.01), adam(tables, lr=0.01)]

    def losses(self, step):
        g = torch.Generator().manual_seed(step)
        user, item = torch.randint(300, (32,), generator=g), torch.randint(200, (32,), generator=g)
        z = self.tower(torch.cat([self.users(user), self.items(item)], 1))
        click = (user + item) % 3 == 0 if step % 3 else torch.zeros(32).bool()
        score = {t: h(z).squeeze(1) for t, h in self.heads.items()}
        losses = {"click": functional.binary_cross_entropy_with_logits(score["click"], click.float())}
        if click.any():
            like, watched = (item[click] % 2).float(), user[click] / 300
            losses["like"] = functional.binary_cross_entropy_with_logits(score["like"][click], like)
            losses["watch"] = (score["watch"][click] - watched).square().mean()
        return losses, z

    def closure(self, step):
        return lambda: self.losses(step)


@pytest.mark.parametrize("method", ["upgrad", "nash-mtl", "famo", "pcgrad"])
def test_a_recommender_with_absent_tasks_resumes_bit_for_bit(method):
    def train(steps, then=None):
        model = Recommender()
        mt = MultiTask(model.trunk, method, model.optimizers, tasks=["click", "like", "watch"], seed=3)
        if then is not None:
            state, networks, optimizers = then
            mt.load_state_dict(state)
            for m, saved in zip((model.trunk, model.heads), networks):
                m.load_state_dict(saved)
            for o, saved in zip(model.optimizers, optimizers):
                o.load_state_dict(saved)
        seen = []
        for step in steps:
            seen.append(mt.step(model.closure(step)))
            assert model.users.weight.grad.is_sparse
        networks = [{k: v.clone() for k, v in m.state_dict().items()} for m in (model.trunk, model.heads)]
        return seen, (mt.state_dict(), networks, [o.state_dict() for o in model.optimizers])

    reports, (_, wanted, _) = train(range(6))
    _, half = train(range(3))
    _, (_, found, _) = train(range(3, 6), half)
    assert reports[0].losses.isnan().tolist() == [False, True, True]
    assert all(torch.equal(a[k], b[k]) for a, b in zip(wanted, found) for k in a)


def test_a_sparse_table_learns_what_a_dense_one_learns():
    """SGD, for Adam moves rows of a dense table that nobody looked up."""

    def train(sparse):
        model = Recommender(sparse)
        everything = [*model.trunk.parameters(), *model.heads.parameters()]
        mt = MultiTask(model.trunk, "upgrad", torch.optim.SGD(everything, lr=0.1))
        for step in (1, 2, 4):
            mt.step(model.closure(step))
        return everything

    for a, b in zip(train(True), train(False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


# --- a physics-informed network -----------------------------------------------------------------------------------


class HeatEquation:
    """u_t = u_xx, with a boundary and a start; every loss is a mean, or a loss for each point."""

    def __init__(self):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
        self.inside, self.side, self.start = torch.rand(3, 24, 2).unbind()
        self.side[:, 0] = (self.side[:, 0] > 0.5).float()
        self.start[:, 1] = 0.0

    def residuals(self):
        x = self.inside.clone().requires_grad_()
        (first,) = torch.autograd.grad(self.net(x).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first[:, 0].sum(), x, create_graph=True)
        return (first[:, 1] - second[:, 0]).square()

    def losses(self):
        start = self.net(self.start) - torch.sin(math.pi * self.start[:, :1])
        return {
            "equation": self.residuals().mean(), "boundary": self.net(self.side).square().mean(),
            "start": start.square().mean(),
        }  # fmt: skip


@pytest.mark.parametrize("method", ["config", "famo", "nash-mtl"])
def test_a_physics_informed_network_learns(method):
    model = HeatEquation()
    mt = MultiTask(model.net, method, torch.optim.Adam(model.net.parameters(), lr=1e-2))
    first, *_, last = [mt.step(model.losses).losses for _ in range(40)]
    assert last[2] < 0.9 * first[2], "what it starts from, the largest loss by far"
    assert last.sum() < 0.9 * first.sum()


def test_every_point_of_a_physics_informed_network_is_a_task():
    model = HeatEquation()
    before = model.residuals()
    mt = MultiTask(model.net, "upgrad", torch.optim.SGD(model.net.parameters(), lr=1e-3))
    report = mt.step(model.residuals)
    assert report.gradient_source.startswith("samples")
    assert bool((model.residuals() <= before + 1e-6).all()), "a method without conflicts raises no residual"


# --- a loader for each data set -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fairgrad", "uw", "graddrop"])
def test_one_task_at_a_time_is_all_at_once(method):
    """Loaders of different length, one graph alive at a time; the method sees the same gradients."""

    def train(together):
        torch.manual_seed(0)
        trunk = nn.Sequential(nn.Linear(5, 12), nn.Tanh())
        heads = nn.ModuleDict({"a": nn.Linear(12, 1), "b": nn.Linear(12, 2)})
        sizes = {"a": (24, 1), "b": (40, 2)}
        sets = {t: torch.utils.data.TensorDataset(torch.randn(n, 5), torch.randn(n, k)) for t, (n, k) in sizes.items()}
        loaders = {t: torch.utils.data.DataLoader(s, 8) for t, s in sets.items()}
        optimizer = torch.optim.SGD([*trunk.parameters(), *heads.parameters()], lr=0.1)
        mt, weights = MultiTask(trunk, method, seed=5), []
        for batches in itertools.islice(zip(itertools.cycle(loaders["a"]), loaders["b"]), 5):
            optimizer.zero_grad()
            losses, features = {}, {}
            for (task, head), (x, y) in zip(heads.items(), batches):
                features[task] = trunk(x)
                losses[task] = (head(features[task]) - y).square().mean()
                if not together and task == "a":
                    mt.accumulate({task: losses.pop(task)}, features={task: features.pop(task)})
            report = mt.backward(losses, features=features)
            weights.append(report.weights)
            optimizer.step()
        return weights, [*trunk.parameters(), *heads.parameters()]

    (mine, found), (theirs, wanted) = train(False), train(True)
    for a, b in zip([*mine, *found], [*theirs, *wanted], strict=True):
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
