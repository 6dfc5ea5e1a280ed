"""How far two samples are apart: sliced Wasserstein distance, maximum mean discrepancy, Fréchet distance."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from experiment.comparison.two_sample import bandwidth, distances, gaussian_kernel, pool


def sliced_wasserstein(
    x: Float[Tensor, "n ..."],
    y: Float[Tensor, "m ..."],
    *,
    directions: int = 128,
    generator: torch.Generator | None = None,
) -> float:
    """SW₂ = (E_v W₂²(vᵀx, vᵀy))^½ over unit vectors v, with W₂² = ∫ (F⁻¹(u) - G⁻¹(u))² du of the quantiles on a line.

    The directions are the axes of random frames, D at a time orthogonal to one another: with a multiple of D of them
    two samples that differ by a shift m are at ‖m‖/√D exactly, without Monte Carlo error.

    References:
        Bonneel et al., "Sliced and Radon Wasserstein barycenters of measures", 2015, section 2; frames: Rowland et al.,
        "Orthogonal estimation of Wasserstein distances", 2019.

    Checked by tests/experiment/comparison/test_distances.py.

    Args:
        x: first sample, `(n, *event)`.
        y: second sample, `(m, *event)`.
        directions: number of unit vectors.
        generator: draws the frames.

    Returns:
        SW₂ in the unit of the data. It is biased: of two samples of one law it is above 0, by what n and m allow.

    Raises:
        ValueError: no directions, fewer than two rows in a sample, rows of different shapes, or one that is not finite.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        >>> round(sliced_wasserstein(x, x + torch.tensor([3.0, 4.0]), directions=2), 6)  # 5/√2
        3.535534
    """
    if directions < 1:
        raise ValueError(f"sliced_wasserstein needs 1 direction or more, but has {directions}.")
    pooled = pool(x, y, owner="sliced_wasserstein")
    lines = pooled @ _frames(pooled.shape[1], directions, generator).to(pooled)
    a, b = lines[: len(x)].sort(0).values, lines[len(x) :].sort(0).values
    return math.sqrt(_squared_gaps(a, b).mean().item())


def squared_mmd(x: Float[Tensor, "n ..."], y: Float[Tensor, "m ..."], *, h: float | None = None) -> float:
    """MMD² = E k(x, x') + E k(y, y') - 2 E k(x, y), k = exp(-‖x - y‖²/(2 h²)), without bias.

    A row is never paired with itself, so that it is 0 on average where the laws agree, and may then be negative.

    References:
        Gretton et al., "A kernel two-sample test", 2012, eq. 3. The statistic `mmd` of `two_sample_test` is the biased
        one, eq. 5, which has those pairs.

    Checked by tests/experiment/comparison/test_distances.py.

    Args:
        x: first sample, `(n, *event)`.
        y: second sample, `(m, *event)`.
        h: bandwidth in the unit of the data; where omitted the median distance of the pooled rows, which two samples
            that are to be compared with a third do not share.

    Raises:
        ValueError: h not positive, fewer than two rows in a sample, rows of different shapes, or one not finite.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]])
        >>> round(squared_mmd(x, y, h=1.0), 6)  # e^{-1/2} - 1
        -0.393469
    """
    if h is not None and not h > 0:
        raise ValueError(f"squared_mmd needs a positive bandwidth, but h={h}.")
    pooled = pool(x, y, owner="squared_mmd")
    apart = distances(pooled, pooled)
    kernel = gaussian_kernel(apart, bandwidth(apart) if h is None else h).fill_diagonal_(0.0)
    n, m = len(x), len(y)
    within = kernel[:n, :n].sum() / (n * (n - 1)) + kernel[n:, n:].sum() / (m * (m - 1))
    return (within - 2 * kernel[:n, n:].mean()).item()


def frechet_distance(x: Float[Tensor, "n ..."], y: Float[Tensor, "m ..."]) -> float:
    """‖m₁ - m₂‖² + tr(C₁ + C₂ - 2 (C₁ C₂)^½) of sample means and covariances: W₂² of the Gaussians that have them.

    With the centred rows over √(n - 1) as Q R, C = RᵀR, and tr (C₁ C₂)^½ is the sum of the singular values of R₁ R₂ᵀ.
    No matrix is inverted and no root taken of one, so that fewer rows than features, whose covariance is singular, are
    as good as any, and two equal samples are at 0 within rounding.

    References:
        Dowson and Landau, "The Fréchet distance between multivariate normal distributions", 1982, eq. 4; of a
        network's features, Heusel et al., "GANs trained by a two time-scale update rule", 2017, section 4.

    Checked by tests/experiment/comparison/test_distances.py.

    Args:
        x: features of the first sample, `(n, *event)`.
        y: features of the second sample, `(m, *event)`.

    Returns:
        The squared distance, as is customary, in squared units of the features. It is biased: two samples of one law
        are apart by a multiple of 1/n + 1/m. Compare samples of one size alone.

    Raises:
        ValueError: fewer than two rows in a sample, rows of different shapes, or one that is not finite.

    Example:
        >>> x = torch.tensor([[0.0], [2.0]])
        >>> round(frechet_distance(x, 3 * x + 1), 6)  # 3² + (3 - 1)² · 2
        17.0
    """
    pooled = pool(x, y, owner="frechet_distance")
    (m_1, R_1), (m_2, R_2) = _moments(pooled[: len(x)]), _moments(pooled[len(x) :])
    # ‖R‖² is the trace of the covariance.
    spread = R_1.square().sum() + R_2.square().sum() - 2 * torch.linalg.svdvals(R_1 @ R_2.mT).sum()
    return ((m_1 - m_2).square().sum() + spread.clamp(min=0)).item()


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and R with the covariance RᵀR."""
    mean = x.mean(0)
    return mean, torch.linalg.qr((x - mean) / math.sqrt(len(x) - 1), mode="r").R


def _frames(D: int, directions: int, generator: torch.Generator | None) -> Tensor:
    """Unit vectors as columns, `(D, directions)`: of the Haar law up to their signs, which a distance does not see."""
    count, axes = math.ceil(directions / D), min(D, directions)  # the first axes of a frame need no others
    frames, _ = torch.linalg.qr(torch.randn(count, D, D, generator=generator, dtype=torch.float64)[..., :axes])
    return frames.mT.reshape(count * axes, D)[:directions].T


def _squared_gaps(a: Tensor, b: Tensor) -> Tensor:
    """W₂² of sorted columns, `(directions,)`: their quantile functions are steps of 1/n and 1/m."""
    n, m = len(a), len(b)
    if n == m:
        return (a - b).square().mean(0)
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()  # in units of 1/(nm)
    widths = ends.diff(prepend=ends.new_zeros(1)).to(a) / (n * m)
    return widths @ (a[(ends - 1) // m] - b[(ends - 1) // n]).square()
