import math

import pytest
import torch
from cases import SDES
from helpers import normal, perturb, rng, seeded
from torch import Tensor, nn

from cflows import VPSDE, AdaptiveSDE, EulerMaruyama, PredictorCorrector, ScoreSDE
from cflows.ode.solver import ODESolver
from cflows.samplers.sampler import Sampler
from core import ExactDivergence, Hutchinson, RowGenerators, StandardNormal

TIGHT = ODESolver(rtol=1e-7, atol=1e-7)


def untrained(name: str, data_std: float, **keywords: object) -> ScoreSDE:
    sde = SDES[name][0]
    return (
        seeded(lambda: ScoreSDE(2, sde=sde, hidden=(8,), data_std=data_std, solver=TIGHT, **keywords)).double().eval()
    )


def variance(name: str, t: float, data_std: float) -> float:
    scale, std = (v.item() for v in SDES[name][0].marginal(torch.tensor(t, dtype=torch.float64)))
    return (scale * data_std) ** 2 + std**2


@pytest.mark.parametrize("data_std", [0.5, 2.0])
@pytest.mark.parametrize("name", SDES)
def test_untrained_is_a_gaussian_in_closed_form(name: str, data_std: float) -> None:
    """F = 0 is the score of N(0, v I): the ODE scales x by √(V(1)/V(t_min)), and the prior does the rest."""
    model = untrained(name, data_std)
    x = data_std * normal(5, (2,), rng(0))
    stretch = math.sqrt(variance(name, 1.0, data_std) / variance(name, model.t_min, data_std))
    expected = model.prior.log_prob(x * stretch) + 2 * math.log(stretch)
    torch.testing.assert_close(model.log_prob(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("data_std", [0.5, 1.0])
@pytest.mark.parametrize("name", ["vp", "sub-vp", "ve"])
def test_untrained_is_the_gaussian_of_the_data(name: str, data_std: float) -> None:
    """Up to what t_min and the prior's mismatch leave: below 0.005 nats within three deviations."""
    model = untrained(name, data_std)
    x = data_std * normal(20, (2,), rng(1)).clamp(-3, 3)
    expected = torch.distributions.Normal(0.0, data_std).log_prob(x).sum(1)
    torch.testing.assert_close(model.log_prob(x), expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_untrained_samples_are_the_gaussian_of_the_data(name: str) -> None:
    model = untrained(name, 2.0, sampler=EulerMaruyama(steps=100, t_min=1e-3, denoise=False))
    x = model.sample((4000,), generator=rng(2))
    torch.testing.assert_close(x.mean(0), torch.zeros(2, dtype=torch.float64), rtol=0, atol=0.16)
    torch.testing.assert_close(torch.cov(x.T), 4 * torch.eye(2, dtype=torch.float64), rtol=0, atol=0.6)


@pytest.mark.parametrize("name", SDES)
def test_preconditioning_gives_the_network_unit_inputs(name: str) -> None:
    """x/√(α² v + σ²) and u within [-1, 1], reaching both ends, at every noise level."""
    sde, seen = SDES[name][0], []

    class Spy(nn.Module):
        def forward(self, x: Tensor, u: Tensor, context: Tensor | None) -> Tensor:
            seen.append((x, u))
            return torch.zeros_like(x)

    model = ScoreSDE(2, sde=sde, data_std=0.7, net=Spy(), t_min=1e-3).double()
    t = torch.logspace(-3, 0, 20_000, dtype=torch.float64)
    scale, std = sde.marginal(t)
    x = scale[:, None] * 0.7 * normal(20_000, (2,), rng(3)) + std[:, None] * normal(20_000, (2,), rng(4))
    model.score(x, t)
    (inputs, u) = seen[0]
    assert inputs.std().item() == pytest.approx(1.0, abs=0.02)
    assert u.abs().max() <= 1 + 1e-9
    assert (u[0].item(), u[-1].item()) == pytest.approx((1.0, -1.0), abs=1e-9)


@pytest.mark.parametrize("name", SDES)
def test_preconditioning_asks_for_unit_outputs(name: str) -> None:
    """The F of the exact conditional score has unit variance: Var[(s_target - s_0) / c_out] = 1 at every t."""
    sde, data_std = SDES[name][0], 0.7
    for time in (1e-3, 0.1, 0.5, 1.0):
        t = torch.tensor(time, dtype=torch.float64)
        scale, std = sde.marginal(t)
        x_0, eps = data_std * normal(20_000, (1,), rng(5)), normal(20_000, (1,), rng(6))
        x, outputs = scale * x_0 + std * eps, []
        for constant in (0.0, 1.0):
            net = lambda x, u, context, constant=constant: torch.full_like(x, constant)  # noqa: E731
            outputs.append(ScoreSDE(1, sde=sde, data_std=data_std, net=net, t_min=1e-4).double().score(x, t))
        target = (-eps / std - outputs[0]) / (outputs[1] - outputs[0])
        assert target.std().item() == pytest.approx(1.0, abs=0.03)


def perturbed(features: int, **keywords: object) -> ScoreSDE:
    build = lambda: ScoreSDE(features, hidden=(8,), t_min=0.02, **keywords)  # noqa: E731
    return perturb(seeded(build), rng(7), std=0.2)


def test_gradient_of_log_prob_against_finite_differences() -> None:
    model = perturbed(1, solver=ODESolver(method="rk4", steps=20))
    x = torch.linspace(-1.5, 1.5, 3, dtype=torch.float64)[:, None].requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_prob(x).sum(), x)
    h = 1e-5
    with torch.no_grad():
        difference = (model.log_prob(x + h) - model.log_prob(x - h)) / (2 * h)
    torch.testing.assert_close(gradient[:, 0], difference, rtol=1e-5, atol=1e-5)


def test_gradient_in_a_parameter_against_finite_differences() -> None:
    model = perturbed(1, solver=ODESolver(method="rk4", steps=20))
    x, bias, h = torch.tensor([[0.3], [-1.0]], dtype=torch.float64), model.net.net.head.bias, 1e-5
    (gradient,) = torch.autograd.grad(model.log_prob(x).sum(), bias)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            bias += sign * h
            values.append(model.log_prob(x).sum())
            bias -= sign * h
    assert gradient.item() == pytest.approx(((values[0] - values[1]) / (2 * h)).item(), rel=1e-5)


def test_estimate_reports_what_it_was_built_with() -> None:
    x = normal(3, (4,), rng(8))
    model = perturbed(4, solver=ODESolver(method="rk4", steps=5), divergence=Hutchinson(probes=4))
    estimate = model.estimate_log_prob(x, generator=rng(9))
    assert estimate.kind == "estimate"
    assert (estimate.std_error > 0).all()
    assert (estimate.solver_error > 0).all()
    assert (estimate.truncation != 0).all()
    assert (estimate.nfe == 20).all()
    exact = perturbed(4, solver=ODESolver(method="rk4", steps=5), divergence=ExactDivergence(), error_factor=None)
    assert exact.estimate_log_prob(x).solver_error is None
    assert exact.estimate_log_prob(x).kind == "exact"


def test_default_divergence_is_exact_in_few_dimensions() -> None:
    assert ScoreSDE(7, hidden=(8,)).divergence == ExactDivergence()
    assert ScoreSDE((1, 2, 4), hidden=(8,)).divergence == Hutchinson(probes=8)


def test_score_takes_one_time_or_one_a_row_on_images() -> None:
    model = perturb(seeded(lambda: ScoreSDE((1, 2, 2), hidden=(8,), context_features=1)), rng(10))
    x, context = normal(3, (1, 2, 2), rng(11)), normal(3, (1,), rng(12))
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    together = model.score(x, t, context)
    assert together.shape == x.shape
    assert torch.equal(model(x, t, context), together)
    for i in range(3):
        alone = model.score(x[i : i + 1], t[i], context[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-12, atol=1e-12)


def test_score_and_samples_run_on_meta() -> None:
    model = ScoreSDE(3, hidden=(8,), sampler=EulerMaruyama(steps=2)).to("meta")
    assert model.score(torch.zeros(2, 3, device="meta"), torch.zeros((), device="meta")).device.type == "meta"
    with torch.random.fork_rng():
        assert model.sample((2,)).device.type == "meta"


def test_prior_is_that_of_the_process_and_moves_along() -> None:
    model = ScoreSDE(2, hidden=(8,)).double()
    assert isinstance(model.prior, StandardNormal)
    assert model.sde == VPSDE()
    assert model.prior.sample((2,), generator=rng(13)).dtype == torch.float64
    assert "prior.anchor" not in model.state_dict()


@pytest.mark.parametrize("keywords", [{"t_min": 0.0}, {"t_min": 1.0}, {"data_std": 0.0}])
def test_settings_that_make_no_sense(keywords: dict) -> None:
    with pytest.raises(ValueError, match="t_min within"):
        ScoreSDE(2, **keywords)


def test_rows_that_leave_early_take_their_context_along() -> None:
    """A sampler whose rows arrive at different times asks for the contexts of those that are left."""
    sampler = AdaptiveSDE(rtol=0.5, atol=0.5, t_min=0.1)
    model = (
        perturb(seeded(lambda: ScoreSDE(2, hidden=(8,), context_features=1, sampler=sampler)), rng(4)).double().eval()
    )
    context = torch.tensor([[-3.0], [0.0], [3.0]], dtype=torch.float64)
    together = model.sample((3,), context=context, generator=RowGenerators([0, 1, 2]))
    alone = [model.sample((1,), context=c[None], generator=RowGenerators([i])) for i, c in enumerate(context)]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("sampler", [EulerMaruyama(t_min=1e-6), PredictorCorrector(predictor=EulerMaruyama(t_min=0.0))])
def test_a_sampler_stays_where_the_score_is_defined(sampler: Sampler) -> None:
    with pytest.raises(ValueError, match="score ends at t_min=1e-05, but its sampler goes on to"):
        ScoreSDE(2, sampler=sampler)


@pytest.mark.parametrize(
    ("shape", "keywords", "sentence"),
    [
        (4, {"heads": 2}, "heads, attention and patch are of 'unet'"),
        (4, {"patch": 2}, "heads, attention and patch are of 'unet'"),
        ((1, 7, 8), {"network": "unet", "patch": 2}, "patch=2 must divide the sides"),
        (4, {"network": "unet"}, "takes images"),
    ],
)
def test_networks_that_do_not_fit(shape: object, keywords: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ScoreSDE(shape, **keywords)
