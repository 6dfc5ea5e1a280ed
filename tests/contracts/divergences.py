"""What every divergence estimator keeps, in float64, on fields whose Jacobian is full, asymmetric and not traceless."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from core.divergence import Divergence

Field = Callable[[Tensor], Tensor]
MATRIX = torch.tensor([[0.7, -1.2, 0.4], [0.3, 1.1, -0.8], [-0.5, 0.9, 0.2]], dtype=torch.float64)  # trace 2

SYMMETRIC = (MATRIX + MATRIX.T) / 2
# Of one probe on the linear field: 2 Σ_{i≠j} Sᵢⱼ² for signs, 2 ‖S‖²_F for normal draws, and
# 2 (D ‖S‖²_F - (tr S)²)/(D + 2) on the sphere of radius √D.
SIGN_VARIANCE = 2 * (SYMMETRIC - torch.diag(SYMMETRIC.diagonal())).square().sum().item()
NORMAL_VARIANCE = 2 * SYMMETRIC.square().sum().item()
SPHERE_VARIANCE = 2 * (3 * SYMMETRIC.square().sum() - SYMMETRIC.trace().square()).item() / 5


def linear(x: Tensor) -> Tensor:
    """A x: the Jacobian is A everywhere."""
    return x @ MATRIX.T


def curved(x: Tensor) -> Tensor:
    """tanh(A x) x²: the Jacobian changes from row to row."""
    return torch.tanh(x @ MATRIX.T) * x.square()


def image_field(x: Tensor) -> Tensor:
    """The curved field on events of shape (1, 3, 1)."""
    return curved(x.flatten(1)).reshape(x.shape)


def trace(field: Field, x: Tensor) -> Tensor:
    """Trace of the Jacobian of each row, by autograd, `(rows,)`."""
    size = x[0].numel()
    rows = [torch.autograd.functional.jacobian(lambda y: field(y[None])[0], row).reshape(size, size) for row in x]
    return torch.stack(rows).diagonal(dim1=1, dim2=2).sum(1)


def signs(count: int, size: int) -> Tensor:
    """All vectors of ±1, `(2^(count size), count, size)`."""
    combinations = list(itertools.product([-1.0, 1.0], repeat=count * size))
    return torch.tensor(combinations, dtype=torch.float64).reshape(-1, count, size)


def points(rows: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, 3, generator=generator, dtype=torch.float64)


def gives_value_and_columns(divergence: Divergence, generator: torch.Generator) -> None:
    """The value is f(x); estimates are `(rows, columns)`; vectors, images, 0 rows; no graph without gradient."""
    for field, event in ((curved, (3,)), (image_field, (1, 3, 1))):
        for rows in (5, 1, 0):
            x = points(rows, generator).reshape(rows, *event)
            before = x.clone()
            probes = divergence.draw(x, generator)
            for enabled in (False, True):
                with torch.set_grad_enabled(enabled):
                    value, estimates = divergence(field, x, probes)
                torch.testing.assert_close(value, field(x), rtol=1e-12, atol=1e-12)
                assert estimates.shape == (rows, divergence.columns), f"estimates are {tuple(estimates.shape)}"
                assert value.dtype == estimates.dtype == x.dtype
                assert enabled or not (value.requires_grad or estimates.requires_grad), "a graph under no_grad"
            assert torch.equal(x, before), "x was changed in place"
            assert not x.requires_grad, "requires_grad was switched on in the caller's tensor"


def equals_the_trace(divergence: Divergence, generator: torch.Generator, *, tolerance: float = 1e-10) -> None:
    """Without randomness: Σ ∂fᵢ/∂xᵢ at every row, for vectors and images."""
    x = points(6, generator)
    for field, y in ((linear, x), (curved, x), (image_field, x.reshape(6, 1, 3, 1))):
        _, estimates = divergence(field, y, divergence.draw(y, generator))
        torch.testing.assert_close(estimates.mean(1).detach(), trace(field, y), rtol=tolerance, atol=tolerance)


def is_unbiased(divergence: Divergence, generator: torch.Generator, *, rows: int = 40_000) -> None:
    """The mean over rows with probes of their own is the trace, within five standard errors, column by column."""
    point = torch.tensor([[0.6, -0.9, 1.3]], dtype=torch.float64)
    x = point.expand(rows, 3)
    for field in (linear, curved):
        expected = trace(field, point).item()
        with torch.no_grad():
            _, estimates = divergence(field, x, divergence.draw(x, generator))
        for column in estimates.unbind(1):
            error = column.std().item() / rows**0.5
            assert abs(column.mean().item() - expected) <= 5 * error + 1e-9, (
                f"the mean is {column.mean().item():.4f} ± {error:.4f}, the trace {expected:.4f}"
            )


def columns_are_independent(divergence: Divergence, generator: torch.Generator, *, rows: int = 20_000) -> None:
    """Rows and columns have probes of their own: neither repeats, and columns are uncorrelated over rows."""
    x = torch.tensor([[0.6, -0.9, 1.3]], dtype=torch.float64).expand(rows, 3)
    with torch.no_grad():
        _, estimates = divergence(linear, x, divergence.draw(x, generator))
    assert (estimates.std(0) > 1e-3).all(), "every row has the same probe"
    if divergence.columns > 1:
        off = torch.corrcoef(estimates.T) - torch.eye(divergence.columns, dtype=estimates.dtype)
        assert off.abs().max() < 5 / rows**0.5, f"columns are correlated: {off.abs().max().item():.3f}"


def variance_is(
    divergence: Divergence, generator: torch.Generator, *, expected: float, rows: int = 40_000, tolerance: float = 0.08
) -> None:
    """One column on the linear field has the variance of theory."""
    x = torch.zeros(rows, 3, dtype=torch.float64)
    with torch.no_grad():
        _, estimates = divergence(linear, x, divergence.draw(x, generator))
    for column in estimates.unbind(1):
        found = column.var().item()
        assert abs(found / expected - 1) < tolerance, f"the variance of a column is {found:.3f}, not {expected:.3f}"


def generator_decides(divergence: Divergence) -> None:
    """Equal generators give equal probes, others do not, and the global generator stays where it is."""
    x = torch.zeros(50, 3, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first, again, other = (divergence.draw(x, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
        assert torch.equal(state, torch.get_rng_state()), "the global generator was moved"
    assert torch.equal(first, again), "equal generators, other probes"
    assert first.numel() == 0 or not torch.equal(first, other), "the generator is ignored"
    assert first.dtype == x.dtype
    assert divergence.draw(x.float(), torch.Generator()).dtype == torch.float32


def rows_are_independent(divergence: Divergence, generator: torch.Generator) -> None:
    """A row's value and estimates, at given probes, are the same alone."""
    x = points(5, generator)
    probes = divergence.draw(x, generator)
    value, estimates = divergence(curved, x, probes)
    for i in range(5):
        alone, estimate = divergence(curved, x[i : i + 1], probes[:, i : i + 1])
        torch.testing.assert_close(alone, value[i : i + 1], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(estimate, estimates[i : i + 1], rtol=1e-9, atol=1e-9)


def is_differentiable(divergence: Divergence, generator: torch.Generator, *, rows: int = 40_000) -> None:
    """The gradient in a parameter is that of the trace, on average over probes, and finite."""
    for field, slope in (
        (lambda x, w: w * linear(x), MATRIX.trace().item()),
        (lambda x, w: w**2 * (x @ torch.ones(3, 3, dtype=x.dtype)), 2 * 1.5 * 3.0),  # of rank one
    ):
        w = torch.full((rows, 1), 1.5, dtype=torch.float64, requires_grad=True)
        x = torch.zeros(rows, 3, dtype=torch.float64)
        _, estimates = divergence(lambda y, f=field, w=w: f(y, w), x, divergence.draw(x, generator))
        (gradient,) = torch.autograd.grad(estimates.mean(1).sum(), w)
        assert gradient.isfinite().all(), "a gradient is not finite"
        error = gradient.std().item() / rows**0.5
        assert abs(gradient.mean().item() - slope) <= 5 * error + 1e-9, f"{gradient.mean().item():.4f} for {slope:.4f}"


def runs_on_meta(divergence: Divergence) -> None:
    """On the device `meta`: no stray CPU tensor."""
    x = torch.zeros(4, 3, device="meta", dtype=torch.float64)
    try:
        value, estimates = divergence(lambda y: y.square() * y.sum(1, keepdim=True), x, divergence.draw(x, None))
    except RuntimeError as error:
        raise AssertionError(f"does not run on another device: {error}") from error
    assert value.device.type == estimates.device.type == "meta"
