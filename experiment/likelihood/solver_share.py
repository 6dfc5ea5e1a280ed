"""How tightly a model's ODE is solved when its error is to be a share of the other errors."""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from cflows import ODESolver, choose_solver
from cflows.ode.budget import SolverChoice
from core import DensityModel, LikelihoodEstimate
from core.density import Context
from discrete import Compose
from experiment.likelihood.budget import expected_standard_error
from experiment.likelihood.unwrapped import SolvedByODE, innermost, steps, variant

PILOT_ROWS = 256
ERROR_FACTOR = 10.0  # a solve is compared with one that is looser by this


@torch.no_grad()
def solver_for_share(
    model: DensityModel, x: Tensor, context: Context = None, *, share: float, draws: int, seed: int
) -> SolverChoice | None:
    """The cheapest solver whose mean error on the first rows is below `share` of the standard error over all rows.

    Rows are drawn twice where they are to be drawn more than once, so that the noise of draws, which their number
    takes away, is told from the spread of the rows, which it does not.

    Checked by tests/experiment/likelihood/test_solver_share.py.

    Args:
        model: a density over raw data.
        x: all rows, `(rows, *event)`.
        context: of the rows, `(rows, features)`.
        share: of the standard error, above 0.
        draws: of dequantization noise that the mean will have.
        seed: of noise and probes.

    Returns:
        The choice; None for a model without an ODE.
    """
    inner = innermost(model)
    if not isinstance(inner, SolvedByODE):
        return None
    repeats = min(draws, 2)
    rows, place = x[: PILOT_ROWS // repeats], inner.anchor.device
    count = len(rows)
    generator = torch.Generator(place).manual_seed(seed)
    condition = None if context is None else context[:count].to(place).repeat(repeats, 1)
    z, log_det = rows.to(place).repeat(repeats, *[1] * (x.ndim - 1)), torch.zeros(repeats * count, device=place)
    if bijections := list(steps(model)):
        z, log_det = Compose(*bijections)(z, condition, generator=generator)

    def estimate(solver: ODESolver) -> LikelihoodEstimate:
        twin = variant(inner, solver=solver, error_factor=ERROR_FACTOR)
        probes = torch.Generator(place).manual_seed(seed)
        return twin.estimate_log_prob(z.to(inner.anchor), condition, generator=probes).shifted(log_det)

    def standard_error(found: LikelihoodEstimate) -> float:
        log_prob = found.log_prob.double().reshape(repeats, count).cpu().numpy()
        return expected_standard_error(log_prob, rows=len(x), draws=draws)

    size = x[0].numel()
    return choose_solver(estimate, inner.solver, share=share, standard_error=standard_error, dimensions=size)


def described(solver: ODESolver) -> dict[str, Any]:
    """Its method and what counts of its settings."""
    unused = {"rtol", "atol"} if solver.fixed else {"steps"}
    return {key: value for key, value in asdict(solver).items() if key not in unused}
