"""Exact teleports: symmetries hold on unseen data, predictions equal recomputation, histories follow."""

from __future__ import annotations

import copy
import math
import random
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn

import mtlcore
from mtlcore.teleporting import Teleporter
from mtlplugins.teleports.symmetry import channels, tracing
from mtlplugins.teleports.symmetry.channels import find_groups
from mtlplugins.teleports.symmetry.general_maps import Block, optimise
from mtlplugins.teleports.symmetry.scaling import factors, rounds, tables
from mtlplugins.teleports.symmetry.worst_cosine import worst_cosine
from support.teleport_nets import TASKS, Falling, problem, teleport, view

MOVES = [
    ("relu-rescaling", "mlp"),
    ("relu-rescaling", "conv"),
    ("relu-rescaling", "conv1d"),
    ("relu-rescaling", "conv3d"),
    ("relu-rescaling", "residual"),
    ("relu-rescaling", "attention"),
    ("random", "mlp"),
    ("random", "residual"),
    ("attention-qk", "attention"),
    ("attention-qk full", "attention"),
    ("linear-boundary", "mlp"),
    ("linear-boundary", "conv"),
    ("linear-boundary", "residual"),
    ("linear-boundary", "attention"),
]


def named(name: str) -> tuple[str, dict]:
    """ "attention-qk full" is the strategy with its full maps."""
    return (name.removesuffix(" full"), {"maps": "full"}) if name.endswith(" full") else (name, {})


@pytest.mark.parametrize(("name", "kind"), MOVES)
@pytest.mark.parametrize("training", [True, False])
def test_every_loss_is_kept_on_unseen_inputs(name, kind, training):
    made = problem(kind)
    made.trunk.train(training)
    for part in made.trunk.modules():
        if isinstance(part, (nn.Dropout, nn.MultiheadAttention)):
            part.eval()  # so that two evaluations can be compared at all
    start = {n: p.detach().clone() for n, p in made.trunk.named_parameters()}
    before = [made.losses(seed) for seed in (50, 51)]
    result = teleport(made, *named(name), detector=Falling())
    assert result.accepted, result.reason
    moved = [
        n for n, p in made.trunk.named_parameters() if float((p.detach() - start[n]).norm() / start[n].norm()) > 1e-3
    ]
    assert moved, "the teleport went nowhere"
    for seed, old in zip((50, 51), before):
        new = made.losses(seed)
        for task in TASKS:
            assert new[task] == pytest.approx(old[task], rel=1e-9), (name, kind, task)


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, k in MOVES if n != "random"])
def test_the_search_lowers_the_conflict_of_its_own_batch(name, kind):
    made = problem(kind)
    closure = made.batch(0)
    result = teleport(made, *named(name), closure=closure, probe=closure)
    assert result.accepted, result.reason
    assert result.conflict_after < result.conflict_before


def propose(made, name: str, options: dict | None = None) -> mtlcore.Displacement:
    """What a strategy proposes on batch 0; the network stays."""
    inner = mtlcore.create("teleport", name, **(options or {}))
    found = []

    class Asked(mtlcore.TeleportStrategy):
        def propose(self, problem, generator):
            found.append(inner.propose(problem, generator))
            return mtlcore.Displacement({})

    teleport(made, Asked())
    return found[0]


def severity(made) -> float:
    detector = mtlcore.create("detector", "dominated", rule="any")
    return detector.detect(mtlcore.StepView(losses=torch.ones(len(TASKS)), gramian=gramian(made))).severity


def test_full_maps_of_attention_mix_the_channels_of_a_head_and_go_further_than_diagonal_ones():
    made = problem("attention")
    made.trunk.eval()
    full, diagonal = (propose(made, "attention-qk", {"maps": maps}) for maps in ("full", "diagonal"))
    assert set(full.parameters) == set(diagonal.parameters)
    matrix = full.maps["attend.in_proj_weight"].matrix
    heads = torch.block_diag(*[torch.ones(4, 4)] * 6).bool()
    assert not matrix[~heads].any(), "no head may see another head, no query a key"
    assert float(matrix[heads].abs().sum() - matrix.diagonal().abs().sum()) > 0.1, "more than a rescaling"
    reached = {}
    for name, proposal in (("full", full), ("diagonal", diagonal)):
        moved = problem("attention")
        moved.trunk.eval()
        with torch.no_grad():
            for n, value in proposal.parameters.items():
                dict(moved.trunk.named_parameters())[n].copy_(value)
        reached[name] = severity(moved)
    assert reached["full"] < reached["diagonal"] < severity(made)


def test_full_maps_of_attention_carry_momentum_exactly():
    made = problem("attention")
    made.trunk.eval()
    optimizer = made.optimizer(torch.optim.SGD, lr=0.0, momentum=0.9)
    made.train(optimizer, 4)
    assert teleport(made, "attention-qk", {"maps": "full"}, optimizer=optimizer, detector=Falling()).accepted
    fresh = made.optimizer(torch.optim.SGD, lr=0.0, momentum=0.9)
    made.train(fresh, 4)
    for p in made.parameters():
        expected = fresh.state[p]["momentum_buffer"]
        torch.testing.assert_close(
            optimizer.state[p]["momentum_buffer"], expected, rtol=1e-8, atol=1e-10 * float(expected.abs().max())
        )


def test_no_rule_could_carry_a_second_moment_through_a_full_map():
    """Two histories with the same mean squares, whose mean squares differ after a rotation: the reason for diagonal
    maps by default."""
    histories = torch.tensor([[[1.0, 1.0], [-1.0, -1.0]], [[1.0, -1.0], [-1.0, 1.0]]])
    rotation = torch.tensor([[1.0, 1.0], [-1.0, 1.0]]) / 2**0.5
    before, after = histories.square().mean(dim=1), (histories @ rotation.T).square().mean(dim=1)
    assert torch.equal(before[0], before[1])
    assert not torch.allclose(after[0], after[1])


def random_gramian(k: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(k, 6)) * np.logspace(-2, 2, k)[:, None]
    return rows @ rows.T


@pytest.mark.parametrize("measure", ["dominated", "pairwise"])
@pytest.mark.parametrize("dead", [False, True])
def test_slope_of_the_worst_cosine_is_that_of_finite_differences(measure, dead):
    gram = random_gramian(4, 1)
    if dead:
        gram[2] = gram[:, 2] = 0.0
    value, slope = worst_cosine(gram, measure)
    size = np.sqrt(gram.diagonal())
    noise = np.random.default_rng(2).normal(size=gram.shape)
    direction = np.outer(size, size) * (noise + noise.T)  # every entry in its own unit
    up, down = (worst_cosine(gram + h * direction, measure)[0] for h in (1e-6, -1e-6))
    assert (slope * direction).sum() == pytest.approx((up - down) / 2e-6, rel=1e-6)
    with np.errstate(invalid="ignore"):
        cos = gram / np.outer(size, size) if measure == "pairwise" else gram.mean(axis=0) / size / gram.mean() ** 0.5
    off = cos[np.triu_indices(4, 1)] if measure == "pairwise" else cos
    assert np.nanmin(off) - 0.05 * np.log(6) <= value <= np.nanmin(off)


def test_closed_form_gramian_of_general_maps_equals_recomputation():
    """The search is right about the point that it proposes: its gain is that of the gradients there."""
    g = torch.Generator().manual_seed(4)
    made, used, rest = (torch.randn(3, n, m, generator=g, dtype=torch.float64) for n, m in ((5, 7), (5, 4), (1, 9)))
    (matrix,) = optimise(
        [Block(made, used)], [rest.flatten(1)], "dominated", bound=0.7, directions=3, stiffness=0.0, steps=60
    )
    moved = [torch.linalg.inv(matrix).T @ made, matrix @ used, rest]
    before, after = (sum(p.flatten(1) @ p.flatten(1).T for p in parts).numpy() for parts in ([made, used, rest], moved))
    assert worst_cosine(after, "dominated")[0] > worst_cosine(before, "dominated")[0] + 0.05
    logs = torch.linalg.svdvals(matrix).log()
    assert float(logs.abs().max()) <= 0.7 + 1e-9
    assert int((logs.abs() > 1e-9).sum()) <= 3, "it acts on the subspace only"


def gramian(made) -> torch.Tensor:
    losses, _ = made.batch(0)()
    shared = list(made.trunk.parameters())
    rows = [torch.autograd.grad(losses[t], shared, retain_graph=True) for t in TASKS]
    return torch.stack([torch.stack([sum((x * y).sum() for x, y in zip(a, b)) for b in rows]) for a in rows])


@pytest.mark.parametrize("kind", ["mlp", "conv", "residual", "attention"])
def test_closed_form_gramian_equals_recomputation(kind):
    made = problem(kind)
    made.trunk.eval()
    parameters = dict(made.trunk.named_parameters())
    losses, _ = made.batch(0)()
    shared = list(parameters.values())
    per_task = [torch.autograd.grad(losses[t], shared, retain_graph=True) for t in TASKS]
    rows = {n: torch.stack([r[i].flatten() for r in per_task]) for i, n in enumerate(parameters)}
    split = rounds(find_groups(made.trunk).groups, {n: p.numel() for n, p in parameters.items()})
    assert sum(len(groups) for groups in split) == len(find_groups(made.trunk).groups)
    for groups in split:
        form = tables(groups, rows)
        torch.testing.assert_close(
            form.gramian(torch.zeros(form.produced.shape[2]).double()), gramian(made), rtol=1e-11, atol=0
        )
        logs = torch.randn(
            sum(g.units for g in groups), generator=torch.Generator().manual_seed(3), dtype=torch.float64
        )
        scales = factors(groups, logs.split([g.units for g in groups]), {n: p.shape for n, p in parameters.items()})
        with torch.no_grad():
            for n, d in scales.items():
                parameters[n].mul_(d)
        torch.testing.assert_close(form.gramian(logs), gramian(made), rtol=1e-10, atol=0)
        with torch.no_grad():
            for n, d in scales.items():
                parameters[n].div_(d)


@pytest.mark.parametrize("autocast", [False, True])
def test_powers_of_two_keep_every_bit_where_rounding_is_coarse(autocast):
    """In bfloat16 other scales move most losses by more than rounding is allowed to."""
    accepted = {False: 0, True: 0}
    x = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(0))
    for seed in range(6):
        for powers in (False, True):
            torch.manual_seed(seed)
            trunk = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
            heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(3))
            if not autocast:
                trunk, heads = trunk.bfloat16(), heads.bfloat16()

            def losses(batch, trunk=trunk, heads=heads):
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    z = trunk(batch.to(trunk[0].weight.dtype))
                    found = [h(z).squeeze(-1) for h in heads]
                return {
                    t: (v.float() - 0.1 * batch[:, i]).square().mean() for i, (t, v) in enumerate(zip(TASKS, found))
                }

            before = losses(x[1])
            strategy = mtlcore.create("teleport", "relu-rescaling", powers_of_two=powers)
            result = Teleporter(strategy, name="relu-rescaling", detector=Falling()).attempt(
                trunk=trunk,
                heads=heads,
                closure=lambda losses=losses: (losses(x[0]), ()),
                probe=None,
                view=view(),
                optimizer=None,
                generator=torch.Generator().manual_seed(0),
            )
            accepted[powers] += result.accepted
            if powers:
                assert losses(x[1]) == before, "to the last bit, on unseen data"
    assert accepted[True] == 6
    assert accepted[False] < 3


@pytest.mark.parametrize("bound", [0.7, 3.0])
def test_powers_of_two_are_within_the_bound(bound):
    made = problem("residual")
    start = {n: p.detach().clone() for n, p in made.trunk.named_parameters()}
    assert teleport(made, "relu-rescaling", {"powers_of_two": True, "bound": bound}, detector=Falling()).accepted
    moved = torch.cat([(p.detach() / start[n]).flatten() for n, p in made.trunk.named_parameters()])
    moved = moved[moved.isfinite()]
    assert bool((moved.frexp().mantissa == 0.5).all())
    assert bool((moved != 1.0).any())
    assert float(moved.log().abs().max()) <= 2 * bound, "an element is touched by two groups at most"
    with pytest.raises(mtlcore.errors.ConfigurationError, match=r"bound=0\.5.*at least log 2"):
        mtlcore.create("teleport", "relu-rescaling", powers_of_two=True, bound=0.5)


def test_residual_streams_are_rescaled_together_and_their_insides_alone():
    groups = {g.name: g for g in find_groups(problem("residual").trunk).groups}
    stream = {(m.parameter, m.produces) for m in groups["stem"].members}
    assert ("stem.weight", True) in stream
    assert ("two.weight", True) in stream, "the branch that is added must follow the shortcut"
    assert {("one.weight", False), ("wide.weight", False)} <= stream
    inside = {(m.parameter, m.produces) for m in groups["norm"].members}
    assert inside == {("norm.weight", True), ("norm.bias", True), ("two.weight", False)}


class Forked(nn.Module):
    """Both terms of a sum are also used on their own."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(6, 4)
        self.of_a, self.of_b, self.of_sum = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(4, 5)

    def forward(self, x):
        a, b = torch.relu(self.a(x)), torch.relu(self.b(x))
        total = a + b
        return self.of_sum(total) + self.of_a(a) + self.of_b(b)


def test_whoever_uses_a_term_of_a_sum_follows_the_sum():
    made = problem("mlp")
    made.trunk = Forked().double()
    (group,) = find_groups(made.trunk).groups
    consumers = {m.parameter for m in group.members if not m.produces}
    assert consumers == {"of_sum.weight", "of_a.weight", "of_b.weight"}
    before = made.losses(50)
    assert teleport(made, "random").accepted
    assert made.losses(50) == pytest.approx(before, rel=1e-9)


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.c(self.a(x) * self.b(x))


class Tapped(nn.Module):
    """Cannot be traced, and reaches into its own Sequential."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))

    def forward(self, x):
        first = self.body[0](x)
        if float(first.detach().sum()) != float("inf"):
            first = torch.tanh(first)
        return self.body[2](first)


class Whole(nn.Module):
    """Cannot be traced, but uses its part as it is."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))

    def forward(self, x):
        return self.body(x) if float(x.detach().sum()) != float("inf") else x


class Moody(nn.Module):
    """A ReLU in evaluation, something else in training."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x):
        h = self.one(x)
        return self.two(torch.sigmoid(h) if self.training else torch.relu(h))


class Noisy(nn.Module):
    """Ends in a Linear in evaluation, in noise of a fixed size in training."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(6, 5)

    def forward(self, x):
        z = self.last(x)
        return z + 0.1 * torch.randn_like(z) if self.training else z


class Unsure(nn.Module):
    """A head that looks at the features themselves in training."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(5, 1)

    def forward(self, z):
        return self.out(torch.relu(z) if self.training else z)


class Peeking(nn.Module):
    """Reads a weight beside calling its layer."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x):
        return self.two(torch.relu(self.one(x))) + torch.relu(self.one.weight.sum() - 1e3)


class CalledOtherwise(nn.Module):
    """Calls one of its layers a second time, in a way that the search does not follow."""

    def __init__(self, what):
        super().__init__()
        self.what, self.one, self.two = what, nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 1)
        self.norm, self.spread = nn.BatchNorm1d(4), nn.ConvTranspose1d(4, 4, 3, stride=2)

    def forward(self, x):
        if self.what == "producer by keyword":
            return self.two(torch.relu(self.one(x))) + self.one(input=x)
        if self.what == "consumer by keyword":
            return self.two(torch.relu(self.one(x))) + self.two(input=x)
        if self.what == "norm on an input of unknown shape":
            return self.two(torch.relu(self.norm(self.one(x)))) + torch.relu(self.norm(x))
        return self.two(torch.relu(self.spread(x))).sum(-1) + self.spread(x, [12]).sum(-1)


@pytest.mark.parametrize(
    "what",
    ["producer by keyword", "consumer by keyword", "norm on an input of unknown shape", "output size given"],
)
def test_a_layer_that_is_also_called_in_a_way_nobody_follows(what):
    net = CalledOtherwise(what)
    assert net(torch.randn(2, 4, 5)).shape[1] == 4
    assert find_groups(net).groups == ()


class Uses(nn.Module):
    """A ReLU layer whose units a function of the forward also uses otherwise."""

    def __init__(self, use):
        super().__init__()
        self.one, self.two, self.side, self.use = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(8, 8), use

    def forward(self, x):
        h = torch.relu(self.one(x))
        return self.two(h) + self.use(self, h)


def keeps(net, h):
    net.cache = h
    return 0.0


def keeps_deep(net, h):
    net.side.cache = {"h": [h]}
    return 0.0


def wavers(net, h):
    return net.side(h)[:, :5] if random.random() < 2.0 else 0.0


def drops(net, h):
    return net.side(h)[:, :5] if net.training and torch.rand(()) < 2.0 else 0.0


def drops_with_numpy(net, h):
    return net.side(h)[:, :5] if np.random.rand() < 2.0 else 0.0


USES = {
    "h.mT": lambda net, h: h.mT.sum(),
    "h.T": lambda net, h: h.T.sum(),
    "h.data": lambda net, h: h.data.sum(),
    "kept": keeps,
    "kept in a part": keeps_deep,
    "random": wavers,
    "torch.rand in training": drops,
    "np.random": drops_with_numpy,
}


@pytest.mark.parametrize("use", USES)
def test_a_use_that_the_graph_does_not_show_is_found(use):
    net = Uses(USES[use])
    streams = (random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist())
    attributes = [dict(m.__dict__) for m in net.modules()]
    assert find_groups(net).groups == ()
    assert [m.__dict__ for m in net.modules()] == attributes
    assert streams[0] == random.getstate()
    assert torch.equal(streams[1], torch.get_rng_state())
    assert streams[2] == np.random.get_state()[1].tolist()


def test_looking_at_the_shape_is_no_use():
    (group,) = find_groups(Uses(lambda net, h: h.shape[0] + h.ndim)).groups
    assert group.name == "one"


def test_tracing_leaves_nothing_in_lists():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.terms = relu_chain(), [1.0]
            self.recent = deque([2.0], maxlen=3)

        def forward(self, x):
            z = self.body(x)
            self.terms.append(z.square().mean())
            self.recent.append(z)
            return z

    net = Auxiliary()
    terms = net.terms
    assert find_groups(net).groups, "the output is kept, the units inside are free"
    assert terms == [1.0]
    assert net.terms is terms
    assert list(net.recent) == [2.0]


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(8), nn.GroupNorm(2, 8)])
def test_a_norm_behind_a_layer_of_unknown_shape(norm):
    """On (N, 8, 6) the layer's units are the last dimension and the norm's channels the middle one: no graph shows it,
    the batch does."""
    torch.manual_seed(0)
    for shape, accepted in (((16, 6), True), ((16, 8, 6), False)):
        trunk = nn.Sequential(nn.Linear(6, 8), copy.deepcopy(norm), nn.ReLU(), nn.Linear(8, 5)).double()
        heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(2)).double()
        assert find_groups(trunk).groups
        x, optimizer = torch.randn(*shape, dtype=torch.float64), torch.optim.SGD(trunk.parameters(), lr=0.1)

        def losses(trunk=trunk, heads=heads, x=x):
            return {f"t{i}": h(trunk(x)).square().mean() for i, h in enumerate(heads)}

        result = mtlcore.MultiTask(trunk, "ls", optimizer, teleport="random").step(losses).teleport
        assert result.accepted == accepted, result.reason
        assert accepted or "the losses of this batch depend on their scales" in result.reason
    flat = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten(), nn.Linear(16, 8), norm, nn.ReLU(), nn.Linear(8, 5))
    assert "3" in [g.name for g in find_groups(flat).groups], "(N, 8) after a flatten"


def encoder(**options) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, **options)


class Encoded(nn.Module):
    def __init__(self, layer, beside=None):
        super().__init__()
        self.layer, self.beside = layer, beside

    def forward(self, x):
        z = self.layer(x)
        return z if self.beside is None else z + self.beside(self.layer, x)


def changed(layer, change):
    change(layer)
    return layer


@pytest.mark.parametrize(
    "net",
    [
        Encoded(encoder(), lambda layer, x: layer.linear1(x).sum()),
        Encoded(encoder(), lambda layer, x: layer.linear1.weight.sum()),
        Encoded(nn.TransformerEncoder(encoder(), 2), lambda stack, x: stack.layers[0].linear1(x).sum()),
        Encoded(changed(encoder(activation=nn.ReLU()), lambda e: e.activation.register_forward_hook(lambda *a: None))),
        Encoded(changed(encoder(), lambda e: setattr(e, "dropout", nn.Tanh()))),
        Encoded(changed(encoder(), lambda e: setattr(e, "forward", torch.tanh))),
    ],
)
def test_a_feed_forward_that_is_not_only_one(net):
    assert "layer.linear1" not in [g.name for g in find_groups(net).groups]
    assert not any("layers.0" in g.name for g in find_groups(net).groups)


HOOKS = {
    "on the trunk": lambda net: net.register_forward_hook(lambda m, i, o: o + m[0].weight.sum()),
    "before the trunk": lambda net: net.register_forward_pre_hook(lambda m, i: (i[0] + m[0].weight.sum(),)),
    "on all modules": lambda net: nn.modules.module.register_module_forward_hook(lambda *a: None),
    "before all modules": lambda net: nn.modules.module.register_module_forward_pre_hook(lambda *a: None),
}


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_on_the_trunk_or_on_everything_are_in_no_graph(hook):
    made = problem("mlp")
    made.trunk = relu_chain().double()
    assert find_groups(made.trunk).groups
    handle = HOOKS[hook](made.trunk)
    try:
        assert find_groups(made.trunk).groups == ()
        for name in ("random", "linear-boundary"):
            assert not teleport(made, name, detector=Falling()).accepted
    finally:
        handle.remove()
    assert find_groups(made.trunk).groups
    assert teleport(made, "random", detector=Falling()).accepted


def test_a_trunk_with_a_forward_of_its_own_is_not_traced():
    net = relu_chain()
    net.forward = torch.tanh
    assert find_groups(net).groups == ()


class Both(nn.Module):
    """Cannot be traced; two parts share a layer."""

    def __init__(self):
        super().__init__()
        shared = nn.Linear(6, 8)
        self.a, self.b = (nn.Sequential(shared, nn.ReLU(), nn.Linear(8, 5)) for _ in range(2))

    def forward(self, x):
        return self.a(x) + self.b(x) if float(x.detach().sum()) != float("inf") else x


@pytest.mark.parametrize("name", ["random", "relu-rescaling"])
def test_a_layer_shared_by_two_parts_of_an_untraceable_trunk(name):
    made = problem("mlp")
    made.trunk = Both().double()
    result = teleport(made, name)
    assert not result.accepted
    assert "no unit of the trunk can be rescaled" in result.reason


def relu_chain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))


def frozen() -> nn.Module:
    net = relu_chain()
    net[2].weight.requires_grad_(False)
    return net


def hooked() -> nn.Module:
    net = relu_chain()
    net[1].register_forward_hook(lambda *a: None)
    return net


def tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    net[2].weight = net[0].weight
    return net


def parametrised() -> nn.Module:
    net = relu_chain()
    nn.utils.parametrizations.weight_norm(net[2])
    return net


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 5)),
        nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 5)),
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Softmax(-1), nn.Linear(8, 5)),
        nn.Sequential(nn.Conv1d(2, 4, 1), nn.BatchNorm1d(4, affine=False), nn.ReLU(), nn.Conv1d(4, 2, 1)),
        nn.GRU(3, 4),
        Gated(),
        Moody(),
        Moody().eval(),
        Peeking(),
        frozen(),
        hooked(),
        tied(),
        parametrised(),
    ],
)
def test_what_cannot_be_shown_safe_is_left_alone(net):
    assert find_groups(net).groups == ()


CHANGES = {
    "a hook": lambda net: net[1].register_forward_hook(lambda *a: None),
    "another activation": lambda net: net.__setitem__(1, nn.Tanh()),
    "a frozen weight": lambda net: net[2].weight.requires_grad_(False),
    "a tied weight": lambda net: setattr(net[2], "weight", net[0].weight),
    "a parametrisation": lambda net: nn.utils.parametrizations.weight_norm(net[2]),
    "another forward": lambda net: setattr(net[1], "forward", torch.tanh),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_graph_is_traced_once_and_again_when_the_network_changes(change, monkeypatch):
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    traced = []
    monkeypatch.setattr(tracing, "trace", lambda module, trace=tracing.trace: traced.append(1) or trace(module))
    assert find_groups(net).groups
    once = len(traced)  # in training and in evaluation mode
    net.eval()
    with torch.no_grad():
        net[0].weight.mul_(2.0)
    assert find_groups(net).groups
    assert len(traced) == once == 2
    CHANGES[change](net)
    assert find_groups(net).groups == ()
    assert len(traced) > once


def test_the_groups_of_a_large_network_are_not_kept(monkeypatch):
    net = relu_chain()
    find_groups(net)
    assert net in channels._SEEN
    monkeypatch.setattr(channels, "_SMALL", 50)
    large = relu_chain()
    assert find_groups(large).groups
    assert large not in channels._SEEN


def test_every_layer_of_an_encoder_has_a_feed_forward_to_rescale():
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    net = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 5))
    assert [g.name for g in find_groups(net).groups] == ["0.layers.0.linear1", "0.layers.1.linear1"]


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)
        self.body, self.top = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), copy.deepcopy(layer)

    def forward(self, x):
        h = self.body(x, src_key_padding_mask=x[..., 0] > 0.5)
        return self.top(h, None, x[..., 0] > 0.5).mean(1)


def test_masks_do_not_reach_the_feed_forward_of_an_encoder():
    made = problem("mlp")
    made.trunk, made.inputs = Masked().double(), lambda g, n: torch.randn(n, 4, 6, generator=g, dtype=torch.float64)
    made.heads = nn.ModuleDict({t: nn.Linear(6, 1) for t in TASKS}).double()
    assert [g.name for g in find_groups(made.trunk).groups] == ["body.layers.0.linear1", "top.linear1"]
    made.trunk.eval()
    before = made.losses(50)
    assert teleport(made, "random").accepted
    assert made.losses(50) == pytest.approx(before, rel=1e-9)


@pytest.mark.parametrize("mode", [True, False])
def test_looking_for_units_leaves_every_mode_as_it_was(mode):
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Sequential(nn.Dropout(0.1), nn.Linear(8, 5))).train(mode)
    net[2].train(not mode)
    find_groups(net)
    assert [m.training for m in net.modules()] == [mode, mode, mode, not mode, not mode, not mode]


def test_nothing_to_rescale_is_the_identity_with_a_reason():
    made = problem("gru")
    before = {n: p.detach().clone() for n, p in made.trunk.named_parameters()}
    for name in ("relu-rescaling", "random", "attention-qk"):
        result = teleport(made, name)
        assert not result.accepted
        assert "rescale" in result.reason
    assert all(torch.equal(p, before[n]) for n, p in made.trunk.named_parameters())


@pytest.mark.parametrize(("net", "free"), [(Tapped, False), (Whole, True)])
def test_parts_of_an_untraceable_trunk_are_used_only_if_they_hold(net, free):
    made = problem("mlp")
    made.trunk = net().double()
    assert find_groups(made.trunk).groups, "the part alone looks free"
    before = made.losses(50)
    result = teleport(made, "random")
    assert result.accepted == free, result.reason
    assert free or "the units of body.0 look free, but the losses" in result.reason
    assert made.losses(50) == pytest.approx(before, rel=1e-9)


class Supervised(nn.Module):
    """Cannot be traced, and reaches into its part in training only."""

    def __init__(self):
        super().__init__()
        self.body, self.side = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)), nn.Linear(8, 5)

    def forward(self, x):
        if not torch.isfinite(x).all():
            raise ValueError("bad input")
        z = self.body(x)
        return z + self.side(self.body[:2](x)) if self.training else z


@pytest.mark.parametrize("name", ["random", "relu-rescaling"])
def test_a_part_that_is_used_in_training_only_is_seen(name):
    made = problem("mlp")
    made.trunk = Supervised().double()
    result = teleport(made, name, detector=Falling())
    assert not result.accepted
    assert "in training changes by" in result.reason


def between(made, module):
    """The problem's batches with a module between trunk and heads that only the closure knows."""

    def batch(seed):
        inner, trunk = made.batch(seed), made.trunk

        def closure():
            made.trunk = lambda x: module(trunk(x))
            try:
                return inner()
            finally:
                made.trunk = trunk

        return closure

    return {"closure": batch(0), "probe": batch(1)}


@pytest.mark.parametrize("name", ["random", "relu-rescaling"])
def test_a_closure_that_calls_a_layer_beside_the_trunk(name):
    """What it makes of the layer need not show on this batch: here, a penalty on units that are larger than any."""
    made = problem("mlp")
    x = torch.randn(48, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def closure():
        losses, z = made.batch(0)()
        return {**losses, "red": losses["red"] + torch.relu(made.trunk[0](x) - 1e3).sum()}, z

    result = teleport(made, name, closure=closure, detector=Falling())
    assert result.accepted
    moved = {n for n, p in problem("mlp").trunk.named_parameters() if not torch.equal(p, made.trunk.get_parameter(n))}
    assert moved == {"3.weight", "3.bias", "5.weight"}, "the other units are free"
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in made.trunk.modules())


def test_noise_between_trunk_and_heads_is_no_boundary():
    """M (mask * z) is not mask * (M z): kept in evaluation only."""
    made = problem("mlp")
    drop = nn.Dropout(0.5)
    result = teleport(made, "linear-boundary", **between(made, drop), detector=Falling())
    assert not result.accepted
    assert "in training changes by" in result.reason
    assert drop.training


@pytest.mark.parametrize("name", ["random", "relu-rescaling", "linear-boundary"])
def test_dropout_inside_the_trunk_is_kept_mask_by_mask(name):
    made = problem("mlp")
    state = torch.get_rng_state()
    before = made.losses(50)
    torch.set_rng_state(state)
    assert teleport(made, name, detector=Falling()).accepted
    assert torch.equal(torch.get_rng_state(), state)
    assert made.losses(50) == pytest.approx(before, rel=1e-9), "the same masks, the same losses"


def test_boundary_needs_heads_that_start_linear():
    made = problem("mlp")
    made.heads = nn.ModuleDict({t: nn.Sequential(nn.Tanh(), nn.Linear(5, 1)) for t in TASKS}).double()
    result = teleport(made, "linear-boundary")
    assert not result.accepted
    assert "does more with its input than Linear" in result.reason
    made.trunk = nn.Sequential(nn.Linear(6, 5), nn.ReLU()).double()
    assert "not a Linear layer" in teleport(made, "linear-boundary").reason


def test_boundary_needs_heads_that_get_what_the_trunk_returns():
    made = problem("mlp")
    batches = between(made, nn.Hardtanh(-1e6, 1e6))  # changes nothing on these batches
    result = teleport(made, "linear-boundary", **batches, detector=Falling())
    assert not result.accepted
    assert "head 'red' does not receive the trunk's own output" in result.reason
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in (*made.trunk.modules(), *made.heads.modules()))


def test_boundary_is_there_in_training_and_in_evaluation():
    made = problem("mlp")
    made.trunk = Noisy().double()
    assert "does not end in a Linear" in teleport(made, "linear-boundary").reason
    made = problem("mlp")
    made.heads["red"] = nn.Sequential(made.heads["red"][0], Moody().double(), nn.Linear(5, 1).double())
    made.heads["red"][1].one = nn.Linear(4, 8).double()
    assert "head 'red'" not in teleport(made, "linear-boundary").reason  # moody only behind its first layer
    made.heads["red"] = Unsure().double()
    assert "head 'red' does more with its input" in teleport(made, "linear-boundary").reason


def test_baseline_is_accepted_whatever_the_conflict_does():
    outcomes = [teleport(problem("mlp"), "random", seed=s) for s in range(6)]
    assert all(r.accepted for r in outcomes)
    assert any(r.conflict_after > r.conflict_before for r in outcomes)


OPTIMIZERS = [
    (torch.optim.SGD, {"momentum": 0.9}),
    (torch.optim.Adam, {}),
    (torch.optim.Adam, {"amsgrad": True}),
    (torch.optim.AdamW, {"weight_decay": 0.1}),
    (torch.optim.NAdam, {}),
    (torch.optim.RAdam, {}),
    (torch.optim.Adamax, {"eps": 1e-30}),
    (torch.optim.RMSprop, {"centered": True, "momentum": 0.9, "eps": 1e-30}),
    (torch.optim.Adagrad, {"initial_accumulator_value": 0.1}),
    (torch.optim.ASGD, {}),
]


@pytest.mark.parametrize(("make", "options"), OPTIMIZERS)
def test_transported_history_is_that_of_training_in_the_new_coordinates(make, options):
    made = problem("residual")
    made.trunk.eval()
    # lr = 0: both runs see the same functions, so every difference is the history's.
    optimizer = made.optimizer(make, lr=0.0, **options)
    made.train(optimizer, 4)
    assert teleport(made, "random", optimizer=optimizer).accepted
    fresh = made.optimizer(make, lr=0.0, **options)
    made.train(fresh, 4)
    compared = 0
    for p in made.parameters():
        for key, value in fresh.state[p].items():
            torch.testing.assert_close(optimizer.state[p][key], value, rtol=1e-9, atol=1e-25, msg=key)
            compared += 1
    assert compared > 20


def test_boundary_carries_momentum_of_trunk_and_heads():
    made = problem("mlp")
    made.trunk.eval()
    optimizer = made.optimizer(torch.optim.SGD, lr=0.0, momentum=0.9)
    made.train(optimizer, 4)
    assert teleport(made, "linear-boundary", optimizer=optimizer, detector=Falling()).accepted
    fresh = made.optimizer(torch.optim.SGD, lr=0.0, momentum=0.9)
    made.train(fresh, 4)
    for p in made.parameters():
        expected = fresh.state[p]["momentum_buffer"]
        torch.testing.assert_close(
            optimizer.state[p]["momentum_buffer"], expected, rtol=1e-8, atol=1e-10 * float(expected.abs().max())
        )


def test_a_false_exact_teleport_is_refused():
    from mtlplugins.teleports.symmetry import scaling

    made = problem("embedding")  # tanh: not homogeneous
    before = made.losses(50)

    class Liar(mtlcore.TeleportStrategy):
        exact = True
        improves = False

        def propose(self, problem, generator):
            shapes = {n: p.shape for n, p in problem.trunk.named_parameters()}
            rows = scaling.Member("2.weight", torch.arange(shapes["2.weight"].numel()).view(8, -1), True)
            columns = scaling.Member("4.weight", torch.arange(shapes["4.weight"].numel()).view(-1, 8).T, False)
            group = scaling.Group("hidden", 8, (rows, columns))
            return scaling.displacement(problem, factors([group], [torch.full((8,), 0.2).double()], shapes), {})

    result = teleport(made, Liar())
    assert not result.accepted
    assert "allowed is 1e-09" in result.reason
    assert made.losses(50) == before


class Rooted(nn.Sequential):
    """Calls a function of ``math`` on a value of its graph."""

    def forward(self, x):
        return super().forward(x / math.sqrt(x.shape[-1]))


def test_a_forward_that_calls_math_is_traced_as_a_whole():
    """Tracing replaces the functions of ``math`` only where it has to."""
    found = find_groups(Rooted(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    assert found.whole
    assert [group.units for group in found.groups] == [3]
