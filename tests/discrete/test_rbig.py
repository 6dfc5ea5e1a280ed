"""Iterative Gaussianization, its parts, and the flow that starts from it, against closed forms."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts import gaussianizations
from helpers import normal, rng
from torch import Tensor

from core import StandardNormal
from discrete import (
    EmpiricalGaussianization,
    Flow,
    GaussianizationFlow,
    Rotation,
    initialize_gaussianization,
    rbig,
)
from discrete.bijections.reflections import HouseholderMatrix, random_reflections, random_rotation, reflections_of
from discrete.rbig import principal_axes
from experiment import evaluate, load_config, load_run, train
from experiment.building.builder import build
from experiment.config import parse_config
from experiment.training import engine

ROOT = Path(__file__).parents[2]
SPECIAL = {
    "identity": torch.eye(4),
    "half a turn": -torch.eye(4),
    "permutation": torch.eye(5)[[1, 2, 0, 4, 3]],
    "permutation with a sign": torch.eye(5)[[1, 2, 0, 4, 3]] * torch.tensor([1, 1, 1, -1, 1])[:, None],
    "mirror": torch.diag(torch.tensor([1.0, 1, -1])),
    "one": torch.eye(1),
    "minus one": -torch.eye(1),
    "nearly the identity": torch.matrix_exp(1e-9 * torch.tensor([[0.0, 1], [-1, 0]], dtype=torch.float64)),
}


def ring(rows: int, seed: int) -> Tensor:
    """Two features without correlation that depend on one another."""
    angle = 2 * math.pi * torch.rand(rows, generator=rng(seed), dtype=torch.float64)
    radius = 2 + 0.3 * normal(rows, (1,), rng(seed + 100))
    return radius * torch.stack([angle.cos(), angle.sin()], 1)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 33])
@pytest.mark.parametrize("seed", range(4))
def test_reflections_of_an_orthogonal_matrix(n: int, seed: int) -> None:
    """Of either determinant, to 1e-12."""
    Q = torch.linalg.qr(normal(n, (n,), rng(seed))).Q
    vectors = reflections_of(Q)
    assert (-1) ** len(vectors) == round(torch.linalg.det(Q).item())
    torch.testing.assert_close(HouseholderMatrix(vectors).matrix().detach(), Q, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SPECIAL)
def test_reflections_of_special_matrices(name: str) -> None:
    Q = SPECIAL[name].double()
    torch.testing.assert_close(HouseholderMatrix(reflections_of(Q)).matrix().detach(), Q, rtol=0, atol=1e-14)


def test_rotation_from_a_matrix() -> None:
    Q, x = random_rotation(7, generator=rng(1)).double(), normal(5, (7,), rng(2))
    Q = torch.linalg.qr(Q).Q  # orthogonal to float64
    Q[0] *= torch.linalg.det(Q).sign()
    layer = Rotation.from_matrix(Q)
    torch.testing.assert_close(layer(x)[0], x @ Q.mT, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.inverse(x)[0], x @ Q, rtol=0, atol=1e-12)
    (x.sum() * layer(x)[0]).sum().backward()
    assert layer.rotation.vectors.grad is not None  # it trains on from there


def test_rotation_refuses_other_matrices() -> None:
    with pytest.raises(ValueError, match="Q Qᵀ is 2 away from I"):
        Rotation.from_matrix(torch.diag(torch.tensor([1.0, 3**0.5])))
    with pytest.raises(ValueError, match="a product of 1 reflections, not of 2"):
        Rotation.from_matrix(torch.diag(torch.tensor([1.0, -1.0])))
    with pytest.raises(ValueError, match="reflections, not of 2"):
        Rotation(6, reflections=2).double().turn_to(torch.linalg.qr(normal(6, (6,), rng(7))).Q)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_principal_axes(n: int) -> None:
    x = 3 + normal(1000, (n,), rng(n)) @ normal(n, (n,), rng(n + 1))
    Q = principal_axes(x)
    covariance = torch.cov((x @ Q.mT).mT).reshape(n, n)
    torch.testing.assert_close(covariance, covariance.diag().diag(), rtol=0, atol=1e-9)
    assert (covariance.diag().diff() < 0).all()
    assert torch.linalg.det(Q).item() == pytest.approx(1)


def test_empirical_cdf_is_that_of_numpy() -> None:
    """Straight between knots on the quantiles of the rows."""
    x = normal(997, (1,), rng(3)).exp()
    layer = EmpiricalGaussianization(1, knots=50).double()
    layer.fit(x)
    levels = (np.arange(50) + 0.5) / 50
    knots = np.quantile(x[:, 0].numpy(), levels)
    inner = torch.linspace(knots[0], knots[-1], 301, dtype=torch.float64)[:, None]
    z, _ = layer(inner)
    expected = torch.from_numpy(np.interp(inner[:, 0].numpy(), knots, levels))
    torch.testing.assert_close(torch.special.ndtr(z[:, 0]), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("knots", [2, 3, 100])
def test_empirical_density_is_proper(knots: int) -> None:
    layer = EmpiricalGaussianization(1, knots=knots).double()
    layer.fit(normal(500, (1,), rng(4)) ** 3)
    k = layer.knots[:, 0]
    edges = torch.cat([k[0] - torch.linspace(300, 0, 1000), k, k[-1] + torch.linspace(0, 300, 1000)]).unique()
    gaussianizations.mass_is_one(Flow(layer, StandardNormal(1)), edges.double(), tolerance=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_empirical_tails_reach_far(dtype: torch.dtype) -> None:
    """The exponential tail, P = exp(-(x - q)/τ)/2M, a thousand τ out and back."""
    layer = EmpiricalGaussianization(1, knots=10).to(dtype)
    layer.fit(normal(500, (1,), rng(5)).to(dtype))
    x = torch.tensor([[-500.0], [-5.0], [5.0], [500.0]], dtype=dtype)
    z, log_det = layer(x)
    back, opposite = layer.inverse(z)
    torch.testing.assert_close(back, x, rtol=1e-5, atol=0)
    torch.testing.assert_close(opposite, -log_det, rtol=0, atol=1e-4)
    log_prob = Flow(layer, StandardNormal(1)).log_prob(x)
    q, tau = layer.knots[-1, 0], (layer.knots[-1, 0] - layer.knots[-2, 0]) / math.log(3)
    torch.testing.assert_close(log_prob[-1], math.log(0.05) - (500 - q) / tau - tau.log(), rtol=1e-5, atol=0)


def test_empirical_survives_values_that_repeat() -> None:
    x = torch.randint(0, 3, (300, 2), generator=rng(6)).float()
    layer = EmpiricalGaussianization(2, knots=20)
    layer.fit(x)
    assert (layer.knots.diff(dim=0) > 0).all()
    z, log_det = layer(x)
    assert z.isfinite().all()
    assert log_det.isfinite().all()
    torch.testing.assert_close(layer.inverse(z)[0], x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("marginal", ["mixture", "kde", "empirical"])
@pytest.mark.parametrize("rotation", ["pca", "random"])
def test_what_layers_remove_adds_up(marginal: str, rotation: str) -> None:
    """Σ removed = mean of log p(x) - log φ(x), on the rows that were asked for."""
    x, validation = ring(2000, 0), ring(500, 1)
    for rows in (None, validation):
        flow, removed = rbig(x, layers=3, marginal=marginal, rotation=rotation, validation=rows, generator=rng(2))
        on = x if rows is None else rows
        gain = (flow.log_prob(on) - StandardNormal(2).log_prob(on)).mean()
        torch.testing.assert_close(removed.sum(), gain.to(removed), rtol=1e-10, atol=1e-10)


def test_total_correlation_of_a_gaussian() -> None:
    """-½ log det R: the first layer standardizes, the second, on principal axes, removes all of it."""
    R = torch.tensor([[1.0, 0.8, 0.1], [0.8, 1.0, 0.3], [0.1, 0.3, 1.0]], dtype=torch.float64)
    x = normal(20_000, (3,), rng(7)) @ torch.linalg.cholesky(R).mT
    _, removed = rbig(2 * x + 1, layers=3, components=4)
    total = -0.5 * torch.logdet(R)
    assert removed[1].item() == pytest.approx(total.item(), abs=0.02)
    assert abs(removed[2]) < 0.01
    shift = (2 * x + 1).square().mean(0) / 2 - 0.5 - math.log(2)  # KL(N(1, 4) ‖ N(0, 1)) of each feature
    assert removed[0].item() == pytest.approx(shift.sum().item(), abs=0.02)


def test_rbig_approaches_a_law_that_no_axis_shows() -> None:
    """A ring: held-out likelihood grows with every layer, to 0.15 nats below the truth without a gradient."""
    x, validation = ring(5000, 0), ring(2000, 1)
    flow, removed = rbig(x, layers=8, rotation="random", validation=validation, generator=rng(0))
    radius = validation.norm(dim=1)
    density = torch.exp(-0.5 * ((radius - 2) / 0.3) ** 2) / (0.3 * math.sqrt(2 * math.pi)) / (2 * math.pi * radius)
    gap = (density.log() - flow.log_prob(validation)).mean().item()
    assert (removed > -0.005).all()
    assert 0 < gap < 0.15


def test_rotations_are_drawn_by_the_generator() -> None:
    x = ring(500, 0)
    flows = [rbig(x, layers=2, rotation="random", components=2, generator=rng(seed))[0] for seed in (0, 0, 1)]
    first, again, other = (flow.log_prob(x) for flow in flows)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_cannot_be_gaussianized_is_refused() -> None:
    x = ring(50, 0)
    with pytest.raises(ValueError, match="1 layer or more"):
        rbig(x, layers=0)
    with pytest.raises(ValueError, match="feature 1, which is constant"):
        rbig(torch.stack([x[:, 0], torch.ones(50).double()], 1))
    with pytest.raises(ValueError, match="2 knots or more, but has 1"):
        rbig(x, marginal="empirical", components=1)
    with pytest.raises(ValueError, match="1 layer or more, but has layers=0"):
        GaussianizationFlow(2, layers=0)
    with pytest.raises(ValueError, match="takes a GaussianizationFlow, not a Rotation"):
        initialize_gaussianization(Flow(Rotation(2), StandardNormal(2)), x)


def test_flow_starts_from_rows() -> None:
    """As rbig itself; a rotation of fewer reflections than make every one is drawn."""
    x = ring(2000, 0).float()
    flow = GaussianizationFlow(2, layers=3, components=4)
    removed = initialize_gaussianization(flow, x, generator=rng(0))
    same, expected = rbig(x, layers=3, components=4, rotation="random", generator=rng(0))
    assert torch.equal(removed, expected)
    assert torch.equal(flow.log_prob(x), same.log_prob(x))
    short, x = GaussianizationFlow(5, layers=2, reflections=2), normal(100, (5,), rng(1)).float()
    initialize_gaussianization(short, x, rotation="pca", generator=rng(2))
    assert torch.equal(short.bijection.bijections[1].rotation.vectors, random_reflections(2, 5, generator=rng(2)))


CONFIG = {
    "data": {"kind": "toy", "name": "8gaussians", "train_rows": 2000, "validation_rows": 500, "test_rows": 500},
    "preprocessing": {"kind": "none", "standardize": True},
    "model": {"kind": "gaussianization", "layers": 4, "components": 4},
    "train": {"steps": 6, "validate_every": 2, "batch_size": 100, "log_every": 2},
}


def test_training_starts_from_rows(tmp_path: Path) -> None:
    """A model that is only built, to be loaded, is not fitted."""
    run = train(parse_config(CONFIG, source="test"), tmp_path / "once")
    first = next(line for line in run.metrics.read_text().splitlines() if "validation" in line)
    assert float(first.split('"validation_nll_nats": ')[1].split(",")[0]) < 3.5  # 3.9 of a Gaussian, 2.83 at best
    state = {name: value.clone() for name, value in load_run(run.path).state_dict().items()}
    assert evaluate(run.path).log_prob_nats > -3.5
    start = build(parse_config(CONFIG, source="test"), (2,)).model.state_dict()
    assert any(not torch.equal(start[name], state[name]) for name in state)
    means = [value for name, value in start.items() if name.endswith("means")]
    assert all(torch.equal(value[:, 0], value[:, 1]) for value in means)  # each feature as it was built


def test_resume_does_not_start_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted at every checkpoint's first chance, the run ends with the bits of one that was not."""
    once = load_run(train(parse_config(CONFIG, source="test"), tmp_path / "once").path).state_dict()
    save = engine.save_checkpoint

    def interrupt(path: Path, state: dict, **options: Path) -> None:
        save(path, state, **options)
        if path.name == "last.ckpt":
            raise KeyboardInterrupt

    monkeypatch.setattr(engine, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(engine, "save_checkpoint", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(parse_config(CONFIG, source="test"), tmp_path / "twice")
    monkeypatch.setattr(engine, "save_checkpoint", save)
    twice = train(parse_config(CONFIG, source="test"), tmp_path / "twice", resume=True)
    for name, value in load_run(twice.path).state_dict().items():
        assert torch.equal(value, once[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("toy", ["8gaussians", "moons"])
def test_toys_within_a_gap_of_the_entropy(tmp_path: Path, toy: str) -> None:
    config = load_config(ROOT / f"configs/{toy}/gaussianization.toml", ["train.steps=100"])
    summary = evaluate(train(config, tmp_path / toy).path)
    excess = -summary.log_prob_nats - summary.entropy_nats
    assert -4 * summary.error_nats < excess < 0.1 + 2 * summary.error_nats
    assert summary.kind == "exact"
