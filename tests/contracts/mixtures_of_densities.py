"""What a mixture of densities, its errors and its weights promise; each function raises AssertionError where not."""

import math
from collections.abc import Callable, Sequence

import torch
from helpers import normal, rng
from torch import Tensor

from core import DensityModel, DiagonalNormal, LikelihoodEstimate, StandardUniform
from core.density import Context, Kind, Nats, Values
from core.rng import Rng, RowGenerators, randn

Mixing = Callable[[Sequence[DensityModel], Tensor], DensityModel]
Fitting = Callable[..., Tensor]


class Noisy(DensityModel):
    """log N(x; loc, 1) + s ε + b with ε from the generator, the same for all that draw the same."""

    def __init__(self, loc: float, s: float, *, b: float = 0.0, kind: Kind = "estimate") -> None:
        super().__init__(1)
        self.inner, self.s, self.b, self.kind = DiagonalNormal(1, loc=loc, learnable=False), s, b, kind

    def log_prob(self, x: Values, context: Context = None, *, generator: Rng = None) -> Nats:
        exact = self.inner.log_prob(x)
        return exact + self.b + self.s * randn((*exact.shape, 1), generator, like=exact).reshape(exact.shape)

    def estimate_log_prob(self, x: Values, context: Context = None, *, generator: Rng = None) -> LikelihoodEstimate:
        log_p = self.log_prob(x, generator=generator)
        std, solver = torch.full_like(log_p, self.s), torch.full_like(log_p, abs(self.b))
        return LikelihoodEstimate(log_p, std, solver, -torch.full_like(log_p, self.b), self.kind, log_p.long() * 0 + 7)

    def sample(self, shape: Sequence[int] = (), *, context: Context = None, generator: Rng = None) -> Values:
        return self.inner.sample(shape, generator=generator)


def errors_are_those_of_the_parts(mixing: Mixing) -> None:
    """The error found over many draws is the one given; the solver's is what moving every part makes it."""
    w = torch.tensor([0.3, 0.7], dtype=torch.float64)
    x = torch.linspace(-1, 3, 5, dtype=torch.float64)[:, None]

    def mixture(s: float, b: float) -> DensityModel:
        return mixing([Noisy(0.0, 2 * s, b=3 * b), Noisy(2.0, s, b=b)], w).double()

    s, b = 1e-3, 1e-5
    estimate = mixture(s, b).estimate_log_prob(x, generator=rng(0))
    draws = mixture(s, 0.0).log_prob(x.expand(4000, 5, 1), generator=rng(1))
    torch.testing.assert_close(estimate.std_error, draws.std(0), rtol=0.05, atol=0)
    moved = mixture(0.0, b).log_prob(x, generator=rng(0)) - mixture(0.0, 0.0).log_prob(x, generator=rng(0))
    torch.testing.assert_close(estimate.solver_error, moved, rtol=0.01, atol=0)
    torch.testing.assert_close(estimate.truncation, -moved, rtol=0.01, atol=0)
    assert estimate.nfe.tolist() == [14] * 5


def kind_is_the_weakest(mixing: Mixing) -> None:
    w, x = torch.ones(2), torch.zeros(3, 1)
    for kinds, expected in ((("exact", "estimate"), "estimate"), (("bound", "estimate"), "bound")):
        parts = [Noisy(0.0, 0.1, kind=kind) for kind in kinds]
        assert mixing(parts, w).estimate_log_prob(x, generator=rng(0)).kind == expected


def parts_draw_the_same(mixing: Mixing) -> None:
    """Two equal parts are the part, noise included; and the next call has other noise."""
    w, x = torch.tensor([1.0, 3.0]), torch.zeros(3, 1)
    for generator in (rng(5), RowGenerators([5, 6, 7])):
        again = rng(5) if isinstance(generator, torch.Generator) else RowGenerators([5, 6, 7])
        mixture, one = mixing([Noisy(0.0, 1.0), Noisy(0.0, 1.0)], w), Noisy(0.0, 1.0)
        for _ in range(2):
            expected = one.log_prob(x, generator=again)
            torch.testing.assert_close(mixture.log_prob(x, generator=generator), expected, rtol=0, atol=1e-5)
    silent = mixing([Noisy(0.0, 1.0), DiagonalNormal(1)], w)
    g = rng(5)
    assert not torch.equal(silent.log_prob(x, generator=g), silent.log_prob(x, generator=g)), (
        "the generator stood still"
    )


def outside_a_part_the_others_count(mixing: Mixing) -> None:
    """Where a part has no density; where none has any, -inf, with errors of 0."""
    mixture = mixing([StandardUniform(1), StandardUniform(1)], torch.tensor([0.25, 0.75]))
    estimate = mixture.estimate_log_prob(torch.tensor([[0.5], [2.0]]))
    torch.testing.assert_close(estimate.log_prob, torch.tensor([0.0, -math.inf]), rtol=0, atol=1e-6)
    assert estimate.std_error.tolist() == [0.0, 0.0]
    half = mixing([StandardUniform(1), DiagonalNormal(1, loc=2.0)], torch.tensor([0.25, 0.75]))
    expected = math.log(0.75) - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(half.log_prob(torch.tensor([2.0])), torch.tensor(expected))


def parts_are_drawn_by_their_weights(mixing: Mixing) -> None:
    """Three places far apart, one of weight 0; a row with a generator of its own hears of no neighbour."""
    w = torch.tensor([0.2, 0.0, 0.8])
    mixture = mixing([DiagonalNormal(2, loc=100.0 * k, scale=0.1) for k in range(3)], w)
    k = (mixture.sample((20_000,), generator=rng(0))[:, 0] / 100).round().long().bincount(minlength=3) / 20_000
    assert (k - w).abs().max() < 5 * math.sqrt(0.16 / 20_000), f"the parts are drawn {k.tolist()}"
    assert k[1] == 0
    seeds = list(range(40))
    whole = mixture.sample((40,), generator=RowGenerators(seeds))
    alone = torch.stack([mixture.sample((), generator=RowGenerators([seed])) for seed in seeds])
    assert torch.equal(whole, alone), "a row's draw depends on its neighbours"


def weights_are_the_best(fitting: Fitting) -> None:
    """No weights on a grid do better; on the rows fitted the mixture is no worse than its best part."""
    x = torch.cat([normal(300, (1,), rng(1)), 3 + normal(100, (1,), rng(2))])
    parts = [DiagonalNormal(1), DiagonalNormal(1, loc=3.0), DiagonalNormal(1, loc=1.0, scale=2.0)]
    log_p = torch.stack([part.double().log_prob(x) for part in parts], 1).detach()

    def mean(w: Tensor) -> float:
        return (log_p + w.log()).logsumexp(1).mean().item()

    w = fitting(log_p, tolerance=1e-6)
    assert abs(w.sum().item() - 1) < 1e-12
    assert (w >= 0).all()
    grid = torch.cartesian_prod(*[torch.linspace(0, 1, 41, dtype=torch.float64)] * 2)
    grid = torch.cat([grid, 1 - grid.sum(1, keepdim=True)], 1)
    best = max(mean(v) for v in grid[grid[:, 2] >= 0])
    assert mean(w) >= best - 1e-6, f"{mean(w)} with the weights fitted, {best} on a grid"
    assert mean(w) >= log_p.mean(0).max().item() - 1e-6
    torch.testing.assert_close(fitting(log_p - 1000 * x, tolerance=1e-6), w, rtol=0, atol=1e-3)
