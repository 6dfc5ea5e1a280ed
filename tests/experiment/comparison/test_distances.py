"""Distances of samples whose distance is known, and slips in their formulas that these cases reject."""

import math
from collections.abc import Callable

import pytest
import scipy.linalg
import torch
from helpers import Tooth, rng
from torch import Tensor

from experiment.comparison import distances
from experiment.comparison.distances import frechet_distance, sliced_wasserstein, squared_mmd
from experiment.comparison.two_sample import two_sample_test

Distance = Callable[[Tensor, Tensor], float]
D = 4


def draws(rows: int, seed: int, features: int = D) -> Tensor:
    return torch.randn(rows, features, generator=rng(seed), dtype=torch.float64)


def standardized(rows: int, seed: int) -> Tensor:
    """Rows with mean 0 and covariance I to the last digit."""
    z = draws(rows, seed)
    z = z - z.mean(0)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(z.T)), z.T, upper=False).T


def sliced(x: Tensor, y: Tensor) -> float:
    return sliced_wasserstein(x, y, directions=5 * D, generator=rng(0))


def sliced_of_a_shift(distance: Distance) -> None:
    """‖m‖/√D, exactly."""
    x, m = draws(50, 1), draws(1, 2)
    assert distance(x, x + m) == pytest.approx(m.norm().item() / math.sqrt(D), rel=1e-12)


def sliced_of_unequal_counts(distance: Distance) -> None:
    """Rows of weights 1/3 and 1/2 are rows of 1/6, several times."""
    x, y = draws(3, 3), draws(2, 4)
    repeated = distance(x.repeat_interleave(2, 0), y.repeat_interleave(3, 0))
    assert distance(x, y) == pytest.approx(repeated, rel=1e-12)


def mmd_of_gaussians(distance: Distance) -> None:
    """N(0, I) and N(m, I): 2 (h²/(h² + 2))^{D/2} (1 - exp(-‖m‖²/(2 (h² + 2)))), and no bias."""
    m, h, found = torch.full((D,), 0.6, dtype=torch.float64), 1.5, []
    for i in range(200):
        found.append(distance(draws(12, 2 * i), m + draws(15, 2 * i + 1)))
    expected = 2 * (h**2 / (h**2 + 2)) ** (D / 2) * (1 - math.exp(-0.5 * m.square().sum().item() / (h**2 + 2)))
    values = torch.tensor(found)
    assert abs(values.mean() - expected) < 4 * values.std() / len(values) ** 0.5


def frechet_of_gaussians(distance: Distance) -> None:
    """Sample moments as given; the covariances do not commute."""
    A, B, m = draws(D, 5), draws(D, 6), draws(1, 7)
    x, y = standardized(30, 8) @ A, m + standardized(40, 9) @ B
    C_1, C_2 = A.T @ A, B.T @ B
    root = torch.from_numpy(scipy.linalg.sqrtm((C_1 @ C_2).numpy()).real)
    expected = m.square().sum() + (C_1 + C_2 - 2 * root).trace()
    assert distance(x, y) == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize(
    ("contract", "distance"),
    [
        (sliced_of_a_shift, sliced),
        (sliced_of_unequal_counts, sliced),
        (mmd_of_gaussians, lambda x, y: squared_mmd(x, y, h=1.5)),
        (frechet_of_gaussians, frechet_distance),
    ],
)
def test_closed_form(contract: Callable[[Distance], None], distance: Distance) -> None:
    contract(distance)


def _sliced_by_hand(x: Tensor, y: Tensor, *, unit: bool = True, ordered: bool = True, power: int = 2) -> float:
    v = draws(D, 0)
    v = torch.linalg.qr(v).Q if unit else v
    n = min(len(x), len(y))
    a, b = ((part[:n] @ v) for part in (x, y))
    a, b = (a.sort(0).values, b.sort(0).values) if ordered else (a.flip(0), b)
    return ((a - b).abs() ** power).mean().item() ** (1 / power)


def _mmd_by_hand(x: Tensor, y: Tensor, *, unbiased: bool = True, cross: float = 2.0, factor: float = 0.5) -> float:
    def k(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-factor * (torch.cdist(a, b) / 1.5).square())

    within = 0.0
    for v in (x, y):
        n = len(v)
        within += ((k(v, v).sum() - n) / (n * (n - 1)) if unbiased else k(v, v).mean()).item()
    return within - cross * k(x, y).mean().item()


def _frechet_by_hand(
    x: Tensor, y: Tensor, *, cross: float = 2.0, correction: int = 1, commuting: bool = False
) -> float:
    C_1, C_2 = (torch.cov(v.T, correction=correction) for v in (x, y))
    if commuting:
        roots = [torch.from_numpy(scipy.linalg.sqrtm(C.numpy()).real) for C in (C_1, C_2)]
        root = roots[0] @ roots[1]
    else:
        root = torch.from_numpy(scipy.linalg.sqrtm((C_1 @ C_2).numpy()).real)
    return ((x.mean(0) - y.mean(0)).square().sum() + (C_1 + C_2 - cross * root).trace()).item()


TEETH = {
    "directions without unit length": Tooth(
        sliced_of_a_shift, lambda: _sliced_by_hand, lambda: lambda x, y: _sliced_by_hand(x, y, unit=False)
    ),
    "columns that are not sorted": Tooth(
        sliced_of_a_shift, lambda: _sliced_by_hand, lambda: lambda x, y: _sliced_by_hand(x, y, ordered=False)
    ),
    "W₁ for W₂": Tooth(sliced_of_a_shift, lambda: sliced, lambda: lambda x, y: _sliced_by_hand(x, y, power=1)),
    "the root left out": Tooth(sliced_of_a_shift, lambda: sliced, lambda: lambda x, y: sliced(x, y) ** 2),
    "unequal counts cut to one": Tooth(sliced_of_unequal_counts, lambda: sliced, lambda: _sliced_by_hand),
    "rows paired with themselves": Tooth(
        mmd_of_gaussians, lambda: _mmd_by_hand, lambda: lambda x, y: _mmd_by_hand(x, y, unbiased=False)
    ),
    "the cross term once": Tooth(
        mmd_of_gaussians, lambda: _mmd_by_hand, lambda: lambda x, y: _mmd_by_hand(x, y, cross=1.0)
    ),
    "½ dropped in the kernel": Tooth(
        mmd_of_gaussians, lambda: _mmd_by_hand, lambda: lambda x, y: _mmd_by_hand(x, y, factor=1.0)
    ),
    "2 dropped before the root": Tooth(
        frechet_of_gaussians, lambda: _frechet_by_hand, lambda: lambda x, y: _frechet_by_hand(x, y, cross=1.0)
    ),
    "covariances over n": Tooth(
        frechet_of_gaussians, lambda: _frechet_by_hand, lambda: lambda x, y: _frechet_by_hand(x, y, correction=0)
    ),
    "C₁^½ C₂^½ for (C₁ C₂)^½": Tooth(
        frechet_of_gaussians, lambda: _frechet_by_hand, lambda: lambda x, y: _frechet_by_hand(x, y, commuting=True)
    ),
}


@pytest.mark.parametrize("tooth", TEETH.values(), ids=TEETH)
def test_slips_are_seen(tooth: Tooth) -> None:
    tooth.bites()


def test_sliced_of_gaussians() -> None:
    """N(0, I) and N(m, s² I): (‖m‖²/D + (s - 1)²)^½, up to what the samples' noise brings."""
    x, z = draws(20_000, 10), draws(15_000, 11)
    m, s = torch.tensor([1.0, -0.5, 0.0, 2.0], dtype=torch.float64), 1.7
    expected = math.sqrt(m.square().sum().item() / D + (s - 1) ** 2)
    assert sliced(x, m + s * z) == pytest.approx(expected, rel=0.02)
    assert 0 < sliced(x, z) < 0.03


@pytest.mark.parametrize("features", [3, 128, 300])
def test_axes_of_a_frame_are_orthogonal(features: int) -> None:
    """Each frame's, of fewer directions than dimensions too: the first axes of the whole frame."""
    v = distances._frames(features, 128, rng(4))
    assert v.shape == (features, 128)
    for frame in v.split(features, dim=1):
        torch.testing.assert_close(frame.T @ frame, torch.eye(frame.shape[1], dtype=torch.float64))
    if features > 128:
        whole = torch.linalg.qr(torch.randn(features, features, generator=rng(4), dtype=torch.float64))[0]
        torch.testing.assert_close(v, whole[:, :128])


def test_all_directions_are_alike() -> None:
    """A plane in space: (E cos²)^½ = 1/√3 of the distance of points on a line, with any number of directions."""
    x = torch.zeros(2, 3)
    y = torch.tensor([[1.0, 0.0, 0.0]]).expand(2, 3)
    found = [sliced_wasserstein(x, y, directions=1, generator=rng(i)) ** 2 for i in range(300)]
    assert sum(found) / 300 == pytest.approx(1 / 3, abs=4 * (4 / 45) ** 0.5 / 300**0.5)
    assert sliced_wasserstein(x, y, directions=6, generator=rng(0)) == pytest.approx(3**-0.5)


@pytest.mark.parametrize("distance", [sliced, squared_mmd, frechet_distance])
def test_invariances(distance: Distance) -> None:
    """Neither the order of rows, nor that of samples, nor a shift of both matters; images count as flat."""
    x, y, m = draws(20, 12), 1.3 * draws(31, 13), 5 * draws(1, 14)
    expected = pytest.approx(distance(x, y), rel=1e-9)
    assert distance(x.flip(0), y) == expected
    assert distance(y, x) == expected
    assert distance(x + m, y + m) == expected
    assert distance(x.reshape(20, 1, 2, 2), y.reshape(31, 1, 2, 2)) == expected


@pytest.mark.parametrize(("distance", "power"), [(sliced, 1), (squared_mmd, 0), (frechet_distance, 2)])
def test_unit_of_the_data(distance: Distance, power: int) -> None:
    x, y = draws(20, 15), 1.3 * draws(31, 16)
    assert distance(3 * x, 3 * y) == pytest.approx(3**power * distance(x, y), rel=1e-9)


@pytest.mark.parametrize("distance", [squared_mmd, frechet_distance])
def test_rotations_do_not_matter(distance: Distance) -> None:
    x, y, Q = draws(20, 17), 1.3 * draws(31, 18), torch.linalg.qr(draws(D, 19)).Q
    assert distance(x @ Q, y @ Q) == pytest.approx(distance(x, y), rel=1e-9)


def test_equal_samples_are_at_no_distance() -> None:
    x = draws(20, 20).float()
    assert sliced(x, x) == 0
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)


def test_biased_mmd_is_that_of_the_test() -> None:
    """With the pairs of a row and itself it is the statistic of the two-sample test, bandwidth included."""
    x, y = draws(20, 21), 0.5 + draws(25, 22)
    biased = two_sample_test(x, y, statistic="mmd", permutations=1, generator=rng(0)).statistic
    pooled = torch.cat([x, y])
    apart = (pooled[:, None] - pooled).norm(dim=2)
    h, expected = apart[apart > 0].median(), biased
    for v in (x, y):
        n, kernel = len(v), torch.exp(-0.5 * (torch.cdist(v, v) / h) ** 2)
        others = (kernel.sum() - n) / (n * (n - 1))
        expected -= (1 - others.item()) / n
    assert squared_mmd(x, y) == pytest.approx(expected, rel=1e-6)


def test_fewer_rows_than_features() -> None:
    """On two lines at a right angle the means alone and the spreads count: tr (C₁ C₂)^½ = 0."""
    line = torch.tensor([[-1.0], [1.0]], dtype=torch.float64) * math.sqrt(0.5)  # variance 1
    x, y = torch.zeros(2, 10, dtype=torch.float64), torch.zeros(2, 10, dtype=torch.float64)
    x[:, :1], y[:, 1:2] = 2 * line, 3 * line
    assert frechet_distance(x, y + 1) == pytest.approx(10 + 4 + 9)
    assert frechet_distance(x, 2 * x) == pytest.approx((4 - 2) ** 2)


def test_errors() -> None:
    for distance in (sliced_wasserstein, squared_mmd, frechet_distance):
        name = distance.__name__
        with pytest.raises(ValueError, match=f"{name} needs 2 rows or more"):
            distance(torch.zeros(1, 2), torch.zeros(5, 2))
        with pytest.raises(ValueError, match=f"{name} needs rows of one shape"):
            distance(torch.zeros(5, 2), torch.zeros(5, 3))
        with pytest.raises(ValueError, match=f"{name} needs finite rows, but row 4"):
            distance(torch.zeros(3, 2), torch.tensor([[0.0, 1.0], [math.nan, 0.0]]))
    with pytest.raises(ValueError, match="1 direction or more, but has 0"):
        sliced_wasserstein(torch.zeros(3, 2), torch.zeros(3, 2), directions=0)
    with pytest.raises(ValueError, match="positive bandwidth, but h=0"):
        squared_mmd(torch.zeros(3, 2), torch.zeros(3, 2), h=0.0)
