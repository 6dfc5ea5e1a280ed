import math

import pytest
import torch
from helpers import normal, perturb, rng, seeded

from cflows import EnergyModel, SlicedScoreMatching
from core import DiagonalNormal, GaussianMixture


def tilt(x: torch.Tensor) -> torch.Tensor:
    """f(x) = b·x: N(0, s² I) tilted by it is N(s² b, s² I), and Z = exp(½ s² ‖b‖²)."""
    return x @ torch.tensor([0.8, -0.5], dtype=x.dtype)


def linear(scale: float) -> EnergyModel:
    base = DiagonalNormal(2, scale=scale, learnable=False)
    return EnergyModel(2, base=base, net=tilt, step_size=0.1, steps=400).double()


def test_score_is_minus_the_gradient_of_the_energy() -> None:
    model = perturb(seeded(lambda: EnergyModel(3, hidden=(16, 16))), rng(0))
    x = normal(4, (3,), rng(1))
    h = 1e-6
    for i in range(3):
        step = h * torch.eye(3, dtype=torch.float64)[i]
        difference = (model.log_density(x + step) - model.log_density(x - step)) / (2 * h)
        torch.testing.assert_close(model.score(x)[:, i], difference, rtol=1e-6, atol=1e-8)


def test_score_is_conservative() -> None:
    """Its Jacobian is symmetric."""
    model = perturb(seeded(lambda: EnergyModel(3, hidden=(16, 16))), rng(2))
    (x,) = normal(1, (3,), rng(3))
    jacobian = torch.autograd.functional.jacobian(lambda y: model.score(y[None])[0], x)
    torch.testing.assert_close(jacobian, jacobian.T, rtol=1e-10, atol=1e-12)
    assert (jacobian - torch.diag(jacobian.diagonal())).abs().max() > 1e-3


def test_tilted_gaussian_in_closed_form() -> None:
    model, b = linear(1.5), torch.tensor([0.8, -0.5], dtype=torch.float64)
    x = normal(5, (2,), rng(4))
    torch.testing.assert_close(model.score(x), -(x - 1.5**2 * b) / 1.5**2)
    log_z = 0.5 * 1.5**2 * b.square().sum().item()
    centred = (x - 1.5**2 * b) / 1.5
    log_prob = -0.5 * centred.square().sum(1) - math.log(2 * math.pi) - 2 * math.log(1.5)
    torch.testing.assert_close(model.log_density(x), log_prob + log_z)
    z = model.normalizing_constant(particles=2000, temperatures=20, generator=rng(5))
    assert abs(z.log_z_nats.item() - log_z) < 5 * z.std_error_nats.item()
    assert 0 < z.std_error_nats.item() < 0.05


def test_draws_reach_the_tilted_gaussian() -> None:
    x = linear(1.0).sample((4000,), generator=rng(6))
    assert x.mean(0).tolist() == pytest.approx([0.8, -0.5], abs=5 / 4000**0.5)
    assert x.std(0).tolist() == pytest.approx([1.0, 1.0], abs=5 * (0.5 / 4000) ** 0.5)


def test_each_context_has_its_own_constant() -> None:
    def net(x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return (x * context).sum(1)

    model = EnergyModel(2, net=net, step_size=0.2).double()
    for b in ([0.0, 0.0], [1.0, -0.5]):
        context = torch.tensor(b, dtype=torch.float64)
        z = model.normalizing_constant(particles=2000, context=context, generator=rng(7))
        assert abs(z.log_z_nats.item() - 0.5 * context.square().sum().item()) < 5 * z.std_error_nats.item() + 1e-9


def test_several_contexts_have_no_common_constant() -> None:
    model = EnergyModel(2, hidden=(8,), context_features=1)
    with pytest.raises(ValueError, match=r"give one, \(features,\), not one of shape \(5, 1\)"):
        model.normalizing_constant(particles=5, context=torch.zeros(5, 1))


@pytest.mark.slow
def test_sliced_score_matching_trains_an_energy() -> None:
    """Two overlapping modes: the trained log-density, normalized by its own Z, is close to the truth."""
    means, covariances = torch.tensor([[-1.0], [1.0]]), torch.full((2, 1, 1), 0.3)
    data = GaussianMixture(means, covariances, torch.tensor([0.7, 0.3]))
    model = seeded(lambda: EnergyModel(1, base=DiagonalNormal(1, scale=1.5, learnable=False), hidden=(32, 32)))
    loss, generator = SlicedScoreMatching(model), rng(8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / 400)
        optimizer.zero_grad()
        loss(data.sample((512,), generator=generator), generator=generator).backward()
        optimizer.step()
    grid = torch.linspace(-8, 8, 2001)[:, None]
    log_density = model.log_density(grid).detach()
    log_z = torch.logsumexp(log_density, 0) + math.log(16 / 2000)
    found = model.normalizing_constant(generator=rng(9))
    assert abs(found.log_z_nats.item() - log_z.item()) < 5 * found.std_error_nats.item()
    log_p = data.log_prob(grid)
    kl = (log_p.exp() * (log_p - log_density + log_z)).sum().item() * 16 / 2000
    assert 0 <= kl < 0.01, f"KL(data ‖ model) is {kl:.4f} nats"
