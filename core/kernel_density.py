"""The kernel density estimate: a Gaussian on every row."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from core.bases import LOG_2PI, Base
from core.rng import Rng, rand

CHUNK = 2**21  # distances at a time


class KernelDensity(Base):
    """log p(x) = log (1/N) Σ_n N(x; x_n, L Lᵀ), L the same for all.

    References:
        Silverman, "Density estimation for statistics and data analysis", 1986, eq. 4.1 and 4.2.

    Checked by tests/contracts/densities.py::matches_reference and tests/experiment/building/test_baselines.py.

    Args:
        rows: x_n, `(N, features)`.
        scale_tril: L, lower triangular with a positive diagonal, `(features, features)`: the bandwidth times a factor
            of the covariance.

    Raises:
        ValueError: no row, or a scale that does not fit or has a diagonal that is not positive.

    Note:
        A row costs N distances.

    Example:
        >>> p = KernelDensity(torch.tensor([[-1.0], [1.0]]), torch.eye(1))
        >>> p.log_prob(torch.zeros(1)).item()  # -½ - ½ log 2π
        -1.4189...
    """

    rows: Tensor
    scale_tril: Tensor

    def __init__(self, rows: Float[Tensor, "N features"], scale_tril: Float[Tensor, "features features"]) -> None:
        if rows.ndim != 2 or not len(rows) or scale_tril.shape != (rows.shape[1], rows.shape[1]):
            raise ValueError(
                f"KernelDensity needs rows (N, features) and scale_tril (features, features), but their shapes are "
                f"{tuple(rows.shape)} and {tuple(scale_tril.shape)}."
            )
        if not bool((scale_tril.diagonal() > 0).all()) or bool(scale_tril.triu(1).any()):
            least, above = scale_tril.diagonal().min().item(), scale_tril.triu(1).abs().max().item()
            raise ValueError(
                "KernelDensity needs a lower triangular scale_tril with a positive diagonal, but its smallest diagonal "
                f"entry is {least:g} and its largest above the diagonal {above:g}."
            )
        super().__init__(rows.shape[1])
        self.register_buffer("rows", rows.clone())
        self.register_buffer("scale_tril", scale_tril.clone())

    def _log_prob(self, x: Tensor) -> Tensor:
        z, centres = self._whiten(x), self._whiten(self.rows)
        step = max(1, CHUNK // len(centres))
        log_kernels = [log_mean_kernel(part, centres) for part in z.split(step)]
        return torch.cat([z.new_zeros(0), *log_kernels]) - self.scale_tril.diagonal().log().sum()

    def _whiten(self, x: Tensor) -> Tensor:
        """L⁻¹(x - x_1): differences of rows are as exact far from the origin as near it."""
        return torch.linalg.solve_triangular(self.scale_tril, (x - self.rows[0]).mT, upper=False).mT

    def _rsample(self, shape: tuple[int, ...], generator: Rng) -> Tensor:
        u = rand((*(shape or (1,)), 1), generator, like=self.anchor).reshape(shape)
        n = (u * len(self.rows)).long().clamp(max=len(self.rows) - 1)
        return self.rows[n] + self._randn(shape, generator) @ self.scale_tril.mT


def log_mean_kernel(z: Float[Tensor, "rows features"], centres: Float[Tensor, "N features"]) -> Float[Tensor, " rows"]:
    """log (1/N) Σ_n N(z; c_n, I)."""
    squares = torch.cdist(z, centres, compute_mode="donot_use_mm_for_euclid_dist").square()
    return log_sum_kernels(squares) - math.log(len(centres)) - 0.5 * z.shape[1] * LOG_2PI


def log_sum_kernels(squares: Float[Tensor, "rows N"]) -> Float[Tensor, " rows"]:
    """log Σ_n exp(-½ d²_n), from squared distances.

    No term is taken as less than e^-80 of the largest, which no sum notices: an exponential that underflows takes ten
    times as long on a CPU.

    Checked by tests/experiment/building/test_baselines.py.
    """
    least = squares.detach().amin(1, keepdim=True)
    finite = torch.where(least.isfinite(), least, 0.0)
    return (-0.5 * (squares - finite)).clamp(min=-80.0).exp().sum(1).log() - 0.5 * least[:, 0]
