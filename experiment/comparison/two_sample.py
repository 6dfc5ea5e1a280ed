"""Do two samples come from one law? Energy distance and maximum mean discrepancy with a permutation test.

Both are quadratic forms aᵀ M a of the labels a = 1/n for the first sample, -1/m for the second, in a matrix over the
pooled rows that no permutation changes: M = -‖xᵢ - xⱼ‖ for the energy distance, a kernel for the discrepancy.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Statistic = Literal["energy_distance", "mmd"]


@dataclass(frozen=True)
class TwoSampleTest:
    """What a permutation test found.

    Attributes:
        statistic: 2 E‖x - y‖ - E‖x - x'‖ - E‖y - y'‖ in the unit of the data, or the squared discrepancy.
        p_value: share of permuted labels, the given ones among them, whose statistic is as large or larger.
        null_mean: mean of the statistic under permutation: what noise alone brings.
    """

    statistic: float
    p_value: float
    null_mean: float


def two_sample_test(
    x: Float[Tensor, "n ..."],
    y: Float[Tensor, "m ..."],
    *,
    statistic: Statistic = "energy_distance",
    permutations: int = 999,
    generator: torch.Generator | None = None,
) -> TwoSampleTest:
    """Tests whether two samples of independent rows come from one law; the level is exact at any size.

    The kernel of `mmd` is Gaussian, exp(-‖x - y‖²/(2 h²)) with h the median distance of the pooled rows.

    References:
        Székely and Rizzo, "Testing for equal distributions in high dimension", 2004, eq. 6.
        Gretton et al., "A kernel two-sample test", 2012, eq. 5.

    Checked by tests/experiment/comparison/test_two_sample.py.

    Args:
        x: first sample, `(n, *event)`.
        y: second sample, `(m, *event)`.
        statistic: `energy_distance` or `mmd`.
        permutations: of the labels; the smallest p-value is 1/(permutations + 1).
        generator: draws the permutations.

    Raises:
        ValueError: fewer than two rows in a sample, a row that is not finite, or an unknown statistic.
    """
    matrix = _matrix(pool(x, y, owner="a two-sample test"), statistic)
    a = torch.cat([matrix.new_full((len(x),), 1 / len(x)), matrix.new_full((len(y),), -1 / len(y))])
    orders = [torch.randperm(len(a), generator=generator, device=a.device) for _ in range(permutations)]
    labels = torch.stack([a, *(a[order] for order in orders)])
    values = ((labels @ matrix) * labels).sum(1)
    observed, null = values[0], values[1:]
    rounding = 1e-12 * matrix.abs().max()  # of sums that would be equal
    as_large = (null >= observed - rounding).sum().item()
    return TwoSampleTest(observed.item(), (1 + as_large) / (1 + permutations), null.mean().item())


def pool(x: Tensor, y: Tensor, *, owner: str) -> Float[Tensor, "rows features"]:
    """The rows of both samples, flat, float64.

    Raises:
        ValueError: fewer than two rows in a sample, rows of different shapes, or a row that is not finite.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError(f"{owner} needs 2 rows or more in each sample, but they have {len(x)} and {len(y)}.")
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"{owner} needs rows of one shape, but they have {tuple(x.shape[1:])} and {tuple(y.shape[1:])}."
        )
    pooled = torch.cat([x.flatten(1).double(), y.flatten(1).double()])
    bad = (~pooled.isfinite().all(1)).nonzero()
    if len(bad):
        raise ValueError(f"{owner} needs finite rows, but row {bad[0].item()} of the pooled samples is not.")
    return pooled


def distances(x: Float[Tensor, "n features"], y: Float[Tensor, "m features"]) -> Float[Tensor, "n m"]:
    """‖xᵢ - yⱼ‖, with all digits where two rows are close."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def bandwidth(apart: Tensor) -> float:
    """h: the median of the distances that are not 0; 1 where there is none, as rows all the same are at no distance."""
    apart = apart[apart > 0]
    return apart.median().item() if len(apart) else 1.0


def gaussian_kernel(apart: Tensor, h: float) -> Tensor:
    """exp(-d²/(2 h²)) of distances d."""
    return torch.exp(-0.5 * (apart / h).square())


def _matrix(pooled: Tensor, statistic: Statistic) -> Tensor:
    apart = distances(pooled, pooled)
    if statistic == "energy_distance":
        return -apart
    if statistic == "mmd":
        return gaussian_kernel(apart, bandwidth(apart))
    raise ValueError(f"statistic must be energy_distance or mmd, but is {statistic!r}.")
