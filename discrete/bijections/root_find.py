"""The scalar equation s + c h(s) = y that the inverse of a planar layer and of its relatives comes down to."""

import abc
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

ITERATIONS = 12  # of Newton's method: 6 end at rounding for κ ≤ 7, 8 for κ ≤ 150, 12 for κ ≤ 20 000
NEGATIVE_SLOPE = 0.2  # λ of the leaky ReLU
LINEAR = -36.0  # below it log softplus(a) = a to rounding

Scalars = Float[Tensor, "..."]


class Activation(abc.ABC):
    """A rising h with h(0) = 0 and 0 ≤ h' ≤ 1, so that g(s) = s + c h(s) rises for every c > -1.

    c is given by log κ = log(1 + c), which has digits where c rounds to -1.
    """

    @abc.abstractmethod
    def h(self, s: Scalars) -> Scalars:
        """The activation itself."""

    @abc.abstractmethod
    def log_slope(self, s: Scalars, log_kappa: Scalars) -> Scalars:
        """log g'(s) = log(1 + c h'(s))."""

    @abc.abstractmethod
    def root(self, y: Scalars, log_kappa: Scalars) -> Scalars:
        """s with s + c h(s) = y, differentiable in y and log κ to any order."""


class Tanh(Activation):
    """h = tanh: log g' = log(tanh² s + κ (1 - tanh² s)); the root by Newton's method, which cannot miss it.

    g is odd, and on s ≥ 0 convex for c < 0 and concave for c > 0. From an upper bound of the root on, or a lower one,
    Newton's steps then come closer from that side alone.

    Checked by tests/discrete/test_planar.py.

    Note:
        The root is exact to four roundings of the largest of y, s and c h(s) for κ ≤ 20 000. Where g' is small, s has
        as many digits as y has.

    Example:
        >>> s = Tanh().root(torch.tensor([2.0, -2.0]), torch.tensor(3.0).log())  # c = 2
        >>> (s + 2 * s.tanh()).round(decimals=5).tolist()
        [2.0, -2.0]
    """

    def h(self, s: Scalars) -> Scalars:
        """tanh s."""
        return torch.tanh(s)

    def log_slope(self, s: Scalars, log_kappa: Scalars) -> Scalars:
        """log(tanh² s + κ/cosh² s), in logs, since κ may underflow where tanh² s does."""
        t = torch.tanh(s)
        flat = t == 0
        steep = torch.where(flat, -math.inf, 2 * torch.where(flat, 1, t).abs().log())
        return torch.logaddexp(steep, log_kappa - 2 * log_cosh(s))

    def root(self, y: Scalars, log_kappa: Scalars) -> Scalars:
        """By search, with the implicit derivative."""
        return _TanhRoot.apply(y, log_kappa)


class LeakyReLU(Activation):
    """h(s) = max(s, λ s), λ = 1/5: g' = κ on s ≥ 0 and 1 - λ + λ κ below, and the root in closed form.

    Since h' ≤ 1 on both sides it takes c > -1 and no more, as tanh does.

    Checked by tests/discrete/test_planar.py.

    Example:
        >>> LeakyReLU().root(torch.tensor([6.0, -7.0]), torch.tensor(3.0).log()).round(decimals=5).tolist()
        [2.0, -5.0]
    """

    def h(self, s: Scalars) -> Scalars:
        """max(s, λ s)."""
        return F.leaky_relu(s, NEGATIVE_SLOPE)

    def log_slope(self, s: Scalars, log_kappa: Scalars) -> Scalars:
        """log κ on s ≥ 0, log(1 - λ + λ κ) below."""
        rest = log_kappa.new_tensor(1 - NEGATIVE_SLOPE).log()
        return torch.where(s >= 0, log_kappa, torch.logaddexp(rest, math.log(NEGATIVE_SLOPE) + log_kappa))

    def root(self, y: Scalars, log_kappa: Scalars) -> Scalars:
        """y/g', since s and y are of one sign."""
        return y * torch.exp(-self.log_slope(y, log_kappa))


class _TanhRoot(Function):
    """s(y, log κ) by search; ds = (dy - κ tanh(s) dlog κ)/g'(s)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, log_kappa: Tensor) -> Tensor:
        return y.sign() * _search(y.abs(), log_kappa)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1], output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        log_kappa, s = ctx.saved_tensors
        log_slope = Tanh().log_slope(s, log_kappa)
        by_log_kappa = -gradient * torch.tanh(s) * torch.exp(log_kappa - log_slope)
        return gradient * torch.exp(-log_slope), by_log_kappa.sum_to_size(log_kappa.shape)


def _search(y: Tensor, log_kappa: Tensor) -> Tensor:
    """The root s ≥ 0 for y ≥ 0, from the bound that lies on the safe side."""
    c, kappa = torch.expm1(log_kappa), log_kappa.exp().clamp(min=torch.finfo(y.dtype).tiny)
    # c < 0: s³/(3 + 1.2 s²) ≤ s - tanh s ≤ y, and g ≥ κ s, s + c. c > 0: tanh s ≤ s, 1.
    above = torch.minimum(torch.minimum(y / kappa, y - c), (3 * y).pow(1 / 3) + 1.2 * y)
    below = torch.maximum(y / kappa, y - c)
    low, high = torch.where(c < 0, y, below), torch.where(c < 0, above, y)
    s = torch.where(c < 0, high, low)
    for _ in range(ITERATIONS):
        t = torch.tanh(s)
        flat = t * t
        step = torch.addcmul(s - y, c, t) / torch.addcmul(flat, kappa, 1 - flat)
        s = (s - step).clamp(low, high)
    return s


def log_softplus(a: Scalars) -> Scalars:
    """log log(1 + exp a), finite and with a gradient where softplus(a) underflows.

    Example:
        >>> log_softplus(torch.tensor([-200.0, 200.0])).tolist()
        [-200.0, 5.298317...]
    """
    return torch.where(a < LINEAR, a, softplus(a.clamp(min=LINEAR)).log())


def softplus(a: Scalars) -> Scalars:
    """log(1 + exp a) to rounding; torch's own is the identity from 20 on, which is 2e-9 off."""
    return -F.logsigmoid(-a)


def log_cosh(a: Scalars) -> Scalars:
    """log cosh a, which neither overflows nor has a kink."""
    return a + softplus(-2 * a) - math.log(2)
