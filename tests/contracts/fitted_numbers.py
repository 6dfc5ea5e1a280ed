"""What a count of the numbers of a fitted density promises."""

from collections.abc import Callable

import torch
from helpers import normal, rng

from core import GaussianMixture


def are_those_that_are_free(count: Callable[[GaussianMixture], int], K: int, D: int) -> None:
    """The rank of the map from means, triangles of covariances and weights to log-densities at many points."""
    free = normal(K * (D + D * (D + 1) // 2 + 1), (), rng(0))
    x = 2 * normal(300, (D,), rng(1))

    def log_prob(free: torch.Tensor) -> torch.Tensor:
        means, triangles, logits = free.split([K * D, K * D * (D + 1) // 2, K])
        row, column = torch.tril_indices(D, D)
        L = torch.zeros(K, D, D, dtype=free.dtype)
        L = L.index_put((torch.arange(K)[:, None], row, column), 0.3 * triangles.reshape(K, -1))
        L = L + 1.5 * torch.eye(D, dtype=free.dtype)
        normals = torch.distributions.MultivariateNormal(means.reshape(K, D), scale_tril=L, validate_args=False)
        return (normals.log_prob(x[:, None]) + logits.log_softmax(0)).logsumexp(1)

    rank = int(torch.linalg.matrix_rank(torch.autograd.functional.jacobian(log_prob, free), rtol=1e-9))
    found = count(GaussianMixture(torch.zeros(K, D), torch.eye(D).expand(K, D, D), torch.ones(K)))
    assert found == rank, f"{found} numbers are counted, but {rank} are free"
