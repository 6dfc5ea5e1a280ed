"""What the bandwidth of a kernel density promises."""

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
