"""Probability-flow likelihood of Gaussian mixtures with their exact score, against the closed form."""

import math
from typing import Any

import torch

from cflows import SDE, VESDE, VPSDE, SubVPSDE, probability_flow_log_prob
from core import ExactDivergence, GaussianMixture

TOLERANCE, ROWS, SEEDS = 1e-6, 256, 3


def mixture(features: int, seed: int) -> GaussianMixture:
    """Three full-covariance components in float64."""
    generator = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(3, features, generator=generator, dtype=torch.float64)
    a = 0.5 * torch.randn(3, features, features, generator=generator, dtype=torch.float64) / math.sqrt(features)
    covariances = a @ a.mT + 0.02 * torch.eye(features, dtype=torch.float64)
    return GaussianMixture(means, covariances, torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64))


def perturbed(data: GaussianMixture, scale: float, std: float) -> GaussianMixture:
    """The mixture of scale·x + std·ε."""
    rotation = data.eigenvectors
    covariances = rotation @ torch.diag_embed(scale**2 * data.eigenvalues + std**2) @ rotation.mT
    return GaussianMixture(scale * data.means, (covariances + covariances.mT) / 2, data.log_weights.exp())


def measure() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Largest error over rows and seeds for each process and dimension."""
    torch.set_num_threads(1)
    processes: dict[str, SDE] = {"VE": VESDE(), "VP": VPSDE(), "sub-VP": SubVPSDE()}
    rows = [
        {"process": name, "dimensions": features, **_errors(sde, features)}
        for features in (2, 16)
        for name, sde in processes.items()
    ]
    settings = {"rtol": TOLERANCE, "atol": TOLERANCE, "method": "dopri5", "rows": ROWS, "seeds": SEEDS, "t_min": 0.0}
    return settings, rows


@torch.no_grad()
def _errors(sde: SDE, features: int) -> dict[str, float]:
    errors, claimed, nfe = [], [], []
    for seed in range(SEEDS):
        data = mixture(features, seed)
        x = data.sample((ROWS,), generator=torch.Generator().manual_seed(100 + seed))
        scale, std = sde.marginal(torch.ones((), dtype=torch.float64))
        estimate = probability_flow_log_prob(
            lambda x, t, data=data: data.perturbed_score(x, *sde.marginal(t)),
            sde,
            x,
            base=perturbed(data, scale.item(), std.item()),
            divergence=ExactDivergence(),
            rtol=TOLERANCE,
            atol=TOLERANCE,
            t_min=0.0,
        )
        errors.append((estimate.log_prob - data.log_prob(x)).abs().max().item())
        claimed.append(estimate.solver_error.max().item())
        nfe.append(estimate.nfe[0].item())
    return {
        "max_error_nats": max(errors),
        "max_reported_solver_error_nats": max(claimed),
        "mean_nfe": sum(nfe) / len(nfe),
    }
