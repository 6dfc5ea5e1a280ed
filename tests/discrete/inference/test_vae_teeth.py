"""The contracts of variational bounds bite: each passes what is right and rejects what is wrong in one place."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from cases import VAES
from contracts import masses
from contracts import vae as contracts
from helpers import Tooth, normal, perturb, rng, seeded
from torch import Tensor, nn

from core.bases import LOG_2PI
from discrete.inference import VAE, NegativeELBO
from discrete.likelihoods import Bernoulli

Parts = dict[str, Tensor]
Formula = Callable[[Parts], Tensor]


def parts(vae: VAE, x: Tensor, samples: int, generator: torch.Generator) -> Parts:
    """What bounds are made of, `(samples, rows)` or with the values behind, written out without the VAE's own terms."""
    rows = x.repeat_interleave(samples, 0)
    h = vae.encoder(vae.likelihood.rescale(rows), None)
    start = vae.posterior.base
    epsilon = torch.randn(len(rows), *start.event_shape, generator=generator, dtype=torch.float64)
    z0, first = start.bijection.inverse(epsilon, h)
    z, second = vae.posterior.bijection.inverse(z0, h)
    theta = vae.decoder(z, None)
    found = {"x": rows, "theta": theta, "epsilon": epsilon, "z": z, "first": first, "second": second}
    found["log_values"] = vae.likelihood.log_prob(rows, theta)
    return {name: value.unflatten(0, (len(x), samples)).transpose(0, 1) for name, value in found.items()}


def normal_density(z: Tensor) -> Tensor:
    return -0.5 * (z.square() + LOG_2PI).sum(-1)


def log_likelihood(p: Parts) -> Tensor:
    return p["log_values"].flatten(2).sum(2)


def log_q(p: Parts) -> Tensor:
    return normal_density(p["epsilon"]) - p["first"] - p["second"]


def right(p: Parts) -> Tensor:
    return log_likelihood(p) + normal_density(p["z"]) - log_q(p)


def log_det_added(p: Parts) -> Tensor:
    return right(p) - 2 * p["second"]


def log_scale_added(p: Parts) -> Tensor:
    return right(p) - 2 * p["first"]


def log_det_left_out(p: Parts) -> Tensor:
    return right(p) - p["second"]


def divergence_flipped(p: Parts) -> Tensor:
    return log_likelihood(p) - normal_density(p["z"]) + log_q(p)


def noise_density_at_z(p: Parts) -> Tensor:
    return log_likelihood(p) + p["first"] + p["second"]


def prior_at_the_noise(p: Parts) -> Tensor:
    return log_likelihood(p) + normal_density(p["epsilon"]) - log_q(p)


def constant_left_out(p: Parts) -> Tensor:
    """½ log 2π of the posterior alone."""
    return right(p) - 0.5 * LOG_2PI * p["z"].shape[-1]


def reconstruction_averaged(p: Parts) -> Tensor:
    return right(p) + p["log_values"].flatten(2).mean(2) - log_likelihood(p)


def no_prior(p: Parts) -> Tensor:
    return log_likelihood(p) - log_q(p)


def logits_as_probabilities(p: Parts) -> Tensor:
    chance = p["theta"][..., 0].clamp(1e-6, 1 - 1e-6)
    log_values = p["x"] * chance.log() + (1 - p["x"]) * (1 - chance).log()
    return right(p) + (log_values - p["log_values"]).flatten(2).sum(2)


def logits_flipped(p: Parts) -> Tensor:
    log_values = Bernoulli().log_prob(1 - p["x"], p["theta"])
    return right(p) + (log_values - p["log_values"]).flatten(2).sum(2)


def likelihood_of_a_neighbour(p: Parts) -> Tensor:
    """Draws and rows in the wrong order."""
    samples, rows = p["x"].shape[:2]
    mixed = log_likelihood(p).T.reshape(samples, rows)
    return right(p) + mixed - log_likelihood(p)


def weights_of(formula: Formula) -> contracts.Weights:
    return lambda vae, x, samples, generator: formula(parts(vae, x, samples, generator))


def bound_of(formula: Formula, combine: Callable[[Tensor], Tensor]) -> contracts.Bound:
    return lambda vae, x, samples, generator: combine(weights_of(formula)(vae, x, samples, generator))


def log_mean_exp(w: Tensor) -> Tensor:
    return w.logsumexp(0) - math.log(len(w))


def log_sum_exp(w: Tensor) -> Tensor:
    return w.logsumexp(0)


def mean_of_logs(w: Tensor) -> Tensor:
    return w.mean(0)


def largest(w: Tensor) -> Tensor:
    return w.max(0).values


def binary() -> tuple[VAE, Tensor]:
    vae = VAES["vae-iaf"].make()
    return vae, masses.states(vae.event_shape, bins=2)


def data() -> Tensor:
    return normal(4, (contracts.D,), rng(9))


def reached(weights: contracts.Weights) -> None:
    x = data()
    vae = contracts.reaching_by_an_autoregressive_step("gated")
    contracts.every_weight_is_the_evidence(weights, vae, x, contracts.evidence(x))


def missed(weights: contracts.Weights) -> None:
    x, vae = data(), contracts.widened("gated autoregressive step")
    exact = contracts.evidence(x)
    contracts.elbo_misses_the_evidence_by(weights, vae, x, exact, divergence=contracts.DIVERGENCE)


def average(weights: contracts.Weights) -> None:
    vae, x = binary()
    contracts.weights_average_to_the_evidence(weights, vae, x, contracts.evidence_by_quadrature(vae, x))


def rises(bound: contracts.Bound) -> None:
    x, vae = data(), contracts.widened("gated autoregressive step")
    contracts.bound_rises_to_the_evidence(bound, vae, x, contracts.evidence(x))


def sums(bound: contracts.Bound) -> None:
    contracts.exponentials_of_bounds_sum_to_one(bound, *binary())


WEIGHTS = {
    "log-det added, reached": (reached, log_det_added),
    "log-det added, average": (average, log_det_added),
    "log-scale added": (reached, log_scale_added),
    "log-det left out": (average, log_det_left_out),
    "divergence flipped, reached": (reached, divergence_flipped),
    "divergence flipped, missed": (missed, divergence_flipped),
    "divergence flipped, average": (average, divergence_flipped),
    "noise density at z, reached": (reached, noise_density_at_z),
    "noise density at z, average": (average, noise_density_at_z),
    "prior at the noise": (average, prior_at_the_noise),
    "constant left out": (reached, constant_left_out),
    "reconstruction averaged, reached": (reached, reconstruction_averaged),
    "reconstruction averaged, missed": (missed, reconstruction_averaged),
    "reconstruction averaged, average": (average, reconstruction_averaged),
    "no prior": (average, no_prior),
    "logits as probabilities": (average, logits_as_probabilities),
    "logits flipped": (average, logits_flipped),
    "likelihood of a neighbour": (reached, likelihood_of_a_neighbour),
}
BOUNDS = {
    "no -log K, sums": (sums, log_sum_exp),
    "no -log K, rises": (rises, log_sum_exp),
    "mean of logs": (rises, mean_of_logs),
    "largest weight": (sums, largest),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(name: str) -> None:
    contract, wrong = WEIGHTS[name]
    Tooth(contract, lambda: weights_of(right), lambda: weights_of(wrong)).bites()


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds(name: str) -> None:
    contract, wrong = BOUNDS[name]
    Tooth(contract, lambda: bound_of(right, log_mean_exp), lambda: bound_of(right, wrong)).bites()


def closed_form(weights: contracts.Weights) -> None:
    contracts.elbo_is_the_closed_form(weights, diagonal(), data())


def gradient(weights: contracts.Weights) -> None:
    contracts.gradient_is_the_closed_form(weights, diagonal(), data())


def diagonal() -> VAE:
    vae = seeded(partial(contracts.linear_gaussian, "diagonal"))
    perturb(vae.posterior, rng(1), std=0.2)
    return vae


def terms(change: Callable[[Tensor, Tensor, Tensor], Tensor]) -> contracts.Weights:
    """A formula of the terms of the VAE itself."""
    return lambda vae, x, samples, generator: change(*vae.terms(x, samples=samples, generator=generator))


TERMS: dict[str, tuple[Callable[[contracts.Weights], None], Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "divergence flipped, value": (closed_form, lambda a, p, q: a - p + q),
    "divergence flipped, gradient": (gradient, lambda a, p, q: a - p + q),
    "entropy without gradient": (gradient, lambda a, p, q: a + p - q.detach()),
    "reconstruction without gradient": (gradient, lambda a, p, q: a.detach() + p - q),
    "prior without gradient": (gradient, lambda a, p, q: a + p.detach() - q),
    "reconstruction averaged": (gradient, lambda a, p, q: a / contracts.D + p - q),
}


@pytest.mark.parametrize("name", TERMS)
def test_terms(name: str) -> None:
    contract, wrong = TERMS[name]
    Tooth(contract, lambda: terms(lambda a, p, q: a + p - q), lambda: terms(wrong)).bites()


class Wrong(nn.Module):
    """An objective whose loss is a formula of likelihood, divergence, β and λ."""

    def __init__(
        self, model: VAE, formula: Callable[[Tensor, Tensor, float, float], Tensor], **settings: float
    ) -> None:
        super().__init__()
        self.model, self.formula, self.settings, self.steps = model, formula, settings, 0

    def forward(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        self.steps += 1
        a, p, q = self.model.terms(x, generator=generator)
        beta = min(1.0, self.steps / (self.settings.get("warmup_steps", 0) or 1))
        free = self.settings.get("free_nats", 0.0)
        return self.formula(a.mean(), (q - p).mean(), beta if self.training else 1.0, free if self.training else 0.0)


def warmup(build: Callable[..., nn.Module]) -> None:
    contracts.warms_up(build, diagonal(), data())


def free(build: Callable[..., nn.Module]) -> None:
    contracts.frees_nats(build, diagonal(), data())


OBJECTIVES = {
    "β on the reconstruction": (warmup, lambda a, kl, beta, free: kl - beta * a),
    "β left out": (warmup, lambda a, kl, beta, free: kl - a),
    "free nats in the place of the divergence": (free, lambda a, kl, beta, free: min(kl, kl * 0 + free) - a),
    "free nats added": (free, lambda a, kl, beta, free: kl + free - a),
    "free nats subtracted": (free, lambda a, kl, beta, free: torch.relu(kl - free) - a),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives(name: str) -> None:
    contract, wrong = OBJECTIVES[name]
    Tooth(contract, lambda: NegativeELBO, lambda: partial(Wrong, formula=wrong)).bites()
