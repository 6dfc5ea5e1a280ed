from typing import Any

import pytest
import torch
from cases import DENSITIES
from helpers import normal, rng, unit
from torch import Tensor, nn

from cflows import GradientScore
from cflows.score import Conservative, log_density_and_score
from core import DensityModel, DiagonalNormal, StandardNormal, StandardUniform

FLOWS = ["real-nvp-2", "maf-2", "real-nvp-3-context"]


def data(name: str, rows: int = 4) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Rows for a case, and its context where it takes one."""
    case, generator = DENSITIES[name], rng(1)
    x = case.data(rows, tuple(case.make().event_shape), generator)
    context = case.context(rows, generator)
    return x, () if context is None else (context,)


def numerical_score(density: DensityModel, x: Tensor, *context: Tensor, h: float = 1e-6) -> Tensor:
    """Central differences of the log-density."""
    result = torch.zeros_like(x)
    with torch.no_grad():
        for i in range(x.shape[1]):
            step = torch.zeros_like(x)
            step[:, i] = h
            result[:, i] = (density.log_prob(x + step, *context) - density.log_prob(x - step, *context)) / (2 * h)
    return result


@pytest.mark.parametrize("event", [(3,), (1, 2, 2)])
def test_score_of_standard_normal(event: tuple[int, ...]) -> None:
    x = normal(5, event, rng(0))
    torch.testing.assert_close(GradientScore(StandardNormal(event).double())(x), -x, rtol=1e-14, atol=1e-14)


def test_score_of_diagonal_normal() -> None:
    x, loc, scale = normal(5, (2,), rng(0)), torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 3.0]).double()
    score = GradientScore(DiagonalNormal(2, loc=loc, scale=scale).double())
    torch.testing.assert_close(score(x), -(x - loc) / scale**2, rtol=1e-12, atol=1e-12)


def test_score_of_a_mixture() -> None:
    mixture, x = DENSITIES["mixture-2"].make(), 2 * normal(20, (2,), rng(0))
    torch.testing.assert_close(GradientScore(mixture)(x), mixture.score(x), rtol=1e-12, atol=1e-12)


def test_score_of_a_function_and_of_a_network() -> None:
    x = normal(5, (2,), rng(0))
    torch.testing.assert_close(GradientScore(lambda x: -x.pow(4).sum(1))(x), -4 * x**3)
    net = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)).double()
    assert {id(p) for p in GradientScore(net).parameters()} == {id(p) for p in net.parameters()}
    torch.testing.assert_close(GradientScore(net)(x), net[0].weight.expand(5, 2))


@pytest.mark.parametrize("name", FLOWS)
def test_score_of_a_flow(name: str) -> None:
    density, (x, context) = DENSITIES[name].make(), data(name)
    score, expected = GradientScore(density), numerical_score(density, x, *context)
    torch.testing.assert_close(score(x, *context), expected, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        quiet = score(x, *context)
    assert not quiet.requires_grad
    torch.testing.assert_close(quiet, expected, rtol=1e-6, atol=1e-6)
    assert not x.requires_grad


def test_context_is_handed_on() -> None:
    density, (x, context) = DENSITIES["real-nvp-3-context"].make(), data("real-nvp-3-context")
    score = GradientScore(density)
    assert not torch.allclose(score(x, *context), score(x, 1.0 + context[0]))


@pytest.mark.parametrize("name", ["real-nvp-2", "maf-2"])
def test_score_is_trained_through(name: str) -> None:
    """The gradient of ½ ‖s‖² in every parameter is that of numerical differences, along a random direction."""
    density, (x, _) = DENSITIES[name].make(), data(name)
    score, parameters = GradientScore(density), list(density.parameters())
    gradients = torch.autograd.grad(0.5 * score(x).square().sum(), parameters, allow_unused=True)
    steps = [normal(1, tuple(p.shape), rng(i))[0] for i, p in enumerate(parameters)]
    slope = sum((g * s).sum().item() for g, s in zip(gradients, steps, strict=True) if g is not None)

    def moved(h: float) -> float:
        with torch.no_grad():
            for p, step in zip(parameters, steps, strict=True):
                p += h * step
            value = 0.5 * score(x).square().sum().item()
            for p, step in zip(parameters, steps, strict=True):
                p -= h * step
        return value

    assert slope == pytest.approx((moved(1e-6) - moved(-1e-6)) / 2e-6, rel=1e-6)


@pytest.mark.parametrize("name", ["real-nvp-2", "maf-2", "mixture-2"])
def test_score_is_conservative(name: str) -> None:
    """The Jacobian of a gradient is symmetric."""
    score, (x, _) = GradientScore(DENSITIES[name].make()), data(name)
    assert isinstance(score, Conservative)
    for row in x:
        jacobian = torch.autograd.functional.jacobian(lambda y: score(y[None])[0], row)
        torch.testing.assert_close(jacobian, jacobian.T, rtol=1e-9, atol=1e-9)
        assert jacobian.abs().max() > 1e-3


def test_a_network_is_not_conservative() -> None:
    assert not isinstance(nn.Linear(2, 2), Conservative)
    assert not isinstance(torch.tanh, Conservative)


def test_log_density_and_score_come_together() -> None:
    density, (x, _) = DENSITIES["real-nvp-2"].make(), data("real-nvp-2")
    score = GradientScore(density)
    value, s = log_density_and_score(density.log_prob, x)
    torch.testing.assert_close(value, density.log_prob(x), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(value, score.log_density(x), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(s, score(x), rtol=1e-14, atol=1e-14)
    assert value.requires_grad
    assert s.requires_grad
    with torch.no_grad():
        assert not any(part.requires_grad for part in log_density_and_score(density.log_prob, x))


def test_gradient_reaches_what_x_is_made_of() -> None:
    """A caller's x that hangs on a graph stays on it: d/da of -½ (a x)² at a."""
    a = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    x = torch.ones(1, 1, dtype=torch.float64)
    score = GradientScore(lambda x: -x.pow(3).sum(1))(a * x)
    (slope,) = torch.autograd.grad(score.sum(), a)
    assert slope.item() == pytest.approx(-6 * 3.0)


@pytest.mark.parametrize("rows", [0, 1, 4])
def test_rows_are_independent(rows: int) -> None:
    score, x = GradientScore(DENSITIES["real-nvp-2"].make()), normal(rows, (2,), rng(0))
    together = score(x)
    assert together.shape == x.shape
    for i in range(rows):
        torch.testing.assert_close(score(x[i : i + 1]), together[i : i + 1], rtol=1e-12, atol=1e-12)


def test_score_runs_on_meta_and_in_float32() -> None:
    score = GradientScore(DENSITIES["real-nvp-2"].make()).float()
    x = normal(4, (2,), rng(0)).float()
    assert score(x).dtype == torch.float32
    moved = score.to("meta")(x.to("meta"))
    assert moved.device.type == "meta"
    assert moved.shape == x.shape


@pytest.mark.parametrize(
    "log_density", [lambda x: -x.square(), lambda x: -x.square().sum(), lambda x: -x.square().sum(1, keepdim=True)]
)
def test_a_log_density_of_another_shape_is_refused(log_density: Any) -> None:
    with pytest.raises(ValueError, match=r"must have the shape \(5,\)"):
        log_density_and_score(log_density, normal(5, (2,), rng(0)))


@pytest.mark.parametrize("density", [StandardUniform(2), lambda x: torch.ones(len(x), dtype=x.dtype)])
def test_a_constant_has_the_score_zero(density: Any) -> None:
    x = 0.1 + 0.8 * unit(3, (2,), rng(2))
    assert torch.equal(GradientScore(density)(x), torch.zeros_like(x))


def test_inference_mode_is_refused() -> None:
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"torch\.no_grad"):
        GradientScore(StandardNormal(2))(torch.zeros(1, 2))
