"""The rational-quadratic spline against autograd, closed forms, and another library."""

import copy
import math
import pickle
import warnings

import pytest
import torch
from contracts import transformers
from helpers import normal, rng
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from discrete.bijections.spline import Bin, SplineTransformer

B = 3.0
SPLINE = SplineTransformer()
FEATURES = 5
STDS = [1.0, 5.0]


def parameters(rows: int, seed: int = 0, *, std: float = 1.0, bins: int = 8, features: int = FEATURES) -> Tensor:
    return std * normal(rows, (features, 3 * bins - 1), rng(seed))


def inputs(rows: int, seed: int = 1, *, features: int = FEATURES) -> Tensor:
    """Two thirds inside the box, one outside."""
    return 3 * normal(rows, (features,), rng(seed))


def knots(theta: Tensor, *, bins: int = 8, minimum: float = 1e-3) -> tuple[Tensor, Tensor, Tensor]:
    """x_k, y_k and δ_k from their definition, `(rows, n, K + 1)`."""
    shares = [minimum + (1 - bins * minimum) * logits.softmax(-1) for logits in theta[..., : 2 * bins].split(bins, -1)]
    x, y = (2 * B * torch.nn.functional.pad(share.cumsum(-1), (1, 0)) - B for share in shares)
    u = torch.nn.functional.pad(theta[..., 2 * bins :], (1, 1)) + math.log(math.expm1(1 - minimum))
    return x, y, minimum + torch.log1p(u.exp())


def own_knots(theta: Tensor) -> tuple[Tensor, Tensor]:
    """The knots as the transformer itself rounds them, `(rows * n, K + 1)` each."""
    x, y = (
        torch.cat([torch.full_like(knots[:1], -B), knots, torch.full_like(knots[:1], B)])
        for knots in SPLINE._inner_knots(theta.flatten(0, 1))[:2]
    )
    return x.T.contiguous(), y.T.contiguous()


def at_knots(seed: int = 2, *, std: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """x and y exactly on the K + 1 knots of 12 splines, and the θ of these."""
    theta = parameters(12, seed, std=std, features=1)
    x, y = own_knots(theta)
    return x, y, theta.expand(12, 9, 23)


@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("bins", [2, 3, 8])
def test_forward_log_derivative(std: float, bins: int) -> None:
    x, theta = inputs(200), parameters(200, std=std, bins=bins)
    transformers.forward_log_derivative_is_that_of_autograd(SplineTransformer(bins=bins), x, theta)


@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("bins", [2, 3, 8])
def test_inverse_log_derivative(std: float, bins: int) -> None:
    x, theta = inputs(200), parameters(200, std=std, bins=bins)
    transformers.inverse_log_derivative_is_that_of_autograd(SplineTransformer(bins=bins), x, theta)


def test_round_trip() -> None:
    """Inside, outside and at the ends of the box."""
    transformers.round_trips(SPLINE, inputs(400), parameters(400))
    ends = torch.tensor([-B, B, math.nextafter(B, 4), math.nextafter(-B, 0), 1e6], dtype=torch.float64)
    transformers.round_trips(SPLINE, ends.expand(50, 5), parameters(50))


def test_round_trip_on_knots() -> None:
    x, y, theta = at_knots()
    transformers.round_trips(SPLINE, x, theta)
    transformers.round_trips(SPLINE, y, theta)


@pytest.mark.parametrize("std", [1.0, 3.0, 5.0, 50.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_up_to_rounding(std: float, dtype: torch.dtype) -> None:
    x, theta = inputs(2000).to(dtype), parameters(2000, std=std).to(dtype)
    transformers.round_trips_up_to_rounding(SPLINE, x, theta)


def test_float32_round_trip_where_the_map_is_not_steep() -> None:
    """1e-4 at std 3 wherever a rounding of z moves x by less than that: slopes above 1/100."""
    x, theta = inputs(2000).float(), parameters(2000, std=3.0).float()
    for there, back in transformers.both_ways(SPLINE):
        middle, log_derivative = there(x, theta)
        end, _ = back(middle, theta)
        gentle = log_derivative > -math.log(100)
        assert gentle.float().mean() > 0.5
        assert (end - x)[gentle].abs().max() < 1e-4


def test_passes_through_its_knots_with_its_derivatives() -> None:
    """(x_k, y_k) and δ_k by their definition, 1 at both ends."""
    theta = parameters(12, features=1)
    x, y, d = (part[:, 0] for part in knots(theta))
    x = x.clamp(-B, B)  # the sum of all widths is 2B up to a rounding
    z, log_derivative = SPLINE.forward(x, theta.expand(12, 9, 23))
    torch.testing.assert_close(z, y, rtol=0, atol=1e-12)
    torch.testing.assert_close(log_derivative.exp(), d, rtol=1e-9, atol=0)
    torch.testing.assert_close(d[:, [0, -1]], torch.ones(12, 2, dtype=torch.float64))


@pytest.mark.parametrize("axis", [0, 1])
def test_ends_of_the_box_are_knots_bit_by_bit(axis: int) -> None:
    """The first bin begins and the last one ends there, with derivative 1."""
    theta = parameters(50, std=5.0)
    end = torch.full(theta.shape[:-1], B, dtype=theta.dtype)
    first, last = (SPLINE._bin(value, theta, axis=axis) for value in (-end, end))
    assert torch.equal(first.x, -end)
    assert torch.equal(first.y, -end)
    assert torch.equal(last.w, end - last.x)
    assert torch.equal(last.h, end - last.y)
    torch.testing.assert_close(torch.stack([first.d0, last.d1]), torch.ones(2, *end.shape, dtype=theta.dtype))


def test_rational_quadratic_by_hand() -> None:
    """Eq. 4 and 5 in a bin from (1, 2) to (3, 8), s = 3, δ = 1 and 2, at ξ = 1/2: η = 4/9, dy/dx = 26/9."""
    one = torch.ones((), dtype=torch.float64)
    bin_ = Bin(one, 2 * one, 2 * one, 6 * one, 3 * one, one, 2 * one)
    eta, log_derivative = bin_.evaluate(one / 2)
    s, d0, d1, xi = 3, 1, 2, 0.5
    denominator = s + (d1 + d0 - 2 * s) * xi * (1 - xi)
    assert eta.item() == pytest.approx((s * xi**2 + d0 * xi * (1 - xi)) / denominator, rel=1e-14)
    slope = s**2 * (d1 * xi**2 + 2 * s * xi * (1 - xi) + d0 * (1 - xi) ** 2) / denominator**2
    assert log_derivative.exp().item() == pytest.approx(slope, rel=1e-14)
    assert bin_.solve(eta).item() == pytest.approx(xi, rel=1e-14)


def test_equal_slopes_are_a_line() -> None:
    """δ_k = δ_{k+1} = s makes a bin linear; equal widths and heights with δ = 1 make the spline the identity."""
    s, xi = torch.tensor([1e-3, 0.5, 40.0]).double()[:, None], torch.linspace(0, 1, 101, dtype=torch.float64)
    bin_ = Bin(0 * s, 0 * s, s / s, s, s, s, s)
    eta, log_derivative = bin_.evaluate(xi)
    torch.testing.assert_close(eta, xi.expand(3, 101))
    torch.testing.assert_close(log_derivative, s.log().expand(3, 101))
    torch.testing.assert_close(bin_.solve(xi), xi.expand(3, 101))
    logits = parameters(100, std=3.0)[..., :8]
    theta = torch.cat([logits, logits, torch.zeros(100, FEATURES, 7).double()], -1)
    transformers.is_the_identity(SPLINE, inputs(100), theta, tolerance=1e-13)


@pytest.mark.parametrize(("bins", "bound"), [(2, 1.0), (5, 0.1), (8, 3.0), (40, 10.0)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_zero_parameters_are_the_identity(bins: int, bound: float, dtype: torch.dtype, tolerance: float) -> None:
    spline, x = SplineTransformer(bins=bins, bound=bound), inputs(100).to(dtype)
    theta = torch.zeros(100, FEATURES, spline.parameters_per_feature, dtype=dtype)
    transformers.is_the_identity(spline, x, theta, tolerance=bins * bound * tolerance)


def test_tails_are_the_identity_bit_by_bit() -> None:
    beyond = math.nextafter(B, 4)
    x = torch.tensor([-torch.inf, -1e6, -beyond, beyond, torch.inf], dtype=torch.float64)
    transformers.is_the_identity(SPLINE, x.expand(20, 5), parameters(20, std=5.0))


def test_nan_stays_nan() -> None:
    x = torch.tensor([[0.5, torch.nan]])
    for mapping in (SPLINE.forward, SPLINE.inverse):
        assert mapping(x, parameters(1, features=2).float())[0].isnan().tolist() == [[False, True]]


@pytest.mark.parametrize("std", STDS)
def test_strictly_increasing(std: float) -> None:
    x = torch.linspace(-4, 4, 20001, dtype=torch.float64)[:, None].expand(-1, FEATURES)
    transformers.grows(SPLINE, x, parameters(1, std=std).expand(20001, -1, -1))


@pytest.mark.parametrize("std", STDS)
def test_derivative_is_continuous_at_every_knot(std: float) -> None:
    """The ends of the box among them."""
    x, _, theta = at_knots(std=std)
    transformers.derivative_is_continuous(SPLINE, x, theta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("std", [0.0, 1.0, 50.0])
def test_gradients_are_finite(std: float, dtype: torch.dtype) -> None:
    """All inside, all outside, at the ends, on knots, mixed."""
    inside = 2.9 * torch.tanh(inputs(30))
    mixed = torch.tensor([-1e6, -B, 0.3, B, 1e6], dtype=torch.float64).expand(30, 5)
    for x in (inside, inside.sign() * 3.5, inside.sign() * B, inside * 1e6, mixed):
        transformers.gradients_are_finite(SPLINE, x.to(dtype), parameters(30, std=std).to(dtype))
    x, y, theta = at_knots(std=std)
    for values in (x, y):
        transformers.gradients_are_finite(SPLINE, values.to(dtype), theta.to(dtype))


def test_gradients_are_those_of_finite_differences() -> None:
    x, theta = inputs(3).requires_grad_(), parameters(3, std=0.5).requires_grad_()
    assert torch.autograd.gradcheck(SPLINE.forward, (x, theta))
    assert torch.autograd.gradcheck(SPLINE.inverse, (x, theta))


@settings(max_examples=50, derandomize=True, deadline=None, database=None)
@given(
    theta=st.lists(st.floats(-50, 50) | st.sampled_from([-50.0, 0.0, 50.0]), min_size=11, max_size=11),
    bound=st.floats(0.1, 10.0),
)
def test_extreme_parameters(theta: list[float], bound: float) -> None:
    """Finite, increasing, and invertible as far as rounding lets it be."""
    spline, x = SplineTransformer(bins=4, bound=bound), bound * torch.linspace(-1.25, 1.25, 2001).double()[:, None]
    rows = torch.tensor(theta, dtype=torch.float64).expand(2001, 1, 11)
    transformers.grows(spline, x, rows)
    transformers.gradients_are_finite(spline, x, rows)
    transformers.round_trips_up_to_rounding(spline, x, rows, roundings=15 * max(1.0, bound))


@pytest.mark.parametrize("std", STDS)
def test_density_through_a_spline_integrates_to_one(std: float) -> None:
    """∫ N(z(x); 0, 1) dz/dx dx = 1, over the line."""
    x = torch.linspace(-9, 9, 200_001, dtype=torch.float64)[:, None].expand(-1, 2)
    z, log_derivative = SPLINE.forward(x, parameters(1, std=std, features=2).expand(len(x), -1, -1))
    density = torch.exp(torch.distributions.Normal(0.0, 1.0).log_prob(z) + log_derivative)
    torch.testing.assert_close(torch.trapezoid(density, x, dim=0), torch.ones(2).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("std", "seed"), [(0.5, 0), (1.0, 1), (3.0, 2)])
@pytest.mark.parametrize("bound", [1.0, 3.0])
def test_agrees_with_nflows(std: float, seed: int, bound: float) -> None:
    """Its softmax, minima and boundary derivatives are ours; its u is ours plus the offset that gives δ = 1 at 0."""
    pytest.importorskip("nflows")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nflows.transforms.splines.rational_quadratic import unconstrained_rational_quadratic_spline as reference
    spline, theta = SplineTransformer(bound=bound), parameters(300, seed, std=std)
    widths, heights, u = theta.split([8, 8, 7], -1)
    u = u + math.log(math.expm1(1 - 1e-3))
    x = inputs(300, seed + 1)
    for mapping, inverse in ((spline.forward, False), (spline.inverse, True)):
        expected = reference(x, widths, heights, u, inverse=inverse, tails="linear", tail_bound=bound)
        for ours, theirs in zip(mapping(x, theta), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(0, 3), (2, 1), (2, 3, 4, 4), (2, 3, 5)])
def test_any_event_and_strided_parameters(shape: tuple[int, ...]) -> None:
    """Parameters of channels stand before height and width and are moved to the end as a view."""
    x = normal(shape[0], shape[1:], rng(4))
    theta = normal(shape[0], (shape[1], 23, *shape[2:]), rng(5)).movedim(2, -1)
    for mapping in (SPLINE.forward, SPLINE.inverse):
        z, log_derivative = mapping(x, theta)
        assert z.shape == log_derivative.shape == x.shape
        flat, _ = mapping(x.reshape(-1, 1), theta.reshape(-1, 1, 23))
        assert torch.equal(z.flatten(), flat.flatten())


def test_features_do_not_mix() -> None:
    """Changing one value, or its θ, changes that image alone."""
    x, theta = inputs(3), parameters(3)
    other, moved = x.clone(), theta.clone()
    other[1, 2], moved[1, 2] = 0.123, 1.0
    for mapping in (SPLINE.forward, SPLINE.inverse):
        changed = mapping(other, moved)[0] != mapping(x, theta)[0]
        assert changed.nonzero().tolist() == [[1, 2]]


def test_runs_under_vmap_and_jacrev() -> None:
    x, theta = inputs(20), parameters(20)
    for mapping in (SPLINE.forward, SPLINE.inverse):
        image = lambda row, parameters, mapping=mapping: mapping(row[None], parameters[None])[0][0]  # noqa: E731
        jacobian = torch.func.vmap(torch.func.jacrev(image))(x, theta)
        torch.testing.assert_close(jacobian.diagonal(dim1=1, dim2=2), mapping(x, theta)[1].exp())


def test_runs_on_meta_and_leaves_its_input_alone() -> None:
    x, theta = inputs(4), parameters(4)
    before = x.clone(), theta.clone()
    for mapping in (SPLINE.forward, SPLINE.inverse):
        for dtype in (torch.float32, torch.float64):
            for part in mapping(x.to("meta", dtype), theta.to("meta", dtype)):
                assert (part.shape, part.dtype, part.device.type) == (x.shape, dtype, "meta")
        mapping(x, theta)
    assert torch.equal(x, before[0])
    assert torch.equal(theta, before[1])


def test_copies_agree() -> None:
    x, theta = inputs(4), parameters(4)
    for copied in (copy.deepcopy(SPLINE), pickle.loads(pickle.dumps(SPLINE))):
        assert torch.equal(copied.forward(x, theta)[0], SPLINE.forward(x, theta)[0])


@pytest.mark.parametrize(
    ("setting", "culprit"),
    [
        ({"bins": 1}, "2 bins or more"),
        ({"bound": 0.0}, "bound"),
        ({"bound": math.inf}, "bound"),
        ({"min_width": 0.125}, "min_width"),
        ({"min_height": 0.0}, "min_height"),
        ({"min_derivative": 1.0}, "min_derivative"),
    ],
)
def test_impossible_settings_are_refused(setting: dict[str, float], culprit: str) -> None:
    with pytest.raises(ValueError, match=culprit):
        SplineTransformer(**setting)
