import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts import bandwidths, fitted_numbers
from helpers import Tooth
from scipy import stats
from sklearn.neighbors import KernelDensity as SklearnKernelDensity
from torch import Tensor

from core.kernel_density import KernelDensity, log_sum_kernels
from experiment import evaluate, load_run, train
from experiment.building.baselines import bandwidth, build_baseline, fitted_count
from experiment.config import parse_config
from experiment.data import dataset
from experiment.run import load_best
from experiment.sections.baselines import GaussianMixtureModel, GaussianModel, KernelDensityModel

ROWS = torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MIXED = ROWS @ torch.tensor([[2.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 0.01]], dtype=torch.float64) + 5


def config(model: str, **options: object) -> object:
    return parse_config(
        {
            "data": {"kind": "toy", "name": "moons", "train_rows": 2000, "validation_rows": 200, "test_rows": 500},
            "preprocessing": {"kind": "none", "standardize": True},
            "model": {"kind": model, **options},
        },
        source="test",
    )


def test_the_gaussian_has_the_mean_and_covariance_of_its_rows() -> None:
    model = build_baseline(GaussianModel(kind="gaussian"), (3,), MIXED)
    expected = stats.multivariate_normal(MIXED.mean(0), np.cov(MIXED.numpy(), rowvar=False, bias=True)).logpdf(MIXED)
    np.testing.assert_allclose(model.log_prob(MIXED).numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("values", [1, 10, 2**22])
def test_rows_that_come_in_parts_have_one_mean_and_covariance(monkeypatch: pytest.MonkeyPatch, values: int) -> None:
    """Single rows, groups of three, and all at once; prepared as they come, and far from zero."""
    monkeypatch.setattr(dataset, "VALUES", values)
    model = build_baseline(GaussianModel(kind="gaussian"), (3,), MIXED, prepare=lambda x: 3 * x + 1e5)
    x = 3 * MIXED + 1e5
    torch.testing.assert_close(model.means[0], x.mean(0))
    expected = stats.multivariate_normal(x.mean(0), np.cov(x.numpy(), rowvar=False, bias=True)).logpdf(x)
    np.testing.assert_allclose(model.log_prob(x).numpy(), expected, atol=1e-3)


def test_the_mixture_finds_clusters_of_their_own_shapes() -> None:
    g = torch.Generator().manual_seed(1)
    near = torch.randn(3000, 2, generator=g, dtype=torch.float64) * torch.tensor([0.1, 2.0])
    far = torch.randn(1000, 2, generator=g, dtype=torch.float64) + 20
    section = GaussianMixtureModel(kind="gaussian_mixture", components=2)
    model = build_baseline(section, (2,), torch.cat([near, far]))
    order = model.means[:, 0].argsort()
    torch.testing.assert_close(model.log_weights.exp()[order], torch.tensor([0.75, 0.25]).double(), atol=1e-6, rtol=0)
    variances = model.eigenvalues[order].sort().values
    torch.testing.assert_close(variances, torch.tensor([[0.01, 4.0], [1.0, 1.0]]).double(), rtol=0.12, atol=0)


def test_the_mixture_has_no_more_components_than_the_rows_bear() -> None:
    """Sixty-four dimensions, 400 rows of one Gaussian: 32 components would fit each a plane."""
    g = torch.Generator().manual_seed(2)
    rows, held_out = (torch.randn(n, 64, generator=g, dtype=torch.float64) for n in (400, 200))
    mixture = build_baseline(GaussianMixtureModel(kind="gaussian_mixture"), (64,), rows)
    gaussian = build_baseline(GaussianModel(kind="gaussian"), (64,), rows)
    assert mixture.log_prob(held_out).mean() > gaussian.log_prob(held_out).mean() - 1


def test_the_bandwidth_has_the_largest_leave_one_out_likelihood() -> None:
    bandwidths.is_the_best_that_leaves_out_a_row(bandwidth)


def test_kernels_are_those_of_scikit_learn() -> None:
    h, L = 0.3, torch.eye(3, dtype=torch.float64)
    found = KernelDensity(ROWS, h * L).log_prob(ROWS[:50] + 1)
    expected = SklearnKernelDensity(bandwidth=h).fit(ROWS.numpy()).score_samples(ROWS[:50].numpy() + 1)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sum_of_kernels_is_that_of_their_logarithms(dtype: torch.dtype) -> None:
    bandwidths.sums_kernels_by_their_logarithms(log_sum_kernels, dtype)


SUMS: dict[str, Callable[[Tensor], Tensor]] = {
    "without the half": lambda squares: log_sum_kernels(2 * squares),
    "the largest not taken out": lambda squares: (-0.5 * squares).exp().sum(1).log(),
    "the largest alone": lambda squares: -0.5 * squares.amin(1),
    "kernels at infinity count": lambda squares: log_sum_kernels(squares.clamp(max=1e3)),
    "the mean": lambda squares: log_sum_kernels(squares) - math.log(squares.shape[1]),
}


@pytest.mark.parametrize("name", SUMS)
def test_teeth_of_the_sum(name: str) -> None:
    contract = partial(bandwidths.sums_kernels_by_their_logarithms, dtype=torch.float64)
    Tooth(contract, lambda: log_sum_kernels, lambda: SUMS[name]).bites()


def test_kernels_far_from_the_origin_keep_their_digits() -> None:
    """In single precision, as years and prices are: moved by whole numbers, nothing else changes."""
    rows, moved = 16 * ROWS.round(decimals=0), torch.tensor([2.0**20, -(2.0**18), 0.0])
    L = 0.5 * torch.eye(3)
    near, far = (KernelDensity(rows.float() + m, L).log_prob(rows[:50].float() + m + 1) for m in (0 * moved, moved))
    torch.testing.assert_close(far, near, rtol=1e-5, atol=1e-5)
    tilted = torch.tensor([[0.3, 0.0, 0.0], [0.7, 0.1, 0.0], [0.0, 0.0, 1.0]])
    near, far = (
        KernelDensity(rows.float() + m, tilted).log_prob(rows[:50].float() + m + 1) for m in (0 * moved, moved)
    )
    torch.testing.assert_close(far, near, rtol=1e-5, atol=1e-5)


def test_kernels_follow_the_shape_of_the_data() -> None:
    section = KernelDensityModel(kind="kernel_density", most_rows=400)
    model = build_baseline(section, (3,), MIXED)
    whitened = torch.linalg.solve_triangular(model.scale_tril.double(), (MIXED - MIXED.mean(0)).mT, upper=False)
    torch.testing.assert_close(
        torch.cov(whitened) * model.scale_tril[0, 0] ** 2, MIXED[:, 0].var() * torch.eye(3).double(), rtol=0.3, atol=1.5
    )
    assert len(model.rows) == 400


@pytest.mark.parametrize("model", ["gaussian", "gaussian_mixture", "kernel_density"])
def test_a_run_is_fitted_saved_evaluated_and_drawn_from(model: str, tmp_path: Path) -> None:
    run = train(config(model), tmp_path / model)
    s = evaluate(run.path, audit_rows=0)
    assert s.kind == "exact"
    assert {"gaussian": 0.2, "gaussian_mixture": -0.1, "kernel_density": -0.1}[
        model
    ] < -s.log_prob_nats - s.entropy_nats
    assert -s.log_prob_nats - s.entropy_nats < {"gaussian": 1.2, "gaussian_mixture": 0.3, "kernel_density": 0.5}[model]
    loaded = load_run(run.path)
    assert loaded.sample((7,)).shape == (7, 2)
    again = train(config(model), tmp_path / model, resume=True)
    assert again.best.read_bytes() == run.best.read_bytes()


def test_images_and_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.layout='flat'"):
        build_baseline(GaussianModel(kind="gaussian"), (1, 8, 8), None)
    with pytest.raises(ValueError, match="needs 32 training rows"):
        build_baseline(GaussianMixtureModel(kind="gaussian_mixture"), (3,), ROWS[:10])


@pytest.mark.parametrize("D", [1, 3])
@pytest.mark.parametrize("K", [1, 4])
def test_fitted_numbers_are_those_that_are_free(K: int, D: int) -> None:
    fitted_numbers.are_those_that_are_free(fitted_count, K, D)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda model: fitted_count(model) + 1,
        lambda model: sum(buffer.numel() for buffer in model.buffers()),
        lambda model: len(model.means) * 2 * model.event_shape.numel() + len(model.means) - 1,
    ],
    ids=["weights that need not sum to one", "every buffer", "variances alone"],
)
def test_other_counts_of_fitted_numbers_are_rejected(wrong: object) -> None:
    def contract(count: object) -> None:
        fitted_numbers.are_those_that_are_free(count, 4, 3)

    Tooth(contract, lambda: fitted_count, lambda: wrong).bites()


@pytest.mark.parametrize(("kind", "expected"), [("gaussian", 5), ("kernel_density", 2000 * 2 + 3)])
def test_a_run_of_a_baseline_counts_what_was_fitted(tmp_path: Path, kind: str, expected: int) -> None:
    run = train(config(kind), tmp_path / kind, threads=1)
    assert load_best(run)["parameters"] == expected
