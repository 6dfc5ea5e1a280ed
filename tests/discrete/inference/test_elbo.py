"""Reverse KL on Gaussians, whose divergence and its gradient are known, and the energies with their constants."""

import math
from functools import partial

import pytest
import torch
from contracts import distillation
from helpers import Tooth, normal, perturb, rng, seeded
from torch import Tensor, nn

from core import DiagonalNormal, StandardNormal
from core.density import DensityModel
from discrete import Compose, Diagonal, Flow, Inverse, LULinear, PlanarFlow, RealNVP, SylvesterFlow, Triangular
from discrete.inference import ENERGIES, ReverseKL, negative_elbo

GRADIENTS = ["total", "path"]
STUDENT = partial(Triangular, 3)
TEACHER = partial(Triangular, 3, triangle="upper")


class Objective(nn.Module):
    """The loss as a function of the number of draws, which a fault makes a wrong one."""

    def __init__(self, flow: Flow, target: DensityModel, *, gradient: str = "total", fault: str = "") -> None:
        super().__init__()
        self.flow, self.target, self.gradient, self.fault = flow, target, gradient, fault

    def forward(self, samples: int, *, generator: torch.Generator) -> Tensor:
        if not self.fault:
            keywords = {"gradient": self.gradient, "generator": generator}
            return negative_elbo(self.flow, self.target.log_prob, samples, **keywords).loss_nats
        x, log_q = self.flow.rsample_and_log_prob((samples,), generator=generator)
        if self.fault == "draws without gradient":
            x = x.detach()
        log_p = self.target.log_prob(x)
        match self.fault:
            case "entropy of the wrong sign":
                return (-log_q - log_p).mean()
            case "entropy of the base":
                return (self.flow.base.log_prob(self.flow.encode(x)) - log_p).mean()
            case "forward divergence":
                y = self.target.sample((samples,), generator=generator)
                return (self.target.log_prob(y) - self.flow.log_prob(y)).mean()
            case "score twice":
                score = self.flow.log_prob(x.detach())
                return (log_q - log_p + score - score.detach()).mean()
        return (log_q - log_p).mean()


def gaussian(build: partial, seed: int) -> Flow:
    return perturb(Flow(seeded(build), StandardNormal(3)), rng(seed))


def planar_flow(seed: int = 1, **keywords: int) -> Flow:
    return perturb(seeded(partial(PlanarFlow, 2, layers=2, base=DiagonalNormal(2), **keywords)), rng(seed))


@pytest.mark.parametrize("gradient", GRADIENTS)
class TestGaussians:
    def test_value(self, gradient: str) -> None:
        build = partial(Objective, gradient=gradient)
        distillation.value_is_the_divergence(build, gaussian(STUDENT, 1), gaussian(TEACHER, 2), rng(3))

    def test_gradient(self, gradient: str) -> None:
        build = partial(Objective, gradient=gradient)
        distillation.gradient_is_that_of_the_divergence(build, gaussian(STUDENT, 1), gaussian(TEACHER, 2), rng(4))

    def test_value_at_the_optimum(self, gradient: str) -> None:
        build = partial(Objective, gradient=gradient)
        distillation.vanishes_draw_by_draw_at_the_optimum(build, gaussian(partial(LULinear, 3), 1), rng(5))


@pytest.mark.parametrize(
    "flow",
    [
        lambda: gaussian(lambda: Inverse(Compose(LULinear(3), Diagonal(3))), 1),
        planar_flow,
        lambda: perturb(seeded(partial(SylvesterFlow, 2, layers=2)), rng(1)),
    ],
    ids=["linear", "planar", "sylvester"],
)
def test_path_gradient_has_no_variance_at_the_optimum(flow: object) -> None:
    """Draw by draw; that of the whole estimate has, and zero only on average."""
    build = partial(Objective, gradient="path")
    distillation.gradient_vanishes_draw_by_draw_at_the_optimum(build, flow(), rng(6))
    with pytest.raises(AssertionError):
        distillation.gradient_vanishes_draw_by_draw_at_the_optimum(Objective, flow(), rng(6))


def test_both_gradients_have_one_mean_on_an_energy() -> None:
    """Of a planar flow, on a ring, within four standard errors of their difference, from one set of draws."""
    flow = planar_flow()

    def gradient(kind: str, seed: int) -> Tensor:
        found = negative_elbo(flow, ENERGIES["U1"].log_density, 200, gradient=kind, generator=rng(seed))
        return distillation.gradient(found.loss_nats, flow)

    differences = torch.stack([gradient("total", seed) - gradient("path", seed) for seed in range(64)])
    distillation.within_four_errors(differences, torch.zeros_like(differences[0]))


FAULTS = {
    "entropy of the wrong sign": distillation.value_is_the_divergence,
    "entropy of the base": distillation.value_is_the_divergence,
    "forward divergence": distillation.value_is_the_divergence,
    "draws without gradient": distillation.gradient_is_that_of_the_divergence,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_teeth(fault: str) -> None:
    student, teacher = gaussian(STUDENT, 1), gaussian(TEACHER, 2)
    Tooth(
        lambda build: FAULTS[fault](build, student, teacher, rng(7)),
        lambda: Objective,
        lambda: partial(Objective, fault=fault),
    ).bites()


def test_a_score_that_is_not_stopped_is_seen_at_the_optimum() -> None:
    Tooth(
        lambda build: distillation.gradient_vanishes_draw_by_draw_at_the_optimum(build, gaussian(STUDENT, 1), rng(8)),
        lambda: partial(Objective, gradient="path"),
        lambda: partial(Objective, fault="score twice"),
    ).bites()


def test_a_constant_moves_the_loss_and_nothing_else() -> None:
    flow, energy = planar_flow(), ENERGIES["U2"]
    plain = negative_elbo(flow, energy.log_density, 50, generator=rng(9))
    shifted = negative_elbo(flow, lambda x: energy.log_density(x) + 3, 50, generator=rng(9))
    torch.testing.assert_close(shifted.loss_nats, plain.loss_nats - 3)
    torch.testing.assert_close(shifted.std_error_nats, plain.std_error_nats)


@pytest.mark.parametrize("contexts", [None, 3])
def test_standard_error(contexts: int | None) -> None:
    """That of repeated losses, at the contexts given, which differ by far more than draws do."""
    flow = perturb(seeded(partial(RealNVP, 2, layers=2, hidden=(4,), context_features=2)), rng(1))
    context = 5 * normal(contexts or 1, (2,), rng(10)) if contexts else normal(1, (2,), rng(10))[0]
    energy = ENERGIES["U2"].log_density
    found = [negative_elbo(flow, energy, 50, context=context, generator=rng(seed)) for seed in range(200)]
    losses, errors = (torch.stack([getattr(f, name) for f in found]) for name in ("loss_nats", "std_error_nats"))
    assert errors.square().mean().sqrt().item() == pytest.approx(losses.std().item(), rel=0.2)
    assert not errors.requires_grad


def test_shapes_and_a_single_draw() -> None:
    flow = perturb(seeded(partial(PlanarFlow, 2, layers=2, context_features=3)), rng(1))
    context = normal(4, (5, 3), rng(11))
    found = negative_elbo(flow, ENERGIES["U1"].log_density, 1, context=context, generator=rng(12))
    assert isinstance(found, ReverseKL)
    assert found.draws_nats.shape == (1, 4, 5)
    assert found.loss_nats.shape == found.std_error_nats.shape == ()
    assert found.std_error_nats.isnan()
    torch.testing.assert_close(found.loss_nats, found.draws_nats.mean())


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_amortized_flows_learn_through_their_context(gradient: str) -> None:
    """Gradients of the encoder: through the draws and, of the whole estimate, through log q too; one mean."""
    flow = perturb(seeded(partial(PlanarFlow, 2, layers=2, context_features=1)), rng(1))

    def slope(kind: str, seed: int) -> Tensor:
        context = torch.full((1,), 0.4, dtype=torch.float64, requires_grad=True)
        found = negative_elbo(
            flow, ENERGIES["U2"].log_density, 200, context=context, gradient=kind, generator=rng(seed)
        )
        return torch.autograd.grad(found.loss_nats, context)[0]

    def by_differences(seed: int, step: float = 1e-4) -> Tensor:
        ends = (0.4 + step, 0.4 - step)
        up, down = (
            negative_elbo(
                flow,
                ENERGIES["U2"].log_density,
                200,
                context=torch.full((1,), end, dtype=torch.float64),
                generator=rng(seed),
            ).loss_nats.detach()
            for end in ends
        )
        return ((up - down) / (2 * step)).reshape(1)

    differences = torch.stack([slope(gradient, seed) - by_differences(seed) for seed in range(64)])
    if gradient == "total":
        torch.testing.assert_close(differences, torch.zeros_like(differences), rtol=0, atol=1e-5)
    else:
        distillation.within_four_errors(differences, torch.zeros(1, dtype=torch.float64))


def test_the_joint_learns_too() -> None:
    """Parameters of log p̃ have gradients, as a decoder needs."""
    decoder = DiagonalNormal(2).double()
    negative_elbo(planar_flow(), decoder.log_prob, 10, gradient="path", generator=rng(13)).loss_nats.backward()
    assert all(p.grad is not None and p.grad.count_nonzero() for p in decoder.parameters())


def test_modes_and_flags_come_back() -> None:
    flow = planar_flow().train()
    flow.base.loc.requires_grad_(False)
    negative_elbo(flow, ENERGIES["U1"].log_density, 3, gradient="path", generator=rng(14))
    assert all(part.training for part in flow.modules())
    assert [n for n, p in flow.named_parameters() if not p.requires_grad] == ["base.loc"]


def test_what_is_refused() -> None:
    flow = planar_flow()
    with pytest.raises(ValueError, match="1 sample or more"):
        negative_elbo(flow, ENERGIES["U1"].log_density, 0)
    with pytest.raises(ValueError, match=r"must give \(5,\), one value a draw, but gave \(5, 2\)"):
        negative_elbo(flow, lambda x: x, 5)


def table_1(name: str, x: float, y: float) -> float:
    """The energies of the paper's table, in plain exponentials."""
    e = math.exp
    w1, w2 = math.sin(2 * math.pi * x / 4), 3 * e(-0.5 * ((x - 1) / 0.6) ** 2)
    w3 = 3 / (1 + e(-(x - 1) / 0.3))
    r = math.sqrt(x * x + y * y)
    return {
        "U1": 0.5 * ((r - 2) / 0.4) ** 2 - math.log(e(-0.5 * ((x - 2) / 0.6) ** 2) + e(-0.5 * ((x + 2) / 0.6) ** 2)),
        "U2": 0.5 * ((y - w1) / 0.4) ** 2,
        "U3": -math.log(e(-0.5 * ((y - w1) / 0.35) ** 2) + e(-0.5 * ((y - w1 + w2) / 0.35) ** 2)),
        "U4": -math.log(e(-0.5 * ((y - w1) / 0.4) ** 2) + e(-0.5 * ((y - w1 + w3) / 0.35) ** 2)),
    }[name]


@pytest.mark.parametrize("name", ENERGIES)
class TestEnergies:
    def test_table(self, name: str) -> None:
        z = 4 * (2 * torch.rand(50, 2, generator=rng(15), dtype=torch.float64) - 1)
        expected = torch.tensor([table_1(name, x, y) for x, y in z.tolist()], dtype=torch.float64)
        torch.testing.assert_close(ENERGIES[name].potential(z), expected)
        torch.testing.assert_close(ENERGIES[name].log_density(z), -expected)

    def test_log_z(self, name: str) -> None:
        """By a rule on a grid of its own; in closed form where the energy is Gaussian in z₂."""
        step = 0.04  # the wall begins on a point
        axis = step * torch.arange(-200, 201, dtype=torch.float64)
        density = ENERGIES[name].log_density(torch.cartesian_prod(axis, axis))
        assert density.logsumexp(0).item() + 2 * math.log(step) == pytest.approx(ENERGIES[name].log_z, abs=1e-9)
        widths = {"U2": 0.4, "U3": 0.7, "U4": 0.75}
        if name in widths:
            root = math.sqrt(2 * math.pi)
            assert math.log(root * widths[name] * (8 + 0.4 * root)) == pytest.approx(ENERGIES[name].log_z, abs=1e-9)

    def test_normalized_and_differentiable(self, name: str) -> None:
        z = torch.tensor([[0.0, 0.0], [60.0, -60.0], [-4.0, 1.0]], requires_grad=True)
        energy = ENERGIES[name]
        torch.testing.assert_close(energy.log_prob(z), energy.log_density(z) - energy.log_z)
        (score,) = torch.autograd.grad(energy.log_prob(z).sum(), z)
        assert score.isfinite().all()
        assert energy.log_prob(torch.zeros(2, 3, 2)).shape == (2, 3)

    def test_a_wrong_constant_is_seen(self, name: str) -> None:
        """Log Z is minus the best loss: an estimate by importance weights of a wide normal finds it."""
        base = DiagonalNormal(2, scale=2.5, learnable=False).double()
        x, log_q = base.rsample_and_log_prob((400_000,), generator=rng(16))
        weights = ENERGIES[name].log_prob(x) - log_q
        assert weights.logsumexp(0).item() - math.log(len(x)) == pytest.approx(0, abs=0.02)


@pytest.mark.slow
def test_a_planar_flow_learns_the_sine() -> None:
    """A bent valley, more than a nat away from every Gaussian."""
    flow = seeded(partial(PlanarFlow, 2, layers=8, base=DiagonalNormal(2)))
    energy, generator = ENERGIES["U2"], rng(17)
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.03)
    for _ in range(500):
        optimizer.zero_grad()
        negative_elbo(flow, energy.log_prob, 64, generator=generator).loss_nats.backward()
        optimizer.step()
    assert negative_elbo(flow, energy.log_prob, 20_000, generator=generator).loss_nats.item() < 0.4
