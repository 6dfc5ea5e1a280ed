"""Amortized posteriors of a fixed decoder whose true posteriors are curved: what each leaves of the evidence."""

import math
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from discrete.inference import VAE, NegativeELBO
from experiment.threads import keep_freed_memory

PAIRS, WIDTH, GAIN, NOISE = 8, 8, 2.0, 0.2
STEPS, ROWS, LEARNING_RATE, CLIP = 3000, 256, 2e-3, 5.0
TEST_ROWS, DRAWS = 2000, 64
REACH, POINTS = 6.0, 301
LOG_SCALE_BOUND = 7.0

Row = dict[str, Any]


class Posterior(NamedTuple):
    """What is trained against the decoder."""

    name: str
    label: str
    layers: int


POSTERIORS = (
    Posterior("diagonal", "none", 1),
    Posterior("planar", "planar", 16),
    Posterior("iaf", "IAF", 4),
)


class Pairs(nn.Module):
    """x_j = V_j tanh(W_j z_j + b_j) + 0.2 noise for each pair z_j of latents, all fixed.

    Evidence is a product of integrals over the plane, and each posterior a curved band in it.
    """

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def fixed(*size: int) -> Tensor:
            return torch.randn(PAIRS, *size, generator=generator)

        self.register_buffer("W", fixed(WIDTH, 2) * GAIN / 2**0.5)
        self.register_buffer("b", fixed(WIDTH, 1))
        self.register_buffer("V", fixed(2, WIDTH) / WIDTH**0.5)

    def means(self, z: Tensor) -> Tensor:
        """Of x for every pair, `(rows, pairs, 2)` both."""
        return (self.V @ torch.tanh(self.W @ z[..., None] + self.b))[..., 0]

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Parameters (a, t) of the Gaussian likelihood N(-t exp(-s), exp(-2s)), s = B tanh(a/B)."""
        mean = self.means(z.unflatten(1, (PAIRS, 2))).flatten(1)
        a = torch.full_like(mean, LOG_SCALE_BOUND * math.atanh(-math.log(NOISE) / LOG_SCALE_BOUND))
        return torch.stack([a, -mean / NOISE], -1)


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a posterior, each beside the one before it on the same test rows."""
    keep_freed_memory()
    torch.set_num_threads(1)
    decoder = Pairs()
    x = _model(POSTERIORS[0], decoder).sample((TEST_ROWS,), generator=torch.Generator().manual_seed(2))
    evidence, coarse = (evidence_by_quadrature(decoder, x, points=p) for p in (POINTS, POINTS // 2 + 1))
    rows: list[Row] = []
    before = None
    for posterior in POSTERIORS:
        row, elbo = _row(posterior, decoder, x, evidence)
        if before is not None:
            row |= dict(zip(("gain_nats", "gain_error_nats"), _mean(elbo - before), strict=True))
        rows.append(row)
        before = elbo
    evidence_nats, error = _mean(evidence)
    settings = {
        "latent": 2 * PAIRS,
        "noise": NOISE,
        "train_steps": STEPS,
        "train_rows": ROWS,
        "learning_rate": LEARNING_RATE,
        "test_rows": TEST_ROWS,
        "draws": DRAWS,
        "evidence_nats": evidence_nats,
        "evidence_error_nats": error,
        "quadrature_error_nats": (evidence - coarse).abs().max().item(),
    }
    return settings, rows


def evidence_by_quadrature(decoder: Pairs, x: Tensor, *, points: int) -> Tensor:
    """log p(x) = Σ_j log ∫ p(x_j | z_j) p(z_j) dz_j by the trapezoidal rule on the square |z| < 6, `(rows,)`."""
    axis = torch.linspace(-REACH, REACH, points, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    means = decoder.double().means(grid[:, None].expand(-1, PAIRS, -1))
    decoder.float()
    log_prior = -0.5 * grid.square().sum(1) + 2 * math.log(2 * REACH / (points - 1)) - math.log(2 * math.pi)
    log_norm = -math.log(2 * math.pi * NOISE**2)
    parts = []
    for pair in range(PAIRS):
        for rows in x.double().unflatten(1, (PAIRS, 2))[:, pair].split(200):
            distance = torch.cdist(rows, means[:, pair]).square()
            parts.append(torch.logsumexp(log_prior - 0.5 * distance / NOISE**2, 1) + log_norm)
    return torch.cat(parts).unflatten(0, (PAIRS, len(x))).sum(0)


def _model(posterior: Posterior, decoder: Pairs) -> VAE:
    torch.manual_seed(0)
    return VAE(
        2 * PAIRS,
        latent=2 * PAIRS,
        posterior=posterior.name,  # type: ignore[arg-type]
        layers=posterior.layers,
        posterior_hidden=(64,),
        likelihood="gaussian",
        hidden=(128, 128),
        features=64,
        activation="silu",
        decoder=decoder,
    )


def _row(posterior: Posterior, decoder: Pairs, x: Tensor, evidence: Tensor) -> tuple[Row, Tensor]:
    vae = _model(posterior, decoder)
    started = time.process_time()
    _fit(vae)
    seconds = time.process_time() - started
    with torch.no_grad():
        weights = vae.terms(x, samples=DRAWS, generator=torch.Generator().manual_seed(3)).log_weights.double()
    elbo, weighted = weights.mean(0), weights.logsumexp(0) - math.log(DRAWS)
    row: Row = {"posterior": posterior.label, "layers": posterior.layers if posterior.name != "diagonal" else 0}
    for name, value in {
        "elbo": elbo,
        "gap": evidence - elbo,
        "weighted": weighted,
        "weighted_gap": evidence - weighted,
    }.items():
        row[f"{name}_nats"], row[f"{name}_error_nats"] = _mean(value)
    parameters = sum(p.numel() for p in vae.parameters())
    return {**row, "parameters": parameters, "train_cpu_seconds": seconds}, elbo


def _fit(vae: VAE) -> None:
    """On fresh draws of the model, whose decoder is fixed."""
    generator = torch.Generator().manual_seed(1)
    objective = NegativeELBO(vae)
    optimizer = torch.optim.Adam(vae.parameters(), lr=LEARNING_RATE)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        x = vae.sample((ROWS,), generator=generator)
        optimizer.zero_grad(set_to_none=True)
        objective(x, generator=generator).backward()
        nn.utils.clip_grad_norm_(vae.parameters(), CLIP)
        optimizer.step()
        cosine.step()
    vae.eval()


def _mean(values: Tensor) -> tuple[float, float]:
    """Mean over rows and its standard error."""
    return values.mean().item(), values.std().item() / len(values) ** 0.5
