"""Likelihood, training and sampling of continuous models beside flow_matching, torchcfm and torchsde: one network."""

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.flow_peers import Run
from benchmarks.peers import compared, prepare
from cflows import VPSDE, ConditionalFlowMatching, EulerMaruyama, ode_log_prob
from core import ExactDivergence, Hutchinson, StandardNormal

D, WIDTH, ROWS, STEPS, BUDGET, TOLERANCE = 64, 256, 256, 20, 10.0, 1e-9
PEERS = {
    "likelihood": "flow_matching",
    "training step": "torchcfm",
    "optimal coupling": "torchcfm",
    "draws": "torchsde",
}

Row = dict[str, Any]


class Network(nn.Module):
    """y = MLP([x, t])."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Linear(D + 1, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, D)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """At a time for all rows or for each."""
        t = t.expand(len(x))[:, None] if t.ndim == 0 else t.reshape(-1, 1)
        return self.layers(torch.cat([x, t.to(x)], 1))


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a task."""
    load = prepare(1)
    network = Network()
    different = difference(network.double())
    network.float()
    pairs = {"likelihood": _likelihoods, "training step": _losses, "optimal coupling": _optimal, "draws": _draws}
    rows = [_row(task, pair(network)) for task, pair in pairs.items()]
    versions = {peer: importlib.metadata.version(peer) for peer in dict.fromkeys(PEERS.values())}
    settings = {"features": D, "width": WIDTH, "rows": ROWS, "steps": STEPS, "threads": 1, "dtype": "float32"}
    return {**settings, **versions, "likelihood_difference_nats": different, "load_average_at_start": load}, rows


def _row(task: str, runs: tuple[Run, Run]) -> Row:
    return {"task": task, **compared(dict(zip(("ours", PEERS[task]), runs, strict=True)), budget=BUDGET)}


def difference(network: Network) -> float:
    """Largest difference of the two log-likelihoods with exact traces, of a network in float64, nats.

    Raises:
        RuntimeError: more than rounding.
    """
    x = torch.randn(4, D, dtype=torch.float64)
    ours, theirs = _pair(network, x, exact=True)
    worst = (ours() - theirs()).abs().max().item()
    if not worst <= TOLERANCE * D:
        raise RuntimeError(
            f"log-likelihoods of the same velocity differ by {worst:.1e} nats, so that times say nothing."
        )
    return worst


def _likelihoods(network: Network) -> tuple[Run, Run]:
    return _pair(network, torch.randn(ROWS, D), exact=False)


def _pair(network: Network, x: Tensor, *, exact: bool) -> tuple[Run, Run]:
    """Theirs has its data at t = 1."""
    base, divergence = StandardNormal(D).to(x), ExactDivergence() if exact else Hutchinson(probes=1)
    solver = importlib.import_module("flow_matching.solver").ODESolver(_Reversed(network))
    grid = torch.linspace(1, 0, STEPS + 1, dtype=x.dtype)

    def ours() -> Tensor:
        with torch.no_grad():
            options: dict[str, Any] = {"method": "rk4", "steps": STEPS, "error_factor": None}
            return ode_log_prob(network, base, x, divergence=divergence, **options).log_prob

    def theirs() -> Tensor:
        options = {"method": "rk4", "time_grid": grid, "step_size": None, "exact_divergence": exact}
        return solver.compute_likelihood(x_1=x.clone(), log_p0=base.log_prob, **options)[1].detach()

    return ours, theirs


class _Reversed(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return -self.network(x, 1 - t)


def _losses(network: Network) -> tuple[Run, Run]:
    return _training(network, "independent", "ConditionalFlowMatcher")


def _optimal(network: Network) -> tuple[Run, Run]:
    return _training(network, "optimal", "ExactOptimalTransportConditionalFlowMatcher")


def _training(network: Network, coupling: Any, matcher: str) -> tuple[Run, Run]:
    x, objective = torch.randn(ROWS, D), ConditionalFlowMatching(network, coupling=coupling)
    pairing = getattr(importlib.import_module("torchcfm"), matcher)(sigma=0.0)

    def loss() -> Tensor:
        t, x_t, u_t = pairing.sample_location_and_conditional_flow(torch.randn_like(x), x)
        return (network(x_t, t) - u_t).square().mean()

    return _step(network, lambda: objective(x)), _step(network, loss)


def _step(network: Network, loss: Callable[[], Tensor]) -> Run:
    optimizer = torch.optim.Adam(network.parameters(), 1e-4, fused=True)

    def run() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value.detach()

    return run


def _draws(network: Network) -> tuple[Run, Run]:
    """The reverse SDE by Euler and Maruyama."""
    sde, sampler = VPSDE(), EulerMaruyama(steps=STEPS)
    x, torchsde = torch.randn(ROWS, D), importlib.import_module("torchsde")
    times = torch.linspace(0, 1 - 1e-3, STEPS + 1)

    @torch.no_grad()
    def ours() -> Tensor:
        return sampler(network, sde, x)

    @torch.no_grad()
    def theirs() -> Tensor:
        return torchsde.sdeint(_Backward(network, sde), x, times[[0, -1]], method="euler", dt=float(times[1]))[-1]

    return ours, theirs


class _Backward:
    """dx = (g² s - f) dr + g dw at r = 1 - t."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, score: Network, sde: VPSDE) -> None:
        self.score, self.sde = score, sde

    def f(self, r: Tensor, x: Tensor) -> Tensor:
        t = 1 - r
        return self.sde.diffusion(t) ** 2 * self.score(x, t) - self.sde.drift(x, t)

    def g(self, r: Tensor, x: Tensor) -> Tensor:
        return self.sde.diffusion(1 - r).expand_as(x)
