"""The maps between data and noise of a density that an ODE gives, apart from its likelihood."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from cflows import ConditionalScore
from cflows.angle_flow import AngleFlow
from cflows.models.continuous_flow import ContinuousFlow
from cflows.ode.field import Plain
from core import DensityModel
from core.density import Context
from experiment.likelihood.unwrapped import ScoreUnderSDE

Map = Callable[[Tensor], Tensor]


class Transport(NamedTuple):
    """Both directions, rows in, rows out, in the autograd graph where gradients are enabled.

    Attributes:
        encode: from data, at t_min of a score model, to noise.
        decode: back.
        base: density of the noise.
    """

    encode: Map
    decode: Map
    base: DensityModel


def transport(model: DensityModel, context: Context = None) -> Transport | None:
    """The maps that the likelihood of `model` rests on, by its own solver; None where no ODE is solved."""
    if isinstance(model, ContinuousFlow):
        return Transport(lambda x: model.encode(x, context), lambda z: model.decode(z, context), model.base)
    return _of_score(model, context) if isinstance(model, ScoreUnderSDE) else None


def _of_score(model: ScoreUnderSDE, context: Context) -> Transport:
    """The probability flow in the angle, as `probability_flow_log_prob` solves it."""
    solver = model.solver
    score = model.score if context is None else ConditionalScore(model.score, context)
    flow = AngleFlow.solved_by(solver, score, model.sde)
    (first, last), times = flow.radii(model.t_min), flow.times(solver, model.t_min)
    return Transport(
        lambda x: last * solver.solve(Plain(flow), x / first, times).x,
        lambda z: first * solver.solve(Plain(flow), z / last, times.flip(0)).x,
        model.prior,
    )
