"""Planar flows: a step along one direction by the distance to a plane, invertible by one scalar root."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.rng import Rng
from discrete.bijection import Bijection, Context, Direction, Events, Mapped
from discrete.bijections.amortization import Amortization
from discrete.bijections.root_find import Activation, LeakyReLU, Tanh, log_softplus, softplus

ActivationName = Literal["tanh", "leaky_relu"]
ACTIVATIONS: dict[str, type[Activation]] = {"tanh": Tanh, "leaky_relu": LeakyReLU}
UNIT_SOFTPLUS = math.log(math.e - 1)  # softplus of it is 1


class Planar(Bijection):
    """z = x + û h(wᵀx + b), log|det| = log(1 + wᵀû h'(wᵀx + b)), h = tanh or a leaky ReLU.

    û = u + (m(wᵀu) - wᵀu) w/|w|² with m(a) = -1 + softplus(a), so that wᵀû = m(wᵀu) > -1 whatever the parameters: the
    map rises along w, and is invertible. Both directions cost O(D) a row. The inverse solves s + wᵀû h(s) = wᵀz + b,
    one scalar equation whatever D, for s = wᵀx + b, and x = z - û h(s); for tanh by a safe Newton iteration, for the
    leaky ReLU in closed form. It is differentiable to any order in z, context and parameters.

    Starts at the identity: w a random direction, b = 0 and u = log(e - 1) w/|w|², where û = 0. With a context, u, w and
    b are learned + linear(context) for each row, the linear part zero at first.

    References:
        Rezende and Mohamed, "Variational inference with normalizing flows", 2015, eq. 10-12 and appendix A.1.

    Checked by tests/contracts/bijections.py and tests/discrete/test_planar.py.

    Args:
        event_shape: shape of one event; every event is read as a vector of D values.
        activation: h: `tanh`, or `leaky_relu` with slope 1/5 below 0.
        context_features: width of the context, 0 for none.

    Raises:
        ValueError: an unknown activation.

    Note:
        wᵀû is kept as log(1 + wᵀû), finite for wᵀu = ±200 in float32 too. w = 0 has no û, which grows as 1/|w|.
        The paper's x = f(z) runs from noise to data: there the layer is an `Inverse` of this one, as in `PlanarFlow`.

    Example:
        >>> layer = Planar(2)
        >>> _ = torch.nn.init.constant_(layer.u, 3.0)
        >>> z, log_det = layer(torch.tensor([[0.5, -1.0]]))
        >>> x, _ = layer.inverse(z)
        >>> x.round(decimals=4).tolist()
        [[0.5, -1.0]]
    """

    forward_direction = inverse_direction = Direction(0)

    def __init__(
        self, event_shape: int | Sequence[int], *, activation: ActivationName = "tanh", context_features: int = 0
    ) -> None:
        super().__init__(event_shape)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, but is {activation!r}.")
        self.activation = ACTIVATIONS[activation]()
        w = F.normalize(torch.randn(self.event_shape.numel()), dim=0)
        self.u = nn.Parameter(UNIT_SOFTPLUS * w)
        self.w = nn.Parameter(w)
        self.b = nn.Parameter(torch.zeros(()))
        self.amortization = Amortization([self.u, self.w, self.b], context_features=context_features)

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """In closed form."""
        u_hat, w, b, log_kappa = self._rows(context)
        v = x.flatten(1)
        s = _project(v, w) + b
        z = torch.addcmul(v, u_hat, self.activation.h(s)[:, None])
        return z.reshape(x.shape), self.activation.log_slope(s, log_kappa)

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """By one scalar root a row."""
        u_hat, w, b, log_kappa = self._rows(context)
        v = z.flatten(1)
        s = self.activation.root(_project(v, w) + b, log_kappa)
        x = torch.addcmul(v, u_hat, self.activation.h(s)[:, None], value=-1)
        return x.reshape(z.shape), -self.activation.log_slope(s, log_kappa)

    def _rows(self, context: Context) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """û and w, `(rows, D)`, b and log(1 + wᵀû), `(rows,)`; of one row where there is no context."""
        u, w, b = self.amortization([self.u, self.w, self.b], context)
        size = w.abs().amax(1, keepdim=True).detach()  # the square of a tiny w underflows
        v = w / size
        a = (u * w).sum(1)
        step = (softplus(-a) - 1)[:, None] / (size * (v * v).sum(1, keepdim=True))  # m(a) - a = softplus(-a) - 1
        return torch.addcmul(u, step, v), w, b, log_softplus(a)


def _project(v: Tensor, w: Tensor) -> Tensor:
    """wᵀv of each row, by one product where all rows share w."""
    return v @ w[0] if len(w) == 1 else (v * w).sum(1)
