"""A second opinion on the log-likelihood of a few rows, by another way to the log-determinant."""

import copy
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cflows import ODESolver
from core import DensityModel, ExactDivergence
from core.bases import Base
from core.density import Context
from discrete import Compose
from discrete.inference import VAE
from discrete.mass import MassModel
from experiment.likelihood.transport import transport
from experiment.likelihood.unwrapped import SolvedByODE, innermost, steps, variant

AUDIT_SECONDS = 20.0  # beyond it fewer rows are audited, or none
COPIES = 64  # of a row, one a value of its image, that go through a map at a time
MOST_SOLVED, STEPS = 16, 100  # dimensions whose whole solve is differentiated, and its steps


class Audit(NamedTuple):
    """How far log-likelihoods are from those that were found another way.

    Attributes:
        rows: number of rows that were audited; 0 where it was given up.
        max_nats: largest difference of any of them, nats.
        max_std_errors: the largest in units of the estimate's own standard error; None where it has none.
        note: why rows are missing; empty where none are.
    """

    rows: int
    max_nats: float | None
    max_std_errors: float | None
    note: str = ""


class _GivenUpError(Exception):
    """No row can be audited; the message says why."""


@torch.no_grad()
def audit(
    model: DensityModel,
    x: Tensor,
    context: Context = None,
    *,
    seed: int = 0,
    seconds: float = AUDIT_SECONDS,
) -> Audit | None:
    """Compares log p(x) with the sum of its parts found independently, the noise of a dequantization being the same.

    - Bijections: log|det J| of the whole chain by LU of its Jacobian J, which autograd gives, in float64.
    - An ODE with an estimated trace: the same solve with the exact one, D products at each evaluation.
    - An ODE with the exact trace, in 16 dimensions or fewer: log|det| of the Jacobian of a whole solve, by autograd
      through the steps of a fine grid.

    The base in closed form is taken as it is, and so is the term of a dequantization.

    Checked by tests/experiment/likelihood/test_audit.py.

    Args:
        model: a density over raw data.
        x: the rows, `(rows, *event)`, 1 or more; as many are audited as time allows.
        context: of the rows, `(rows, features)`.
        seed: of dequantization and probes.
        seconds: time that it may take, as the first steps predict it.

    Returns:
        The differences; None for what no other way leads to: a probability mass, a variational bound, a density without
        layers.
    """
    inner, bijections = innermost(model), list(steps(model))
    if isinstance(inner, MassModel | VAE) or not (bijections or isinstance(inner, SolvedByODE)):
        return None
    noise = torch.Generator(x.device).manual_seed(seed)
    z, log_det = x, torch.zeros(len(x), dtype=torch.float64, device=x.device)
    while bijections and bijections[0].forward_direction.kind == "bound":
        z, term = bijections.pop(0)(z, context, generator=noise)
        log_det = log_det + term.double()
    try:
        if bijections:
            z, term = _bijection(Compose(*bijections), z, context, seconds=seconds / 2)
            log_det = log_det[: len(z)] + term
        of_base = _base(inner, z, _first(context, len(z)), seconds=seconds / 2)
    except _GivenUpError as error:
        return Audit(0, None, None, f"no row was audited: {error}.")
    return _compared(model, x, context, log_det[: len(of_base)] + of_base, seed)


def _compared(model: DensityModel, x: Tensor, context: Context, reference: Tensor, seed: int) -> Audit:
    count = len(reference)
    # All rows go in, so that each meets the noise that it met above.
    found = model.estimate_log_prob(x, context, generator=torch.Generator(x.device).manual_seed(seed))
    difference = (found.log_prob.double()[:count] - reference).abs()
    spread = found.std_error
    known = spread is not None and bool((spread[:count] > 0).all())
    ratio = (difference / spread[:count].double()).max().item() if spread is not None and known else None
    note = "" if count == len(x) else f"the audit took {count} of {len(x)} rows, as many as its time allows."
    return Audit(count, difference.max().item(), ratio, note)


def _base(inner: DensityModel, z: Tensor, context: Context, *, seconds: float) -> Tensor:
    """Log-density of the rows, or of as many as there is time for, in float64."""
    if isinstance(inner, Base):
        return copy.deepcopy(inner).double().log_prob(z.double()).double()
    z = z.to(inner.anchor)
    if not isinstance(inner, SolvedByODE):
        return inner.log_prob(z, context).double()
    size = z[0].numel()
    if inner.divergence.exact:
        if size > MOST_SOLVED:
            raise _GivenUpError(
                f"the Jacobian of a whole solve is taken of {MOST_SOLVED} dimensions or fewer, not {size}"
            )
        return _solved(inner, z, context)
    what, work = f"an exact trace of {size} dimensions", (1 + size) / (1 + inner.divergence.columns)
    rows = _affordable(len(z), lambda: inner.log_prob(z[:1], _first(context, 1)), work, seconds, what=what)
    exact = variant(inner, divergence=ExactDivergence())
    return exact.log_prob(z[:rows], _first(context, rows)).double()


def _solved(inner: DensityModel, z: Tensor, context: Context) -> Tensor:
    """log p of where the ODE leads plus log|det| of the way there, on a fixed grid: an adaptive one is not smooth."""
    size = z[0].numel()
    twin = variant(inner, solver=ODESolver(method="rk4", steps=STEPS))
    way = transport(twin, None if context is None else context.repeat_interleave(size, 0))
    if way is None:
        raise _GivenUpError(f"the way from data to noise is not known of a {type(inner).__name__}")
    with torch.enable_grad():
        copies = z.detach().repeat_interleave(size, 0).requires_grad_()
        end = way.encode(copies)
        units = torch.eye(size, dtype=end.dtype, device=end.device).repeat(len(z), 1)
        (jacobian,) = torch.autograd.grad((end.flatten(1) * units).sum(), copies)
    log_det = torch.linalg.slogdet(jacobian.double().reshape(len(z), size, size)).logabsdet
    return log_det + way.base.log_prob(end[::size].detach()).double()


def _bijection(f: Compose, x: Tensor, context: Context, *, seconds: float) -> tuple[Tensor, Tensor]:
    """f(x) and log|det J|, in float64, of as many rows as there is time for."""
    f, x = copy.deepcopy(f).double(), x.double()
    context = None if context is None else context.double()
    size = x[0].numel()

    def one(i: int, values: int = size) -> tuple[Tensor, Tensor]:
        def mapped(y: Tensor) -> Tensor:
            return f(y, None if context is None else context[i].expand(len(y), -1))[0]

        return _jacobian(mapped, x[i], chunk=COPIES, values=values)

    chunks, what = math.ceil(size / COPIES), f"a Jacobian of {size} dimensions"
    count = _affordable(len(x), lambda: one(0, min(size, COPIES)), chunks, seconds, what=what)
    images, jacobians = zip(*(one(i) for i in range(count)), strict=True)
    return torch.stack(images), torch.stack([torch.linalg.slogdet(j).logabsdet for j in jacobians])


def _jacobian(
    f: Callable[[Tensor], Tensor], x: Tensor, *, chunk: int, values: int | None = None
) -> tuple[Tensor, Tensor]:
    """f(x) and ∂fᵢ/∂xⱼ of the first values i, `(values, size)`: copy i of the event gives row i."""
    size = x.numel()
    rows = []
    for units in torch.arange(size if values is None else values, device=x.device).split(chunk):
        with torch.enable_grad():
            copies = x.detach().expand(len(units), *x.shape).clone().requires_grad_()
            z = f(copies)
            (gradient,) = torch.autograd.grad(z.flatten(1).gather(1, units[:, None]).sum(), copies)
        rows.append(gradient.flatten(1))
    return z[0].detach(), torch.cat(rows)


def _affordable(rows: int, work: Callable[[], object], times: float, seconds: float, *, what: str) -> int:
    """How many rows there is time for, when one takes the work so many times."""
    started = time.monotonic()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    a_row = times * (time.monotonic() - started)
    if a_row > seconds:
        raise _GivenUpError(f"{what} would take about {a_row:.0f} s a row, more than {seconds:.0f} s")
    return min(rows, max(1, int(seconds / max(a_row, 1e-9))))


def _first(context: Context, rows: int) -> Context:
    return None if context is None else context[:rows]
