from collections.abc import Callable, Sequence
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn

from cflows.models.continuous_flow import ContinuousFlow
from cflows.models.embedded_network import Architecture, EmbeddedNetwork
from cflows.ode.solver import ODESolver
from core.bases import Base
from core.density import Context
from core.divergence import Divergence
from core.nets import ConcatSquashMLP
from core.nets.mlp import join_context


class FFJORD(ContinuousFlow):
    """A free-form flow dx/dt = v(x, t): any network is a density, log p(x) = log p_base(x(1)) + ∫₀¹ ∇·v dt.

    A fresh network returns v = 0: untrained, the model is its base. Train it with `RegularizedLikelihood`.

    References:
        Grathwohl et al., "FFJORD: free-form continuous dynamics for scalable reversible generative models", 2019.

    Checked by tests/contracts/densities.py and tests/cflows/test_ffjord.py (linear fields in closed form).

    Args:
        event_shape: shape of one event; images are flattened by `concat_squash` and `mlp`.
        base: density at t = 1; N(0, I) where omitted.
        network: `concat_squash`, the paper's (`ConcatSquashMLP` of time and context); `mlp` or `unet` as in
            `EmbeddedNetwork`.
        hidden: widths of its layers, blocks or resolutions.
        depth: residual blocks a resolution, of `unet`.
        heads: heads of its attention among pixels, 0 for none.
        attention: resolutions with attention, of `unet`, 0 the finest; the coarsest alone where omitted.
        patch: side of the patches that `unet` sees as one pixel.
        context_features: width of the context, 0 for none.
        frequencies: Fourier features of time, of `mlp` and `unet`.
        net: another network, called as net(x, u, context) with u = 2 t - 1 `(rows,)`.
        divergence: as in `ode_log_prob`.
        solver: ODE method and tolerances; `dopri5_per_sample` where omitted.
        error_factor: as in `ode_log_prob`; None skips the solver error.

    Raises:
        ValueError: an unknown network, settings of another one, or a base of other events.

    Example:
        >>> import torch
        >>> model = FFJORD(2)  # untrained: the standard normal
        >>> round(model.log_prob(torch.zeros(2)).item(), 3)
        -1.838
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        base: Base | None = None,
        network: Literal["concat_squash"] | Architecture = "concat_squash",
        hidden: Sequence[int] = (64, 64, 64),
        depth: int = 2,
        heads: int = 0,
        attention: Sequence[int] | None = None,
        patch: int = 1,
        context_features: int = 0,
        frequencies: int = 8,
        net: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None,
        divergence: Divergence | None = None,
        solver: ODESolver | None = None,
        error_factor: float | None = 10.0,
    ) -> None:
        super().__init__(event_shape, base=base, divergence=divergence, solver=solver, error_factor=error_factor)
        known = ("concat_squash", *get_args(Architecture))
        if network not in known:
            raise ValueError(f"FFJORD's network is one of {', '.join(known)}, not {network!r}.")
        if network == "concat_squash" and (heads or attention is not None or patch != 1):
            raise ValueError(
                f"heads, attention and patch are of 'unet', but concat_squash has {heads=}, {attention=} and {patch=}."
            )
        if net is not None:
            self.net = net
        elif network == "concat_squash":
            self.net = _ConcatSquash(self.event_shape.numel(), hidden=hidden, context_features=context_features)
        else:
            self.net = EmbeddedNetwork(
                self.event_shape,
                network=network,
                hidden=hidden,
                depth=depth,
                heads=heads,
                attention=attention,
                patch=patch,
                dropout=0.0,  # noise in the velocity would leave no ODE
                context_features=context_features,
                frequencies=frequencies,
            )

    def velocity(
        self, x: Float[Tensor, "rows ..."], t: Float[Tensor, "*rows"], context: Context = None
    ) -> Float[Tensor, "rows ..."]:
        """v(x, t), like `x`; `t` is 0-dimensional or `(rows,)`, within [0, 1]."""
        return self.net(x, (2 * t - 1).expand(len(x)), context)


class _ConcatSquash(nn.Module):
    """`ConcatSquashMLP` of events of any shape, with u beside the context as its embedding."""

    def __init__(self, size: int, *, hidden: Sequence[int], context_features: int) -> None:
        super().__init__()
        self.context_features = context_features
        self.net = ConcatSquashMLP(size, size, embedding_features=1 + context_features, hidden=hidden)

    def forward(self, x: Tensor, u: Tensor, context: Tensor | None) -> Tensor:
        embedding = join_context(u[:, None], context, self.context_features)
        return self.net(x.flatten(1), embedding).reshape(x.shape)
