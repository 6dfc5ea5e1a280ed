"""Conversions between predictions, the models that use them, and Karras et al.'s denoiser."""

import inspect

import pytest
import torch
from cases import SDES
from contracts import parametrizations
from helpers import Tooth, normal, perturb, rng, seeded
from torch import Tensor, nn

from cflows import VESDE, AffineSDE, ScoreSDE
from cflows.parametrization import convert
from cflows.preconditioning import preconditioned_score

X_0, EPS = normal(6, (3,), rng(0)), normal(6, (3,), rng(1))
CONTRACTS = {
    "parts": lambda c: parametrizations.agrees_with_the_parts(c, X_0, EPS),
    "there and back": lambda c: parametrizations.there_and_back(c, X_0, EPS),
    "composition": lambda c: parametrizations.composes(c, X_0, EPS),
}
NETWORK = ("score", "noise", "data", "velocity")


@pytest.mark.parametrize("name", CONTRACTS)
def test_contract(name: str) -> None:
    CONTRACTS[name](convert)


@pytest.mark.parametrize("name", ["vp", "sub-vp", "ve"])
def test_digits_of_float32_at_both_ends(name: str) -> None:
    t = torch.logspace(-5, 0, 40, dtype=torch.float64)
    scale, std = SDES[name][0].marginal(t)
    x_0, eps = normal(40, (500,), rng(2)), normal(40, (500,), rng(3))
    parametrizations.float32_loses_what_is_stated(convert, x_0, eps, scale, std)


def test_levels_of_rows_are_their_own_on_images() -> None:
    x, value = normal(4, (1, 2, 3), rng(4)), normal(4, (1, 2, 3), rng(5))
    scale, std = torch.linspace(0.1, 1, 4).double(), torch.linspace(2, 0.1, 4).double()
    for source, target in parametrizations.PAIRS:
        names = {"source": source, "target": target}
        together = convert(value, x, scale, std, **names)
        alone = [convert(value[i : i + 1], x[i : i + 1], scale[i], std[i], **names) for i in range(4)]
        torch.testing.assert_close(together, torch.cat(alone))
        assert convert(value.to("meta"), x.to("meta"), scale.to("meta"), std.to("meta"), **names).shape == x.shape


def test_the_same_is_itself_and_an_unknown_one_is_named() -> None:
    one = torch.tensor(1.0, dtype=torch.float64)
    assert convert(X_0, EPS, one, one, source="data", target="data") is X_0
    with pytest.raises(ValueError, match="not 'epsilon'"):
        inspect.unwrap(convert)(X_0, EPS, one, one, source="epsilon", target="data")


def test_velocity_of_a_turning_angle() -> None:
    """With α = cos φ and σ = sin φ, v is dx/dφ: Salimans and Ho (2022), appendix D."""
    phi = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x = torch.cos(phi) * X_0[0, 0] + torch.sin(phi) * EPS[0, 0]
    (slope,) = torch.autograd.grad(x, phi)
    scale, std = torch.cos(phi).detach(), torch.sin(phi).detach()
    v = convert(X_0[:1, :1], x.detach().reshape(1, 1), scale, std, source="data", target="velocity")
    torch.testing.assert_close(v.squeeze(), slope)


def posterior(name: str, x: Tensor, scale: Tensor, std: Tensor, v: float) -> Tensor:
    """What each network must learn of data N(0, v I), from E[x₀ | x] = α v x/V and E[ε | x] = σ x/V, V = α² v + σ²."""
    total = scale**2 * v + std**2
    return parametrizations.truths(scale * v * x / total, std * x / total, scale, std)[name]


@pytest.mark.parametrize("parametrization", NETWORK)
@pytest.mark.parametrize("name", SDES)
def test_a_model_of_each_parametrization_gives_the_score(name: str, parametrization: str) -> None:
    """The network sees x as it is; at the posterior mean of what it predicts the score is -x/V."""
    sde, v = SDES[name][0], 0.3
    t = torch.tensor([0.01, 0.1, 0.5, 1.0], dtype=torch.float64)
    scale, std = (part[:, None] for part in sde.marginal(t))

    class Posterior(nn.Module):
        def forward(self, x: Tensor, u: Tensor, context: Tensor | None) -> Tensor:
            assert u.shape == (4,)
            return posterior(parametrization, x, scale, std, v)

    model = ScoreSDE(2, sde=sde, net=Posterior(), parametrization=parametrization).double()
    x = torch.sqrt(scale**2 * v + std**2) * normal(4, (2,), rng(6))
    torch.testing.assert_close(model.score(x, t), -x / (scale**2 * v + std**2), rtol=1e-9, atol=1e-9)


def test_preconditioned_is_the_default_and_no_other_changes_the_network() -> None:
    x, t = normal(3, (2,), rng(7)), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    default, named = (
        perturb(seeded(lambda k=k: ScoreSDE(2, hidden=(8,), **k)), rng(8)) for k in ({}, {"parametrization": "noise"})
    )
    assert default.parametrization == "preconditioned"
    assert default.state_dict().keys() == named.state_dict().keys()
    scale, std = default.sde.marginal(t)
    u = (default.sde.log_snr(t) - default.log_snr_middle) / default.log_snr_half_range
    expected = preconditioned_score(lambda y: default.net(y, u, None), x, scale, std, data_std=1.0)
    assert torch.equal(default.score(x, t), expected)
    torch.testing.assert_close(named.score(x, t), -named.net(x, u, None) / std[:, None])


def test_an_unknown_parametrization_of_a_model_is_named() -> None:
    with pytest.raises(ValueError, match=r"preconditioned, score, noise, data, velocity, not 'eps'"):
        inspect.unwrap(ScoreSDE.__init__)(ScoreSDE(2, hidden=(8,)), 2, parametrization="eps")


@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
def test_preconditioned_is_the_denoiser_of_karras(sigma: float) -> None:
    """D = x + σ² s is c_skip x + c_out F(c_in x), table 1 of Karras et al. (2022), to the digits of float64."""
    data_std, level = 0.5, torch.tensor(sigma, dtype=torch.float64)
    x = torch.sqrt(level**2 + data_std**2) * normal(5, (3,), rng(9))
    root = (sigma**2 + data_std**2) ** 0.5
    c_skip, c_out, c_in = data_std**2 / root**2, sigma * data_std / root, 1 / root
    expected = c_skip * x + c_out * torch.tanh(c_in * x)
    s = preconditioned_score(torch.tanh, x, torch.ones_like(level), level, data_std=data_std)
    found = convert(s, x, torch.ones_like(level), level, source="score", target="data")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_model_under_the_process_of_karras_is_his_denoiser() -> None:
    """Through ScoreSDE with σ = 80 t, whose noise label is linear in his ¼ log σ."""
    sde = AffineSDE(scale=torch.ones_like, std=lambda t: 80 * t)
    labels = []

    class F(nn.Module):
        def forward(self, x: Tensor, u: Tensor, context: Tensor | None) -> Tensor:
            labels.append(u)
            return torch.tanh(x + u[:, None])

    model = ScoreSDE(2, sde=sde, net=F(), data_std=0.5, t_min=1e-4).double()
    t = torch.tensor([1e-4, 1e-3, 1e-2, 0.3, 1.0], dtype=torch.float64)
    sigma, x = 80 * t[:, None], normal(5, (2,), rng(10))
    total, s = sigma**2 + 0.25, model.score(x, t)
    expected = 0.25 / total * x + sigma * 0.5 / total.sqrt() * torch.tanh(x / total.sqrt() + labels[0][:, None])
    torch.testing.assert_close(x + sigma**2 * s, expected, rtol=1e-10, atol=1e-10)
    slope = labels[0].diff() / (0.25 * sigma.log()).squeeze().diff()
    torch.testing.assert_close(slope, slope[:1].expand(4))


def test_velocity_stays_finite_where_the_data_are_gone() -> None:
    """At t = 1 under VE a network of zeros is the score of N(0, (1 + σ²) I), not an infinity."""
    model = ScoreSDE(2, sde=VESDE(), parametrization="velocity", hidden=(8,))
    x, t = 50 * normal(3, (2,), rng(11)).float(), torch.ones(())
    torch.testing.assert_close(model.score(x, t), -x / 2501.0, rtol=1e-5, atol=0)


def swapped(value: Tensor, x: Tensor, scale: Tensor, std: Tensor, *, source: str, target: str) -> Tensor:
    return convert(value, x, std, scale, source=source, target=target)


def velocity_reversed(value: Tensor, x: Tensor, scale: Tensor, std: Tensor, *, source: str, target: str) -> Tensor:
    """v = σ x₀ - α ε on one way: there and back does not show it when both ways are wrong."""
    found = convert(value, x, scale, std, source=source, target=target)
    return -found if target == "velocity" and source != "velocity" else found


def unit_total(value: Tensor, x: Tensor, scale: Tensor, std: Tensor, *, source: str, target: str) -> Tensor:
    """The papers' equations, without α² + σ²."""
    found = convert(value, x, scale, std, source=source, target=target)
    return found * (scale**2 + std**2) if source == "velocity" and target != "velocity" else found


def score_without_sigma(value: Tensor, x: Tensor, scale: Tensor, std: Tensor, *, source: str, target: str) -> Tensor:
    """s = -ε."""
    value = value / std if source == "score" != target else value
    found = convert(value, x, scale, std, source=source, target=target)
    return found * std if target == "score" != source else found


def score_reversed(value: Tensor, x: Tensor, scale: Tensor, std: Tensor, *, source: str, target: str) -> Tensor:
    """s = ε/σ."""
    value = -value if source == "score" != target else value
    found = convert(value, x, scale, std, source=source, target=target)
    return -found if target == "score" != source else found


WRONG = {
    "α and σ swapped": (swapped, ["parts"]),
    "velocity reversed": (velocity_reversed, ["parts", "there and back", "composition"]),
    "α² + σ² taken for 1": (unit_total, ["parts", "there and back", "composition"]),
    "score without σ": (score_without_sigma, ["parts"]),
    "score reversed": (score_reversed, ["parts"]),
}


@pytest.mark.parametrize(("name", "contract"), [(n, c) for n, (_, contracts) in WRONG.items() for c in contracts])
def test_teeth(name: str, contract: str) -> None:
    Tooth(CONTRACTS[contract], lambda: convert, lambda: WRONG[name][0]).bites()
