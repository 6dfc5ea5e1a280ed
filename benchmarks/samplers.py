"""The solvers that are measured beside one another, and what a run of one costs."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from cflows import (
    SDE,
    AdaptiveSDE,
    AncestralSampling,
    DPMSolver,
    EDMHeun,
    EulerMaruyama,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    StochasticHeun,
    StochasticRungeKutta,
)
from cflows.samplers.sampler import Sampler
from cflows.sde import Score

Kind = Literal["stochastic", "deterministic"]
BASELINE, BASELINE_NFE = "Euler-Maruyama", 1000


class Solver(NamedTuple):
    """A family of samplers, from few score evaluations to many.

    Attributes:
        kind: whether it draws noise.
        build: the sampler of a setting.
        cost: score evaluations a step; 0 where the setting is a tolerance.
    """

    kind: Kind
    build: Callable[[Any], Sampler]
    cost: int = 1


def _stepped(cls: Callable[..., Sampler], **options: Any) -> Callable[[int], Sampler]:
    return lambda steps: cls(steps=steps, **options)


def _corrected(steps: int) -> Sampler:
    return PredictorCorrector(predictor=ReverseDiffusion(steps=steps))


SOLVERS = {
    BASELINE: Solver("stochastic", _stepped(EulerMaruyama)),
    "Euler-Maruyama, in √t": Solver("stochastic", _stepped(EulerMaruyama, spacing="quadratic")),
    "reverse diffusion": Solver("stochastic", _stepped(ReverseDiffusion)),
    "ancestral": Solver("stochastic", _stepped(AncestralSampling)),
    "ancestral, in log-SNR": Solver("stochastic", _stepped(AncestralSampling, spacing="log_snr")),
    "predictor-corrector": Solver("stochastic", _corrected, cost=2),
    "stochastic Heun": Solver("stochastic", _stepped(StochasticHeun), cost=2),
    "stochastic Heun, in log-SNR": Solver("stochastic", _stepped(StochasticHeun, spacing="log_snr"), cost=2),
    "stochastic Runge-Kutta": Solver("stochastic", _stepped(StochasticRungeKutta), cost=2),
    "stochastic Runge-Kutta, in log-SNR": Solver(
        "stochastic", _stepped(StochasticRungeKutta, spacing="log_snr"), cost=2
    ),
    "adaptive SDE": Solver("stochastic", lambda tol: AdaptiveSDE(rtol=tol, atol=tol / 5), cost=0),
    "SDE-DPM-Solver++ 2M": Solver("stochastic", _stepped(DPMSolver, variant="sde")),
    "DDIM": Solver("deterministic", _stepped(DPMSolver, order=1)),
    "DPM-Solver++ 2M": Solver("deterministic", _stepped(DPMSolver)),
    "DPM-Solver++ 3M": Solver("deterministic", _stepped(DPMSolver, order=3)),
    "EDM Heun": Solver("deterministic", _stepped(EDMHeun), cost=2),
    "ODE, RK4": Solver("deterministic", _stepped(ProbabilityFlow, method="rk4"), cost=4),
    "ODE, dopri5": Solver("deterministic", lambda tol: ProbabilityFlow(rtol=tol, atol=tol), cost=0),
}


class Counted:
    """A score that counts its evaluations, one a row."""

    def __init__(self, score: Score) -> None:
        self.score, self.rows = score, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """s(x, t)."""
        self.rows += len(x)
        return self.score(x, t)


def points(
    solver: Solver, *, evaluations: Sequence[int], tolerances: Sequence[float]
) -> Iterator[tuple[dict[str, Any], Sampler]]:
    """Setting and sampler of each point of a curve; as many steps as the evaluations pay for, two at least."""
    if solver.cost == 0:
        yield from (({"tolerance": tol}, solver.build(tol)) for tol in tolerances)
        return
    for steps in sorted({max(2, round(n / solver.cost)) for n in evaluations}):
        yield {"steps": steps}, solver.build(steps)


def run(
    sampler: Sampler, score: Score, sde: SDE, x_T: Tensor, *, seed: int, chunk: int | None = None
) -> tuple[Tensor, float]:
    """The draws, some rows at a time, and the evaluations that they took, counted, the mean over the rows."""
    counted, generator = Counted(score), torch.Generator().manual_seed(seed)
    x = torch.cat([sampler(counted, sde, part, generator=generator) for part in x_T.split(chunk or len(x_T))])
    return x, counted.rows / len(x_T)
