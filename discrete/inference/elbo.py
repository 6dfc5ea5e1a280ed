"""Variational inference: a flow fitted to an unnormalized density by the reverse Kullback-Leibler divergence."""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from core.density import Context
from core.modes import evaluating, frozen
from core.rng import Rng
from discrete.flow import Flow
from discrete.inference.distillation import Gradient


class ReverseKL(NamedTuple):
    """KL(q ‖ p) - log Z by Monte Carlo, Z = ∫ p̃ the constant that p̃ lacks: minus the evidence lower bound.

    Attributes:
        loss_nats: mean of `draws_nats`, 0-dimensional and differentiable; unbiased, so that it lies above -log Z only
            on average.
        std_error_nats: its standard error over draws at the contexts given, 0-dimensional; NaN where a single draw
            cannot tell.
        draws_nats: log q(x) - log p̃(x) at each draw, `(samples, *b)`.
    """

    loss_nats: Tensor
    std_error_nats: Tensor
    draws_nats: Tensor


def negative_elbo(
    flow: Flow,
    log_joint: Callable[[Tensor], Tensor],
    samples: int,
    *,
    context: Context = None,
    gradient: Gradient = "total",
    generator: Rng = None,
) -> ReverseKL:
    """E_q[log q(x) - log p̃(x)] = KL(q ‖ p) - log Z, x drawn from the flow q with its own density in one pass, nats.

    References:
        Rezende and Mohamed, "Variational inference with normalizing flows", 2015, eq. 15.
        Roeder, Wu, Duvenaud, "Sticking the landing", 2017, eq. 7 (`path`).

    Checked by tests/discrete/inference/test_elbo.py (closed-form divergence of Gaussians and its gradient).

    Args:
        flow: q, one that samples fast, as `PlanarFlow` or `IAF` do.
        log_joint: log p̃, differentiable: takes draws `(samples, *b, *event)` and gives nats `(samples, *b)`. An energy
            -U(x), log p(data, x) of a model, or the `log_prob` of any density. Its own parameters receive gradients.
        samples: number of draws, for each context.
        context: `(*b, features)`: one q for each of its rows, the loss being their mean.
        gradient: `total` differentiates the estimate as it stands. `path` leaves out the score ∂ log q(x)/∂θ at fixed
            x, whose mean is zero: the gradient keeps its mean and vanishes draw by draw where q = p. It evaluates
            `log_prob` of the flow at each draw, which inverts it, and has the flow in evaluation mode.
        generator: draws the noise.

    Returns:
        The loss, its standard error, and what it is the mean of.

    Raises:
        ValueError: no sample, an unknown gradient, or values of `log_joint` of another shape than one a draw.
        TypeError: the flow's base has no differentiable draws.

    Note:
        q is asked only where it draws: modes that it does not reach cost it no more than minus the log of the mass of
        those that it does, and nothing pulls it there. Anneal by scaling `log_joint` up, or compare `-loss_nats` with
        log Z where it is known.

    Example:
        >>> import torch
        >>> from discrete import LinearFlow
        >>> energy = lambda x: -0.5 * (x - 1).square().sum(-1)  # N(1, I) without its constant: log Z = log 2π
        >>> rng = torch.Generator().manual_seed(0)
        >>> found = negative_elbo(LinearFlow(2), energy, 10_000, generator=rng)
        >>> round(found.loss_nats.item() + math.log(2 * math.pi), 1)  # ½ ‖μ_q - μ_p‖²
        1.0
        >>> found.std_error_nats.item() < 0.02
        True
    """
    if samples < 1 or gradient not in ("total", "path"):
        raise ValueError(
            f"negative_elbo needs 1 sample or more and gradient total or path, but has {samples} and {gradient!r}."
        )
    x, log_q = _draw(flow, samples, context, gradient, generator)
    log_p = log_joint(x)
    if log_p.shape != log_q.shape:
        raise ValueError(f"log_joint must give {tuple(log_q.shape)}, one value a draw, but gave {tuple(log_p.shape)}.")
    draws = log_q - log_p
    return ReverseKL(draws.mean(), _std_error(draws.detach()), draws)


def _draw(
    flow: Flow, samples: int, context: Tensor | None, gradient: Gradient, generator: Rng
) -> tuple[Tensor, Tensor]:
    """Draws and their log-densities, by the gradient's way."""
    shape = (samples,) if context is None else (samples, *context.shape[:-1])
    if gradient == "total":
        return flow.rsample_and_log_prob(shape, context=context, generator=generator)
    with evaluating(flow):
        x, _ = flow.rsample_and_log_prob(shape, context=context, generator=generator)
    with frozen(flow):
        return x, flow.log_prob(x, None if context is None else context.detach(), generator=generator)


def _std_error(draws: Tensor) -> Tensor:
    """Of the mean over draws, of which each context has its own."""
    if len(draws) < 2:
        return draws.new_full((), math.nan)
    return (draws.var(0) / len(draws)).mean().div(draws[0].numel()).sqrt()
