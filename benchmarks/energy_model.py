"""The likelihood of an energy-based model by annealed importance sampling, beside its constant by quadrature."""

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import DOCS, RUNS
from benchmarks.toys import EXTENT, density, histogram
from cflows import EnergyModel
from experiment import load_config, load_run, train
from experiment.data import TOY_ENTROPY_NATS
from experiment.files import write_atomic
from experiment.plots import density_figure, png

TOY = "moons"
PARTICLES, TEMPERATURES = 5000, (10, 100, 1000)
HALF_SIDE, CELLS = 8.0, 1600


@torch.no_grad()
def measure() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """log Z and test -log p at several numbers of temperatures; the error bar is that of log Z and of the rows."""
    run = train(load_config(f"configs/{TOY}/energy.toml"), RUNS / f"{TOY}-energy", resume=True)
    model = load_run(run.path)
    energy, exact = model.base, quadrature(model.base)
    z, log_det = model.preprocessing(run.load_data().test)
    unnormalized = energy.log_density(z) + log_det
    rows = []
    for temperatures in TEMPERATURES:
        generator = torch.Generator().manual_seed(0)
        found = energy.normalizing_constant(particles=PARTICLES, temperatures=temperatures, generator=generator)
        sampling = unnormalized.std().item() / math.sqrt(len(unnormalized))
        rows.append(
            {
                "temperatures": temperatures,
                "log_z_nats": found.log_z_nats.item(),
                "log_z_error_nats": found.std_error_nats.item(),
                "log_z_quadrature_nats": exact,
                "effective_sample_size": found.effective_sample_size.item(),
                "acceptance": found.acceptance.item(),
                "nll_nats": (found.log_z_nats - unnormalized.mean()).item(),
                "error_nats": math.hypot(sampling, found.std_error_nats.item()),
                "entropy_nats": TOY_ENTROPY_NATS[TOY],
            }
        )

    def log_prob(x: Tensor) -> Tensor:
        z, log_det = model.preprocessing(x)
        return energy.log_density(z) + log_det - exact

    modelled = density(SimpleNamespace(log_prob=log_prob), extent=EXTENT)
    panels = {f"{TOY}: data": histogram(TOY), "energy model": modelled}
    figure = density_figure(panels, extent=EXTENT, title="An energy trained by sliced score matching")
    write_atomic(DOCS / "figures" / f"energy-{TOY}.png", png(figure))
    return {"config": f"configs/{TOY}/energy.toml", "particles": PARTICLES}, rows


def quadrature(energy: EnergyModel) -> float:
    """log ∫ p̃ by the midpoint rule on a square that holds all of it."""
    axis = (torch.arange(CELLS, dtype=torch.float32) + 0.5) / CELLS * 2 * HALF_SIDE - HALF_SIDE
    parts = [energy.log_density(part) for part in torch.cartesian_prod(axis, axis).split(100_000)]
    return (torch.logsumexp(torch.cat(parts).double(), 0) + 2 * math.log(2 * HALF_SIDE / CELLS)).item()
