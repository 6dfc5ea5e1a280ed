"""Densities of classical statistics fitted to preprocessed training rows: maximum likelihood without a gradient."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from core import DensityModel, GaussianMixture
from core.kernel_density import KernelDensity, log_sum_kernels
from core.shapes import vector_size
from experiment.data.dataset import rows_at_once
from experiment.data.order import drawn_order
from experiment.sections.baselines import BaselineModel, GaussianMixtureModel, GaussianModel, KernelDensityModel

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture as SklearnMixture

RIDGE = 1e-9  # added to a covariance, in units of the variances of the features
LEFT_OUT = 1000  # rows whose leave-one-out likelihood chooses the bandwidth
BANDWIDTHS = (1e-3, 3.0)
BASELINES = {"gaussian", "gaussian_mixture", "kernel_density"}
FITTED = (GaussianMixture, KernelDensity)
Prepare = Callable[[Tensor], Tensor]


def build_baseline(
    section: BaselineModel, event_shape: tuple[int, ...], rows: Tensor | None, *, prepare: Prepare = torch.clone
) -> DensityModel:
    """The density fitted to rows; without them one of its shape that waits for a state dict.

    Mean and covariance are summed in float64 over some rows at a time, first the one and then, around it, the other.

    Checked by tests/experiment/building/test_baselines.py.

    Args:
        section: the `[model]` section.
        event_shape: shape of one row, a vector.
        rows: training rows `(rows, features)`, which may be more than memory holds.
        prepare: what makes them preprocessed ones, some at a time, each row for itself.

    Raises:
        ValueError: images, or fewer rows than the model needs.
    """
    D = vector_size(event_shape, owner=f"{section.kind} (data.layout='flat')")
    if rows is None:
        return _unfitted(section, D)
    needed = section.components if isinstance(section, GaussianMixtureModel) else 2
    if len(rows) < needed:
        raise ValueError(f"it needs {needed} training rows or more, but there are {len(rows)}.")
    mean, covariance = _moments(rows, prepare)
    std = (covariance.diagonal() * len(rows) / (len(rows) - 1)).sqrt().clamp(min=torch.finfo(torch.float32).tiny)

    def some(most: int) -> Tensor:
        chosen = drawn_order(len(rows), 0)[:most]
        return (prepare(rows[chosen]).double().cpu() - mean) / std

    match section:
        case GaussianModel():
            shape = covariance / (std[:, None] * std) + RIDGE * torch.eye(D, dtype=std.dtype)
            means, covariances, weights = std.new_zeros(1, D), shape[None], std.new_ones(1)
        case GaussianMixtureModel():
            means, covariances, weights = _mixture(section, some(section.most_rows))
        case KernelDensityModel():
            return _kernel_density(section, some(section.most_rows), mean, std)
    scaled = covariances * (std[:, None] * std)
    return GaussianMixture(mean + std * means, scaled, weights).to(rows.dtype)


def _moments(rows: Tensor, prepare: Prepare) -> tuple[Tensor, Tensor]:
    """Mean and covariance (1/n) of prepared rows."""

    def parts() -> Iterator[Tensor]:
        return (prepare(part).double().cpu() for part in rows.split(rows_at_once(rows)))

    D = rows.shape[1]
    mean, covariance = torch.zeros(D, dtype=torch.float64), torch.zeros(D, D, dtype=torch.float64)
    for x in parts():
        mean += x.sum(0) / len(rows)
    for x in parts():
        covariance += (x - mean).mT @ (x - mean) / len(rows)
    return mean, covariance


def fitted_count(model: GaussianMixture | KernelDensity) -> int:
    """Free numbers of K Gaussians, K (D + D(D + 1)/2 + 1) - 1, or of a kernel density on N rows, N D + D(D + 1)/2.

    Example:
        >>> fitted_count(GaussianMixture(torch.zeros(1, 3), torch.eye(3)[None], torch.ones(1)))
        9
    """
    D = model.event_shape.numel()
    shape = D * (D + 1) // 2
    if isinstance(model, KernelDensity):
        return model.rows.numel() + shape
    return len(model.means) * (D + shape + 1) - 1


def _unfitted(section: BaselineModel, D: int) -> DensityModel:
    """One component or kernel; as many as there are come with a state dict."""
    model: DensityModel
    if isinstance(section, KernelDensityModel):
        model = KernelDensity(torch.zeros(1, D), torch.eye(D))
    else:
        model = GaussianMixture(torch.zeros(1, D), torch.eye(D)[None], torch.ones(1))
    model.register_load_state_dict_pre_hook(_make_room)
    return model


def _make_room(module: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Buffers as long as those of the state, which were fitted to more rows."""
    for name, buffer in list(module.named_buffers(recurse=False)):
        found = state.get(prefix + name)
        if isinstance(found, Tensor) and found.shape[1:] == buffer.shape[1:]:
            setattr(module, name, buffer.new_empty(found.shape))


def _covariance(x: Tensor) -> Tensor:
    """Of centred rows, by maximum likelihood."""
    return x.mT @ x / len(x) + RIDGE * torch.eye(x.shape[1], dtype=x.dtype)


def _mixture(section: GaussianMixtureModel, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means, covariances and weights of as many components, doubled from one on, as make held-out rows likelier."""
    held_out = max(1, len(x) // 10)
    K, best = 1, -math.inf
    while min(section.components, len(x) - held_out) >= K:
        score = _expectation_maximization(section, x[held_out:], K).score(x[:held_out].numpy())
        if score <= best:
            break
        best, K = score, 2 * K
    em = _expectation_maximization(section, x, max(1, K // 2))
    means, covariances, weights = (torch.from_numpy(v) for v in (em.means_, em.covariances_, em.weights_))
    return means, (covariances + covariances.mT) / 2, weights.clamp(min=torch.finfo(torch.float32).tiny)


def _expectation_maximization(section: GaussianMixtureModel, x: Tensor, components: int) -> "SklearnMixture":
    """Each step raises the likelihood, so that an end before convergence is one too."""
    from sklearn.exceptions import ConvergenceWarning  # as long to import as torch
    from sklearn.mixture import GaussianMixture as SklearnMixture

    em = SklearnMixture(components, max_iter=section.iterations, reg_covar=1e-6, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return em.fit(x.numpy())


def _kernel_density(section: KernelDensityModel, x: Tensor, mean: Tensor, std: Tensor) -> KernelDensity:
    """Kernels h² C on the rows, C their covariance."""
    L = torch.linalg.cholesky(_covariance(x - x.mean(0)))
    h = (
        bandwidth(torch.linalg.solve_triangular(L, x.mT, upper=False).mT)
        if section.bandwidth is None
        else section.bandwidth
    )
    return KernelDensity((mean + std * x).float(), (h * std[:, None] * L).float())


def bandwidth(x: Tensor) -> float:
    """h that maximizes Σ_i log (1/(N - 1)) Σ_{n≠i} N(x_i; x_n, h² I) over some rows i of white x `(N, features)`.

    References:
        Silverman, "Density estimation for statistics and data analysis", 1986, section 3.4.4.
    """
    from scipy.optimize import minimize_scalar  # half as long to import as torch

    N, D = x.shape
    some = x[: min(N, LEFT_OUT)]
    squares = torch.cdist(some, x).square()
    squares[torch.arange(len(some)), torch.arange(len(some))] = math.inf

    def negative_log_likelihood(log_h: float) -> float:
        return D * log_h - float(log_sum_kernels(squares / math.exp(2 * log_h)).mean())

    found = minimize_scalar(negative_log_likelihood, bounds=tuple(map(math.log, BANDWIDTHS)), method="bounded")
    return math.exp(found.x)
