from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from cflows.models.continuous_flow import ContinuousFlow
from cflows.models.embedded_network import Architecture, EmbeddedNetwork
from cflows.ode.solver import ODESolver
from core.density import Context
from core.divergence import Divergence
from core.shapes import align


class FlowMatching(ContinuousFlow):
    """A flow dx/dt = v(x, t) from data to N(0, I), trained on straight ways between them by `ConditionalFlowMatching`.

    With x_t = (1 - t) x_0 + b x_1, b = σ_min + (1 - σ_min) t, the network F enters so that F = 0 is the exact velocity
    of Gaussian data N(0, v I), and so that what F has to learn for them has unit variance at every t: with
    V = (1 - t)² v + b²,
    v(x, t) = [(1 - σ_min) b - (1 - t) v]/V x + √(v/V) F(x/√V, 2 t - 1).
    Untrained, the model is N(0, (v + σ_min²) I).

    References:
        Lipman et al., "Flow matching for generative modeling", 2023, eq. 20 to 22, at 1 - t; Liu et al., "Flow straight
        and fast", 2023, eq. 1. The preconditioning is theirs who wrote it for denoisers: Karras et al., "Elucidating
        the design space", 2022, table 1.

    Checked by tests/contracts/densities.py and tests/cflows/test_flow_matching.py (Gaussian data in closed form).

    Args:
        event_shape: shape of one event; images are flattened by `mlp`.
        network: `mlp`, residual and modulated by time and context, or `unet` for images, as in `EmbeddedNetwork`.
        hidden: widths of its blocks, or of its resolutions.
        depth: residual blocks a resolution, of `unet`.
        heads: heads of its attention among pixels, 0 for none.
        attention: resolutions with attention, of `unet`, 0 the finest; the coarsest alone where omitted.
        patch: side of the patches that `unet` sees as one pixel.
        dropout: its dropout probability in training.
        context_features: width of the context, 0 for none.
        frequencies: Fourier features of time.
        data_std: √v, standard deviation of the data that the model sees.
        sigma_min: standard deviation that is left around a row of data at t = 0.
        net: another network F, called as net(x, u, context) with u = 2 t - 1 `(rows,)`.
        divergence: as in `ode_log_prob`.
        solver: ODE method and tolerances; `dopri5_per_sample` where omitted.
        error_factor: as in `ode_log_prob`; None skips the solver error.

    Raises:
        ValueError: data_std not positive, or sigma_min outside [0, 1).

    Example:
        >>> import torch
        >>> model = FlowMatching(2)  # untrained: the standard normal
        >>> round(model.log_prob(torch.zeros(2)).item(), 3)
        -1.838
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        network: Architecture = "mlp",
        hidden: Sequence[int] = (256, 256, 256),
        depth: int = 2,
        heads: int = 0,
        attention: Sequence[int] | None = None,
        patch: int = 1,
        dropout: float = 0.0,
        context_features: int = 0,
        frequencies: int = 8,
        data_std: float = 1.0,
        sigma_min: float = 0.0,
        net: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None,
        divergence: Divergence | None = None,
        solver: ODESolver | None = None,
        error_factor: float | None = 10.0,
    ) -> None:
        super().__init__(event_shape, divergence=divergence, solver=solver, error_factor=error_factor)
        if not data_std > 0 or not 0 <= sigma_min < 1:
            raise ValueError(
                f"FlowMatching needs data_std > 0 and sigma_min within [0, 1), but has {data_std} and {sigma_min}."
            )
        self.data_std, self.sigma_min = data_std, sigma_min
        self.net = net or EmbeddedNetwork(
            self.event_shape,
            network=network,
            hidden=hidden,
            depth=depth,
            heads=heads,
            attention=attention,
            patch=patch,
            dropout=dropout,
            context_features=context_features,
            frequencies=frequencies,
        )

    def velocity(
        self, x: Float[Tensor, "rows ..."], t: Float[Tensor, "*rows"], context: Context = None
    ) -> Float[Tensor, "rows ..."]:
        """v(x, t), like `x`; `t` is 0-dimensional or `(rows,)`, within [0, 1]."""
        v, slope = self.data_std**2, 1 - self.sigma_min
        signal, noise = align(1 - t, x), align(self.sigma_min + slope * t, x)
        V = signal.square() * v + noise.square()
        F = self.net(x / V.sqrt(), (2 * t - 1).expand(len(x)), context)
        return (slope * noise - signal * v) / V * x + (v / V).sqrt() * F
