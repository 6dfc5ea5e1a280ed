"""What a variational bound keeps, against evidence in closed form or by quadrature.

Functions take `weights(vae, x, samples, generator) -> (samples, rows)`, the log-weights of draws of the posterior, or
`bound(vae, x, samples, generator) -> (rows,)`, so that wrong ones can be handed in.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from core import StandardNormal
from discrete import IAF, Flow, Triangular
from discrete.inference import VAE
from discrete.inference.posteriors import ConditionalDiagonal

Weights = Callable[[VAE, Tensor, int, torch.Generator], Tensor]
Bound = Callable[[VAE, Tensor, int, torch.Generator], Tensor]
Build = Callable[..., nn.Module]

W = torch.tensor([[1.0, 0.5, -0.3], [0.2, -1.2, 0.4], [0.7, 0.1, 0.9], [-0.6, 0.8, 0.3]], dtype=torch.float64)
b = torch.tensor([0.3, -0.5, 0.1, 1.0], dtype=torch.float64)
SIGMA = 0.6
D, d = W.shape
B = 7.0  # of the scales of `gaussian` and of a posterior's start


class Straight(nn.Module):
    """x | z ~ N(W z + b, σ² I), in the parameters of a Gaussian likelihood, W and b trainable."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.b = nn.Parameter(W.clone()), nn.Parameter(b.clone())

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        mean = z @ self.W.T + self.b
        a = torch.full_like(mean, _before_bound(-math.log(SIGMA)))
        return torch.stack([a, -mean / SIGMA], -1)


class Same(nn.Module):
    """The features are the data."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return x


def linear_gaussian(posterior: Flow | str = "diagonal") -> VAE:
    """A VAE whose decoder is linear and whose posterior is steered by x itself, in float64."""
    return VAE(
        D,
        latent=d,
        posterior=posterior,
        likelihood="gaussian",
        features=D,
        layers=2,
        posterior_hidden=(8,),
        encoder=Same(),
        decoder=Straight(),
    ).double()


def evidence(x: Tensor) -> Tensor:
    """log N(x; b, W Wᵀ + σ² I), nats."""
    return MultivariateNormal(b, W @ W.T + SIGMA**2 * torch.eye(D).double()).log_prob(x)


def exact_posterior() -> tuple[Tensor, Tensor]:
    """G and L with p(z | x) = N(G (x - b), L Lᵀ)."""
    S = torch.linalg.inv(torch.eye(d).double() + W.T @ W / SIGMA**2)
    return S @ W.T / SIGMA**2, torch.linalg.cholesky(S)


def reaching_by_a_linear_flow() -> VAE:
    """q(z | x) = p(z | x) as T z ~ N(T G (x - b), I), T = L⁻¹."""
    G, L = exact_posterior()
    start = ConditionalDiagonal(d, context_features=D).double()
    vae = linear_gaussian(Flow(Triangular(d), Flow(start, StandardNormal(d))))
    T = torch.linalg.inv(L)
    with torch.no_grad():
        vae.posterior.bijection.weight.factor.copy_(T.tril(-1) + T.diagonal().log().diag())
        vae.posterior.bijection.bias.zero_()
        set_start(start, mean=T @ G, scale=torch.ones(d).double())
    return vae


def reaching_by_an_autoregressive_step(scale: str) -> VAE:
    """q(z | x) = p(z | x) by one linear step z = c z₀ + t on z₀ ~ N(m, diag(L)²/c²), t_i linear in z₀_<i and x."""
    G, L = exact_posterior()
    start = ConditionalDiagonal(d, context_features=D).double()
    step = IAF(d, layers=1, hidden=(), scale=scale, context_features=D, base=Flow(start, StandardNormal(d)))
    vae = linear_gaussian(step)
    c = 1 / (1 + math.exp(-2)) if scale == "gated" else 1.0
    A = L @ L.diagonal().reciprocal().diag() - torch.eye(d).double()
    # t = (1 - c) m + c A (z₀ - m), of which a gate takes the part m' with t = (1 - c) m'.
    A, M = (c / (1 - c) * A, G - c / (1 - c) * A @ G) if c < 1 else (A, -A @ G)
    (linear,) = step.bijection.bijection.bijections[0].conditioner.linears
    with torch.no_grad():
        linear.weight.zero_()
        linear.weight[d:, :d], linear.weight[d:, d:] = A, M
        linear.bias.zero_()
        linear.bias[d:] = -M @ b
        set_start(start, mean=G, scale=L.diagonal() / c)
    return vae


REACHING: dict[str, Callable[[], VAE]] = {
    "linear flow": reaching_by_a_linear_flow,
    "autoregressive step": lambda: reaching_by_an_autoregressive_step("tanh"),
    "gated autoregressive step": lambda: reaching_by_an_autoregressive_step("gated"),
}


WIDER = 1.5
DIVERGENCE = d / 2 * (WIDER**2 - 1 - math.log(WIDER**2))


def widened(name: str) -> VAE:
    """One that reaches the posterior, but with draws 1.5 times as wide: weights are bounded, KL(q ‖ p) is known."""
    vae = REACHING[name]()
    start = vae.posterior.base.bijection
    with torch.no_grad():
        log_scale = B * torch.tanh(start.heads.bias[:d] / B) + math.log(WIDER)
        start.heads.bias[:d] = B * torch.atanh(log_scale / B)
    return vae


def set_start(start: ConditionalDiagonal, *, mean: Tensor, scale: Tensor) -> None:
    """μ = mean (x - b) and σ = scale, whatever x."""
    size = len(scale)
    start.heads.weight.zero_()
    start.heads.weight[size:] = mean
    before = [_before_bound(math.log(s)) for s in scale.tolist()]
    start.heads.bias[:size] = torch.tensor(before, dtype=torch.float64)
    start.heads.bias[size:] = -mean @ b


def _before_bound(log_scale: float) -> float:
    return B * math.atanh(log_scale / B)


def every_weight_is_the_evidence(weights: Weights, vae: VAE, x: Tensor, exact: Tensor) -> None:
    """q(z | x) = p(z | x): each draw of the bound is log p(x)."""
    found = weights(vae, x, 50, _rng(0)).detach()
    torch.testing.assert_close(found, exact.expand_as(found), rtol=0, atol=1e-10)


def weights_average_to_the_evidence(
    weights: Weights, vae: VAE, x: Tensor, exact: Tensor, *, draws: int = 10_000
) -> None:
    """E exp(log w - log p(x)) = 1 for each row, within five standard errors."""
    relative = (weights(vae, x, draws, _rng(1)).detach() - exact).exp()
    std, mean = torch.std_mean(relative, 0)
    distance = (mean - 1).abs() / (std / len(relative) ** 0.5 + 1e-10)
    assert distance.max() < 5, f"weights average to {mean.tolist()} of the evidence, {distance.max():.1f} errors off"


def elbo_misses_the_evidence_by(weights: Weights, vae: VAE, x: Tensor, exact: Tensor, *, divergence: float) -> None:
    """The mean log-weight of each row is log p(x) - KL(q ‖ p), within five standard errors."""
    std, mean = torch.std_mean(weights(vae, x, 10_000, _rng(2)).detach(), 0)
    distance = (mean - exact + divergence).abs() / (std / 10_000**0.5)
    assert distance.max() < 5, f"gaps to the evidence {(exact - mean).tolist()}, not {divergence:.4f}"


def elbo_is_below_the_evidence(weights: Weights, vae: VAE, x: Tensor, exact: Tensor, *, gap: float) -> None:
    """The mean log-weight of each row is below log p(x) by more than `gap` nats and five standard errors."""
    std, mean = torch.std_mean(weights(vae, x, 10_000, _rng(2)).detach(), 0)
    least = (exact - mean - 5 * std / 10_000**0.5).min()
    assert least > gap, f"the mean log-weight comes within {least:.4f} nats of the evidence or above it"


def bound_rises_to_the_evidence(bound: Bound, vae: VAE, x: Tensor, exact: Tensor) -> None:
    """Means of the bound over rows for K = 1, 4, 16, ... rise, each beyond five errors, to within 0.01 nats."""
    means, errors = [], []
    for K, repeats in ((1, 2000), (4, 2000), (16, 2000), (512, 100)):
        gaps = repeated(bound, vae, x, K, repeats) - exact
        std, mean = torch.std_mean(gaps.mean(1))
        means.append(mean.item())
        errors.append(std.item() / repeats**0.5)
    for i in range(len(means) - 1):
        rise, error = means[i + 1] - means[i], math.hypot(errors[i], errors[i + 1])
        assert rise > 5 * error, f"gaps to the evidence {means} do not rise beyond {errors}"
    assert abs(means[-1]) < 0.01, f"the bound ends {means[-1]:.4f} nats from the evidence"


def exponentials_of_bounds_sum_to_one(bound: Bound, vae: VAE, x: Tensor) -> None:
    """Σ_x exp(bound(x)) over every event x has the mean 1, for every K."""
    for K in (1, 8):
        sums = repeated(bound, vae, x, K, 400).exp().sum(1)
        std, mean = torch.std_mean(sums)
        distance = (mean - 1).abs() / (std / len(sums) ** 0.5)
        assert distance < 5, f"K = {K}: the exponentials sum to {mean:.4f}, {distance:.1f} errors off"


def repeated(bound: Bound, vae: VAE, x: Tensor, samples: int, repeats: int) -> Tensor:
    """Independent bounds of each row, `(repeats, rows)`."""
    rows = x.repeat(repeats, *(1 for _ in vae.event_shape))
    with torch.no_grad():
        return bound(vae, rows, samples, _rng(samples)).reshape(repeats, len(x))


def draws_have_the_density_of_the_flow(vae: VAE, x: Tensor) -> None:
    """log q(z | x) that comes with a draw z is the flow's own density at z, and log p(z) the prior's."""
    h = vae.encoder(vae.likelihood.rescale(x), None)
    z, _ = vae.posterior.rsample_and_log_prob((len(x), 3), context=h[:, None], generator=_rng(3))
    terms = vae.terms(x, samples=3, generator=_rng(3))
    torch.testing.assert_close(terms.log_posterior, vae.posterior.log_prob(z, h[:, None]).T, rtol=0, atol=1e-9)
    torch.testing.assert_close(terms.log_prior, vae.prior.log_prob(z).T, rtol=0, atol=1e-12)


def closed_form_elbo(vae: VAE, x: Tensor) -> Tensor:
    """E_q log p(x | z) - KL(q ‖ p) of a diagonal posterior N(μ, diag σ²) and the linear decoder, differentiable."""
    a, mu = vae.posterior.bijection.heads(x).chunk(2, 1)
    log_sigma = B * torch.tanh(a / B)
    variance = (2 * log_sigma).exp()
    decoder: Straight = vae.decoder
    square = (x - mu @ decoder.W.T - decoder.b).square().sum(1) + variance @ decoder.W.square().sum(0)
    log_likelihood = -0.5 * (square / SIGMA**2 + D * math.log(2 * math.pi * SIGMA**2))
    return log_likelihood - 0.5 * (mu.square() + variance - 1 - 2 * log_sigma).sum(1)


def elbo_is_the_closed_form(weights: Weights, vae: VAE, x: Tensor) -> None:
    """The mean log-weight within five standard errors."""
    std, mean = torch.std_mean(weights(vae, x, 10_000, _rng(4)).detach(), 0)
    distance = (mean - closed_form_elbo(vae, x).detach()).abs() / (std / 10_000**0.5)
    assert distance.max() < 5, f"{distance.max():.1f} standard errors off"


def gradient_is_the_closed_form(weights: Weights, vae: VAE, x: Tensor) -> None:
    """The gradient of the mean log-weight in every parameter, posterior's and decoder's, within five errors."""
    exact = _gradient(closed_form_elbo(vae, x).mean(), vae)
    found = torch.stack([_gradient(weights(vae, x, 200, _rng(seed)).mean(), vae) for seed in range(64)])
    std, mean = torch.std_mean(found, 0)
    distance = (mean - exact).abs() / (std / len(found) ** 0.5 + 1e-10)
    assert distance.max() < 5, f"{distance.max():.1f} standard errors off: {mean} for {exact}"


def evidence_by_quadrature(vae: VAE, x: Tensor, *, points: int = 161) -> Tensor:
    """log ∫ p(x | z) p(z) dz, `(rows,)`, over one or two latents, from the decoder's logits; nats."""
    (latent,) = vae.prior.event_shape
    axis = torch.linspace(-8, 8, points, dtype=torch.float64)
    z = torch.cartesian_prod(*[axis] * latent).reshape(-1, latent)
    logits = vae.decoder(z, None).detach()[..., 0].flatten(1)
    log_one, log_zero = -torch.log1p((-logits).exp()), -torch.log1p(logits.exp())
    k = x.flatten(1)
    log_likelihood = k @ log_one.T + (1 - k) @ log_zero.T
    log_prior = -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
    return torch.logsumexp(log_likelihood + log_prior, 1) + latent * math.log(16 / (points - 1))


def warms_up(build: Build, vae: VAE, x: Tensor) -> None:
    """β = n / 4 at the n-th loss in training, 1 from the fourth on, 1 at once in evaluation."""
    log_likelihood, log_ratio = _two_terms(vae, x)
    objective = build(vae, warmup_steps=4)
    for beta in (0.25, 0.5, 0.75, 1.0, 1.0):
        torch.testing.assert_close(objective(x, generator=_rng(1)), beta * log_ratio - log_likelihood)
    fresh = build(vae, warmup_steps=4).eval()
    torch.testing.assert_close(fresh(x, generator=_rng(1)), log_ratio - log_likelihood)


def frees_nats(build: Build, vae: VAE, x: Tensor) -> None:
    """Below λ the divergence costs λ and has no gradient, above it nothing is free; in evaluation never."""
    log_likelihood, log_ratio = _two_terms(vae, x)
    kl = log_ratio.item()
    for free in (kl + 3, kl - 0.1):
        objective = build(vae, free_nats=free)
        loss = objective(x, generator=_rng(1))
        torch.testing.assert_close(loss.item(), max(free, kl) - log_likelihood.item())
        expected = _gradient((log_ratio if free < kl else 0.0) - log_likelihood, vae)
        torch.testing.assert_close(_gradient(loss, vae), expected)
        torch.testing.assert_close(objective.eval()(x, generator=_rng(1)).item(), kl - log_likelihood.item())


def _two_terms(vae: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Means of log p(x | z) and log q(z | x) - log p(z) at the draws of the first seed."""
    t = vae.terms(x, generator=_rng(1))
    return t.log_likelihood.mean(), (t.log_posterior - t.log_prior).mean()


def _gradient(value: Tensor, module: nn.Module) -> Tensor:
    parameters = list(module.parameters())
    parts = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


def _rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
