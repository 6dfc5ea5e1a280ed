"""Mixtures of densities, their weights, and what they say of a context."""

import math
from functools import partial

import pytest
import torch
from contracts import mixtures_of_densities as contract
from helpers import normal, rng

from core import AtContext, DiagonalNormal, GaussianMixture, MixtureOfDensities, StandardNormal, fit_weights
from core.density import Context, ExactDensity, Nats, Values
from discrete import Dequantization, Flow

CONTRACTS = [
    contract.errors_are_those_of_the_parts,
    contract.kind_is_the_weakest,
    contract.parts_draw_the_same,
    contract.outside_a_part_the_others_count,
    contract.parts_are_drawn_by_their_weights,
]


@pytest.mark.parametrize("keeps", CONTRACTS, ids=lambda f: f.__name__)
def test_a_mixture(keeps):
    keeps(MixtureOfDensities)


def test_weights():
    contract.weights_are_the_best(fit_weights)


def test_normal_parts_are_a_mixture_of_gaussians():
    means, w = torch.tensor([[0.0, 1.0], [2.0, -1.0]]).double(), torch.tensor([1.0, 4.0]).double()
    reference = GaussianMixture(means, torch.eye(2).double().expand(2, 2, 2), w)
    ours = MixtureOfDensities([DiagonalNormal(2, loc=m) for m in means], w).double()
    x = 2 * normal(7, (2,), rng(0))
    torch.testing.assert_close(ours.log_prob(x), reference.log_prob(x), rtol=1e-7, atol=1e-7)
    r = ours.log_joint(x).softmax(-1)
    score = (r[..., None] * (means - x[:, None])).sum(1)
    torch.testing.assert_close(score, reference.score(x), rtol=1e-6, atol=1e-6)


def test_a_mixture_of_dequantized_parts_sees_one_noise_and_is_a_bound():
    """Behind one dequantization or each behind its own: the same number for the same generator."""
    parts = [StandardNormal(3), DiagonalNormal(3, loc=0.5, scale=0.2)]
    x, w = torch.tensor([[0.0, 3.0, 1.0], [2.0, 2.0, 0.0]]), torch.tensor([0.4, 0.6])
    inside = Flow(Dequantization(3, bins=4), MixtureOfDensities(parts, w))
    outside = MixtureOfDensities([Flow(Dequantization(3, bins=4), part) for part in parts], w)
    torch.testing.assert_close(outside.log_prob(x, generator=rng(3)), inside.log_prob(x, generator=rng(3)))
    assert outside.estimate_log_prob(x, generator=rng(3)).kind == "bound"


class MovedByContext(ExactDensity):
    """N(x; c, I)."""

    def log_prob(self, x: Values, context: Context = None, *, generator=None) -> Nats:
        return -0.5 * ((x - context).square() + math.log(2 * math.pi)).sum(-1)

    def sample(self, shape=(), *, context: Context = None, generator=None) -> Values:
        return context + torch.randn(*shape, *self.event_shape, generator=generator)


def test_densities_at_all_contexts_mix_to_the_marginal_and_give_bayes_rule():
    model, classes, frequencies = MovedByContext(2), torch.tensor([[3.0, 0.0], [0.0, 3.0]]), torch.tensor([0.2, 0.8])
    marginal = MixtureOfDensities([AtContext(model, c) for c in classes], frequencies)
    x = marginal.sample((20_000,), generator=rng(0))
    torch.testing.assert_close(x.mean(0), frequencies @ classes, rtol=0, atol=0.05)
    log_p = torch.stack([model.log_prob(x, c) + f.log() for c, f in zip(classes, frequencies, strict=True)], -1)
    torch.testing.assert_close(marginal.log_prob(x), log_p.logsumexp(-1))
    torch.testing.assert_close(marginal.log_joint(x).softmax(-1), log_p.softmax(-1))


def test_the_bound_of_the_algorithm_holds_after_every_step():
    """max L - L(w_t) ≤ (log K)/t, and ≤ max g - 1."""
    log_p = 2 * normal(50, (4,), rng(4))
    mean = lambda w: (log_p + w.log()).logsumexp(1).mean().item()  # noqa: E731
    best = mean(fit_weights(log_p, tolerance=1e-12, iterations=100_000))
    for t in (1, 2, 5, 20, 100):
        w = fit_weights(log_p, tolerance=0.0, iterations=t)
        g = (log_p.exp() / (log_p.exp() @ w)[:, None]).mean(0)
        assert -1e-12 <= best - mean(w) <= min(math.log(4) / t, g.max().item() - 1) + 1e-12


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (partial(MixtureOfDensities, []), r"one event shape, but they are over \[\]"),
        (lambda: MixtureOfDensities([StandardNormal(2), StandardNormal(3)]), r"over \[\(2,\), \(3,\)\]"),
        (
            lambda: MixtureOfDensities([StandardNormal(2)], torch.tensor([-1.0])),
            r"needs as many weights, none negative",
        ),
        (lambda: MixtureOfDensities([StandardNormal(2)], torch.ones(2)), r"of 1 parts needs as many weights"),
        (lambda: fit_weights(torch.zeros(0, 2)), "but there is none"),
        (lambda: fit_weights(torch.tensor([[0.0, 1.0], [-math.inf, -math.inf]])), r"row 1 holds \[-inf, -inf\]"),
        (lambda: fit_weights(torch.tensor([[0.0, math.nan]])), "row 0 holds"),
    ],
)
def test_what_is_no_mixture_is_named(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
