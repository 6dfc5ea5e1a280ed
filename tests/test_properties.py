"""Properties over shapes, scales and seeds that hypothesis picks, the same ones in every run."""

import math

import torch
from cases import BIJECTIONS, DENSITIES
from helpers import normal, rng, unit
from hypothesis import given
from hypothesis import strategies as st

from cflows import VESDE, VPSDE, SubVPSDE
from core import StandardNormal, bits_per_dim
from core.density import LikelihoodEstimate
from core.shapes import align, fold_batch, fold_context

BATCHES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
EVENTS = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple)
SEEDS = st.integers(0, 2**32 - 1)
SCALES = st.sampled_from([0.0, 1e-6, 1.0, 1e3, 1e6, -1e6])
REAL = [name for name, case in BIJECTIONS.items() if case.data is normal and case.latents is normal]
CLOSED = [name for name in DENSITIES if "score" not in name and "logit" not in name and "context" not in name]


@given(batch=BATCHES, event=EVENTS, seed=SEEDS)
def test_folding_and_unfolding_is_the_identity(batch: tuple[int, ...], event: tuple[int, ...], seed: int) -> None:
    x = normal(math.prod(batch), event, rng(seed)).reshape(*batch, *event)
    rows, shape = fold_batch(x, torch.Size(event), owner="test")
    assert rows.shape == (math.prod(batch), *event)
    assert torch.equal(rows.reshape(*shape, *event), x)


@given(batch=BATCHES, features=st.integers(1, 3), seed=SEEDS)
def test_context_broadcasts_to_every_row(batch: tuple[int, ...], features: int, seed: int) -> None:
    context = normal(1, (features,), rng(seed))[0]
    folded = fold_context(context, torch.Size(batch))
    assert folded.shape == (math.prod(batch), features)
    assert torch.equal(folded, context.expand_as(folded))


@given(rows=st.integers(0, 4), event=EVENTS, seed=SEEDS)
def test_alignment_multiplies_row_by_row(rows: int, event: tuple[int, ...], seed: int) -> None:
    x, t = normal(rows, event, rng(seed)), normal(rows, (), rng(seed + 1))
    product = align(t, x) * x
    assert product.shape == x.shape
    for i in range(rows):
        assert torch.equal(product[i], t[i] * x[i])
    assert torch.equal(align(torch.tensor(2.0), x) * x, 2 * x)


@given(batch=BATCHES, event=EVENTS, seed=SEEDS)
def test_normal_factorises_over_any_shape(batch: tuple[int, ...], event: tuple[int, ...], seed: int) -> None:
    model = StandardNormal(event).double()
    x = model.sample(batch, generator=rng(seed))
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(tuple(range(len(batch), x.ndim)))
    torch.testing.assert_close(model.log_prob(x), expected)
    assert bits_per_dim(model.log_prob(x), event).shape == batch


@given(name=st.sampled_from(REAL), scale=SCALES, seed=SEEDS, double=st.booleans())
def test_bijections_stay_finite_at_any_scale(name: str, scale: float, seed: int, double: bool) -> None:
    """Inputs to ±1e6 give finite values and log-determinants, in float32 too."""
    case = BIJECTIONS[name]
    bijection = case.make() if double else case.make().float()
    dtype = torch.float64 if double else torch.float32
    context = case.context(3, rng(seed + 1))
    for shape, direction in ((bijection.event_shape, bijection.forward), (bijection.latent_shape, bijection.inverse)):
        x = scale * normal(3, shape, rng(seed)).to(dtype)
        y, log_det = direction(x, None if context is None else context.to(dtype))
        assert y.isfinite().all()
        assert log_det.isfinite().all()


@given(name=st.sampled_from(CLOSED), scale=SCALES, seed=SEEDS, double=st.booleans())
def test_log_densities_are_never_nan(name: str, scale: float, seed: int, double: bool) -> None:
    """Finite, or -inf where there is no density; never NaN, never +inf."""
    case = DENSITIES[name]
    model = case.make() if double else case.make().float()
    x = scale * normal(5, model.event_shape, rng(seed)).to(torch.float64 if double else torch.float32)
    log_prob = model.log_prob(x)
    assert not log_prob.isnan().any()
    assert (log_prob < math.inf).all()


@given(scale=SCALES, seed=SEEDS)
def test_logit_inverse_takes_every_real(scale: float, seed: int) -> None:
    for name in ("logit-1", "logit-3-narrow", "logit-image"):
        logit = BIJECTIONS[name].make()
        x, log_det = logit.inverse(scale * normal(4, logit.latent_shape, rng(seed)))
        assert x.isfinite().all()
        assert log_det.isfinite().all()


@given(t=st.floats(1e-5, 1.0), beta_min=st.floats(0.01, 1.0), width=st.floats(0.5, 30.0))
def test_vp_preserves_variance_and_time_inverts(t: float, beta_min: float, width: float) -> None:
    time = torch.tensor(t, dtype=torch.float64)
    for sde in (
        VPSDE(beta_min=beta_min, beta_max=beta_min + width),
        SubVPSDE(beta_min=beta_min, beta_max=beta_min + width),
        VESDE(sigma_min=beta_min, sigma_max=beta_min + width),
    ):
        scale, std = sde.marginal(time)
        assert 0 < scale <= 1
        assert std > 0
        torch.testing.assert_close(sde.time(sde.log_snr(time)), time, rtol=1e-6, atol=1e-9)
    scale, std = VPSDE(beta_min=beta_min, beta_max=beta_min + width).marginal(time)
    assert abs((scale.square() + std.square()).item() - 1) < 1e-12


@given(batch=BATCHES, seed=SEEDS)
def test_exact_estimates_have_no_error(batch: tuple[int, ...], seed: int) -> None:
    log_prob = unit(math.prod(batch), (), rng(seed)).reshape(batch)
    estimate = LikelihoodEstimate.exact(log_prob)
    for part in (estimate.std_error, estimate.solver_error, estimate.truncation, estimate.nfe):
        assert part.shape == batch
        assert torch.count_nonzero(part) == 0
