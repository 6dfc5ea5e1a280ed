import math
from collections.abc import Callable

import pytest
import torch
from cases import DIVERGENCES
from contracts import divergences
from contracts.divergences import MATRIX, NORMAL_VARIANCE, SIGN_VARIANCE, SPHERE_VARIANCE, linear
from helpers import normal, perturb, rng, seeded
from torch import nn

from core import ExactDivergence, Hutchinson, HutchPlusPlus
from core.divergence import Divergence, draw_probes
from core.nets import MLP, ConvNet, RefineNet, ResidualMLP, UNet

RANDOM = [name for name, divergence in DIVERGENCES.items() if not divergence.exact]
EXACT = [name for name in DIVERGENCES if name not in RANDOM]
COMMON = [
    divergences.gives_value_and_columns,
    divergences.is_unbiased,
    divergences.rows_are_independent,
    divergences.is_differentiable,
]


@pytest.mark.parametrize("contract", COMMON)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_contract(name: str, contract: Callable[[Divergence, torch.Generator], None]) -> None:
    contract(DIVERGENCES[name], rng(0))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_generator_and_device(name: str) -> None:
    divergences.generator_decides(DIVERGENCES[name])
    divergences.runs_on_meta(DIVERGENCES[name])


@pytest.mark.parametrize("name", EXACT)
def test_exact_equals_jacobian_trace(name: str) -> None:
    divergences.equals_the_trace(DIVERGENCES[name], rng(1))


@pytest.mark.parametrize("name", ["hutchinson", "hutchinson-4", "hutchinson-gaussian-3", "hutchinson-sphere"])
def test_columns_are_independent(name: str) -> None:
    divergences.columns_are_independent(DIVERGENCES[name], rng(2))


@pytest.mark.parametrize("probes", [1, 3])
@pytest.mark.parametrize(
    ("distribution", "variance"),
    [("rademacher", SIGN_VARIANCE), ("gaussian", NORMAL_VARIANCE), ("sphere", SPHERE_VARIANCE)],
)
def test_variance(probes: int, distribution: str, variance: float) -> None:
    divergences.variance_is(Hutchinson(probes=probes, distribution=distribution), rng(3), expected=variance)


def test_all_signs_give_mean_and_variance_exactly() -> None:
    """Over the eight sign vectors in three dimensions the mean is the trace, the variance 2 Σ_{i≠j} Sᵢⱼ²."""
    probes = divergences.signs(1, 3).permute(1, 0, 2)
    _, estimates = Hutchinson()(linear, torch.zeros(8, 3, dtype=torch.float64), probes)
    assert estimates.mean().item() == pytest.approx(MATRIX.trace().item(), abs=1e-12)
    assert estimates.var(correction=0).item() == pytest.approx(SIGN_VARIANCE, abs=1e-12)


def test_rademacher_is_exact_on_a_diagonal() -> None:
    x = normal(5, (4,), rng(4))
    _, estimates = Hutchinson(probes=2)(lambda y: y**3, x, Hutchinson(probes=2).draw(x, rng(5)))
    torch.testing.assert_close(estimates, 3 * x.square().sum(1, keepdim=True).expand(5, 2))


def test_rademacher_draws_fair_signs() -> None:
    draws = Hutchinson(probes=2).draw(torch.zeros(20_000, 3, dtype=torch.float64), rng(6))
    assert draws.shape == (2, 20_000, 3)
    assert (draws.abs() == 1).all()
    assert draws.mean((0, 1)).abs().max() < 5 / 40_000**0.5


@pytest.mark.parametrize("event", [(3,), (2, 2, 2), (1,)])
def test_sphere_has_the_root_of_d_for_its_radius(event: tuple[int, ...]) -> None:
    """|v| = √D over all dimensions of the event, no direction is favoured, and E[v vᵀ] = I."""
    v = Hutchinson(probes=2, distribution="sphere").draw(torch.zeros(20_000, *event, dtype=torch.float64), rng(16))
    assert v.shape == (2, 20_000, *event)
    v, size = v.reshape(40_000, -1), math.prod(event)
    torch.testing.assert_close(v.norm(dim=1), torch.full((40_000,), size**0.5, dtype=torch.float64))
    assert v.mean(0).abs().max() < 5 / 40_000**0.5
    assert (v.T @ v / 40_000 - torch.eye(size, dtype=torch.float64)).abs().max() < 5 * (2 / 40_000) ** 0.5


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_hutch_plus_plus_is_exact_on_low_rank(rank: int) -> None:
    """Rank at most probes/3: every column is the trace itself, also where the sketch is of deficient rank."""
    u, v = normal(rank, (10,), rng(7)), normal(rank, (10,), rng(8))
    x = normal(6, (10,), rng(9))
    divergence = HutchPlusPlus(probes=12)
    _, estimates = divergence(lambda y: y @ (u.T @ v).T, x, divergence.draw(x, rng(10)))
    torch.testing.assert_close(estimates, (u * v).sum().expand(6, 4), rtol=1e-9, atol=1e-9)


def test_hutch_plus_plus_is_exact_with_enough_probes() -> None:
    divergences.equals_the_trace(HutchPlusPlus(probes=30), rng(11), tolerance=1e-9)


def test_hutch_plus_plus_beats_hutchinson_on_a_decaying_spectrum() -> None:
    q, _ = torch.linalg.qr(normal(1, (20, 20), rng(12))[0])
    a = q @ torch.diag(0.5 ** torch.arange(20, dtype=torch.float64)) @ q.T
    x = torch.zeros(2000, 20, dtype=torch.float64)
    spread = []
    for divergence in (HutchPlusPlus(probes=12), Hutchinson(probes=12)):
        _, estimates = divergence(lambda y: y @ a.T, x, divergence.draw(x, rng(13)))
        spread.append(estimates.mean(1).std().item())
    assert spread[0] < spread[1] / 4


def test_a_field_without_x_has_no_divergence() -> None:
    x = normal(3, (2,), rng(14))
    w = torch.ones(2, dtype=torch.float64, requires_grad=True)
    for field in (torch.ones_like, lambda y: w.expand(3, 2)):
        for divergence in (ExactDivergence(), Hutchinson(probes=2)):
            _, estimates = divergence(field, x, divergence.draw(x, rng(15)))
            assert torch.count_nonzero(estimates) == 0


NETS = {
    "mlp": (lambda: MLP(3, 3, hidden=(8,), activation="silu"), (3,)),
    "residual-mlp": (lambda: ResidualMLP(3, 3, hidden=(8, 8), activation="tanh"), (3,)),
    "layer-norm": (lambda: nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 3)), (3,)),
    "conv": (lambda: ConvNet(1, 1, hidden=(4,), activation="silu"), (1, 2, 2)),
    "unet": (lambda: UNet(1, 1, hidden=(4, 8), blocks=1, heads=2), (1, 3, 2)),
    "refinenet": (lambda: RefineNet(1, 1, hidden=4), (1, 2, 2)),
    # Four channels in one group on 2 × 2 pixels: batched, torch would be wrong here without an error.
    "group-norm": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 1), nn.GroupNorm(1, 4), nn.SiLU(), nn.Conv2d(4, 1, 1)),
        (1, 2, 2),
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_several_probes_are_each_alone_in_value_and_gradient(name: str) -> None:
    """However torch takes them: at once, or one after the other where it cannot batch a second derivative."""
    build, event = NETS[name]
    net = perturb(seeded(build), rng(18), std=0.2)
    x = normal(4, event, rng(19))
    probes = Hutchinson(probes=4).draw(x, rng(20))
    parameters = [p for p in net.parameters() if p.requires_grad]

    def with_gradients(columns: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        weights = torch.linspace(0.5, 1.5, columns.numel(), dtype=columns.dtype).reshape(columns.shape)
        gradients = torch.autograd.grad((weights * columns).sum(), parameters, materialize_grads=True)
        return columns.detach(), list(gradients)

    together, gradients = with_gradients(Hutchinson(probes=4)(net, x, probes)[1])
    expected, each = with_gradients(torch.cat([Hutchinson()(net, x, v[None])[1] for v in probes], 1))
    torch.testing.assert_close(together, expected, rtol=1e-9, atol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(Hutchinson(probes=4)(net, x, probes)[1], expected, rtol=1e-9, atol=1e-11)
    for a, b in zip(gradients, each, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    assert sum(g.abs().sum() for g in each) > 1e-3


def test_several_probes_of_a_gradient_through_a_group_norm() -> None:
    """Its first derivative is a second one of the norm, with gradients wanted or not."""
    net = perturb(seeded(NETS["group-norm"][0]), rng(21), std=0.2)
    x = normal(4, (1, 2, 2), rng(22))

    def score(x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        return gradient

    probes = Hutchinson(probes=4).draw(x, rng(23))
    with torch.no_grad():
        found = Hutchinson(probes=4)(score, x, probes)[1]
        expected = torch.cat([Hutchinson()(score, x, v[None])[1] for v in probes], 1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_inference_mode_is_refused(name: str) -> None:
    """It switches autograd off for good: the divergence of every field would be 0."""
    x = normal(3, (2,), rng(17))
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"torch\.no_grad"):
        DIVERGENCES[name](lambda y: 2 * y, x, DIVERGENCES[name].draw(x, rng(18)))


@pytest.mark.parametrize(
    "build", [lambda: Hutchinson(probes=0), lambda: HutchPlusPlus(probes=4), lambda: HutchPlusPlus(probes=0)]
)
def test_number_of_probes_must_make_sense(build: Callable[[], Divergence]) -> None:
    with pytest.raises(ValueError, match="probes"):
        build()


def test_what_made_x_is_not_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Along an ODE with gradients x holds all steps before, and looking through them would cost their square."""
    products = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: products.append(1) or grad(*a, **k))
    x = nn.GroupNorm(1, 4)(normal(3, (4,), rng(0)).float().requires_grad_())
    value, columns = Hutchinson(probes=3)(lambda y: y**3, x, draw_probes(3, x, "rademacher", rng(1)))
    assert value.requires_grad
    assert len(products) == 1  # one for all probes: no group norm lies between x and f(x)
    torch.testing.assert_close(columns, (3 * x**2).sum(1, keepdim=True).expand(-1, 3))
