"""A MintNet trained on MNIST taken back from its latents: iterations, residual and error, beside the public scheme."""

import time
from collections.abc import Callable
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import DATA, RUNS
from core import bits_per_dim
from core.shapes import sum_event
from discrete import Flow, MaskedConvolution
from discrete.bijections.inversion import Inversion
from experiment import load_config, load_run, train
from experiment.building.builder import load_data
from experiment.run import load_best

CONFIG = "configs/mnist/mintnet_small.toml"
THREADS, ROWS = 2, 16

Row = dict[str, Any]
Invert = Callable[[MaskedConvolution, Tensor], Inversion]


def measure() -> tuple[dict[str, Any], list[Row]]:
    """Trains, then inverts latents of test images and drawn ones: a row a dtype and scheme, its layers last first."""
    config = load_config(CONFIG)
    folder = RUNS / "mintnet_inverse"
    run = train(config, folder, data_root=DATA, resume=True, threads=THREADS, device="cpu", progress_bar=True)
    flow, best, test = load_run(folder), load_best(run), load_data(config.data, DATA).test
    bits = _bits(flow, test)
    rows = inversions(flow, test[:ROWS])
    settings = {
        "config": CONFIG,
        "threads": THREADS,
        "rows": ROWS,
        "bits_per_dim": bits.mean().item(),
        "bits_per_dim_error": (bits.std() / len(bits) ** 0.5).item(),
        "parameters": best["parameters"],
        "train_seconds": best["seconds"],
        "public": "x ← x + (z - f(x))/(3.5 slope) from z/t, as github.com/ermongroup/mintnet does on MNIST",
    }
    return settings, rows


@torch.no_grad()
def _bits(flow: Flow, x: Tensor) -> Tensor:
    """Bits per dimension of every test image, one noise draw each."""
    g = torch.Generator().manual_seed(0)
    log_prob = torch.cat([flow.log_prob(part, generator=g) for part in x.split(500)])
    return bits_per_dim(log_prob, flow.event_shape)


@torch.no_grad()
def inversions(flow: Flow, images: Tensor) -> list[Row]:
    """Latents of noisy images, and as many drawn ones, taken back in either dtype by either scheme."""
    rows = []
    for dtype in (torch.float64, torch.float32):
        to_logits, mintnet = (part.to(dtype) for part in (flow.bijection, flow.base))
        x, _ = to_logits(images.to(dtype), generator=torch.Generator().manual_seed(0))
        drawn = mintnet.base.sample((len(x),), generator=torch.Generator().manual_seed(1)).to(dtype)
        for latents, z in (("of test images", mintnet.encode(x)), ("drawn", drawn)):
            for scheme, invert in (("ours", MaskedConvolution.invert), ("public", public)):
                taken, found = _back(mintnet, z, invert)
                errors = {"max_latent_error": (mintnet.encode(found) - z).abs().max().item()}
                if z is not drawn:
                    pixels = found.sigmoid() - x.sigmoid()
                    errors |= {
                        "max_error": (found - x).abs().max().item(),
                        "max_pixel_error": pixels.abs().max().item(),
                    }
                name = str(dtype).removeprefix("torch.")
                rows.append({"dtype": name, "latents": latents, "scheme": scheme, **errors, **taken})
    return rows


def _back(mintnet: Flow, z: Tensor, invert: Invert) -> tuple[Row, Tensor]:
    """All layers, last first: what each took, and x."""
    started, layers, x = time.perf_counter(), [], z
    for layer in reversed(list(mintnet.bijection.bijections)):
        if not isinstance(layer, MaskedConvolution):
            x, _ = layer.inverse(x)
            continue
        inversion = invert(layer, x)
        x = inversion.x
        layers.append(
            {
                "shape": list(layer.event_shape),
                "order": layer.order,
                "mean_iterations": inversion.iterations.double().mean().item(),
                "max_iterations": int(inversion.iterations.max()),
                "by_degrees": int((inversion.iterations > layer.solver.iterations).sum()),
                "max_residual": inversion.residual.max().item(),
            }
        )
    total = {
        "seconds": time.perf_counter() - started,
        "mean_iterations": mean(layer["mean_iterations"] for layer in layers),
        "total_iterations": sum(layer["mean_iterations"] for layer in layers),
        **{name: max(layer[name] for layer in layers) for name in ("max_iterations", "max_residual")},
        "by_degrees": sum(layer["by_degrees"] for layer in layers),
    }
    return {**total, "layers": layers}, x


@torch.no_grad()
def public(layer: MaskedConvolution, z: Tensor) -> Inversion:
    """A hundred steps of one size for every row, without a test."""
    mint, z_ = layer.mint(), z.reshape(len(z), *layer.image_shape)
    x = z_ / mint.t
    for _ in range(100):
        image, slope = mint.evaluate(x)
        x = x + (z_ - image) / (3.5 * slope)
    image, slope = mint.evaluate(x)
    residual = (image - z_).flatten(1).abs().amax(1)
    return Inversion(x.reshape(z.shape), -sum_event(slope.log()), torch.full((len(z),), 100), residual)
