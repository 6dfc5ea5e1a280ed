"""Networks with ‖g(x) - g(y)‖₂ ≤ L ‖x - y‖₂: layers of bounded norm between activations of slope 1 or less.

Such a network is a chain of linear maps and elementwise functions, so its Jacobian at x is a product that is known:
J = W_n S_{n-1} W_{n-1} ... S_1 W_1 with S_i the slopes of the activations. Products with J and Jᵀ cost one pass each
and are differentiable as any other, without a second pass of autograd.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from core.nets.mlp import check_context
from core.nets.spectral import SpectralLayer, padding, times
from core.shapes import as_event_shape

LipschitzActivation = Literal["lipswish", "clipswish", "tanh", "elu"]
ACTIVATIONS = ("lipswish", "clipswish", "tanh", "elu")
Layer = tuple[Tensor, Tensor, Tensor | None]  # W with ‖W‖₂ bounded, b, and the β of the activation behind, if any
STEEPEST = 1.1  # above the largest slope of h σ(h), 1.0998
CONCATENATED = 1.004  # above the largest norm of the two slopes of a concatenation, 1.0039


class Jacobian(NamedTuple):
    """J = W_n S_{n-1} ... S_1 W_1 at each of some rows."""

    weights: tuple[Tensor, ...]
    slopes: tuple[Tensor, ...]

    def push(self, u: Float[Tensor, "k _ ..."]) -> Float[Tensor, "k rows ..."]:
        """J u, `(k, rows, *event)`."""
        for weight, slope in zip(self.weights, self.slopes, strict=False):
            u = _multiply(weight, u)
            u = (u if u.shape[2] == slope.shape[1] else torch.cat([u, u], 2)) * slope
        return _multiply(self.weights[-1], u)

    def pull(self, v: Float[Tensor, "k rows ..."]) -> Float[Tensor, "k rows ..."]:
        """Jᵀ v, `(k, rows, *event)`."""
        v = _multiply(self.weights[-1], v, transposed=True)
        for weight, slope in zip(self.weights[-2::-1], self.slopes[::-1], strict=True):
            v = v * slope
            if v.shape[2] != weight.shape[0]:
                v = torch.add(*v.chunk(2, 2))
            v = _multiply(weight, v, transposed=True)
        return v

    def dense(self, x: Float[Tensor, "rows ..."]) -> Float[Tensor, "rows n n"]:
        """J itself at the rows x, by n products."""
        n = x.shape[1:].numel()
        units = torch.eye(n, dtype=x.dtype, device=x.device).reshape(n, 1, *x.shape[1:])
        columns = self.push(units).flatten(2)
        return columns.expand(n, len(x), n).permute(1, 2, 0)


@dataclass(frozen=True)
class LipschitzMap:
    """g(x) = W_n a(... a(W_1 x + b_1 + shift) ...) + b_n with its weights as they are now.

    Attributes:
        layers: the layers.
        activation: name of a.
        shift: what a context adds to the first layer, `(rows, width)`, or None.
    """

    layers: tuple[Layer, ...]
    activation: str
    shift: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """g(x), `(rows, *event)`."""
        return self._run(x)[0]

    def linearize(self, x: Tensor) -> tuple[Tensor, Jacobian]:
        """g(x), and its Jacobian there."""
        y, slopes = self._run(x)
        return y, Jacobian(tuple(weight for weight, _, _ in self.layers), tuple(slopes))

    def tensors(self) -> list[Tensor | None]:
        """All that g(x) depends on beside x: what a gradient may be asked for."""
        return [self.shift, *(tensor for layer in self.layers for tensor in layer)]

    def holding(self, tensors: Sequence[Tensor | None]) -> "LipschitzMap":
        """The same map with others in their place, in the order of `tensors`."""
        shift, *rest = tensors
        layers = tuple(cast(Layer, tuple(rest[i : i + 3])) for i in range(0, len(rest), 3))
        return LipschitzMap(layers, self.activation, shift)

    def _run(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        slopes, last = [], len(self.layers) - 1
        for i, (weight, bias, beta) in enumerate(self.layers):
            x = F.linear(x, weight, bias) if weight.ndim == 2 else F.conv2d(x, weight, bias, padding=padding(weight))
            if i == 0 and self.shift is not None:
                x = x + self.shift.reshape(*self.shift.shape, *(1 for _ in x.shape[2:]))
            if i < last:
                x, slope = activate(self.activation, x, beta)
                slopes.append(slope)
        return x, slopes


def activate(name: str, h: Tensor, beta: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """a(h) and a'(h); a concatenation doubles the channels of both.

    Args:
        name: `lipswish`, h σ(β h)/1.1; `clipswish`, that of h and of -h beside one another over 1.004; `tanh`; `elu`.
        h: `(rows, channels, ...)`.
        beta: β > 0 of the first two, 0-dimensional.
    """
    if name == "tanh":
        y = h.tanh()
        return y, 1 - y.square()
    if name == "elu":
        return F.elu(h), h.clamp(max=0).exp()
    bh = h if beta is None else beta * h
    s = bh.sigmoid()
    r = 1 - s
    if name == "lipswish":
        return h * s / STEEPEST, s * (1 + bh * r) / STEEPEST
    scale = 1 / (STEEPEST * CONCATENATED)
    return torch.cat([h * s, -h * r], 1) * scale, torch.cat([s * (1 + bh * r), -r * (1 - bh * s)], 1) * scale


class LipschitzNet(nn.Module):
    """g with Lipschitz constant L: `SpectralLayer`s of bound L^(1/n) with an activation behind each but the last.

    Vectors: fully connected. Images: a 3×3 convolution, 1×1 convolutions from width to width, a 3×3 convolution. A
    context is added to the first layer by a linear map whose norm is free: g is Lipschitz in x alone.

    References:
        Chen, Behrmann, Duvenaud, Jacobsen, "Residual flows for invertible generative modeling", 2019, section 3.3 for
        LipSwish, appendix E for the networks. Perugachi-Diaz, Tomczak, Bhulai, "Invertible DenseNets with concatenated
        LipSwish", 2021, section 4.2.

    Checked by tests/core/test_lipschitz.py.

    Args:
        event_shape: number of features, or (channels, height, width); of the output as well.
        hidden: widths of the hidden layers; with none g is one layer.
        lipschitz: L > 0.
        activation: `lipswish`, `clipswish`, `tanh` or `elu`: of slope 1 or less, with a second derivative that does not
            vanish where the slope is largest.
        context_features: width of the context, 0 for none.
        steps: power steps a call in training.

    Raises:
        ValueError: an event that is neither vector nor image, or an option out of range.

    Example:
        >>> g = LipschitzNet(3, hidden=(8,), lipschitz=0.5)
        >>> x = torch.randn(2, 3)
        >>> bool(torch.dist(*g(x)) <= 0.5 * torch.dist(*x))
        True
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        hidden: Sequence[int] = (128, 128),
        lipschitz: float = 0.9,
        activation: LipschitzActivation = "lipswish",
        context_features: int = 0,
        steps: int = 2,
    ) -> None:
        super().__init__()
        self.event_shape = as_event_shape(event_shape)
        channels, *pixels = self.event_shape
        if len(pixels) not in (0, 2) or activation not in ACTIVATIONS or not lipschitz > 0:
            raise ValueError(
                f"LipschitzNet takes a vector or (channels, height, width), an activation of {', '.join(ACTIVATIONS)} "
                f"and a positive constant, but has {tuple(self.event_shape)}, {activation!r} and {lipschitz}."
            )
        self.activation, self.context_features = activation, context_features
        wider = 2 if activation == "clipswish" else 1
        widths = [(channels, 0), *((wider * width, width) for width in hidden), (0, channels)]
        count = len(widths) - 1
        kernels = [3 if pixels and i in (0, count - 1) else 1 for i in range(count)]
        bound = lipschitz ** (1 / count)
        self.layers = nn.ModuleList(
            SpectralLayer((fan_in, *pixels), out, kernel=kernel, bound=bound, steps=steps)
            for ((fan_in, _), (_, out)), kernel in zip(pairwise(widths), kernels, strict=True)
        )
        # softplus(½) ≈ 1; none behind the last layer.
        betas = count - 1 if activation in ("lipswish", "clipswish") else 0
        self.beta = nn.Parameter(torch.full((betas,), 0.5)) if betas else None
        width = [*hidden, channels][0]
        self.context = nn.Linear(context_features, width, bias=False) if context_features else None

    def bind(self, context: Float[Tensor, "rows context"] | None = None) -> LipschitzMap:
        """g(·, context) with its weights normalized once, for any number of calls.

        Raises:
            ValueError: context given or missing against `context_features`.
        """
        check_context(context, self.context_features)
        shift = None if self.context is None else self.context(context)
        betas = [] if self.beta is None else list(F.softplus(self.beta))
        betas += [None] * (len(self.layers) - len(betas))
        made = zip(cast(Iterable[SpectralLayer], self.layers), betas, strict=True)
        layers = tuple((layer.normalized(), layer.bias, beta) for layer, beta in made)
        return LipschitzMap(layers, self.activation, shift)

    def forward(
        self, x: Float[Tensor, "rows ..."], context: Float[Tensor, "rows context"] | None = None
    ) -> Float[Tensor, "rows ..."]:
        """g(x), `(rows, *event)`."""
        return self.bind(context)(x)


def _multiply(weight: Tensor, x: Tensor, *, transposed: bool = False) -> Tensor:
    """W x or Wᵀ x of `(k, rows, *event)`."""
    if weight.ndim == 2:
        return x @ (weight if transposed else weight.mT)
    return times(weight, x.flatten(0, 1), transposed=transposed).unflatten(0, x.shape[:2])
