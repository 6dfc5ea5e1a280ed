"""What a fully visible Boltzmann machine and what fits it keep, in float64, against sums over every state."""

import itertools
import math
from collections.abc import Callable

import torch
from contracts.masses import _frequencies_fit
from helpers import rng
from torch import Tensor, nn

from cflows import BoltzmannMachine, ContrastiveDivergence

Build = Callable[..., BoltzmannMachine]
Objective = Callable[[BoltzmannMachine], nn.Module]


def states(event_shape: tuple[int, ...]) -> Tensor:
    """Every event there is, `(2ⁿ, *event)`, the last spin fastest, -1 first."""
    rows = list(itertools.product((-1.0, 1.0), repeat=math.prod(event_shape)))
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, *event_shape)


def couplings(n: int, *, seed: int = 0, scale: float = 0.5) -> Tensor:
    """Symmetric with a zero diagonal."""
    upper = scale * torch.randn(n, n, generator=rng(seed), dtype=torch.float64).triu(1)
    return upper + upper.T


def law(W: Tensor, b: Tensor) -> Tensor:
    """p of every state from its definition, pair by pair, `(2ⁿ,)`."""
    W, b, masses = W.tolist(), b.tolist(), []
    for y in itertools.product((-1, 1), repeat=len(b)):
        pairs = sum(W[i][j] * y[i] * y[j] for i, j in itertools.combinations(range(len(b)), 2))
        masses.append(math.exp(pairs + sum(b[i] * y[i] for i in range(len(b)))))
    return torch.tensor(masses, dtype=torch.float64) / math.fsum(masses)


def law_of(model: BoltzmannMachine) -> Tensor:
    """The law of its parameters themselves, one for each pair i < j, row by row."""
    W = torch.zeros(model.n, model.n, dtype=torch.float64)
    for (i, j), w in zip(itertools.combinations(range(model.n), 2), model.couplings.tolist(), strict=True):
        W[i, j] = w
    return law(W, model.b.detach())


def moments(y: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """What the gradients in the parameters are made of: E[yᵢ yⱼ] of the pairs i < j, row by row, and E[yᵢ]."""
    y = y.flatten(1)
    products = torch.einsum("r,ri,rj->ij", weights, y, y)
    return {"couplings": torch.cat([row[i + 1 :] for i, row in enumerate(products)]), "b": weights @ y}


def uniform(rows: int) -> Tensor:
    return torch.full((rows,), 1 / rows, dtype=torch.float64)


def gradients(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    """∂value/∂parameter by the parameter's name."""
    named = dict(model.named_parameters())
    return dict(zip(named, torch.autograd.grad(value, list(named.values())), strict=True))


def equals_the_law(model: BoltzmannMachine) -> None:
    """Masses are those of the definition, and so they sum to 1."""
    with torch.no_grad():
        found, expected = model.log_prob(states(model.event_shape)).exp(), law_of(model)
    assert abs(found.sum() - 1) <= 1e-12, f"the masses sum to 1 {found.sum().item() - 1:+.2e}"
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def normalizer_of_two_spins(build: Build) -> None:
    """log Z = log(2 e^w + 2 e^-w) for n = 2: ½ yᵀWy is ±w."""
    for w in (-1.5, 0.0, 0.4, 2.0):
        model = build(2, W=torch.tensor([[0.0, w], [w, 0.0]], dtype=torch.float64))
        expected, found = math.log(2 * math.exp(w) + 2 * math.exp(-w)), model.log_normalizer().item()
        assert math.isclose(found, expected, rel_tol=1e-14), f"log Z is {found} at w = {w}, not {expected}"


def gradient_is_the_difference_of_moments(model: BoltzmannMachine, data: Tensor) -> None:
    """∇ mean log p = data moments - model moments, one for each pair and each bias."""
    found = gradients(model, model.log_prob(data).mean())
    everything = moments(states(model.event_shape), law_of(model))
    for name, gradient in found.items():
        expected = moments(data, uniform(len(data)))[name] - everything[name]
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def conditionals_are_those_of_the_law(model: BoltzmannMachine) -> None:
    """σ(logit of spin i) is p(yᵢ = +1 | y₋ᵢ), from the masses of the two states that differ in it."""
    y = states(model.event_shape)
    p = law_of(model)
    found = model.conditional_logits(y).detach().flatten(1)
    for i, place in enumerate(2 ** torch.arange(model.n - 1, -1, -1)):
        up, down = (torch.arange(len(y)) | place), (torch.arange(len(y)) & ~place)
        torch.testing.assert_close(found[:, i], (p[up] / p[down]).log(), rtol=1e-10, atol=1e-12)


def sweep(model: BoltzmannMachine) -> Tensor:
    """Probabilities from state to state of one sweep, `(2ⁿ, 2ⁿ)`, out of `conditional_logits` alone."""
    count = 2**model.n
    up_masses = model.conditional_logits(states(model.event_shape)).detach().flatten(1).sigmoid()
    K, here = torch.eye(count, dtype=torch.float64), torch.arange(count)
    for i, place in enumerate(2 ** torch.arange(model.n - 1, -1, -1)):
        step = torch.zeros(count, count, dtype=torch.float64)
        step[here, here | place] += up_masses[:, i]
        step[here, here & ~place] += 1 - up_masses[:, i]
        K = K @ step
    return K


def sweep_keeps_the_law(model: BoltzmannMachine) -> None:
    """p K = p, rows of K sum to 1, and K forgets where it started."""
    p, K = law_of(model), sweep(model)
    torch.testing.assert_close(K.sum(1), torch.ones_like(p), rtol=1e-12, atol=0)
    torch.testing.assert_close(p @ K, p, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(torch.linalg.matrix_power(K, 512), p.expand_as(K), rtol=1e-8, atol=1e-12)


def chains_follow_the_sweep(model: BoltzmannMachine, *, rows: int = 20_000) -> None:
    """Two sweeps from one state have the frequencies of K², two from exact draws those of p."""
    y, p, K = states(model.event_shape), law_of(model), sweep(model)
    start = y[torch.multinomial(p, rows, replacement=True, generator=rng(1))]
    for begin, expected in ((y[:1].expand_as(start), (K @ K)[0]), (y[-1:].expand_as(start), (K @ K)[-1]), (start, p)):
        _frequencies_fit(numbers(model.gibbs(begin, sweeps=2, generator=rng(2))), expected)


def numbers(y: Tensor) -> Tensor:
    """Place of each event among `states`."""
    bits = (y.flatten(1) + 1) / 2
    assert torch.equal(bits, (bits > 0).double()), "a value is no spin"
    return (bits.long() * 2 ** torch.arange(bits.shape[1] - 1, -1, -1)).sum(1)


def draws_follow_the_law(model: BoltzmannMachine, *, count: int = 20_000) -> None:
    """Frequencies of states among draws of `sample`."""
    draws = model.sample((count,), generator=rng(3))
    _frequencies_fit(numbers(draws), law_of(model))


def values_outside_have_no_mass(model: BoltzmannMachine, y: Tensor) -> None:
    """-inf wherever one value is neither -1 nor +1, NaN where one is NaN; other rows are not touched."""
    expected = model.log_prob(y)
    for value in (0.0, 0.5, -0.5, 2.0, math.inf, -math.inf, math.nan):
        for place in range(model.n):
            spoilt = y.clone()
            spoilt[1].view(-1)[place] = value
            found = model.log_prob(spoilt)
            right = found[1].isnan() if math.isnan(value) else found[1] == -math.inf
            assert right, f"log-mass {found[1].item()} with {value} at place {place}"
            torch.testing.assert_close(found[2:], expected[2:], rtol=1e-12, atol=1e-12)


def expectation(objective: nn.Module, model: BoltzmannMachine, p: Tensor) -> Tensor:
    """The expected loss under masses p of the states, one call for each of them."""
    return torch.stack([objective(y[None]) for y in states(model.event_shape)]) @ p


def minimum_is_at_the_truth(build: Objective, W: Tensor, b: Tensor) -> None:
    """Under the model's own law the expected gradient is zero; elsewhere it is not."""
    model = BoltzmannMachine(len(b), bias=True, W=W).double()
    with torch.no_grad():
        model.b.copy_(b)
    objective = build(model)
    for p, zero in ((law(W, b), True), (law(0.5 * W, b), False)):
        found = gradients(model, expectation(objective, model, p))
        worst = max(gradient.abs().max().item() for gradient in found.values())
        assert (worst < 1e-12) == zero, f"the largest expected gradient is {worst:.1e}, zero is due: {zero}"


def recovers_the_couplings(build: Objective, W: Tensor, b: Tensor) -> None:
    """The minimum over the full law is at W and b, from zero on."""
    p = law(W, b)
    model = BoltzmannMachine(len(b), bias=True).double()
    objective = build(model)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=100, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = expectation(objective, model, p)
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(model.W.detach(), W, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.b.detach(), b, rtol=0, atol=1e-6)


def divergence_has_the_gradient_of_its_phases(build: Objective, model: BoltzmannMachine, data: Tensor) -> None:
    """∇L = moments of y⁻ - moments of the data, y⁻ being two sweeps from the data under the same generator."""
    loss = build(model)(data, generator=rng(4))
    negative = model.gibbs(data, sweeps=2, generator=rng(4))
    for name, gradient in gradients(model, loss).items():
        phases = [moments(y, uniform(len(y)))[name] for y in (negative, data)]
        torch.testing.assert_close(gradient, phases[0] - phases[1], rtol=1e-10, atol=1e-12)


def many_sweeps_give_the_exact_gradient(build: Objective, model: BoltzmannMachine, data: Tensor) -> None:
    """∇L after many sweeps is -∇ mean log p, within five Monte Carlo errors of moments of ±1."""
    exact = gradients(model, -model.log_prob(data).mean())
    found = gradients(model, build(model)(data, generator=rng(5)))
    for name, gradient in found.items():
        off = (gradient - exact[name]).abs().max().item()
        assert off < 5 / len(data) ** 0.5, f"the gradient of {name} is off by {off:.4f}"


def persistent_chains_go_on(build: Callable[..., ContrastiveDivergence], model: BoltzmannMachine) -> None:
    """Calls carry the chains on sweep by sweep, whatever the data; in evaluation mode they stay where they are."""
    data = torch.ones(6, *model.event_shape, dtype=torch.float64)
    objective = build(model, sweeps=2, persistent=True, chains=50, generator=rng(6)).train()
    expected, used, ours = objective.chains.clone(), rng(7), rng(7)
    for y in (data, -data, data):
        objective(y, generator=used)
        expected = model.gibbs(expected, sweeps=2, generator=ours)
        assert torch.equal(objective.chains, expected), "the chains did not go on from where they were"
    objective.eval()(data, generator=used)
    assert torch.equal(objective.chains, expected), "the chains moved in evaluation mode"
