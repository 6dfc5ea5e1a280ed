"""What bounds of norms, series of log-determinants and their standard errors keep, in float64.

Expectations are taken in full: over probes, the √D eᵢ average any quadratic form to its trace; over the number of
terms, its law is summed.
"""

import math
from collections.abc import Callable

import scipy.stats as st
import torch
from torch import Tensor

from core import DensityModel
from core.nets.lipschitz import Jacobian
from discrete import Bijection, Flow

Normalize = Callable[[Tensor], Tensor]  # from any W to one of norm `bound` or less
Estimator = Callable[[Jacobian, Tensor, int], tuple[Tensor, Tensor]]  # of probes and further terms: log-det and w


def bounds_the_norm(normalize: Normalize, *, bound: float, weights: list[Tensor]) -> None:
    """‖W̃‖₂ ≤ bound by SVD, W̃ a multiple of W, and W̃ = W where W needs no change."""
    for weight in weights:
        found = normalize(weight)
        norm, before = (torch.linalg.matrix_norm(w.double(), 2).item() for w in (found, weight))
        expected = min(before, bound)
        assert math.isclose(norm, expected, rel_tol=1e-5), f"a norm of {before:g} became {norm:g}, not {expected:g}"
        torch.testing.assert_close(found.double() * (before / expected), weight.double(), rtol=1e-4, atol=0)


def is_unbiased(estimator: Estimator, A: Tensor, *, q: float, furthest: int = 60) -> None:
    """E log-det = log det(I + A) and E[w vᵀ] = (I + A)⁻ᵀ, its gradient, with N further terms of P(N ≥ j) = q^j."""
    n = len(A)
    v = math.sqrt(n) * torch.eye(n, dtype=A.dtype)[:, None]
    J = Jacobian((A,), ())
    mean, gradient = torch.zeros((), dtype=A.dtype), torch.zeros_like(A)
    for further in range(furthest):
        log_det, w = estimator(J, v, further)
        mean = mean + (1 - q) * q**further * log_det[0]
        gradient = gradient + (1 - q) * q**further * torch.einsum("kri,krj->ij", w, v) / n
    identity = torch.eye(n, dtype=A.dtype)
    torch.testing.assert_close(mean, torch.linalg.slogdet(identity + A).logabsdet, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient, torch.linalg.inv(identity + A).mT, rtol=1e-9, atol=1e-9)


def truncates_within_its_bound(bound: Callable[[int, float, int], float]) -> None:
    """What n terms miss of A = -L I, the worst case, is below the bound, and no less than it times 1 - L."""
    for L in (0.3, 0.9):
        for n in (1, 5, 20):
            D = 4
            missed = abs(D * (math.log1p(-L) + sum(L**k / k for k in range(1, n + 1))))
            assert missed <= bound(n, L, D), f"{n} terms miss {missed:g}, but the bound is {bound(n, L, D):g}"
            assert missed >= (1 - L) * bound(n, L, D) * (1 - 1e-9), f"{bound(n, L, D):g} is no bound of {missed:g}"


def log_det_trains(bijection: Bijection, x: Tensor, *, generator: torch.Generator | None = None) -> None:
    """The log-determinant has a gradient in the input and in every parameter but the last bias, which shifts z."""
    x = x.clone().requires_grad_()
    _, log_det = bijection(x, generator=generator)
    assert log_det.requires_grad, "the log-determinant is detached from the parameters"
    *named, (last, _) = bijection.named_parameters()
    assert last.endswith("bias"), f"the last parameter is {last}"
    gradients = torch.autograd.grad(log_det.sum(), [x, *(p for _, p in named)], allow_unused=True)
    for name, gradient in zip(["x", *(name for name, _ in named)], gradients, strict=True):
        assert gradient is not None, f"no gradient reaches {name}"
        assert gradient.isfinite().all(), f"the gradient of {name} is not finite"
        assert gradient.count_nonzero() > 0, f"the gradient of {name} is zero"


def errors_are_honest(flow: Flow, exact: DensityModel, x: Tensor, *, draws: int, generator: torch.Generator) -> None:
    """Student's 95 % intervals hold the exact log-density of 95 % of the rows, and the mean is off by chance alone."""
    with torch.no_grad():
        estimate = flow.estimate_log_prob(x, generator=generator)
        difference = estimate.log_prob - exact.log_prob(x)
    spread = estimate.std_error
    assert estimate.kind == "estimate", f"a random log-determinant calls itself {estimate.kind}"
    assert spread is not None, "a random log-determinant has no standard error"
    assert (spread > 0).all(), "a standard error is not positive"
    share = (difference.abs() <= st.t.ppf(0.975, draws - 1) * spread).double().mean().item()
    allowance = 4 * math.sqrt(0.05 * 0.95 / len(x))
    assert abs(share - 0.95) <= allowance, f"the intervals hold {share:.3f} of the rows, not 0.95"
    error = spread.square().sum().sqrt().item() / len(x)
    assert abs(difference.mean().item()) <= 4 * error, f"the mean is off by {difference.mean().item() / error:.1f} σ"
