"""``view.curvature``: products with the true Hessians of the step's own function, and no trace left behind."""

from __future__ import annotations

import dataclasses
import random
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtlcore import Aggregation, Aggregator, MultiTask, Needs
from mtlcore.errors import LossError, NonFiniteError, PluginError
from mtlcore.geometry.metric import diagonal

NAMES = ("a", "b", "c")


@dataclasses.dataclass(frozen=True)
class Curved(Aggregator):
    """d = sum_i c_i H_i u_i with unit gradients u_i, for c = 1, 2, ... by the task's place in the run."""

    needs: ClassVar[Needs] = Needs.JACOBIAN
    handles_absent: ClassVar[bool] = False

    def aggregate(self, view: Any, state: Any) -> Aggregation:
        assert view.curvature is not None
        factors = torch.tensor([1.0 + i for i in view.task_index]).to(view.jacobian)
        units = view.jacobian / view.jacobian.norm(dim=1, keepdim=True)
        return Aggregation(direction=view.curvature(units * factors[:, None]), state=state)


@dataclasses.dataclass(frozen=True)
class Asks(Aggregator):
    """Asks with vectors of another shape, or without the right to."""

    needs: ClassVar[Needs] = Needs.JACOBIAN
    rows: int = 3

    def aggregate(self, view: Any, state: Any) -> Aggregation:
        return Aggregation(direction=view.curvature(torch.ones(self.rows, 5)), state=state)


@dataclasses.dataclass(frozen=True)
class AsksForTooMuch(Asks):
    needs: ClassVar[Needs] = Needs.GRAMIAN


class Net(nn.Module):
    """BatchNorm (buffers), dropout (random numbers), a frozen parameter, three heads."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 5))
        self.trunk[0].bias.requires_grad_(False)
        self.heads = nn.ModuleDict({n: nn.Sequential(nn.Tanh(), nn.Linear(5, 1)) for n in NAMES})
        self.x, self.y = torch.randn(8, 4), torch.randn(8, 1)
        self.to(dtype)
        self.x, self.y = self.x.to(dtype), self.y.to(dtype)
        self.calls = 0

    def closure(self, tasks: tuple[str, ...] = NAMES) -> Any:
        def evaluate() -> tuple[dict[str, Tensor], Tensor]:
            self.calls += 1
            z = self.trunk(self.x)
            return {n: (self.heads[n](z) - self.y).square().mean() * (i + 1) for i, n in enumerate(tasks)}, z

        return evaluate

    def shared(self) -> list[nn.Parameter]:
        return [p for p in self.trunk.parameters() if p.requires_grad]

    def stepped(self, closure: Any, method: Aggregator | None = None, **options: Any) -> Tensor:
        """What a step wrote for the trunk; nothing moves."""
        scaler = options.pop("scaler", None)
        optimizer = torch.optim.SGD(self.parameters(), lr=0.0)
        options = {"tasks": NAMES, "heads": self.heads, **options}
        mt = MultiTask(self.trunk, method or Curved(), optimizer, **options)
        mt.step(closure, **({} if scaler is None else {"scaler": scaler}))
        return torch.cat([p.grad.flatten() for p in self.shared()])


def expected(net: Net, losses: dict[str, Tensor]) -> Tensor:
    """The same by autograd: the gradient of sum_i c_i <g_i, u_i> with u_i held constant."""
    total = torch.zeros((), dtype=torch.float64)
    for c, name in enumerate(NAMES, 1):
        if name in losses:
            rows = torch.autograd.grad(losses[name], net.shared(), create_graph=True)
            g = torch.cat([r.flatten() for r in rows]).double()
            total = total + c * (g @ (g / g.norm()).detach())
    return torch.cat([h.flatten() for h in torch.autograd.grad(total, net.shared())])


@pytest.mark.parametrize("tasks", [NAMES, ("a", "c")])
def test_products_are_those_of_autograd_under_the_noise_of_the_step(tasks):
    net = Net()
    torch.manual_seed(5)
    right = expected(net, net.closure(tasks)()[0])
    other = expected(net, net.closure(tasks)()[0])
    torch.manual_seed(5)
    found = net.stepped(net.closure(tasks))
    torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(other, right, rtol=1e-2), "dropout decides, so that the test can fail"


def test_everything_is_as_after_one_evaluation_bit_for_bit():
    net, twin = Net(), Net()
    for n in (net, twin):
        torch.manual_seed(3), random.seed(3), np.random.seed(3)

        def drawing(n: Net = n) -> Any:
            found = n.closure()()
            if n.calls == 2:  # it leaves more behind than the first time
                torch.rand(1), random.random(), np.random.random()
                n.trunk[1].running_mean = n.trunk[1].running_mean * 2.0  # replaced, not written into
            return found

        if n is net:
            n.stepped(drawing)
        else:
            drawing()
        n.after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    assert net.calls == 2
    assert all(torch.equal(v, twin.state_dict()[k]) for k, v in net.state_dict().items())
    assert torch.equal(net.after[0], twin.after[0])
    assert net.after[1] == twin.after[1]
    assert bool((net.after[2] == twin.after[2]).all())
    assert torch.is_grad_enabled()


def test_micro_batches_are_one_batch():
    net = Net()
    first, second = net.closure(), net.closure(("a", "c"))
    torch.manual_seed(5)
    one, two = first()[0], second()[0]
    right = expected(net, {n: one[n] + two[n] if n in two else one[n] for n in NAMES})
    torch.manual_seed(5)
    torch.testing.assert_close(net.stepped([first, second]), right, rtol=1e-10, atol=1e-12)


def test_other_batches_of_the_step_draw_their_own_noise_first():
    @dataclasses.dataclass(frozen=True)
    class Two(Curved):
        batches: ClassVar[int] = 2

    net = Net()
    torch.manual_seed(5)
    net.closure()()
    right = expected(net, net.closure()()[0])
    torch.manual_seed(5)
    torch.testing.assert_close(net.stepped([net.closure(), net.closure()], Two()), right, rtol=1e-10, atol=1e-12)


def test_under_a_scaler_products_are_the_true_ones():
    net = Net(torch.float32)
    torch.manual_seed(5)
    right = expected(net, net.closure()()[0])
    torch.manual_seed(5)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    found = net.stepped(net.closure(), scaler=scaler)  # the scaler has divided .grad by its scale
    torch.testing.assert_close(found, right.float(), rtol=1e-4, atol=1e-6)


def test_an_overflow_of_the_second_derivative_is_a_skipped_step_under_a_scaler_and_names_its_task_without_one():
    net = Net(torch.float32)

    def closure() -> Any:
        losses, z = net.closure()()
        w = net.trunk[4].bias
        # Zero at zero with the slope 0, and a curvature that does not fit.
        return {**losses, "b": losses["b"] + ((w - w.detach()) * 1e30).square().sum() * 1e-2}, z

    with pytest.raises(NonFiniteError, match="second derivative of task 'b'"):
        net.stepped(closure)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    before = [p.clone() for p in net.parameters()]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    report = MultiTask(net.trunk, Curved(), optimizer, tasks=NAMES).step(closure, scaler=scaler)
    assert report.skipped
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters()))
    assert scaler.get_scale() == 2.0**11


def test_in_the_metric_of_the_optimizer_it_is_the_hessian_of_its_coordinates():
    net = Net()
    net.trunk.eval()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.0)
    mt = MultiTask(net.trunk, "sum", optimizer, tasks=NAMES)
    mt.step(net.closure())
    moved = [optimizer.state[p]["exp_avg_sq"].clone() for p in net.shared()]
    mt = MultiTask(net.trunk, Curved(), optimizer, tasks=NAMES, metric="optimizer")
    mt.step(net.closure())
    found = torch.cat([p.grad.flatten() for p in net.shared()])

    for p, square in zip(net.shared(), moved):  # the second step has changed them
        optimizer.state[p]["exp_avg_sq"].copy_(square)
        optimizer.state[p]["step"] -= 1
    root = diagonal(optimizer, net.shared(), "optimizer")
    assert root is not None
    total = torch.zeros((), dtype=torch.float64)
    for c, loss in enumerate(net.closure()()[0].values(), 1):
        g = torch.cat([r.flatten() for r in torch.autograd.grad(loss, net.shared(), create_graph=True)])
        scaled = (g * root).detach()
        total = total + c * (g @ (root * scaled / scaled.norm()))
    # In y = x / root the Hessian is root H root; its direction u becomes u / root in x.
    right = torch.cat([h.flatten() for h in torch.autograd.grad(total, net.shared())])
    torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-12)


def test_linear_losses_have_none_and_cost_no_error():
    net = Net()
    bias = net.trunk[4].bias

    def closure() -> Any:
        return {n: 1.0 + (i + 1.0) * bias.sum() for i, n in enumerate(NAMES)}

    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    MultiTask(net.trunk, Curved(), optimizer).step(closure)
    assert bias.grad is not None
    assert not bool(bias.grad.any())


def test_attention_has_second_derivatives():
    """The fast kernels have none."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double()
    x = torch.randn(3, 5, 8, dtype=torch.float64)

    def closure() -> Any:
        z = layer(x)
        return {n: (z.square().mean() - i) ** 2 for i, n in enumerate(NAMES, 2)}, z

    MultiTask(layer, Curved(), torch.optim.SGD(layer.parameters(), lr=0.0)).step(closure)
    found = torch.cat([p.grad.flatten() for p in layer.parameters()])
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        net = type("Any", (), {"shared": lambda self: list(layer.parameters())})()
        right = expected(net, closure()[0])
    torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-12)


class Once(torch.autograd.Function):
    """x^2 / 2 with one derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square() / 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return ctx.saved_tensors[0] * cotangent


def test_a_loss_without_a_second_derivative_is_named():
    net = Net()

    def closure() -> Any:
        losses, z = net.closure()()
        return {**losses, "b": Once.apply(losses["b"])}, z

    with pytest.raises(LossError, match="task 'b' cannot be differentiated twice"):
        net.stepped(closure)


def test_sparse_tables_have_the_products_of_dense_ones():
    table, head = nn.Embedding(5, 3, sparse=True).double(), nn.Linear(3, 1).double()

    def closure() -> Any:
        z = table(torch.tensor([0, 1, 1, 4]))
        return {n: (head(z).square() * i).mean() for i, n in enumerate(NAMES, 1)}, z

    optimizer = torch.optim.SGD([*table.parameters(), *head.parameters()], lr=0.0)
    MultiTask(table, Curved(), optimizer).step(closure)
    found, table.sparse, table.weight.grad = table.weight.grad.clone(), False, None
    MultiTask(table, Curved(), optimizer).step(closure)
    assert bool(found.any())
    torch.testing.assert_close(found, table.weight.grad, rtol=1e-12, atol=0)


def test_another_batch_is_refused():
    net = Net()
    net.trunk.eval()

    def closure() -> Any:
        net.x = net.x + 0.5  # as a closure that draws its batch from a loader
        return net.closure()()

    with pytest.raises(LossError, match="task 'a' is .* when the closure is called again"):
        net.stepped(closure)


def test_a_task_that_vanishes_is_named():
    net = Net()
    with pytest.raises(LossError, match="'b' is missing"):
        net.stepped(lambda: net.closure(NAMES if not net.calls else ("a",))())


def test_a_hook_on_a_gradient_is_refused():
    net = Net()
    net.trunk[0].weight.register_hook(lambda g: 0.5 * g)
    with pytest.raises(LossError, match="has a hook on its gradient"):
        net.stepped(net.closure())


def test_vectors_of_another_shape_and_methods_that_read_no_rows_are_refused():
    net = Net()
    with pytest.raises(PluginError, match="takes one vector for each task"):
        net.stepped(net.closure(), Asks())
    with pytest.raises(PluginError, match=r"view.curvature was read .* Declare needs = Needs.JACOBIAN"):
        net.stepped(net.closure(), AsksForTooMuch())


def test_backward_and_inner_points_offer_none():
    net = Net()
    seen: list[Any] = []

    @dataclasses.dataclass(frozen=True)
    class Looks(Aggregator):
        needs: ClassVar[Needs] = Needs.JACOBIAN

        def aggregate(self, view: Any, state: Any) -> Aggregation:
            seen.append(view.curvature)
            if view.inner is not None:
                seen.append(view.inner(lambda p: torch.ones(p.n_tasks), 1, 0.1).curvature)
            return Aggregation(weights=torch.ones(view.n_tasks), state=state)

    losses, z = net.closure()()
    MultiTask(net.trunk, Looks()).backward(losses, features=z)
    assert seen == [None]
    net.stepped(net.closure(), Looks())
    assert seen[1] is not None
    assert seen[2] is None
