import math

import pytest
import torch
from helpers import normal, perturb, rng, seeded
from torch import Tensor

from cflows import FlowMatching, ODESolver
from core import GaussianMixture, StandardLogistic, StandardNormal
from discrete import Compose, Dequantization, Diagonal, Flow, Logit, RealNVP, interpolate
from discrete.bijections.preprocessing import Scaling


def nested(features: int = 3) -> Flow:
    """Preprocessing around a flow around a normal, as experiments build it."""
    inner = perturb(seeded(lambda: RealNVP(features, layers=2, hidden=(8,))), rng(1))
    return Flow(Scaling(features, loc=1.0, scale=2.0), inner).double().eval()


def images() -> Flow:
    inner = perturb(seeded(lambda: RealNVP((1, 4, 4), layers=1, hidden=(4,))), rng(2), std=0.1)
    steps = Compose(Dequantization((1, 4, 4), bins=4), Logit((1, 4, 4)))
    return Flow(steps, inner).double().eval()


@pytest.mark.parametrize("batch", [(), (0,), (2, 3)])
def test_decode_undoes_encode(batch: tuple[int, ...]) -> None:
    flow = nested()
    x = normal(math.prod(batch), (3,), rng(3)).reshape(*batch, 3)
    z = flow.encode(x)
    assert z.shape == (*batch, *flow.latent_shape)
    torch.testing.assert_close(flow.decode(z), x, rtol=1e-10, atol=1e-10)


def test_the_latent_is_the_innermost_one() -> None:
    """log p(x) = log N(z) + the log-determinant of the whole map, z of the inner flow's base."""
    flow = nested()
    x = normal(1, (3,), rng(4))
    jacobian = torch.autograd.functional.jacobian(lambda row: flow.encode(row), x[0])
    expected = StandardNormal(3).double().log_prob(flow.encode(x)) + torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(flow.log_prob(x), expected)


def test_the_latents_of_an_ode_are_those_of_its_base() -> None:
    """log p(x) by change of variables through the solve itself, preprocessing included."""
    inner = perturb(seeded(lambda: FlowMatching(2, hidden=(8,), solver=ODESolver(method="rk4", steps=80))), rng(1))
    flow = Flow(Scaling(2, loc=1.0, scale=2.0), inner).double().eval()
    x = normal(2, (2,), rng(4))
    z = flow.encode(x)
    torch.testing.assert_close(flow.decode(z), x, rtol=1e-4, atol=1e-4)
    jacobian = torch.autograd.functional.jacobian(lambda row: flow.encode(row[None])[0], x[0])
    expected = StandardNormal(2).double().log_prob(z[:1]) + torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(flow.log_prob(x[:1]), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(interpolate(flow, x[0], x[1], steps=3)[0], x[0], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="temperature must be 0 or more"):
        flow.sample((2,), temperature=-1.0)


def test_image_latents_are_one_vector_and_integers_come_back() -> None:
    flow = images()
    k = torch.randint(4, (5, 1, 4, 4), generator=rng(5)).double()
    z = flow.encode(k, generator=rng(6))
    assert z.shape == (5, 16)
    assert torch.equal(flow.decode(z), k)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("base", [StandardNormal(2), StandardLogistic(2)])
def test_temperature_scales_the_latent(base: StandardNormal | StandardLogistic, temperature: float) -> None:
    """Draws at T are decoded T z, through a flow that is the base of another as well."""
    flow = Flow(Scaling(2, loc=1.0), Flow(Diagonal(2, scale=0.5), base)).double()
    x = flow.sample((20_000,), generator=rng(7), temperature=temperature)
    z = base.double().sample((20_000,), generator=rng(7))
    torch.testing.assert_close(x, 1 + 2 * temperature * z, rtol=1e-6, atol=1e-6)


def test_temperature_refuses_what_it_cannot_scale() -> None:
    mixture = GaussianMixture(torch.zeros(1, 2), torch.eye(2)[None], torch.ones(1))
    with pytest.raises(ValueError, match="GaussianMixture"):
        Flow(Diagonal(2), mixture).sample((1,), temperature=0.5)
    with pytest.raises(ValueError, match="temperature must be 0 or more"):
        nested().sample((1,), temperature=-1.0)


@pytest.mark.parametrize("path", ["spherical", "linear"])
def test_both_ends_of_a_path_are_the_events(path: str) -> None:
    flow = nested()
    x_0, x_1 = normal(4, (3,), rng(8)), normal(4, (3,), rng(9))
    way = interpolate(flow, x_0, x_1, steps=5, path=path)
    assert way.shape == (5, 4, 3)
    torch.testing.assert_close(way[0], x_0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(way[-1], x_1, rtol=1e-9, atol=1e-9)
    assert not way.requires_grad


def identity() -> Flow:
    return Flow(Scaling(2), StandardNormal(2)).double()


def test_spherical_path_keeps_the_radius_at_even_angles() -> None:
    """Between two points of radius 2 at 0° and 120°: radius 2 at 0°, 30°, 60°, 90°, 120°."""
    angles = torch.linspace(0, 2 * math.pi / 3, 5, dtype=torch.float64)
    circle = 2 * torch.stack([angles.cos(), angles.sin()], 1)
    way = interpolate(identity(), circle[0], circle[-1], steps=5)
    torch.testing.assert_close(way, circle)


@pytest.mark.parametrize("x_1", [torch.tensor([2.0, 2.0]), torch.tensor([-1.0, -1.0])])
def test_spherical_path_is_straight_where_there_is_no_angle(x_1: Tensor) -> None:
    x_0 = torch.ones(2, dtype=torch.float64)
    way = interpolate(identity(), x_0, x_1.double(), steps=3)
    torch.testing.assert_close(way, torch.stack([x_0, (x_0 + x_1) / 2, x_1.double()]))


def test_linear_path() -> None:
    way = interpolate(identity(), torch.zeros(2, dtype=torch.float64), torch.ones(2).double(), steps=5, path="linear")
    torch.testing.assert_close(way[:, 0], torch.linspace(0, 1, 5, dtype=torch.float64))


def test_interpolate_refuses_what_is_no_path() -> None:
    with pytest.raises(ValueError, match="steps=1"):
        interpolate(identity(), torch.zeros(2).double(), torch.ones(2).double(), steps=1)
