import copy
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from cases import SPINS
from contracts import boltzmann, densities, modules
from helpers import perturb, rng, seeded
from torch import Tensor, nn

from cflows import BoltzmannMachine, ContrastiveDivergence, PseudoLikelihood, RatioMatching

NAMES = pytest.mark.parametrize("name", SPINS)
CONDITIONAL = pytest.mark.parametrize("build", [PseudoLikelihood, RatioMatching])
OBJECTIVES: dict[str, Callable[[BoltzmannMachine], nn.Module]] = {
    "cd": partial(ContrastiveDivergence, sweeps=2),
    "pcd": lambda model: ContrastiveDivergence(model, persistent=True, chains=5, generator=rng(9)),
    "pseudo-likelihood": PseudoLikelihood,
    "ratio matching": RatioMatching,
}
# Two frustrated triangles that share a side, and a bias.
W = torch.tensor([[0, 1, 1, 0], [1, 0, -1, 1], [1, -1, 0, 1], [0, 1, 1, 0]], dtype=torch.float64) / 2
B = torch.tensor([0.3, 0.0, -0.5, 0.2], dtype=torch.float64)


class Setting:
    """A perturbed model with spins."""

    def __init__(self, name: str, rows: int = 4) -> None:
        self.case = SPINS[name]
        self.model = self.case.make()
        self.y = self.case.data(rows, self.model.event_shape, rng(2))


def machine(n: int, *, bias: bool = True, seed: int = 1) -> BoltzmannMachine:
    return perturb(BoltzmannMachine(n, bias=bias), rng(seed), std=0.5)


def log_prob(module: nn.Module, y: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
    return (module.log_prob(y, context),)


def draw(module: nn.Module, y: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
    with torch.random.fork_rng():
        return (module.sample((len(y),)), module.gibbs(y, sweeps=2), module.conditional_logits(y))


@pytest.mark.parametrize("n", range(1, 11))
def test_masses_are_those_of_the_definition(n: int) -> None:
    boltzmann.equals_the_law(machine(n))


@NAMES
def test_gradient(name: str) -> None:
    s = Setting(name, rows=7)
    boltzmann.equals_the_law(s.model)
    boltzmann.gradient_is_the_difference_of_moments(s.model, s.y)


def test_couplings_are_kept() -> None:
    """From (n, n) to one parameter a pair and back, in the order of the upper triangle, in their precision."""
    model = BoltzmannMachine((2, 2), W=W)
    assert torch.equal(model.W, W)
    assert list(model.state_dict()) == ["couplings"]
    assert model.couplings.tolist() == [0.5, 0.5, 0.0, -0.5, 0.5, 0.5]
    assert BoltzmannMachine(2, W=torch.tensor([[0, 1], [1, 0]])).couplings.dtype == torch.float32


def test_normalizer_of_two_spins() -> None:
    boltzmann.normalizer_of_two_spins(BoltzmannMachine)


@pytest.mark.parametrize("n", [17, 20])
def test_normalizer_in_closed_form(n: int) -> None:
    """Fields alone: Z = Π 2 cosh b. A ring of equal couplings: Z = (2 cosh w)ⁿ + (2 sinh w)ⁿ."""
    b, w = torch.linspace(-1, 1, n, dtype=torch.float64), 0.3
    free, ring = BoltzmannMachine(n, bias=True).double(), torch.zeros(n, n, dtype=torch.float64)
    with torch.no_grad():
        free.b.copy_(b)
        torch.testing.assert_close(free.log_normalizer(), (2 * b.cosh()).log().sum(), rtol=1e-13, atol=0)
        here = torch.arange(n)
        ring[here, here.roll(1)] = ring[here.roll(1), here] = w
        expected = math.log((2 * math.cosh(w)) ** n + (2 * math.sinh(w)) ** n)
        assert BoltzmannMachine(n, W=ring).log_normalizer().item() == pytest.approx(expected, rel=1e-13)


def test_twenty_spins() -> None:
    """Log-likelihood and gradient over 2²⁰ states, against the moments of exact draws."""
    model = perturb(BoltzmannMachine(20), rng(3), std=0.2)
    y = model.sample((20_000,), generator=rng(4))
    (gradient,) = torch.autograd.grad(model.log_prob(y).mean(), [model.couplings])
    assert gradient.abs().max() < 5 / 20_000**0.5


@NAMES
def test_conditionals_and_chains(name: str) -> None:
    s = Setting(name)
    boltzmann.conditionals_are_those_of_the_law(s.model)
    boltzmann.sweep_keeps_the_law(s.model)
    boltzmann.chains_follow_the_sweep(s.model)


@NAMES
def test_draws(name: str) -> None:
    s = Setting(name)
    boltzmann.draws_follow_the_law(s.model)
    densities.sample_is_clean(s.model, generator=lambda: rng(6))


def test_draws_do_not_depend_on_the_precision() -> None:
    double = machine(4).float().double()
    single = copy.deepcopy(double).float()
    draws = single.sample((1000,), generator=rng(5))
    assert draws.dtype == torch.float32
    assert torch.equal(draws.double(), double.sample((1000,), generator=rng(5)))


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_draws_at_the_ends_of_the_unit_interval(u: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a first state without mass, nor one past the last where the sum of masses is rounded below 1."""
    many = (machine(8, seed=seed) for seed in range(100))
    model = next(m for m in many if m._log_densities().softmax(0).cumsum(0)[-1] < 1 - 2**-53)
    skewed = BoltzmannMachine(2, bias=True).double()
    with torch.no_grad():
        skewed.b.fill_(400.0)
    monkeypatch.setattr(torch, "rand", lambda size, **keywords: torch.full(size, u, dtype=torch.float64))
    assert skewed.sample((1,)).tolist() == [[1.0, 1.0]]
    assert model.sample((1,)).tolist() == [[-1.0 if u == 0 else 1.0] * 8]


@NAMES
def test_module(name: str) -> None:
    s = Setting(name, rows=33)
    densities.takes_any_batch_shape(s.model, lambda rows: s.case.data(rows, s.model.event_shape, rng(2)))
    densities.estimate_agrees(s.model, s.y, exact=True, generator=rng)
    modules.gradients_reach_every_parameter(log_prob, s.model, s.y)
    modules.input_is_left_alone(log_prob, s.model, s.y)
    modules.copies_are_bit_equal(log_prob, s.model, seeded(s.case.build, seed=7), s.y)
    modules.rows_are_independent(log_prob, s.model, s.y)
    modules.float32_is_close(log_prob, s.model, s.y, tolerance=1e-5)
    modules.runs_on_meta(log_prob, s.model, s.y)
    modules.runs_on_meta(draw, s.model, s.y)


@NAMES
def test_values_outside(name: str) -> None:
    s = Setting(name)
    boltzmann.values_outside_have_no_mass(s.model, s.y)
    assert torch.equal(s.model.log_prob(s.y.to(torch.int8)), s.model.log_prob(s.y))


def test_gibbs_of_any_shape() -> None:
    """Many spins, a batch of two dimensions, and the state kept by the callback."""
    model, seen = machine(50), []
    y = torch.ones(2, 3, 50, dtype=torch.float64)
    end = model.gibbs(y, sweeps=3, generator=rng(7), callback=lambda sweep, value: seen.append(value))
    assert end.shape == y.shape
    assert len({tuple(value.flatten().tolist()) for value in seen}) == 3
    assert torch.equal(end, model.gibbs(y.reshape(6, 50), sweeps=3, generator=rng(7)).reshape(y.shape))


@CONDITIONAL
def test_conditional_objectives_find_the_law(build: Callable[[BoltzmannMachine], nn.Module]) -> None:
    boltzmann.minimum_is_at_the_truth(build, W, B)
    boltzmann.recovers_the_couplings(build, W, B)


def test_conditional_objectives_by_hand() -> None:
    """Two spins that agree, w = 0.7: each has the conditional 1/(1 + e^-1.4)."""
    model = BoltzmannMachine(2, W=torch.tensor([[0.0, 0.7], [0.7, 0.0]], dtype=torch.float64))
    y, p = torch.ones(3, 2, dtype=torch.float64), 1 / (1 + math.exp(-1.4))
    assert PseudoLikelihood(model)(y).item() == pytest.approx(-2 * math.log(p), rel=1e-14)
    assert RatioMatching(model)(y).item() == pytest.approx(2 * (1 - p) ** 2, rel=1e-14)


def test_ratio_matching_is_the_distance_of_conditionals() -> None:
    """L(W) - L(W_data) = E Σᵢ (p(yᵢ | y₋ᵢ) - p_data(yᵢ | y₋ᵢ))², by the sum over all states."""
    truth, model = BoltzmannMachine(4, W=W), BoltzmannMachine(4, W=0.5 * W)
    y, p = boltzmann.states((4,)), boltzmann.law(W, torch.zeros(4))
    losses = [boltzmann.expectation(RatioMatching(m), m, p) for m in (model, truth)]
    ours, theirs = ((y * m.conditional_logits(y)).sigmoid() for m in (model, truth))
    expected = (ours - theirs).square().sum(1) @ p
    torch.testing.assert_close(losses[0] - losses[1], expected, rtol=1e-12, atol=0)


def test_contrastive_divergence() -> None:
    model, data = machine(4), SPINS["boltzmann-5-bias"].data(9, (4,), rng(8))
    boltzmann.divergence_has_the_gradient_of_its_phases(OBJECTIVES["cd"], model, data)
    boltzmann.persistent_chains_go_on(ContrastiveDivergence, model)


def test_persistent_chains_start_as_fair_coins() -> None:
    first, again, other = (
        ContrastiveDivergence(machine(4), persistent=True, chains=2000, generator=rng(seed)) for seed in (18, 18, 19)
    )
    assert torch.equal(first.chains, again.chains)
    assert not torch.equal(first.chains, other.chains)
    assert first.chains.abs().unique().tolist() == [1.0]
    assert first.chains.mean(0).abs().max() < 5 / 2000**0.5
    assert "chains" in first.state_dict()


@pytest.mark.parametrize("persistent", [False, True])
def test_contrastive_divergence_of_many_sweeps(*, persistent: bool) -> None:
    build = partial(ContrastiveDivergence, sweeps=30, persistent=persistent, chains=20_000, generator=rng(10))
    data = SPINS["boltzmann-5-bias"].data(20_000, (4,), rng(11)).abs()  # far from the law
    boltzmann.many_sweeps_give_the_exact_gradient(build, machine(4), data)


def test_one_sweep_from_the_law_leaves_no_gradient_on_average() -> None:
    """Contrastive divergence is consistent here: at the law of the data a sweep changes nothing."""
    model = machine(5)
    y = model.sample((40_000,), generator=rng(12))
    found = boltzmann.gradients(model, ContrastiveDivergence(model)(y, generator=rng(13)))
    assert max(gradient.abs().max().item() for gradient in found.values()) < 5 * (2 / 40_000) ** 0.5


def loss(module: nn.Module, y: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
    return (module(y, context, generator=rng(14) if y.device.type == "cpu" else None)[None],)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective(name: str) -> None:
    model = machine(3)
    objective = OBJECTIVES[name](model).eval()
    y = SPINS["boltzmann-2"].data(6, (3,), rng(15))
    modules.gradients_reach_every_parameter(loss, objective, y)
    modules.input_is_left_alone(loss, objective, y)
    modules.copies_are_bit_equal(loss, objective, OBJECTIVES[name](BoltzmannMachine(3, bias=True)), y)
    modules.runs_on_meta(loss, objective, y)
    assert loss(objective, y, None)[0].shape == (1,)
    assert not objective(y.clone().fill_(0.5), generator=rng(16)).isfinite(), "what is no spin passes for one"
    with pytest.raises(ValueError, match="the batch is empty"):
        objective(y[:0])


def test_too_many_spins() -> None:
    model = BoltzmannMachine(21)
    y = torch.ones(2, 21)
    for call in (lambda: model.log_prob(y), model.log_normalizer, model.sample):
        with pytest.raises(ValueError, match=r"n = 20 spins or fewer, but has n = 21: .* gibbs draws"):
            call()
    assert model.log_density(y).tolist() == [0.0, 0.0]
    assert PseudoLikelihood(model)(y).item() == pytest.approx(21 * math.log(2), rel=1e-6)
    assert ContrastiveDivergence(model)(y, generator=rng(17)).item() == 0.0


def test_what_makes_no_sense_is_refused() -> None:
    model = BoltzmannMachine(3)
    with pytest.raises(ValueError, match="BoltzmannMachine takes events of shape"):
        model.log_prob(torch.ones(2, 4))
    with pytest.raises(ValueError, match="1 sweep or more, but has sweeps=0"):
        model.gibbs(torch.ones(2, 3), sweeps=0)
    for wrong in (torch.ones(3, 3), torch.zeros(2, 2), torch.eye(3).roll(1, 0)):
        with pytest.raises(ValueError, match=r"W must be symmetric, \(3, 3\), with a zero diagonal"):
            BoltzmannMachine(3, W=wrong)
