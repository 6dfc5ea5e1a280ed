"""What every autoregressive model of whole numbers keeps, in float64, and every law of one whole number."""

import math

import numpy as np
import scipy.stats as st
import torch
from torch import Tensor

from core import DensityModel
from discrete.likelihoods import DiscretizedLogisticMixture, Likelihood
from discrete.mass import MassModel

OUTSIDE = {"below": -1.0, "above": None, "between levels": 0.5, "infinite": math.inf, "minus infinite": -math.inf}


def raster(event_shape: torch.Size) -> Tensor:
    """Place in the flat event of the i-th value in raster order, the channels of a pixel in turn."""
    places = torch.arange(math.prod(event_shape)).reshape(event_shape)
    return (places if places.ndim == 1 else places.movedim(0, -1)).flatten()


def states(event_shape: torch.Size, *, bins: int) -> Tensor:
    """Every event there is, `(bins^D, *event)`."""
    levels = torch.arange(bins, dtype=torch.float64)
    return torch.cartesian_prod(*[levels] * math.prod(event_shape)).reshape(-1, *event_shape)


def sums_to_one(model: DensityModel, context: Tensor | None = None, *, bins: int) -> None:
    """Σ_x P(x | context) = 1 over every event."""
    with torch.no_grad():
        total = model.log_prob(states(model.event_shape, bins=bins), context).exp().sum().item()
    assert abs(total - 1) <= 1e-12, f"the masses sum to 1 {total - 1:+.2e}"


def sees_the_values_before_alone(
    model: MassModel, x: Tensor, context: Tensor | None = None, *, sees: Tensor | None = None
) -> None:
    """θ of value i has exactly zero gradient in values i, i+1, ... of raster order, and in no value before it.

    `sees[i, j]`, in raster order, replaces the second part where the receptive field does not reach back so far.
    """
    order = raster(model.event_shape)
    u = model.likelihood.rescale(x).requires_grad_()
    theta = model._theta(u, context).square().flatten(1, -2).sum((0, -1))[order]
    gradients = torch.stack([torch.autograd.grad(value, u, retain_graph=True)[0] for value in theta])
    found = gradients.flatten(2).abs().amax(1)[:, order] > 0
    expected = torch.ones_like(found).tril(-1) if sees is None else sees
    wrong = (found != expected).nonzero().tolist()
    assert not wrong, f"places of (i, j) in the order where i sees j or does not, against what is due: {wrong[:8]}"


def values_outside_have_no_mass(model: MassModel, x: Tensor, context: Tensor | None = None, *, bins: int) -> None:
    """-inf wherever one value is no whole number within 0..K-1, NaN where one is NaN; other rows are not touched."""
    expected = model.log_prob(x, context)
    assert expected.isfinite().all(), "an event within the levels has no mass"
    for name, value in {**OUTSIDE, "nan": math.nan}.items():
        for place in range(x[0].numel()):
            spoilt = x.clone()
            spoilt[1].view(-1)[place] = bins if value is None else value
            found = model.log_prob(spoilt, context)
            right = found[1].isnan() if name == "nan" else found[1] == -math.inf
            assert right, f"{name}: log-mass {found[1].item()} with value {place} outside"
            torch.testing.assert_close(found[2:], expected[2:], rtol=1e-12, atol=1e-12)


def context_matters(model: MassModel, x: Tensor, context: Tensor) -> None:
    """θ of the very first value has a gradient in every feature of the context."""
    context = context.clone().requires_grad_()
    first = raster(model.event_shape)[0]
    theta = model._theta(model.likelihood.rescale(x), context).flatten(1, -2)[:, first]
    (gradient,) = torch.autograd.grad(theta.square().sum(), context)
    assert (gradient.abs().amax(0) > 0).all(), "the context is ignored"


def draws_equal_full_passes(
    model: MassModel, context: Tensor | None = None, *, rows: int = 64, generator: torch.Generator
) -> None:
    """`sample` gives, draw by draw, what one full pass per value gives under the same generator."""
    again = torch.Generator().set_state(generator.get_state())
    x = torch.zeros(rows, *model.event_shape, dtype=torch.float64)
    with torch.no_grad():
        for place in raster(model.event_shape).tolist():
            theta = model._theta(model.likelihood.rescale(x), context).flatten(1, -2)
            x.flatten(1)[:, place] = model.likelihood.sample(theta[:, place], generator=generator)
    draws = model.sample((rows,), context=context, generator=again)
    differ = (draws != x).flatten(1).sum(0).tolist()
    assert torch.equal(draws, x), f"values that differ, by place, of {rows} rows: {differ}"


def draws_follow_the_masses(
    model: DensityModel, context: Tensor | None = None, *, bins: int, count: int = 10_000, generator: torch.Generator
) -> None:
    """Frequencies of events among draws against their masses."""
    size = math.prod(model.event_shape)
    x = states(model.event_shape, bins=bins)
    draws = model.sample((count,), context=context, generator=generator)
    place = (draws.flatten(1).long() * bins ** torch.arange(size - 1, -1, -1)).sum(1)
    assert torch.equal(x[place], draws), "a draw is no event of whole numbers within 0..K-1"
    _frequencies_fit(place, model.log_prob(x, context).detach().exp())


def law_sums_to_one(law: Likelihood, theta: Tensor) -> None:
    """Σ_k P(k; θ) = 1 for each row of θ `(rows, parameters)`."""
    k = torch.arange(law.bins, dtype=theta.dtype)
    worst = max(abs(law.log_prob(k, row.expand(law.bins, -1)).exp().sum().item() - 1) for row in theta)
    assert worst <= 1e-12, f"masses miss the sum 1 by {worst:.2e}"


def law_is_a_mixture_of_logistics(law: DiscretizedLogisticMixture, theta: Tensor) -> None:
    """The masses are differences of scipy's distribution function on values scaled to [-1, 1], for each row of θ."""
    B, K = law.log_scale_bound, law.bins
    edges = np.concatenate([[-np.inf], 2 * np.arange(0.5, K - 1) / (K - 1) - 1, [np.inf]])
    for row in theta:
        logits, mu, a = row.numpy().reshape(3, -1)
        cumulative = st.logistic(mu, np.exp(B * np.tanh(a / B))).cdf(edges[:, None])
        expected = torch.as_tensor(np.diff(cumulative, axis=0) @ (np.exp(logits) / np.exp(logits).sum()))
        found = law.log_prob(torch.arange(K, dtype=theta.dtype), row.expand(K, -1)).exp()
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)


def tiny_scales_have_gradient(law: DiscretizedLogisticMixture) -> None:
    """One bin off the mean of logistics near the narrowest: where a clamp would leave none."""
    components = law.parameters_per_value // 3
    mu, a = torch.full((components,), -1.0), torch.full((components,), 0.5 - law.log_scale_bound)
    theta = torch.cat([torch.zeros(components), mu, a])[None].double().requires_grad_()
    (gradient,) = torch.autograd.grad(law.log_prob(torch.ones(1, dtype=torch.float64), theta).sum(), theta)
    mean, scale = gradient[0].reshape(3, -1)[1:]
    assert (mean > 1).all(), f"gradient {mean.tolist()} in the means"
    assert (scale > 0.1).all(), f"gradient {scale.tolist()} in the log-scales"


def draws_follow_the_law(law: Likelihood, theta: Tensor, *, generator: torch.Generator, count: int = 20_000) -> None:
    """Frequencies of levels among draws against their masses, for each row of θ."""
    k = torch.arange(law.bins, dtype=theta.dtype)
    for row in theta:
        draws = law.sample(row.expand(count, -1), generator=generator)
        assert law.supports(draws).all(), "a draw is no whole number within 0..K-1"
        _frequencies_fit(draws.long(), law.log_prob(k, row.expand(law.bins, -1)).exp())


def _frequencies_fit(draws: Tensor, masses: Tensor) -> None:
    """Pearson's χ² at one in a million, classes with less than ten expected draws in one."""
    expected = masses * len(draws)
    counts = torch.bincount(draws, minlength=len(masses)).double()
    large = expected >= 10
    classes = torch.cat([expected[large], expected[~large].sum()[None] + 1e-9])
    found = torch.cat([counts[large], counts[~large].sum()[None]])
    statistic = ((found - classes).square() / classes.clamp(min=10)).sum().item()
    p_value = st.chi2.sf(statistic, int(large.sum()))
    assert p_value > 1e-6, f"χ² of the frequencies is {statistic:.1f} with {int(large.sum())} degrees of freedom"
