"""A known Boltzmann machine found again from draws of it: by exact likelihood, and by what goes without its sum."""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks.record import DOCS
from cflows import BoltzmannMachine, ContrastiveDivergence, PseudoLikelihood, RatioMatching
from experiment.files import write_atomic
from experiment.plots import COLOURS, INK, MUTED, png

SPINS, ROWS, DATA_SETS = 16, 10_000, 4
COUPLING_STDS = (0.2, 0.5)
# Of the chains; the rate falls to zero. 0.005, 0.01, 0.02, 0.05 and 0.1 were tried.
STEPS, BATCH, CHAINS, LEARNING_RATE = 1500, 1000, 1000, 0.05

Row = dict[str, Any]
Fit = Callable[[BoltzmannMachine, Tensor, torch.Generator], None]


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a method and strength of couplings, means over sets of independent draws; and the figure."""
    torch.set_num_threads(1)
    rows, panels = [], []
    for std in COUPLING_STDS:
        truth = machine(std)
        data = [truth.sample((ROWS,), generator=_rng(seed)) for seed in range(DATA_SETS)]
        for name, fit in METHODS.items():
            found = [_fitted(fit, y, seed) for seed, y in enumerate(data)]
            rows.append({"coupling_std": std, "method": name, **_summary(truth, found)})
            panels.append((f"{name}, std {std:g}", truth.couplings.detach(), found[0][0].couplings.detach()))
    write_atomic(DOCS / "figures" / "boltzmann.png", png(_figure(panels)))
    settings = {"spins": SPINS, "rows": ROWS, "data_sets": DATA_SETS, "chains": CHAINS}
    return {**settings, "steps": STEPS, "batch": BATCH, "learning_rate": LEARNING_RATE}, rows


def machine(std: float) -> BoltzmannMachine:
    """Couplings drawn from N(0, std²)."""
    upper = std * torch.randn(SPINS, SPINS, generator=_rng(0), dtype=torch.float64).triu(1)
    return BoltzmannMachine(SPINS, W=upper + upper.T)


def minimize(
    objective: Callable[[BoltzmannMachine], Callable[[Tensor], Tensor]],
    model: BoltzmannMachine,
    y: Tensor,
    generator: torch.Generator,
) -> None:
    """All rows at once, by L-BFGS, to convergence."""
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=500, tolerance_grad=1e-6, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )
    loss = objective(model)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(y)
        value.backward()
        return value

    optimizer.step(closure)


def descend(
    objective: Callable[..., nn.Module], model: BoltzmannMachine, y: Tensor, generator: torch.Generator
) -> None:
    """Batches, by Adam: the surrogate has a gradient, but no value to search along a line with."""
    loss = objective(model, chains=CHAINS, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        batch = y[torch.randint(len(y), (BATCH,), generator=generator)]
        loss(batch, generator=generator).backward()
        optimizer.step()
        schedule.step()


def negative_log_likelihood(model: BoltzmannMachine) -> Callable[[Tensor], Tensor]:
    """-E log p, with the sum over all states."""
    return lambda y: -model.log_prob(y).mean()


METHODS: dict[str, Fit] = {
    "exact likelihood": partial(minimize, negative_log_likelihood),
    "pseudo-likelihood": partial(minimize, PseudoLikelihood),
    "ratio matching": partial(minimize, RatioMatching),
    "CD, 1 sweep": partial(descend, ContrastiveDivergence),
    "PCD, 1 sweep": partial(descend, partial(ContrastiveDivergence, persistent=True)),
    "PCD, 10 sweeps": partial(descend, partial(ContrastiveDivergence, persistent=True, sweeps=10)),
}


def _fitted(fit: Fit, y: Tensor, seed: int) -> tuple[BoltzmannMachine, float]:
    """A machine without couplings fitted to the draws, and the seconds that it took."""
    model = BoltzmannMachine(SPINS).double()
    started = time.perf_counter()
    fit(model, y, _rng(1000 + seed))
    return model, time.perf_counter() - started


@torch.no_grad()
def _summary(truth: BoltzmannMachine, found: list[tuple[BoltzmannMachine, float]]) -> Row:
    """RMS error of the couplings and KL(truth ‖ found) by the sum over all states, means over the sets of draws."""
    states = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * SPINS)
    log_p = truth.log_prob(states)
    kl = torch.stack([(log_p.exp() * (log_p - model.log_prob(states))).sum() for model, _ in found])
    rms = torch.stack([(model.couplings - truth.couplings).square().mean().sqrt() for model, _ in found])
    return {
        "rms_error": rms.mean().item(),
        "kl_nats": kl.mean().item(),
        "kl_error_nats": kl.std().item() / math.sqrt(len(found)),
        "seconds": sum(seconds for _, seconds in found) / len(found),
    }


def _rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _figure(panels: list[tuple[str, Tensor, Tensor]]) -> Figure:
    """Couplings found against true ones: a line a strength, a column a method."""
    figure = Figure(figsize=(13.5, 5.4), layout="constrained")
    axes = figure.subplots(len(COUPLING_STDS), len(METHODS), sharex="row", sharey="row")
    for i, (axis, (name, truth, found)) in enumerate(zip(axes.flat, panels, strict=True)):
        _panel(axis, name, truth, found, colour=COLOURS[i % len(METHODS)])
    figure.supxlabel("true coupling", fontsize=10, color=INK)
    figure.supylabel("found coupling", fontsize=10, color=INK)
    figure.suptitle(f"{SPINS} spins found again from {ROWS:,} draws".replace(",", " "), fontsize=12, color=INK)
    return figure


def _panel(axis: Axes, name: str, truth: Tensor, found: Tensor, *, colour: str) -> None:
    tick = 0.5 if truth.abs().max() < 1 else 1.0
    top = 1.25 * truth.abs().max().item()
    axis.axline((0.0, 0.0), slope=1.0, color=MUTED, linewidth=0.8)
    axis.scatter(truth.numpy(), found.numpy(), s=9, alpha=0.7, color=colour, linewidths=0)
    axis.set_title(name, fontsize=10, color=INK)
    axis.set(xlim=(-top, top), ylim=(-top, top), box_aspect=1)
    axis.set_xticks([-tick, 0, tick])
    axis.set_yticks([-tick, 0, tick])
    axis.tick_params(colors=MUTED, labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
