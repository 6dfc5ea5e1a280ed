"""The layer of a transformer flow: an affine map of each patch whose parameters see the patches before it."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from core.nets import CausalTransformer
from core.rng import Rng
from core.shapes import cut
from discrete.bijection import Bijection, Context, Direction, Events, Mapped
from discrete.bijections.autoregressive_inverse import (
    InverseMode,
    check_inverse,
    invert_autoregressive,
    solve_autoregressive,
)
from discrete.bijections.inversion import Inversion
from discrete.bijections.transformers import AffineTransformer

PatchOrder = Literal["raster", "reversed"]
ORDERS = ("raster", "reversed")


class PatchConditioner(nn.Module):
    """θ of every value of a token from the tokens before it: a causal transformer over flattened tokens.

    Args:
        tokens: number T of tokens.
        values: values of a token.
        parameters_per_value: parameters k of a value.
        depth: blocks of the transformer.
        hidden: its width, a multiple of `heads`.
        heads: attention heads a block.
        context_features: width of the context, 0 for none.
    """

    def __init__(
        self,
        tokens: int,
        values: int,
        *,
        parameters_per_value: int,
        depth: int,
        hidden: int,
        heads: int,
        context_features: int,
    ) -> None:
        super().__init__()
        self.tokens, self.values, self.parameters_per_value = tokens, values, parameters_per_value
        self.network = CausalTransformer(
            values,
            values * parameters_per_value,
            tokens=tokens,
            layers=depth,
            hidden=hidden,
            heads=heads,
            context_features=context_features,
            zero_output=True,
        )

    @property
    def degrees(self) -> Int[Tensor, " n"]:
        """Place of each value's token in the order, 1..T, on the CPU."""
        return torch.arange(1, self.tokens + 1, device="cpu").repeat_interleave(self.values)

    def forward(self, x: Float[Tensor, "rows n"], context: Context = None) -> Float[Tensor, "rows n k"]:
        """θ `(rows, n, k)` of all tokens in one pass."""
        # Fused attention has no second derivative, which a score or a Jacobian that is trained on needs.
        with sdpa_kernel(SDPBackend.MATH) if torch.is_grad_enabled() else nullcontext():
            y = self.network(rearrange(x, "rows (tokens values) -> rows tokens values", values=self.values), context)
        return rearrange(y, "rows tokens (values k) -> rows (tokens values) k", k=self.parameters_per_value)

    def sweep(
        self, choose: Callable[[slice, Tensor], Tensor], rows: int, context: Context = None
    ) -> Float[Tensor, "rows n"]:
        """Tokens one after the other, without gradient.

        Args:
            choose: called with the place of a token's values and their θ `(rows, values, k)`, returns the values.
            rows: number of rows.
            context: `(rows, context_features)`, or None.
        """

        def choose_token(i: int, y: Tensor) -> Tensor:
            theta = rearrange(y, "rows (values k) -> rows values k", k=self.parameters_per_value)
            return choose(slice(i * self.values, (i + 1) * self.values), theta)

        return self.network.sweep(choose_token, rows, context).flatten(1)


class PatchAutoregressive(Bijection):
    """z_i = x_i ⊙ exp(s_i) + t_i of patch x_i, with (s_i, t_i) a function of x_1, ..., x_{i-1}: log|det| = Σ s.

    Patches of p×p pixels with all their channels, or p values of a vector in a row, are the tokens of a causal
    transformer; the first sees a learned start token and the context. s = B tanh(a/B) is bounded softly; a fresh layer
    is the identity. Forward is one pass; the inverse one token after the other with keys and values kept, or by Jacobi
    iteration over all of them, x ← τ⁻¹(z; θ(x)), see `invert`.

    References:
        Zhai et al., "Normalizing flows are capable generative models" (TarFlow), 2024, section 2.

    Checked by tests/contracts/bijections.py and tests/discrete/test_transformer_flow.py.

    Args:
        event_shape: features of a vector, or (channels, height, width).
        patch: side p of a patch, or values of a vector that make a token.
        order: order of the patches, `raster` or `reversed`.
        depth: blocks of the transformer.
        hidden: its width, a multiple of `heads`.
        heads: attention heads a block.
        context_features: width of the context, 0 for none.
        log_scale_bound: B > 0.
        inverse_mode: how the inverse is found, see `invert_autoregressive`.
        tolerance: residual at which a row of an iteration rests, likewise.

    Raises:
        ValueError: an event that is neither vector nor image, a patch that does not divide it, an unknown order, or
            counts that do not fit.

    Example:
        >>> layer = PatchAutoregressive((1, 4, 4), patch=2, hidden=8)
        >>> z, log_det = layer(torch.ones(3, 1, 4, 4))
        >>> log_det.tolist()
        [0.0, 0.0, 0.0]
    """

    places: Tensor
    inverse_places: Tensor

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        patch: int,
        order: PatchOrder = "raster",
        depth: int = 2,
        hidden: int = 128,
        heads: int = 4,
        context_features: int = 0,
        log_scale_bound: float = 3.0,
        inverse_mode: InverseMode = "incremental",
        tolerance: float | None = None,
    ) -> None:
        super().__init__(event_shape)
        if order not in ORDERS:
            raise ValueError(f"order must be raster or reversed, but is {order!r}.")
        places = cut(self.event_shape, patch=patch)
        places = places.flip(0) if order == "reversed" else places
        self.register_buffer("places", places.flatten(), persistent=False)
        self.register_buffer("inverse_places", places.flatten().argsort(), persistent=False)
        self.transformer = AffineTransformer(log_scale_bound=log_scale_bound)
        self.conditioner = PatchConditioner(
            *places.shape,
            parameters_per_value=self.transformer.parameters_per_feature,
            depth=depth,
            hidden=hidden,
            heads=heads,
            context_features=context_features,
        )
        check_inverse(inverse_mode, tolerance=tolerance)
        self.inverse_mode: InverseMode = inverse_mode
        self.tolerance = tolerance
        T = places.shape[0]
        self.inverse_direction = Direction(1 if inverse_mode == "incremental" else T, steps=T)

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """z and Σ s."""
        x = self._to_tokens(x)
        z, s = self.transformer.forward(x, self.conditioner(x, context))
        return self._to_event(z), s.sum(1)

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """x and -Σ s; differentiable without a graph of its steps."""
        x, log_det, _ = solve_autoregressive(
            self.conditioner,
            self.transformer,
            self._to_tokens(z),
            context,
            mode=self.inverse_mode,
            tolerance=self.tolerance,
        )
        return self._to_event(x), log_det

    def invert(
        self,
        z: Events,
        context: Context = None,
        *,
        mode: InverseMode = "jacobi",
        tolerance: float | None = None,
        block: int = 8,
    ) -> Inversion:
        """The inverse with the passes that each row took and its residual, at one pass more: `invert_autoregressive`.

        Args:
            z: `(rows, *event)`.
            context: `(rows, context_features)`, or None.
            mode: `incremental`, `jacobi`, `gauss_seidel` or `sequential`.
            tolerance: residual max |f(x) - z| at which a row rests.
            block: tokens in a block of `gauss_seidel`.
        """
        inversion = invert_autoregressive(
            self.conditioner,
            self.transformer,
            self._to_tokens(z),
            context,
            mode=mode,
            tolerance=tolerance,
            block=block,
        )
        return inversion._replace(x=self._to_event(inversion.x))

    def _to_tokens(self, x: Tensor) -> Tensor:
        """Patches in their order, the values of each next to one another, `(rows, n)`."""
        return x.flatten(1).index_select(1, self.places)

    def _to_event(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.inverse_places).unflatten(1, self.event_shape)
