"""How tightly an ODE need be solved: no more than the other errors of a mean log-likelihood are worth."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from cflows.ode.solver import ODESolver
from core.density import LikelihoodEstimate

FEWEST_STEPS = 8


@dataclass(frozen=True)
class SolverChoice:
    """The cheapest solver found whose error is small enough, or the tightest that was tried.

    Attributes:
        solver: the choice.
        solver_error: mean size of its error over the pilot's rows, nats.
        allowed: the largest that was allowed, nats.
        nfe: mean calls of the velocity a solve.
    """

    solver: ODESolver
    solver_error: float
    allowed: float
    nfe: float

    @property
    def met(self) -> bool:
        """Whether the error is small enough; False where no solver tried is."""
        return self.solver_error <= self.allowed


def choose_solver(
    estimate: Callable[[ODESolver], LikelihoodEstimate],
    solver: ODESolver,
    *,
    share: float,
    standard_error: Callable[[LikelihoodEstimate], float],
    dimensions: int = 1,
    tightest: float = 1e-6,
    most_steps: int = 1024,
) -> SolverChoice:
    """The loosest tolerances, or the fewest steps, with E|solver error| ≤ share · standard error of the mean.

    Tolerances go 10⁻¹, 10⁻², ..., steps 8, 16, ..., until the first that is good enough. The error of a solve is its
    difference from the one before, ten times looser, so that each solve serves twice; it errs on the large side, and
    adaptive methods claim no less than atol a dimension. Where an estimate brings a `solver_error` of its own, as a
    fixed grid's is to be had step by step only, that one counts.

    Checked by tests/cflows/test_choose_solver.py.

    Args:
        estimate: log-likelihood of the same pilot rows, with the same probes, by any solver.
        solver: the method, and the ratio of its tolerances; its rtol, atol or steps are what is looked for.
        share: largest mean solver error in units of the standard error, above 0.
        standard_error: of the mean log-likelihood of all rows, nats, read off an estimate of the pilot's.
        dimensions: values a row.
        tightest: rtol to stop at.
        most_steps: steps to stop at.

    Returns:
        The choice; `met` says whether it is good enough.

    Raises:
        ValueError: a share that is not positive.
        RuntimeError: no two solves in a row get through.

    Example:
        A solver whose error is its tolerance, in a mean that is known within 0.02 nats:

        >>> import torch
        >>> def estimate(solver):
        ...     return LikelihoodEstimate(torch.full((4,), -1.0 + solver.rtol), nfe=torch.full((4,), 20))
        >>> choice = choose_solver(estimate, ODESolver(), share=0.1, standard_error=lambda e: 0.02)
        >>> choice.solver.rtol, choice.met  # 10⁻³ differs from 10⁻² by 0.009, 10⁻⁴ from 10⁻³ by 0.0009
        (0.0001, True)
    """
    if not share > 0:
        raise ValueError(f"choose_solver needs a share above 0, but it is {share}.")
    previous: LikelihoodEstimate | None = None
    choice: SolverChoice | None = None
    failure: RuntimeError | None = None
    for candidate in _candidates(solver, tightest=tightest, most_steps=most_steps):
        before, previous = previous, None
        try:
            previous = found = estimate(candidate)
        except RuntimeError as error:
            failure = error
            continue
        if found.solver_error is not None:
            errors = found.solver_error
        elif before is not None:
            errors = (found.log_prob - before.log_prob).abs().clamp(min=candidate.floor * dimensions)
        else:
            continue
        nfe = 0.0 if found.nfe is None else found.nfe.double().mean().item()
        choice = SolverChoice(candidate, errors.double().mean().item(), share * standard_error(found), nfe)
        if choice.met:
            break
    if choice is None:
        raise failure or ValueError(f"choose_solver found no two tolerances to try down to tightest={tightest:g}.")
    return choice


def _candidates(solver: ODESolver, *, tightest: float, most_steps: int) -> Iterator[ODESolver]:
    """The loosest first."""
    if solver.fixed:
        steps = max(FEWEST_STEPS, solver.fewest_steps)
        while steps <= most_steps:
            yield replace(solver, steps=steps)
            steps *= 2
        return
    exponent = 1
    while (rtol := float(f"1e-{exponent}")) >= 0.99 * tightest:  # read, not multiplied: no stray digits
        yield replace(solver, rtol=rtol, atol=rtol * solver.atol / solver.rtol)
        exponent += 1
