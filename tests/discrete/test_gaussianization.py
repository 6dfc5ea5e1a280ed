"""Mixture Gaussianization: closed forms, float64 and autograd, dense on both tails, and what public code gets wrong."""

import math

import pytest
import torch
from contracts import gaussianizations
from helpers import normal, perturb, rng
from torch import Tensor

from discrete import MixtureGaussianization, Rotation
from discrete.bijections import gaussianization, logistic_mixture
from discrete.bijections.gaussianization import feature_quantiles
from discrete.bijections.logistic_mixture import LogisticMixture
from discrete.bijections.quantiles import ndtri_exp

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
FEATURES = 4


def layer(seed: int = 0, *, components: int = 5, features: int = FEATURES, std: float = 0.7) -> MixtureGaussianization:
    return perturb(MixtureGaussianization(features, components=components), rng(seed), std=std)


def line(reach: float, points: int, dtype: torch.dtype, features: int = FEATURES) -> Tensor:
    return torch.linspace(-reach, reach, points, dtype=torch.float64).to(dtype)[:, None].repeat(1, features)


class _Inverse(torch.nn.Module):
    def __init__(self, layer: MixtureGaussianization) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, z: Tensor) -> Tensor:
        return self.layer.inverse(z)[0]


def standard(features: int = 1) -> MixtureGaussianization:
    """One standard logistic: z = Φ⁻¹(σ(x))."""
    made = MixtureGaussianization(features, components=1)
    torch.nn.init.zeros_(made.log_scales)
    return made


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("components", [1, 2, 5, 20])
@pytest.mark.parametrize("std", [0.0, 0.7, 2.0])
def test_density_is_that_of_the_mixture_at_every_x(
    components: int, std: float, dtype: torch.dtype, tolerance: float
) -> None:
    """Within 3, at 40 and 60 standard deviations and beyond: the quantile cancels."""
    made = layer(components=components, std=std).to(dtype)
    x = torch.cat([line(reach, 2001, dtype) for reach in (3, 40, 60, 1e4)])
    gaussianizations.density_is_that_of_the_mixtures(made, x, tolerance=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
def test_a_rotation_after_the_last_layer_changes_nothing(dtype: torch.dtype, tolerance: float) -> None:
    x = torch.cat([scale * normal(200, (FEATURES,), rng(1)) for scale in (1, 40)]).to(dtype)
    rotation = Rotation(FEATURES, generator=rng(2)).to(dtype)
    gaussianizations.last_rotation_changes_nothing(layer().to(dtype), x, rotation, tolerance=tolerance)


@DTYPES
@pytest.mark.parametrize("std", [0.0, 0.7])
@pytest.mark.parametrize(("reach", "centre"), [(2.0, 0.0), (60.0, 0.0), (1400.0, 1500.0), (1400.0, -1500.0)])
def test_increases_without_jump_or_plateau(reach: float, centre: float, std: float, dtype: torch.dtype) -> None:
    """A dense grid over the middle, ±60 standard deviations and far out on both sides."""
    gaussianizations.increases_without_a_jump(
        layer(std=std, features=2).to(dtype), centre + line(reach, 20_001, dtype, 2)
    )


@DTYPES
@pytest.mark.parametrize("reach", [2.0, 60.0, 3000.0])
@pytest.mark.parametrize("components", [1, 5, 20])
def test_round_trip_up_to_rounding(components: int, reach: float, dtype: torch.dtype) -> None:
    gaussianizations.round_trips_up_to_rounding(layer(components=components).to(dtype), line(reach, 2001, dtype))


@pytest.mark.parametrize("reach", [3.0, 60.0, 1e4])
def test_float32_has_the_digits_of_float64(reach: float) -> None:
    """z to four roundings; log dz/dx, a quotient of hazards, to 4e-5 everywhere."""
    single = layer().float()
    double = layer().double()
    double.load_state_dict(single.state_dict())
    x = line(reach, 4001, torch.float32)
    z, log_derivative = single.mixture().gaussianize(x)
    expected, slope = double.mixture().gaussianize(x.double())
    torch.testing.assert_close(z.double(), expected, rtol=5e-7, atol=5e-7)
    torch.testing.assert_close(log_derivative.double(), slope, rtol=0, atol=4e-5)


@DTYPES
def test_asymptotic_log_derivative(dtype: torch.dtype) -> None:
    """log dz/dx → -log s - ½ log 2v, where z grows as √(2v)."""
    made = MixtureGaussianization(1, components=1).to(dtype)
    torch.nn.init.constant_(made.log_scales, -1.0)
    v = torch.tensor([1e6, -1e6], dtype=dtype)
    x = (v * math.exp(-1))[:, None]
    z, log_det = made(x)
    torch.testing.assert_close(z[:, 0] / v.sign(), torch.sqrt(2 * v.abs()), rtol=1e-5, atol=0)
    torch.testing.assert_close(log_det, 1 - 0.5 * torch.log(2 * v.abs()), rtol=0, atol=2e-5)


def test_quantile_does_not_jump_where_the_gf_code_does() -> None:
    """It takes -√(-2 log F) below F = 5e-8, and z from -5.33 to -5.80 has no preimage."""
    made = standard()
    z = torch.linspace(-6.0, -5.0, 101)[:, None]
    x, _ = made.inverse(z)
    torch.testing.assert_close(made(x)[0], z, rtol=0, atol=1e-5)
    assert (x.diff(dim=0) > 0).all()


@DTYPES
def test_values_beyond_where_zuko_stops(dtype: torch.dtype) -> None:
    """It shrinks erf by 1e-6, so that z never exceeds 4.89, and searches x within ±10."""
    made = standard().to(dtype)
    x = torch.tensor([6.0, 12.0, 40.0, 500.0], dtype=dtype)[:, None]
    z, _ = made(x)
    torch.testing.assert_close(z, -ndtri_exp(torch.nn.functional.logsigmoid(-x)), rtol=3e-7, atol=0)
    assert z[-1] > 30
    torch.testing.assert_close(made.inverse(z)[0], x, rtol=1e-5, atol=0)


def test_gradients_are_those_of_finite_differences() -> None:
    """First and second, in x, z and all parameters: the inverse is found by a search."""
    x = 2 * normal(2, (1,), rng(3)).requires_grad_()
    parameters = [normal(2, (1, 1), rng(seed)).mul(0.5).requires_grad_() for seed in (4, 5, 6)]

    def mixture(logits: Tensor, mu: Tensor, log_s: Tensor) -> LogisticMixture:
        return LogisticMixture(torch.log_softmax(logits, 0), mu, log_s)

    for mapping in ("gaussianize", "quantile"):
        map_ = lambda x, *p, mapping=mapping: getattr(mixture(*p), mapping)(x)  # noqa: E731
        assert torch.autograd.gradcheck(map_, (x, *parameters))
        assert torch.autograd.gradgradcheck(map_, (x, *parameters))


@DTYPES
@pytest.mark.parametrize("reach", [1.0, 60.0, 1e5])
def test_gradients_are_finite(reach: float, dtype: torch.dtype) -> None:
    made = layer(std=2.0).to(dtype)
    points = reach * torch.tensor([[0.0], [0.3], [-1.0], [1.0]], dtype=dtype).repeat(1, FEATURES)
    for mapping in (made.forward, made.inverse):
        for output in (0, 1):
            start = points.clamp(-1e3, 1e3) if mapping == made.inverse else points  # x = 5e5 at z = 1000
            x = start.detach().requires_grad_()
            value = mapping(x)[output]
            for tensor in (value, *torch.autograd.grad(value.sum(), (x, *made.parameters()))):
                assert tensor.isfinite().all()


@DTYPES
def test_the_median_has_a_derivative(dtype: torch.dtype) -> None:
    """At x = 0 of a fresh layer both tails are ½: neither side is lost, nor half of each taken."""
    x = torch.zeros(1, 1, dtype=dtype, requires_grad=True)
    made = MixtureGaussianization(1).to(dtype)
    z, log_det = made(x)
    (slope,) = torch.autograd.grad(z.sum(), x)
    torch.testing.assert_close(slope.log().sum(), log_det.sum(), rtol=0, atol=1e-6)
    assert slope > 0.9


@DTYPES
def test_a_gap_without_mass_is_bridged(dtype: torch.dtype) -> None:
    """Halves at ±200: the density in the gap is right, and z beside it falls on one half or the other."""
    made = MixtureGaussianization(1, components=2).to(dtype)
    with torch.no_grad():
        made.means.copy_(torch.tensor([[-200.0], [200.0]]))
        made.log_scales.zero_()
    gaussianizations.density_is_that_of_the_mixtures(made, line(150, 301, dtype, 1), tolerance=1e-6)
    x, log_det = made.inverse(torch.tensor([[-1e-3], [0.0], [1e-3]], dtype=dtype))
    assert x.isfinite().all()
    assert log_det.isfinite().all()
    assert x[0] < -190
    assert x[2] > 190


def test_fresh_layer_is_nearly_the_identity() -> None:
    """As the docstring says."""
    x = torch.linspace(-3, 3, 601, dtype=torch.float64)[:, None]
    made = MixtureGaussianization(1).double()
    assert 0.1 < (made(x)[0] - x).abs().max() < 0.14
    grid = torch.linspace(-9, 9, 4001, dtype=torch.float64)[:, None]
    log_p = -0.5 * (grid[:, 0] ** 2 + math.log(2 * math.pi))
    loss = log_p.exp() * (log_p - gaussianizations.log_mixture(made, grid))
    assert 6e-4 < loss.sum() * 18 / 4000 < 8e-4


def test_the_search_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations of F for a thousand draws, the table of knots included."""
    calls = []
    forward = logistic_mixture._Tail.forward
    monkeypatch.setattr(logistic_mixture._Tail, "forward", staticmethod(lambda *a: calls.append(1) or forward(*a)))
    with torch.no_grad():
        layer(components=8).float().inverse(normal(1000, (FEATURES,), rng(7)).float())
    assert 3 <= len(calls) <= 9


@pytest.mark.parametrize("components", [8, 32])
def test_most_draws_are_found_in_one_step(monkeypatch: pytest.MonkeyPatch, components: int) -> None:
    """In float32: knots as they come, not spread, leave 20 % of the draws of 32 components to a second."""
    sizes: list[int] = []
    forward = logistic_mixture._Tail.forward

    def counted(x: Tensor, *parameters: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        sizes.append(x.numel())
        return forward(x, *parameters)

    monkeypatch.setattr(logistic_mixture._Tail, "forward", staticmethod(counted))
    made, z = layer(components=components, features=16, std=0.3).float(), normal(2000, (16,), rng(7)).float()
    with torch.no_grad():
        made.inverse(z)
    assert sizes[1] == z.numel()
    assert sum(sizes[2:]) < 0.01 * z.numel()


def test_a_row_rests_whatever_the_others_do() -> None:
    """Bit by bit."""
    made, z = layer(std=2.0).float(), (3 * normal(50, (FEATURES,), rng(8))).float()
    with torch.no_grad():
        together, _ = made.inverse(z)
        for i in (0, 17, 49):
            assert torch.equal(made.inverse(z[i : i + 1])[0][0], together[i])


def test_nan_stays_nan() -> None:
    x = torch.tensor([[0.5, torch.nan]])
    for mapping in (standard(2).forward, standard(2).inverse):
        assert mapping(x)[0].isnan().tolist() == [[False, True]]


@DTYPES
def test_nan_does_not_reach_another_value(dtype: torch.dtype) -> None:
    """Beside it are those far out, where other formulas are taken than near by."""
    made = layer(features=2).to(dtype)
    with torch.no_grad():
        for mapping, far in ((made.forward, 1e4), (made.inverse, -20.0), (made.inverse, -60.0)):
            alone, _ = mapping(torch.tensor([[far, 0.5]], dtype=dtype))
            for x in ([[far, torch.nan]], [[far, 0.5], [torch.nan, torch.nan]]):
                beside, _ = mapping(torch.tensor(x, dtype=dtype))
                assert beside[0, 0] == alone[0, 0]


@DTYPES
@pytest.mark.parametrize("distance", [40.0, 60.0, 100.0, 400.0])
def test_second_derivatives_with_a_component_far_off(distance: float, dtype: torch.dtype) -> None:
    """Of log P: those of the near component alone, whose weight is 0.7, on the side where the far one counts for 0."""
    made = MixtureGaussianization(1, components=2).to(dtype)
    with torch.no_grad():
        made.means.copy_(torch.tensor([[0.0], [distance]]))
        made.log_scales.zero_()
        made.logits.copy_(torch.tensor([[math.log(0.7)], [math.log(0.3)]]))
    x = torch.tensor([[2.0]], dtype=dtype, requires_grad=True)
    w, lower = made.mixture().log_w.exp()[:, 0, 0].tolist(), torch.zeros(1, 1, dtype=dtype)
    log_q = made.mixture().tail(x, lower)[1]
    (slope,) = torch.autograd.grad(log_q.sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    y = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(torch.log(w[0] * torch.sigmoid(-y) + w[1]), y, create_graph=True)
    (bend,) = torch.autograd.grad(expected, y)
    torch.testing.assert_close(slope.item(), expected.item(), rtol=1e-5, atol=0)
    torch.testing.assert_close(curvature.item(), bend.item(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("members", [1, 5])
def test_many_rows_under_vmap(members: int) -> None:
    """Of one layer, and of a layer for each member."""
    made, z = layer(features=2, std=1.5), 2 * normal(members * 40, (2,), rng(9)).reshape(members, 40, 2)
    expected, _ = made.inverse(z.flatten(0, 1))
    found = torch.func.vmap(lambda z: made.inverse(z)[0])(z)
    torch.testing.assert_close(found.flatten(0, 1), expected, rtol=0, atol=1e-9)
    shifts = torch.arange(members, dtype=torch.float64)
    whole = dict(made.named_parameters())

    def moved(shift: Tensor, z: Tensor) -> Tensor:
        return torch.func.functional_call(
            _Inverse(made), {f"layer.{k}": v for k, v in whole.items()} | {"layer.means": whole["means"] + shift}, (z,)
        )

    found = torch.func.vmap(moved)(shifts, z)
    torch.testing.assert_close(found, expected.reshape(z.shape) + shifts[:, None, None], rtol=0, atol=1e-9)


def test_a_finer_dtype_is_kept() -> None:
    z = normal(50, (2,), rng(10))
    made = layer(features=2).float()
    x, log_det = made.inverse(z)
    assert x.dtype == log_det.dtype == torch.float64
    torch.testing.assert_close(made(x)[0], z, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_runs_under_vmap_and_jacrev() -> None:
    made, x = layer(), normal(5, (FEATURES,), rng(9))
    for mapping in (made.forward, made.inverse):
        image = lambda row, mapping=mapping: mapping(row[None])[0][0]  # noqa: E731
        jacobian = torch.func.vmap(torch.func.jacrev(image))(x)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, mapping(x)[1])


TWO_MODES = torch.cat([normal(3000, (1,), rng(10)) * 0.3 - 1, normal(1000, (1,), rng(11)) * 0.1 + 2])


def test_fit_finds_the_law_of_the_rows() -> None:
    """Within 0.01 nats of its entropy, where the kernel density estimate of as many components is far from it."""
    log_p = torch.logsumexp(
        torch.stack(
            [
                math.log(w) - 0.5 * ((TWO_MODES - m) / s) ** 2 - math.log(s * math.sqrt(2 * math.pi))
                for w, m, s in ((0.75, -1, 0.3), (0.25, 2, 0.1))
            ]
        ),
        0,
    ).mean()
    gaps = []
    for updates in (0, 10):
        made = MixtureGaussianization(1, components=6).double()
        made.fit(TWO_MODES, updates=updates)
        gaps.append((log_p - gaussianizations.log_mixture(made, TWO_MODES).mean()).item())
    assert gaps[1] < 0.01
    assert gaps[0] > 5 * gaps[1]


@pytest.mark.parametrize("updates", [0, 1])
def test_one_component_is_fitted_to_mean_absolute_deviation(updates: int) -> None:
    """E|x - m| = 2 s log 2 of a logistic, from its quantiles: median 1, s = 3."""
    u = (torch.arange(4001, dtype=torch.float64)[:, None] + 0.5) / 4001
    made = MixtureGaussianization(1, components=1).double()
    made.fit(1 + 3 * torch.logit(u), updates=updates)
    assert made.means.item() == pytest.approx(1.0, abs=1e-6)
    assert made.log_scales.exp().item() == pytest.approx(3.0, rel=2e-3)


def test_fit_does_not_depend_on_how_rows_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    x, fitted = normal(500, (2, 1), rng(12)).exp(), []
    for size in (2048, 77):
        monkeypatch.setattr(gaussianization, "ROWS", size)
        made = MixtureGaussianization((2, 1), components=3).double()
        made.fit(x)
        fitted.append(torch.stack(list(made.parameters())))
    torch.testing.assert_close(*fitted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("components", [1, 2, 50])
def test_fit_survives_values_that_repeat(components: int) -> None:
    x = torch.randint(0, 3, (300, 1), generator=rng(13)).float()
    made = MixtureGaussianization(1, components=components)
    made.fit(x)
    z, log_det = made(x)
    assert torch.isfinite(z).all()
    assert log_det.max() < math.log(1000 / 0.5)
    torch.testing.assert_close(made.inverse(z)[0], x, rtol=0, atol=1e-3)


def test_fit_refuses_what_has_no_density() -> None:
    made = MixtureGaussianization(2)
    with pytest.raises(ValueError, match="feature 1, which is constant"):
        made.fit(torch.tensor([[1.0, 5.0], [2.0, 5.0]]))
    with pytest.raises(ValueError, match="feature 1, which is constant"):
        made.fit(torch.tensor([[1.0, -0.1], [2.0, -0.1], [4.0, -0.1]]))
    with pytest.raises(ValueError, match="2 rows or more, but got 1"):
        made.fit(torch.zeros(1, 2))


def test_quantiles_are_those_of_torch() -> None:
    x, levels = normal(101, (3,), rng(14)), torch.linspace(0, 1, 17, dtype=torch.float64)
    torch.testing.assert_close(feature_quantiles(x, levels), torch.quantile(x, levels, dim=0))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="1 component or more, but components is 0"):
        MixtureGaussianization(2, components=0)
