"""Networks beyond tests/support: where factors, tables and convolution identities are really taken."""

from __future__ import annotations

import torch
from torch import nn

from support.architectures import Workload, _standard, _x


def wide_mlp() -> Workload:
    """Batch far below every fan-in: all weights become factors."""
    return _standard(nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 24), nn.Tanh()), _x(4, 40), 24)


class _Shared(nn.Module):
    """One weight used three times, once transposed, and a bias of its own."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(30, 30)
        self.transposed = transposed

    def forward(self, x):
        x = torch.tanh(self.layer(torch.tanh(self.layer(x))))
        return x @ self.layer.weight if self.transposed else torch.tanh(self.layer(x))


def same_weight_thrice() -> Workload:
    return _standard(_Shared(transposed=False), _x(3, 30), 30)


def same_weight_both_ways() -> Workload:
    """W^T and W: two kinds of use, so the weight's gradient is kept whole."""
    return _standard(_Shared(transposed=True), _x(3, 30), 30)


class _Penalised(nn.Module):
    """The weight is also read by something that is no matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(30, 12)

    def forward(self, x):
        return self.layer(x) + self.layer.weight.square().sum()


def weight_read_elsewhere() -> Workload:
    return _standard(_Penalised(), _x(3, 30), 12)


class _Raw(nn.Module):
    """y = A W with W (in, out), as in hand-written layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(_x(40, 20) / 5), nn.Parameter(_x(20, 10) / 3)
        self.shift = nn.Parameter(_x(20))

    def forward(self, x):
        return torch.addmm(self.shift, x, self.a).tanh() @ self.b


def raw_matrices() -> Workload:
    return _standard(_Raw(), _x(4, 40), 10)


class _Scaled(nn.Module):
    def __init__(self, **factors) -> None:
        super().__init__()
        self.a, self.shift = nn.Parameter(_x(40, 20) / 5), nn.Parameter(_x(20))
        self.factors = factors

    def forward(self, x):
        return torch.addmm(self.shift, x, self.a, **self.factors)


def scaled_addmm() -> Workload:
    return _standard(_Scaled(alpha=0.5, beta=2.0), _x(4, 40), 20)


def scaled_bias() -> Workload:
    """The weight's product is as it is, the bias counts twice."""
    return _standard(_Scaled(beta=2.0), _x(4, 40), 20)


class _Biases(nn.Module):
    """Biases that are not simply one per weight: shared by two, one number for all, one per row, read elsewhere, with a
    weight that is also used without it; and one before its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Parameter(_x(30))
        self.w = nn.ParameterList(_x(30, 30) / 5 for _ in range(7))
        self.shared, self.one, self.rows = nn.Parameter(_x(30)), nn.Parameter(_x(1)), nn.Parameter(_x(4, 30))
        self.read, self.sometimes = nn.Parameter(_x(30)), nn.Parameter(_x(30))

    def forward(self, x):
        w = self.w
        x = torch.addmm(self.before, x, w[0]).tanh()
        x = torch.addmm(self.shared, torch.addmm(self.shared, x, w[1]).tanh(), w[2]).tanh()
        x = torch.addmm(self.one, x, w[3]).tanh()
        x = torch.addmm(self.rows, x, w[4]).tanh()
        x = torch.addmm(self.read, x, w[5]).tanh() + self.read.square().sum()
        return torch.addmm(self.sometimes, x, w[6]).tanh() @ w[6]


def unusual_biases() -> Workload:
    return _standard(_Biases(), _x(4, 30), 30)


def frozen_biases_and_weights() -> Workload:
    w = _standard(nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 24), nn.Tanh()), _x(4, 40), 24)
    w.trunk[0].bias.requires_grad_(False)
    w.trunk[2].weight.requires_grad_(False)
    return w


def bias_hook() -> Workload:
    w = wide_mlp()
    w.trunk[0].bias.register_hook(lambda g: 3 * g)
    return w


def small_image_convolutions() -> Workload:
    """Few sites, many channels: convolutions as factors, with stride, padding, dilation, and groups (kept whole)."""
    trunk = nn.Sequential(
        nn.Conv2d(32, 24, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, padding=2, dilation=2),
        nn.ReLU(),
        nn.Conv2d(24, 16, 3, padding=1, groups=2),
        nn.Flatten(),
    )
    return _standard(trunk, _x(3, 32, 4, 4), 64)


def convolution_twice() -> Workload:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(24, 24, 3, padding=1)

        def forward(self, x):
            return self.layer(self.layer(x).relu()).flatten(1)

    return _standard(Twice(), _x(2, 24, 3, 3), 216)


def other_convolutions() -> Workload:
    trunk = nn.Sequential(
        nn.Conv1d(16, 12, 3), nn.ReLU(), nn.ConvTranspose1d(12, 10, 3), nn.Flatten(), nn.Linear(80, 6)
    )
    return _standard(trunk, _x(2, 16, 8), 6)


class _Tokens(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 12, **options)
        self.mix = nn.Linear(12, 8)

    def forward(self, tokens, others):
        return self.mix(self.words(tokens).mean(1) + self.words(others).sum(1))


def _tokens(**options) -> Workload:
    g = torch.Generator().manual_seed(5)
    return _standard(_Tokens(**options), tuple(torch.randint(0, 50, (6, n), generator=g) for n in (5, 3)), 8)


def embedding_looked_up_twice() -> Workload:
    return _tokens()


def embedding_with_padding() -> Workload:
    w = _tokens(padding_idx=0)
    w.trunk.words.weight.requires_grad_(True)
    return w


def embedding_scaled_by_frequency() -> Workload:
    return _tokens(scale_grad_by_freq=True)


class _Lookup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 12)

    def forward(self, *indices):
        return sum(self.words(i).reshape(-1, 12).sum(0) for i in indices).tanh().expand(4, 12)


def unusual_lookups() -> Workload:
    """Indices as int32, a single one, and none at all."""
    indices = (torch.tensor([[3, 4], [4, 9]], dtype=torch.int32), torch.tensor(7), torch.zeros(0, dtype=torch.long))
    return _standard(_Lookup(), indices, 12)


class _Hollow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.there, self.back = nn.Linear(40, 24), nn.Parameter(_x(40, 0)), nn.Parameter(_x(0, 24))

    def forward(self, x):
        return self.first(x).tanh() + x @ self.there @ self.back


def layers_without_units() -> Workload:
    return _standard(_Hollow(), _x(4, 40), 24)


class _Sparse(nn.Module):
    """A graph convolution: a sparse matrix times a weight, and times activations."""

    def __init__(self, layout) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(_x(40, 12)), nn.Linear(12, 8)
        links = torch.eye(40)[:6] + torch.eye(40)[1:7]
        self.links = links.to_sparse() if layout == torch.sparse_coo else links.to_sparse_csr()

    def forward(self, x):
        return self.b(torch.mm(self.links, self.a).tanh()) + x


def sparse_matrix() -> Workload:
    return _standard(_Sparse(torch.sparse_coo), _x(6, 8), 8)


class _Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(40, 30).float(), nn.Linear(30, 12)

    def forward(self, x):
        return self.high(self.low(x.float()).to(x.dtype).tanh())


def two_precisions() -> Workload:
    return _standard(_Mixed(), _x(4, 40), 12)


class _Adapter(torch.autograd.Function):
    """A function with an attribute that autograd's own leaves have, too."""

    @staticmethod
    def forward(ctx, x):
        ctx.variable = x
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g


def function_with_a_variable() -> Workload:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(40, 12), nn.Linear(12, 12)

        def forward(self, x):
            return self.b(_Adapter.apply(self.a(x)))

    return _standard(Net(), _x(4, 40), 12)


def parameter_hook() -> Workload:
    """A hook on the weight changes its gradient: factors would go around it."""
    w = wide_mlp()
    w.trunk[0].weight.register_hook(lambda g: 3 * g)
    return w


def weight_norm() -> Workload:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(40, 12))
    return _standard(nn.Sequential(layer, nn.Tanh()), _x(4, 40), 12)


def input_with_gradient() -> Workload:
    x = _x(4, 40).requires_grad_()
    return _standard(nn.Sequential(nn.Linear(40, 12), nn.Tanh()), x, 12)


SHAPES = {
    f.__name__: f
    for f in (
        wide_mlp, same_weight_thrice, same_weight_both_ways, weight_read_elsewhere, raw_matrices, scaled_addmm,
        scaled_bias, unusual_biases, frozen_biases_and_weights, bias_hook,
        small_image_convolutions, convolution_twice, other_convolutions, embedding_looked_up_twice,
        embedding_with_padding, embedding_scaled_by_frequency, parameter_hook, weight_norm, input_with_gradient,
    )
}  # fmt: skip

ODD = {
    f.__name__: f
    for f in (unusual_lookups, layers_without_units, sparse_matrix, two_precisions, function_with_a_variable)
}
"""Correct under every source or refused by it, some to lower precision than the others."""
