"""What flows along an ODE and their objectives keep where fields and velocities are known in closed form."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import scipy.stats as st
import torch
from torch import Tensor, nn

from cflows import ODESolver, ode_log_prob
from cflows.objectives.cnf import PenalisedField
from core import ExactDivergence, StandardNormal
from core.shapes import align

Velocity = Callable[..., Tensor]
# (velocity, sigma_min) -> a loss module
Matching = Callable[[Velocity, float], nn.Module]
# (velocity, directions, weight, kinetic, jacobian) -> v with three rates
FieldType = Callable[[Velocity, Tensor, float, float, float], PenalisedField]

A = torch.tensor([[0.4, -0.9, 0.2], [0.3, -0.2, 0.7], [-0.5, 0.1, 0.6]], dtype=torch.float64)  # trace 0.8
B = torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64)
FINE = ODESolver(method="rk4", steps=30)


def affine_field(x: Tensor, t: Tensor) -> Tensor:
    """dx/dt = A x + b t: of a trace, no symmetry, and other when time runs backwards."""
    return x @ A.T + B * align(t, x)


def affine_flow(x: Tensor, t: float) -> Tensor:
    """x(t) = e^{At} x + A⁻²(e^{At} - I - At) b."""
    grown, eye = torch.matrix_exp(A * t), torch.eye(3, dtype=torch.float64)
    return x @ grown.T + torch.linalg.solve(A @ A, (grown - eye - A * t) @ B)


def affine_log_prob(x: Tensor) -> Tensor:
    """log N(x(1); 0, I) + tr A."""
    return StandardNormal(3).double().log_prob(affine_flow(x, 1.0)) + A.trace()


def affine_kinetic(x: Tensor) -> Tensor:
    """∫ ‖A x(t) + b t‖² dt by Gauss's rule on the closed form."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    times = [0.5 * (node + 1) for node in nodes]
    energy = [affine_field(affine_flow(x, t), torch.tensor(t)).square().sum(1) for t in times]
    return sum(0.5 * w * e for w, e in zip(weights, energy, strict=True))


def affine_jacobian() -> Tensor:
    """‖A‖_F², the same everywhere."""
    return A.square().sum()


def penalised_integrals(field: FieldType) -> None:
    """With all unit vectors the integrals are tr A, λ_K ∫ ‖v‖² and λ_J ‖A‖_F², and the end is x(1)."""
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    units = torch.eye(3, dtype=torch.float64)[:, None].expand(3, 5, 3)
    solution = FINE.solve(field(affine_field, units, 1.0, 0.7, 0.3), x, FINE.grid(0.0, 1.0), columns=3)
    expected = [A.trace().expand(5), 0.7 * affine_kinetic(x), 0.3 * affine_jacobian().expand(5)]
    torch.testing.assert_close(solution.x, affine_flow(x, 1.0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(solution.integrals, torch.stack(expected, 1), rtol=1e-6, atol=1e-6)


def penalised_estimates_are_unbiased(field: FieldType) -> None:
    """Averaged over probes of many rows, trace and ‖A‖_F² are met within five standard errors."""
    rows, generator = 10_000, torch.Generator().manual_seed(1)
    x = torch.zeros(rows, 3, dtype=torch.float64)
    probes = torch.randn(2, rows, 3, generator=generator, dtype=torch.float64)
    _, rates = field(affine_field, probes, 0.5, 1.0, 1.0)(x, torch.tensor(0.0, dtype=torch.float64))
    for column, expected in ((0, A.trace()), (2, affine_jacobian())):
        found, error = rates[:, column].mean(), rates[:, column].std() / rows**0.5
        assert (found - expected).abs() < 5 * error, f"column {column} averages to {found:.4f}, not {expected:.4f}"


def log_prob_is_that_of_the_affine_field(log_prob: Callable[[Velocity, Tensor], Tensor]) -> None:
    """log p of `affine_field` towards N(0, I)."""
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(log_prob(affine_field, x).detach(), affine_log_prob(x), rtol=0, atol=1e-6)


def encode_follows_the_affine_field(
    encode: Callable[[Velocity, Tensor], Tensor], decode: Callable[[Velocity, Tensor], Tensor]
) -> None:
    """encode is x(1) in closed form, and decode its inverse."""
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    z = affine_flow(x, 1.0)
    torch.testing.assert_close(encode(affine_field, x), z, rtol=0, atol=1e-6)
    torch.testing.assert_close(decode(affine_field, z), x, rtol=0, atol=1e-6)


@dataclass(frozen=True)
class Data:
    """Data Σ w_k N(μ_k, c_k I), whose velocity on straight ways to N(0, I) is known.

    With a = 1 - t, b = σ + (1 - σ) t and V_k = a² c_k + b², x_t | k ~ N(a μ_k, V_k I), and (1 - σ) x_1 - x_0 has the
    mean -μ_k + ((1 - σ) b - a c_k)/V_k (x_t - a μ_k) and the variance c_k/V_k a dimension given x_t and k.
    """

    means: Tensor
    variances: Tensor
    weights: Tensor

    def draw(self, rows: int, generator: torch.Generator) -> Tensor:
        k = torch.multinomial(self.weights, rows, replacement=True, generator=generator)
        noise = torch.randn(rows, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[k] + self.variances[k, None].sqrt() * noise

    def log_prob(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """Of x_0 + σ x_1."""
        std = (self.variances + sigma**2).sqrt()
        scaled = (x[:, None] - self.means) / std[:, None]
        normal = StandardNormal(x.shape[1]).double().log_prob(scaled) - x.shape[1] * std.log()
        return torch.logsumexp(self.weights.log() + normal, 1)

    def velocity(self, sigma: float = 0.0) -> Velocity:
        """E[(1 - σ) x_1 - x_0 | x_t]."""

        def v(x: Tensor, t: Tensor) -> Tensor:
            a, b = align(1 - t, x[:, None]), align(sigma + (1 - sigma) * t, x[:, None])
            V = a.square() * self.variances[:, None] + b.square()
            centred = x[:, None] - a * self.means
            size = x.shape[1]
            r = torch.softmax(
                self.weights.log() - 0.5 * (centred.square() / V).sum(2) - 0.5 * size * V[..., 0].log(), 1
            )
            each = ((1 - sigma) * b - a * self.variances[:, None]) / V * centred - self.means
            return (r[..., None] * each).sum(1)

        return v


GAUSSIAN = Data(
    torch.tensor([[0.7, -0.4]], dtype=torch.float64),
    torch.tensor([0.25], dtype=torch.float64),
    torch.ones(1, dtype=torch.float64),
)
MIXTURE = Data(
    torch.tensor([[1.5, 0.0], [-1.0, 1.0]], dtype=torch.float64),
    torch.tensor([0.09, 0.25], dtype=torch.float64),
    torch.tensor([0.3, 0.7], dtype=torch.float64),
)
LINE = Data(  # in one dimension
    torch.tensor([[1.5], [-1.0]], dtype=torch.float64),
    torch.tensor([0.09, 0.25], dtype=torch.float64),
    torch.tensor([0.3, 0.7], dtype=torch.float64),
)


def velocity_carries_the_data(velocity: Velocity, data: Data, sigma: float) -> None:
    """Along it N(0, I) at t = 1 is the law of x_0 + σ x_1 at t = 0."""
    x = data.draw(8, torch.Generator().manual_seed(4))
    base = StandardNormal(x.shape[1]).double()
    found = ode_log_prob(velocity, base, x, method="rk4", steps=50, divergence=ExactDivergence(), error_factor=None)
    torch.testing.assert_close(found.log_prob, data.log_prob(x, sigma), rtol=0, atol=1e-4)


def minimal_loss(data: Data, sigma: float) -> float:
    """∫₀¹ c/V dt of one Gaussian; s π/2 for σ = 0, s = √c."""
    (c,) = data.variances.tolist()
    nodes, weights = np.polynomial.legendre.leggauss(60)
    t = 0.5 * (nodes + 1)
    return float((0.5 * weights * c / ((1 - t) ** 2 * c + (sigma + (1 - sigma) * t) ** 2)).sum())


def loss_at_the_exact_velocity(objective: Matching, *, sigma: float) -> None:
    """On Gaussian data it is ∫ c/V dt a dimension, within five standard errors."""
    batches = []
    loss, generator = objective(GAUSSIAN.velocity(sigma), sigma), torch.Generator().manual_seed(5)
    for _ in range(20):
        batches.append(loss(GAUSSIAN.draw(2000, generator), generator=generator))
    found, error = torch.stack(batches).mean().item(), torch.stack(batches).std().item() / 20**0.5
    expected = minimal_loss(GAUSSIAN, sigma)
    assert abs(found - expected) < 5 * error + 1e-12, f"the loss is {found:.5f} ± {error:.5f}, not {expected:.5f}"


# Ways in which a velocity can be off: they see location, scale, time and the modes.
DIRECTIONS: tuple[Velocity, ...] = (
    lambda x, t: torch.ones_like(x),
    lambda x, t: x,
    lambda x, t: x * align(t, x),
    lambda x, t: x.sin() * align(1 - t, x),
)


def minimiser_is_the_velocity(objective: Matching, data: Data, *, sigma: float) -> None:
    """The loss of v + k d is a parabola in k with its minimum at 0 for every direction d, within five errors."""
    exact = data.velocity(sigma)
    for number, direction in enumerate(DIRECTIONS):
        slopes, bends = [], []
        for seed in range(10):
            drawn = data.draw(2000, torch.Generator().manual_seed(seed))

            def loss(k: float, x_0: Tensor = drawn, seed: int = seed, d: Velocity = direction) -> float:
                moved = lambda x, t: exact(x, t) + k * d(x, t)  # noqa: E731
                return objective(moved, sigma)(x_0, generator=torch.Generator().manual_seed(1000 + seed)).item()

            slopes.append((loss(0.5) - loss(-0.5)) / 2)
            bends.append(loss(0.5) - 2 * loss(0.0) + loss(-0.5))
        assert min(bends) > 0, "the loss has no minimum"
        minimum, error = -0.5 * np.mean(slopes) / np.mean(bends), 0.5 * np.std(slopes) / 10**0.5 / np.mean(bends)
        assert abs(minimum) < 5 * error, f"direction {number}: the minimum is at {minimum:.4f} ± {error:.4f}, not 0"


def pairs_of(objective: Matching, x_0: Tensor, generator: torch.Generator) -> Tensor:
    """x_1 of each row, from what the velocity is asked at."""
    seen = []

    def spy(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x, t))
        return torch.zeros_like(x)

    objective(spy, 0.0)(x_0, generator=generator)
    ((x_t, t),) = seen
    t = align(t, x_0)
    return (x_t - (1 - t) * x_0) / t


def pairing_is_the_cheapest(objective: Matching) -> None:
    """Of all 120 pairings of five rows, the one with the smallest Σ ‖x_0 - x_1‖²."""
    generator = torch.Generator().manual_seed(6)
    for _ in range(20):
        x_0 = torch.randn(5, 2, generator=generator, dtype=torch.float64)
        x_1 = pairs_of(objective, x_0, generator)
        costs = [(x_0 - x_1[list(order)]).square().sum().item() for order in permutations(range(5))]
        found = (x_0 - x_1).square().sum().item()
        assert found <= min(costs) + 1e-9, f"the pairing costs {found:.4f}, the best {min(costs):.4f}"


def pairing_keeps_the_noise(objective: Matching) -> None:
    """Over many batches x_1 is N(0, I), whatever it is paired with."""
    generator = torch.Generator().manual_seed(7)
    x_1 = torch.cat([pairs_of(objective, MIXTURE.draw(16, generator), generator) for _ in range(200)])
    for column in x_1.T:
        assert st.kstest(column.numpy(), "norm").pvalue > 1e-4, "the noise is not N(0, 1)"
    assert abs(np.corrcoef(x_1.T.numpy())[0, 1]) < 5 / math.sqrt(len(x_1)), "columns of the noise depend on one another"


def pairs_are_those_of_the_flow(pairs: tuple[Tensor, Tensor], data: Data) -> None:
    """In one dimension a flow keeps the order: x_0 has the rank in the data that x_1 has in N(0, 1)."""
    x_0, x_1 = pairs
    cdf = sum(
        w * st.norm(m, c**0.5).cdf(x_0[:, 0].numpy())
        for w, m, c in zip(data.weights.tolist(), data.means[:, 0].tolist(), data.variances.tolist(), strict=True)
    )
    np.testing.assert_allclose(cdf, st.norm.cdf(x_1[:, 0].numpy()), rtol=0, atol=1e-5)


def gaussian_data_are_no_work(velocity: Callable[[Velocity, float, float], Velocity]) -> None:
    """F = 0 is the velocity of N(0, v I), and F of what it then regresses on has unit variance, at every t.

    `velocity(F, data_std, sigma_min)` is v(x, t).
    """
    generator = torch.Generator().manual_seed(8)
    for std, sigma in ((0.5, 0.0), (2.0, 0.1)):
        data = Data(
            torch.zeros(1, 1, dtype=torch.float64),
            torch.tensor([std**2], dtype=torch.float64),
            torch.ones(1, dtype=torch.float64),
        )
        none, one = (velocity(lambda x, *_, k=k: torch.full_like(x, k), std, sigma) for k in (0.0, 1.0))
        for time in (0.0, 0.3, 1.0):
            t = torch.tensor(time, dtype=torch.float64)
            x_0, x_1 = data.draw(20_000, generator), torch.randn(20_000, 1, generator=generator, dtype=torch.float64)
            x = (1 - t) * x_0 + (sigma + (1 - sigma) * t) * x_1
            torch.testing.assert_close(none(x, t), data.velocity(sigma)(x, t), rtol=1e-9, atol=1e-9)
            asked = ((1 - sigma) * x_1 - x_0 - none(x, t)) / (one(x, t) - none(x, t))
            assert abs(asked.std().item() - 1) < 0.03, f"at t={time} F is asked for a deviation of {asked.std():.3f}"
        seen: list[Tensor] = []
        spy = velocity(lambda x, *_, seen=seen: (seen.append(x), torch.zeros_like(x))[1], std, sigma)
        for time in (0.0, 0.3, 1.0):
            t = torch.tensor(time, dtype=torch.float64)
            x_1 = torch.randn(20_000, 1, generator=generator, dtype=torch.float64)
            spy((1 - t) * data.draw(20_000, generator) + (sigma + (1 - sigma) * t) * x_1, t)
            assert abs(seen[-1].std().item() - 1) < 0.03, f"at t={time} F is shown a deviation of {seen[-1].std():.3f}"
