"""Invertible residual layers z = x + g(x) with g a contraction, and the ways to their log-determinant."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

from core.nets.lipschitz import Jacobian, LipschitzActivation, LipschitzMap, LipschitzNet
from core.rng import Rng, for_all_rows, rand
from discrete.bijection import Bijection, Context, Direction, Events, Mapped
from discrete.bijections.fixed_point import largest_count, solve_implicitly
from discrete.bijections.inversion import gradients

LogDet = Literal["exact", "power_series", "unbiased"]
Series = Callable[[Jacobian, Tensor], tuple[Tensor, Tensor]]  # of probes v: log-det, and w with E[wᵀ dJ v] its gradient
LOW = 8  # dimensions up to which the Jacobian is cheaper than a series


class InvertibleResidual(Bijection):
    """z = x + g(x) with ‖g(x) - g(y)‖ ≤ L ‖x - y‖, L < 1; with J = ∂g/∂x, log det(I + J) = Σ_k (-1)^(k+1) tr(Jᵏ)/k.

    The log-determinant, of a direction and its inverse alike at x, comes

    - `exact`, from the Jacobian: D products and an LU factorization a row.
    - as a `power_series` of n terms with tr(Jᵏ) ≈ vᵀJᵏv, one random probe v or the mean of several. What is cut off is
      at most D L^(n+1) / ((n + 1)(1 - L)), and stays whatever the number of probes.
    - `unbiased`, in training: n terms are always taken; behind each of them chance goes on with probability q = 1 -
      stop, and term n + j counts 1/P(N ≥ j) = q^(-j) times. Its gradient is E[wᵀ (dJ) v] with wᵀ = Σ_k (-1)^k vᵀJᵏ,
      weighted likewise, from one differentiated product however many terms; activations of g are computed anew for it.
      In evaluation nothing is left to chance but v: each row takes terms until what is left is `truncation` or less
      by the bound ‖v‖ ‖Jⁿv‖ L / ((n + 1)(1 - L)).

    The inverse iterates x ← z - g(x), which gains a factor L or better a step, with implicit gradients.

    References:
        Behrmann, Grathwohl, Chen, Duvenaud, Jacobsen, "Invertible residual networks", 2019, theorem 1, algorithms 1 and
        2, theorem 3 for the truncation. Chen, Behrmann, Duvenaud, Jacobsen, "Residual flows for invertible generative
        modeling", 2019, theorems 1 and 2.

    Checked by tests/contracts/bijections.py and tests/discrete/test_residual.py.

    Args:
        event_shape: number of features, or (channels, height, width).
        hidden: widths of the hidden layers of g, see `LipschitzNet`.
        lipschitz: L, within (0, 1).
        activation: `lipswish`, `clipswish`, `tanh` or `elu`.
        log_det: `exact`, `power_series` or `unbiased`; exact up to 8 dimensions, unbiased above, where omitted.
        terms: n of the series: 10 of a power series and 2 of the unbiased one, where omitted.
        stop: probability with which the unbiased series ends behind each further term.
        probes: vectors v a row, whose estimates are averaged.
        truncation: nats that the unbiased series may miss in evaluation.
        context_features: width of the context, 0 for none.
        tolerance: residual at which a row of the inverse rests; where omitted 20 roundings of its largest value, or
            of 1.
        steps: power steps a call in training, see `SpectralLayer`.

    Raises:
        ValueError: an option out of range.
        RuntimeError: the gradient of an unbiased log-determinant is to be differentiated again.

    Note:
        The variance of the unbiased series is finite where ‖J‖² < 1 - stop along every direction that matters; with a
        Poisson number of terms it never is. `Flow` gives the standard error. Second derivatives, but of the weights
        alone, see `SpectralLayer`, are right.

    Example:
        >>> layer = InvertibleResidual(2, hidden=(8,))
        >>> x = torch.ones(1, 2)
        >>> back, log_det = layer.inverse(layer(x)[0])
        >>> bool(torch.dist(back, x) < 1e-5)
        True
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        hidden: Sequence[int] = (128, 128),
        lipschitz: float = 0.9,
        activation: LipschitzActivation = "lipswish",
        log_det: LogDet | None = None,
        terms: int | None = None,
        stop: float = 0.5,
        probes: int = 1,
        truncation: float = 1e-3,
        context_features: int = 0,
        tolerance: float | None = None,
        steps: int = 2,
    ) -> None:
        super().__init__(event_shape)
        D = self.event_shape.numel()
        log_det = ("exact" if D <= LOW else "unbiased") if log_det is None else log_det
        terms = (2 if log_det == "unbiased" else 10) if terms is None else terms
        if log_det not in ("exact", "power_series", "unbiased") or not 0 < lipschitz < 1 or not 0 < stop < 1:
            raise ValueError(
                "InvertibleResidual's log_det is exact, power_series or unbiased, its lipschitz and stop lie within "
                f"(0, 1), but they are {log_det!r}, {lipschitz} and {stop}."
            )
        if min(terms, probes) < 1 or not truncation > 0 or (tolerance is not None and not tolerance > 0):
            raise ValueError(
                "InvertibleResidual needs 1 term and 1 probe or more, a positive truncation and a positive tolerance, "
                f"but has {terms=}, {probes=}, {truncation=} and {tolerance=}."
            )
        self.log_det, self.terms, self.stop, self.probes = log_det, terms, stop, probes
        self.lipschitz, self.truncation, self.tolerance = lipschitz, truncation, tolerance
        self.network = LipschitzNet(
            self.event_shape,
            hidden=hidden,
            lipschitz=lipschitz,
            activation=activation,
            context_features=context_features,
            steps=steps,
        )
        exact = log_det == "exact"
        passes, kind = (1 + D, "exact") if exact else (1 + probes * terms, "estimate")
        self.forward_direction = Direction(passes, cast(Any, kind), steps=2 if exact else 1 + terms)
        iterations = largest_count(lipschitz, self.event_shape.numel(), torch.float32)
        self.inverse_direction = self.forward_direction + Direction(iterations)

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """z, and log|det dz/dx|."""
        image, log_det = self._mapped(self.network.bind(context), x, generator)
        return x + image, log_det

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """x, and log|det dx/dz|, which is that of `forward` at x with the other sign.

        Raises:
            RuntimeError: a row whose iteration does not converge; it is named.
        """
        g = self.network.bind(context)
        x = solve_implicitly(g, z, lipschitz=self.lipschitz, tolerance=self.tolerance)
        return x, -self._mapped(g, x, generator)[1]

    def _mapped(self, g: LipschitzMap, x: Tensor, generator: Rng) -> tuple[Tensor, Tensor]:
        """g(x) and log det(I + J)."""
        if self.log_det == "exact":
            image, J = g.linearize(x)
            identity = torch.eye(self.event_shape.numel(), dtype=x.dtype, device=x.device)
            return image, torch.linalg.slogdet(identity + J.dense(x)).logabsdet
        v = _signs(self.probes, x, generator)
        if self.log_det == "power_series":
            image, J = g.linearize(x)
            return image, power_series(J, v, [1.0] * self.terms)[0]
        return cast(tuple[Tensor, Tensor], _Estimate.apply(g, self._series(x, generator), v, x, *g.tensors()))

    def _series(self, x: Tensor, generator: Rng) -> Series:
        if not self.training:
            return lambda J, v: settled_series(J, v, lipschitz=self.lipschitz, truncation=self.truncation)
        further = 1 if x.is_meta else _geometric(1 - self.stop, generator, x.device)
        weights = roulette_weights(self.terms, further, 1 - self.stop)
        return lambda J, v: power_series(J, v, weights)


def roulette_weights(terms: int, further: int, q: float) -> list[float]:
    """1 of the terms that are always taken, and 1/P(N ≥ j) = q^(-j) of j = 1, ..., further."""
    return [1.0] * terms + [q**-j for j in range(1, further + 1)]


def power_series(J: Jacobian, v: Tensor, weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Σ_k (-1)^(k+1) c_k vᵀJᵏv/k, averaged over probes, and w = v + Σ_k (-1)^k c_k (Jᵀ)ᵏ v.

    Args:
        J: the Jacobian of g at some rows.
        v: probes, `(k, rows, *event)`.
        weights: c_1, c_2, ...
    """
    log_det, w, u = 0.0, v, v
    for k, weight in enumerate(weights, 1):
        u = J.pull(u)
        signed = (-1) ** k * weight
        log_det, w = log_det - signed / k * _dot(u, v), w + signed * u
    return cast(Tensor, log_det).mean(0), w


def settled_series(J: Jacobian, v: Tensor, *, lipschitz: float, truncation: float) -> tuple[Tensor, Tensor]:
    """`power_series` with every c_k = 1 and as many terms as each row needs to miss `truncation` nats at most.

    |Σ_{k>n} (-1)^(k+1) vᵀJᵏv/k| ≤ ‖v‖ ‖(Jᵀ)ⁿv‖ L/((n + 1)(1 - L)): each further factor shrinks u by L or better.
    """
    L, D = lipschitz, v[0, 0].numel() if v.shape[1] else 1
    log_det, w, u = v.new_zeros(v.shape[:2]), v, v
    for k in range(1, count_for(truncation, L, D) + 1):
        u = J.pull(u)
        log_det, w = log_det - (-1) ** k / k * _dot(u, v), w + (-1) ** k * u
        left = (_dot(v, v) * _dot(u, u)).sqrt() * (L / ((k + 1) * (1 - L)))
        rests = left.mean(0) <= truncation
        if v.is_meta or (k % 4 == 0 and bool(rests.all())):
            break
        u = torch.where(rests.reshape(-1, *(1 for _ in v.shape[2:])), 0, u)
    return log_det.mean(0), w


def truncation_bound(terms: int, lipschitz: float, dimensions: int) -> float:
    """D L^(n+1) / ((n + 1)(1 - L)): the most nats that n terms of the series can miss."""
    n, L, D = terms, lipschitz, dimensions
    return D * L ** (n + 1) / ((n + 1) * (1 - L))


def count_for(truncation: float, lipschitz: float, dimensions: int) -> int:
    """Fewest terms whose `truncation_bound` is no larger."""
    low, high = 0, 1
    while truncation_bound(high, lipschitz, dimensions) > truncation:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if truncation_bound(middle, lipschitz, dimensions) > truncation else (low, middle)
    return high


def _geometric(q: float, generator: Rng, device: torch.device) -> int:
    """N with P(N ≥ j) = q^j, one for all rows."""
    one = for_all_rows(generator, owner="the number of terms")
    place = "cpu" if one is None else one.device
    u = torch.rand((), generator=one, device=place, dtype=torch.float64).item()
    return int(math.log1p(-u) / math.log(q))


def _signs(count: int, x: Tensor, generator: Rng) -> Tensor:
    """Random signs `(count, *x.shape)`, the same in every dtype; of a generator for each row, by its seed alone."""
    u = rand((len(x), count, *x.shape[1:]), generator, like=x.new_zeros((), dtype=torch.float32))
    return torch.where(u < 0.5, -1.0, 1.0).to(x.dtype).transpose(0, 1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of `(k, rows, *event)`, `(k, rows)`."""
    return (a * b).flatten(2).sum(2)


class _Estimate(torch.autograd.Function):
    """g(x) and a random log det(I + J), whose gradient E[wᵀ (dJ) v] takes one product; g is run again for it."""

    @staticmethod
    def forward(
        ctx: Any, g: LipschitzMap, series: Series, v: Tensor, x: Tensor, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        image, J = g.linearize(x)
        log_det, w = series(J, v)
        ctx.g = g
        ctx.save_for_backward(v, w, x, *tensors)
        return image, log_det

    @staticmethod
    def backward(ctx: Any, image_gradient: Tensor, log_det_gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the gradient of an unbiased log-determinant cannot be differentiated again, but create_graph=True "
                "asks for it; use log_det='exact' or 'power_series'."
            )
        v, w, x, *tensors = ctx.saved_tensors
        with torch.enable_grad():
            known = [
                t if t is None else t.detach().requires_grad_(needed)
                for t, needed in zip((x, *tensors), ctx.needs_input_grad[3:], strict=True)
            ]
            image, J = ctx.g.holding(known[1:]).linearize(known[0])
            surrogate = _dot(w, J.push(v)).mean(0)
        return None, None, None, *gradients((image, surrogate), known, (image_gradient, log_det_gradient))
