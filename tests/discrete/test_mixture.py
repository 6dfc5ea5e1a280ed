"""The Gaussianization of a mixture against closed forms, autograd, mpmath and scipy."""

import copy
import math
import pickle
from typing import Any

import mpmath
import pytest
import scipy.special
import torch
from contracts import mixtures, transformers
from helpers import normal, rng
from torch import Tensor
from torch.distributions import Normal

from discrete.bijections.mixture import MixtureTransformer, log_ndtr, ndtri_exp
from discrete.bijections.transformers import AffineTransformer

MIXTURE = MixtureTransformer()
FEATURES = 5
STDS = [0.3, 1.0, 3.0]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def parameters(rows: int, seed: int = 0, *, std: float = 1.0, components: int = 8, features: int = FEATURES) -> Tensor:
    return std * normal(rows, (features, 3 * components), rng(seed))


def inputs(rows: int, seed: int = 1, *, features: int = FEATURES) -> Tensor:
    return 2 * normal(rows, (features,), rng(seed))


@DTYPES
def test_quantile_is_exact_to_two_roundings(dtype: torch.dtype) -> None:
    mixtures.quantile_is_exact(ndtri_exp, dtype)


def test_quantile_is_that_of_scipy() -> None:
    log_p = -torch.logspace(-6, 8, 500, dtype=torch.float64)
    expected = torch.from_numpy(scipy.special.ndtri_exp(log_p.numpy()))
    torch.testing.assert_close(ndtri_exp(log_p), expected, rtol=1e-12, atol=1e-12)


@DTYPES
def test_quantile_has_no_jump(dtype: torch.dtype) -> None:
    """Two neighbours among the log-probabilities are two roundings apart at most, where branches meet as elsewhere."""
    log_p = torch.cat(
        [torch.tensor([-80.0, math.log(0.5), -1e4]).to(dtype), -torch.rand(500, generator=rng()).to(dtype)]
    )
    steps = ndtri_exp(transformers.just_above(log_p)) - ndtri_exp(transformers.just_below(log_p))
    z = ndtri_exp(log_p)
    spacing = (log_p.exp() / Normal(0.0, 1.0).log_prob(z).exp()).nan_to_num(0.0) * 2 * torch.finfo(dtype).eps
    assert (steps.abs() <= spacing + 4 * torch.finfo(dtype).eps * z.abs().clamp(min=1)).all()


def test_derivatives_of_log_cdf_and_quantile() -> None:
    z = torch.tensor([-1000.0, -31.0, -29.0, -3.0, 0.0, 2.0, 8.0, 50.0], dtype=torch.float64, requires_grad=True)
    log_p = torch.tensor([-2000.0, -100.0, -5.0, -0.7, -0.5, -1e-3], dtype=torch.float64, requires_grad=True)
    for function, x in ((log_ndtr, z), (ndtri_exp, log_p)):
        assert torch.autograd.gradcheck(function, x)
        assert torch.autograd.gradgradcheck(function, x)


@DTYPES
def test_slope_of_the_log_cdf_keeps_its_digits(dtype: torch.dtype) -> None:
    """λ(z) = φ/Φ from -10⁶ to 40, 0 and its derivatives 0 far above, nowhere NaN."""
    mpmath.mp.dps = 40
    z = torch.tensor([-1e6, -1e3, -30.5, -30.0, -29.5, -5.0, 0.0, 3.0, 40.0], dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(log_ndtr(z).sum(), z, create_graph=True)
    lam = [mpmath.npdf(v) / (mpmath.erfc(-mpmath.mpf(v) / mpmath.sqrt(2)) / 2) for v in z.tolist()]
    expected = torch.tensor([float(v) for v in lam], dtype=torch.float64)
    torch.testing.assert_close(slope.double(), expected, rtol=500 * torch.finfo(dtype).eps, atol=0)
    (curvature,) = torch.autograd.grad(slope.sum(), z, create_graph=True)
    (third,) = torch.autograd.grad(curvature.sum(), z)
    for derivative in (curvature, third):
        assert derivative.isfinite().all()
        assert derivative[-1] == 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("components", [1, 2, 8])
def test_density_is_that_of_the_mixture(components: int, std: float, dtype: torch.dtype, tolerance: float) -> None:
    """For every x, tails included."""
    transformer = MixtureTransformer(components=components)
    theta = parameters(1, std=std, components=components).to(dtype)
    x = torch.linspace(-60, 60, 601).to(dtype)[:, None].expand(-1, FEATURES)
    mixtures.density_is_that_of_the_mixture(transformer, x, theta.expand(601, -1, -1), components, tolerance=tolerance)


def test_value_is_the_quantile_of_the_cdf() -> None:
    x, theta = inputs(200), parameters(200)
    z, _ = MIXTURE.forward(x, theta)
    torch.testing.assert_close(torch.special.ndtr(z), mixtures.mixture(theta).cdf(x), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.float64, 4e-13)])
def test_one_component_is_affine(dtype: torch.dtype, tolerance: float) -> None:
    """z = (x - μ)/s to rounding, whatever the logit; log dz/dx, a difference of squares, to |z| = 30."""
    single, affine = MixtureTransformer(components=1), AffineTransformer()
    theta = parameters(1, components=1).to(dtype).expand(301, -1, -1)
    inverse_theta = theta[..., [2, 1]]
    x = torch.linspace(-60, 60, 301).to(dtype)[:, None].expand(-1, FEATURES)
    for mapping, other in ((single.forward, affine.inverse), (single.inverse, affine.forward)):
        (z, log_derivative), (expected, slope) = mapping(x, theta), other(x, inverse_theta)
        torch.testing.assert_close(z, expected, rtol=8 * torch.finfo(dtype).eps, atol=64 * torch.finfo(dtype).eps)
        near = torch.maximum(z.abs(), x.abs()) < 30
        torch.testing.assert_close(log_derivative[near], slope[near], rtol=0, atol=tolerance)


@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("components", [1, 3, 8])
def test_log_derivatives(std: float, components: int) -> None:
    transformer = MixtureTransformer(components=components)
    x, theta = inputs(50), parameters(50, std=std, components=components)
    transformers.forward_log_derivative_is_that_of_autograd(transformer, x, theta)
    transformers.inverse_log_derivative_is_that_of_autograd(transformer, x, theta)


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("std", STDS)
def test_round_trip(std: float, scale: float) -> None:
    transformers.round_trips(MIXTURE, scale * inputs(50), parameters(50, std=std))


@DTYPES
@pytest.mark.parametrize("scale", [1.0, 10.0])
@pytest.mark.parametrize("std", [0.0, 1.0, 3.0, 10.0])
def test_round_trip_up_to_rounding(std: float, scale: float, dtype: torch.dtype) -> None:
    x, theta = (scale * inputs(200)).to(dtype), parameters(200, std=std).to(dtype)
    transformers.round_trips_up_to_rounding(MIXTURE, x, theta)


@pytest.mark.parametrize("std", STDS)
def test_float32_round_trip_in_the_tails(std: float) -> None:
    """1e-4, relative above 1, wherever a rounding of z moves x by less: slopes above 1/100."""
    x, theta = (15 * inputs(200)).float(), parameters(200, std=std).float()
    for there, back in transformers.both_ways(MIXTURE):
        z, log_derivative = there(x, theta)
        gentle = log_derivative > -math.log(100)
        assert gentle.float().mean() > 0.9
        torch.testing.assert_close(back(z, theta)[0][gentle], x[gentle], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "points"), [(torch.float32, 501), (torch.float64, 2001)])
@pytest.mark.parametrize("std", [0.0, 1.0, 3.0])
def test_strictly_increasing(std: float, dtype: torch.dtype, points: int) -> None:
    """From -60 to 60, both ways."""
    x = torch.linspace(-60, 60, points).to(dtype)[:, None].expand(-1, 2)
    theta = parameters(1, 3, std=std, features=2).to(dtype).expand(points, -1, -1)
    transformers.grows(MIXTURE, x, theta)


@pytest.mark.parametrize(
    ("components", "reach", "distance"),
    [(1, 10.0, 1e-12), (2, 3.0, 0.1), (3, 3.0, 0.025), (8, 3.0, 2e-6), (8, 10.0, 0.1), (16, 3.0, 1e-12)],
)
def test_zero_parameters_are_the_identity_as_far_as_the_rule_is_exact(
    components: int, reach: float, distance: float
) -> None:
    x = torch.linspace(-reach, reach, 101, dtype=torch.float64)[:, None]
    theta = torch.zeros(101, 1, 3 * components, dtype=torch.float64)
    transformers.is_the_identity(MixtureTransformer(components=components), x, theta, tolerance=distance)


def test_components_part() -> None:
    """From θ = 0, two far modes of mean 0 and variance 1 are told apart."""
    mixtures.components_part(MIXTURE)


@DTYPES
@pytest.mark.parametrize("std", [0.0, 1.0, 3.0])
def test_gradients_are_finite(std: float, dtype: torch.dtype) -> None:
    for scale in (0.0, 1.0, 30.0, 1e5):
        transformers.gradients_are_finite(MIXTURE, (scale * inputs(30)).to(dtype), parameters(30, std=std).to(dtype))


def test_gradients_are_those_of_finite_differences() -> None:
    """First and second, in x, z and θ: the inverse is found by a search and differentiated through its equation."""
    transformer = MixtureTransformer(components=2)
    x, theta = inputs(1, features=1).requires_grad_(), parameters(1, features=1, components=2).requires_grad_()
    for mapping in (transformer.forward, transformer.inverse):
        assert torch.autograd.gradcheck(mapping, (x, theta))
        assert torch.autograd.gradgradcheck(mapping, (x, theta))


@DTYPES
def test_a_gap_without_mass_is_bridged(dtype: torch.dtype) -> None:
    """Halves at ±200: all of the gap is z = 0, and z beside it falls on one half or the other."""
    transformer = MixtureTransformer(components=2)
    theta = torch.tensor([0.0, 0.0, -200.0, 200.0, 0.0, 0.0], dtype=dtype).expand(3, 1, 6)
    x, log_derivative = transformer.inverse(torch.tensor([-1e-3, 0.0, 1e-3], dtype=dtype)[:, None], theta)
    assert x.isfinite().all()
    assert log_derivative.isfinite().all()
    assert x[0] < -190
    assert x[2] > 190
    inside = torch.tensor([-150.0, 0.0, 150.0], dtype=dtype)[:, None]
    z, log_derivative = transformer.forward(inside, theta)
    assert z.abs().max() < 1e-6
    assert log_derivative.isfinite().all()


def test_nan_stays_nan() -> None:
    x = torch.tensor([[0.5, torch.nan]])
    for mapping in (MIXTURE.forward, MIXTURE.inverse):
        assert mapping(x, parameters(1, features=2).float())[0].isnan().tolist() == [[False, True]]


@pytest.mark.parametrize("shape", [(0, 3), (2, 1), (2, 3, 4, 4), (2, 3, 5)])
def test_any_event_and_strided_parameters(shape: tuple[int, ...]) -> None:
    x = normal(shape[0], shape[1:], rng(4))
    theta = normal(shape[0], (shape[1], 24, *shape[2:]), rng(5)).movedim(2, -1)
    for mapping in (MIXTURE.forward, MIXTURE.inverse):
        z, log_derivative = mapping(x, theta)
        assert z.shape == log_derivative.shape == x.shape
        flat, _ = mapping(x.reshape(-1, 1), theta.reshape(-1, 1, 24))
        torch.testing.assert_close(z.flatten(), flat.flatten(), rtol=1e-12, atol=1e-12)


def test_features_do_not_mix() -> None:
    x, theta = inputs(3), parameters(3)
    other, moved = x.clone(), theta.clone()
    other[1, 2], moved[1, 2] = 0.123, 1.0
    for mapping in (MIXTURE.forward, MIXTURE.inverse):
        changed = mapping(other, moved)[0] != mapping(x, theta)[0]
        assert changed.nonzero().tolist() == [[1, 2]]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_runs_under_vmap_and_jacrev() -> None:
    x, theta = inputs(20), parameters(20)
    for mapping in (MIXTURE.forward, MIXTURE.inverse):
        image = lambda row, parameters, mapping=mapping: mapping(row[None], parameters[None])[0][0]  # noqa: E731
        jacobian = torch.func.vmap(torch.func.jacrev(image))(x, theta)
        torch.testing.assert_close(jacobian.diagonal(dim1=1, dim2=2), mapping(x, theta)[1].exp())


def test_runs_on_meta_and_leaves_its_input_alone() -> None:
    x, theta = inputs(4), parameters(4)
    before = x.clone(), theta.clone()
    for mapping in (MIXTURE.forward, MIXTURE.inverse):
        for part in mapping(x.to("meta", torch.float32), theta.to("meta", torch.float32)):
            assert (part.shape, part.dtype, part.device.type) == (x.shape, torch.float32, "meta")
        mapping(x, theta)
    assert torch.equal(x, before[0])
    assert torch.equal(theta, before[1])


def test_copies_agree() -> None:
    x, theta = inputs(4), parameters(4)
    for copied in (copy.deepcopy(MIXTURE), pickle.loads(pickle.dumps(MIXTURE))):
        assert torch.equal(copied.forward(x, theta)[0], MIXTURE.forward(x, theta)[0])


@pytest.mark.parametrize(
    ("setting", "culprit"), [({"components": 0}, "1 component"), ({"log_scale_bound": 0.0}, "bound")]
)
def test_impossible_settings_are_refused(setting: dict[str, Any], culprit: str) -> None:
    with pytest.raises(ValueError, match=culprit):
        MixtureTransformer(**setting)
