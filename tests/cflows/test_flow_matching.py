"""FlowMatching and its objective on data whose velocity is known, the optimal pairing, and reflow."""

from functools import partial

import pytest
import torch
from cases import FLOW_OBJECTIVES
from contracts import continuous_flows as contracts
from contracts import modules
from helpers import normal, perturb, rng, seeded
from torch import Tensor, nn

from cflows import (
    FFJORD,
    ConditionalFlowMatching,
    FlowMatching,
    ODESolver,
    optimal_pairing,
    rectified_pairs,
)
from cflows.models.continuous_flow import ContinuousFlow
from cflows.ode.field import Plain
from core import RowGenerators
from core.shapes import align

TIGHT = ODESolver(method="dopri5_per_sample", rtol=1e-8, atol=1e-8)
FINE = ODESolver(method="rk4", steps=40)


def objective(velocity: contracts.Velocity, sigma: float, **keywords: object) -> nn.Module:
    return ConditionalFlowMatching(velocity, sigma_min=sigma, **keywords)


OPTIMAL = partial(objective, coupling="optimal")


@pytest.mark.parametrize("sigma", [0.0, 0.1])
@pytest.mark.parametrize("data", [contracts.GAUSSIAN, contracts.MIXTURE], ids=["gaussian", "mixture"])
def test_the_closed_form_itself(data: contracts.Data, sigma: float) -> None:
    """The velocity that the contracts compare with carries N(0, I) to the data."""
    contracts.velocity_carries_the_data(data.velocity(sigma), data, sigma)


@pytest.mark.parametrize("sigma", [0.0, 0.1])
@pytest.mark.parametrize("times", ["even", "uniform"])
def test_value_of_the_loss(times: str, sigma: float) -> None:
    contracts.loss_at_the_exact_velocity(partial(objective, times=times), sigma=sigma)


def test_the_minimal_loss_is_half_pi_of_the_deviation() -> None:
    """∫ c/((1 - t)² c + t²) dt = √c π/2."""
    assert contracts.minimal_loss(contracts.GAUSSIAN, 0.0) == pytest.approx(0.5 * torch.pi / 2, rel=1e-9)


@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_the_minimiser_is_the_velocity(sigma: float) -> None:
    contracts.minimiser_is_the_velocity(objective, contracts.MIXTURE, sigma=sigma)


def test_even_times_make_the_loss_quieter() -> None:
    def spread(times: str) -> float:
        loss = objective(lambda x, t: 5 * align(t, x) + x, 0.0, times=times)
        values = [loss(contracts.GAUSSIAN.draw(64, rng(i)), generator=rng(1000 + i)) for i in range(100)]
        return torch.stack(values).std().item()

    assert spread("even") < 0.5 * spread("uniform")


def test_the_preconditioning_is_exact_on_gaussian_data() -> None:
    def velocity(F: contracts.Velocity, data_std: float, sigma: float) -> contracts.Velocity:
        return FlowMatching(1, net=F, data_std=data_std, sigma_min=sigma).double()

    contracts.gaussian_data_are_no_work(velocity)


@pytest.mark.parametrize(("data_std", "sigma"), [(0.5, 0.0), (2.0, 0.0), (0.5, 0.1)])
def test_untrained_is_the_gaussian_of_the_data(data_std: float, sigma: float) -> None:
    """N(0, (v + σ²) I), exactly: density, draws and latents."""
    model = seeded(lambda: FlowMatching(2, hidden=(8,), data_std=data_std, sigma_min=sigma, solver=TIGHT)).double()
    std = (data_std**2 + sigma**2) ** 0.5
    x = std * normal(5, (2,), rng(0))
    expected = torch.distributions.Normal(0.0, std).log_prob(x).sum(1)
    torch.testing.assert_close(model.log_prob(x).detach(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.encode(x).detach(), x / std, rtol=0, atol=1e-6)
    assert model.sample((4000,), generator=rng(1)).std().item() == pytest.approx(std, rel=0.05)


def test_u_and_context_reach_the_network() -> None:
    seen = []
    net = lambda x, u, context: seen.append((u, context)) or torch.zeros_like(x)  # noqa: E731
    model, context = FlowMatching(2, net=net).double(), normal(3, (1,), rng(2))
    model(normal(3, (2,), rng(3)), torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), context)
    assert seen[0][0].tolist() == [-1.0, 0.0, 1.0]
    assert seen[0][1] is context


@pytest.mark.parametrize("keywords", [{"data_std": 0.0}, {"sigma_min": 1.0}, {"sigma_min": -0.1}])
def test_settings_that_make_no_sense(keywords: dict) -> None:
    with pytest.raises(ValueError, match="needs data_std > 0 and sigma_min within"):
        FlowMatching(2, **keywords)


def test_a_sigma_that_makes_no_sense() -> None:
    with pytest.raises(ValueError, match=r"sigma_min within \[0, 1\), but it is 1"):
        ConditionalFlowMatching(lambda x, t: x, sigma_min=1.0)


def test_the_optimal_coupling() -> None:
    contracts.pairing_is_the_cheapest(OPTIMAL)
    contracts.pairing_keeps_the_noise(OPTIMAL)


def test_the_optimal_coupling_is_no_small_matter() -> None:
    """On 256 rows it costs less than half of the independent one."""
    x_0 = contracts.MIXTURE.draw(256, rng(4))
    costs = [(x_0 - contracts.pairs_of(of, x_0, rng(5))).square().sum() for of in (objective, OPTIMAL)]
    assert costs[1] < 0.5 * costs[0]


def test_a_model_trained_on_optimal_pairs_keeps_the_marginals() -> None:
    """N(0, s²), s = 2: the flow of the loss's linear minimiser turns N(0, 1) into it, though x_0 is nearly s x_1.

    The integral of the minimiser's slope is log s, as with the independent coupling.
    """
    slopes, s = torch.zeros(2, 20, dtype=torch.float64), 2.0
    for seed in range(200):
        x_0 = s * normal(64, (1,), rng(seed))
        x_1 = contracts.pairs_of(OPTIMAL, x_0, rng(1000 + seed))
        for k in range(20):
            t = (k + 0.5) / 20
            x = (1 - t) * x_0 + t * x_1
            slopes[0, k] += (x * (x_1 - x_0)).sum()
            slopes[1, k] += x.square().sum()
    log_growth = -(slopes[0] / slopes[1]).mean()  # from t = 1 down to 0
    assert log_growth.exp().item() == pytest.approx(s, rel=0.03)


def test_pairing_takes_images_and_refuses_what_does_not_pair() -> None:
    x_1 = normal(6, (1, 2, 2), rng(6))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert optimal_pairing(x_1[order] + 0.01, x_1).tolist() == order.tolist()
    with pytest.raises(ValueError, match="as many rows on both sides"):
        optimal_pairing(x_1, x_1[:2])
    with pytest.raises(ValueError, match="needs finite rows"):
        optimal_pairing(x_1 * float("nan"), x_1)


def test_an_optimal_coupling_has_no_place_for_contexts() -> None:
    loss, x = OPTIMAL(lambda x, t, c: x, 0.0), normal(4, (2,), rng(7))
    with pytest.raises(ValueError, match="no place for contexts"):
        loss(x, normal(4, (1,), rng(8)))
    loss(x, normal(4, (1,), rng(8)), noise=x)  # paired already
    with pytest.raises(TypeError, match="an optimal coupling draws for all rows at once"):
        OPTIMAL(lambda x, t: x, 0.0, times="uniform")(x, generator=RowGenerators([0, 1, 2, 3]))


def test_with_generators_of_their_own_rows_are_independent() -> None:
    seen = []
    loss = objective(lambda x, t: seen.append(x) or x, 0.0, times="uniform")
    x = normal(3, (2,), rng(10))
    loss(x, generator=RowGenerators([1, 2, 3]))
    loss(x[1:2], generator=RowGenerators([2]))
    assert torch.equal(seen[0][1:2], seen[1])


def exact_flow(data: contracts.Data, solver: ODESolver = TIGHT) -> FFJORD:
    """The rectified flow of the data, without a network."""
    v = data.velocity()
    return FFJORD(data.means.shape[1], net=lambda x, u, context: v(x, (u + 1) / 2), solver=solver).double()


def test_rectified_pairs_lie_on_the_ways_of_the_flow() -> None:
    x_0, x_1 = rectified_pairs(exact_flow(contracts.LINE), (5, 4), generator=rng(11))
    assert x_0.shape == x_1.shape == (5, 4, 1)
    contracts.pairs_are_those_of_the_flow((x_0.reshape(-1, 1), x_1.reshape(-1, 1)), contracts.LINE)


def straightness(model: ContinuousFlow, x_1: Tensor) -> float:
    """∫ E ‖(x(1) - x(0)) - v(x(t), t)‖² dt along the flow, 0 for straight ways (Liu et al., eq. 6)."""
    steps, places = 40, []
    ODESolver(method="rk4", steps=steps).solve(
        Plain(model), x_1, torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64),
        report=lambda _, x: places.append(x),
    )  # fmt: skip
    times = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)[1:]
    chord = x_1 - places[-1]
    off = [(chord - model(x, t)).square().sum(1).mean() for x, t in zip(places, times, strict=True)]
    return torch.stack(off).mean().item()


def test_reflow_straightens() -> None:
    """A small model trained on the pairs of the exact flow of two modes has ways five times straighter."""
    teacher = exact_flow(contracts.MIXTURE, FINE)
    student = seeded(lambda: FlowMatching(2, hidden=(32, 32), frequencies=2, solver=FINE))
    x_0, x_1 = (v.float() for v in rectified_pairs(teacher, (2048,), generator=rng(12)))
    loss, generator = ConditionalFlowMatching(student), rng(13)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    for step in range(300):
        batch = slice(256 * (step % 8), 256 * (step % 8 + 1))
        optimizer.zero_grad()
        loss(x_0[batch], noise=x_1[batch], generator=generator).backward()
        optimizer.step()
    student = student.double().requires_grad_(False)
    noise = normal(500, (2,), rng(14))
    bent, straight = straightness(teacher, noise), straightness(student, noise)
    assert straight < bent / 5, f"the ways are off by {straight:.4f}, those of the teacher by {bent:.4f}"
    # and the law at t = 0 is still that of the data
    x = contracts.MIXTURE.draw(300, rng(15))
    lost = (contracts.MIXTURE.log_prob(x) - student.log_prob(x)).mean().item()
    assert lost < 0.15


@pytest.mark.parametrize("name", FLOW_OBJECTIVES)
def test_every_objective_of_a_flow(name: str) -> None:
    """Gradients reach every parameter, the generator alone decides, the batch is left alone, none is refused."""
    features = 0 if "optimal" in name else 1
    build = lambda: FlowMatching((2, 1), hidden=(8,), frequencies=2, context_features=features)  # noqa: E731
    loss = FLOW_OBJECTIVES[name](perturb(seeded(build), rng(16), std=0.1))
    x, context = normal(4, (2, 1), rng(17)), normal(4, (1,), rng(18)) if features else None
    call = lambda m, x, c: (m(x, c, generator=rng(19)),)  # noqa: E731
    modules.gradients_reach_every_parameter(call, loss, x, context)
    modules.input_is_left_alone(call, loss, x, context)
    value = loss(x, context, generator=rng(19))
    assert value.shape == ()
    assert torch.equal(value, loss(x, context, generator=rng(19)))
    with pytest.raises(ValueError, match="at least one row, but the batch is empty"):
        loss(x[:0], None if context is None else context[:0])


def test_likelihood_of_a_mixture_by_the_model() -> None:
    """What the loss aims at is a model whose likelihood is the density of the data, with steps of each row's own."""
    x = contracts.MIXTURE.draw(6, rng(20))
    found = exact_flow(contracts.MIXTURE, ODESolver(method="dopri5_per_sample", rtol=1e-7, atol=1e-7)).log_prob(x)
    torch.testing.assert_close(found, contracts.MIXTURE.log_prob(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("factor", [None, 4.0])
def test_the_factor_of_the_error_arrives(factor: float | None) -> None:
    assert FlowMatching(2, error_factor=factor).error_factor == factor
