"""What the bandwidth of a kernel density promises, and the sum of its kernels."""

import math
from collections.abc import Callable

import torch
from helpers import normal, rng
from torch import Tensor


def is_the_best_that_leaves_out_a_row(bandwidth: Callable[[Tensor], float]) -> None:
    """By the sum over all other rows, masked and not omitted; near Scott's rule for white rows of a Gaussian."""
    x = normal(500, (3,), rng(0))
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).mT
    h = bandwidth(x)

    def left_out(h: float) -> float:
        kept = ~torch.eye(len(x), dtype=torch.bool)
        log_kernels = -0.5 * torch.cdist(x, x).square() / h**2 - 3 * math.log(h)
        return float(log_kernels.where(kept, -math.inf).logsumexp(1).mean())

    assert left_out(h) > max(left_out(0.97 * h), left_out(1.03 * h))
    assert 0.5 < h / 500 ** (-1 / 7) < 1.5


def sums_kernels_by_their_logarithms(log_sum: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    """Near and far, with one kernel that dwarfs the others, at once and infinitely far; gradients too."""
    squares = torch.tensor(
        [[0.0, 1.0, 4.0], [1e4, 1e4 + 1, 2e4], [0.5, 200.0, 1e30], [3.0, math.inf, 5.0]], dtype=dtype
    )
    squares.requires_grad_()
    found, expected = log_sum(squares), (-0.5 * squares.double()).logsumexp(1).to(dtype)
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(of.sum(), squares)[0] for of in (found, expected))
    torch.testing.assert_close(*gradients)
    far = torch.tensor([[math.inf, math.inf], [1.0, math.nan]], dtype=dtype)
    torch.testing.assert_close(log_sum(far), torch.tensor([-math.inf, math.nan], dtype=dtype), equal_nan=True)
