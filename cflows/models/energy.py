import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cflows.samplers.annealed_importance import NormalizingConstant, annealed_importance_sampling
from cflows.samplers.mala import mala
from cflows.score import Conservative, conditioned, log_density_and_score
from core.bases import DiagonalNormal
from core.density import Context, DensityModel, GenerativeModel, Values
from core.nets import MLP
from core.rng import Rng
from core.shapes import fold_context


class EnergyModel(GenerativeModel, Conservative):
    """p(x) = q(x) e^{f(x)}/Z: a base tilted by a network; energy -log q - f, score ∇ log q + ∇f, a conservative field.

    Z = E_q[e^f] is not needed for score matching, and unknown. A Gaussian base outweighs any f of linear growth far
    out, so that Z is finite for every network of bounded slope.

    References:
        Hyvärinen, "Estimation of non-normalized statistical models by score matching", 2005.
        Neal, "Annealed importance sampling", 2001, for Z.

    Checked by tests/cflows/test_energy.py.

    Args:
        event_shape: shape of one event; images are flattened by the default network.
        base: q, a density that is sampled; N(0, 1) with a fixed scale where omitted.
        hidden: widths of the default network, an MLP of SiLU units: score matching needs its second derivatives.
        context_features: width of the context, 0 for none.
        net: another network, called as net(x) or net(x, context), returning `(rows,)` or `(rows, 1)`.
        step_size: ε of the Metropolis-adjusted Langevin steps that draws and Z take.
        steps: steps of a draw, from the base on.

    Example:
        >>> model = EnergyModel(2)
        >>> x = torch.zeros(1, 2)
        >>> model.score(x).shape, model.log_density(x).shape
        (torch.Size([1, 2]), torch.Size([1]))
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        base: DensityModel | None = None,
        hidden: Sequence[int] = (128, 128),
        context_features: int = 0,
        net: Callable[..., Tensor] | None = None,
        step_size: float = 0.05,
        steps: int = 500,
    ) -> None:
        super().__init__(event_shape)
        self.base = DiagonalNormal(event_shape, learnable=False) if base is None else base
        size = self.event_shape.numel()
        self.net = net or _Flat(MLP(size, 1, hidden=hidden, context_features=context_features, activation="silu"))
        self.step_size, self.steps = step_size, steps

    def log_density(self, x: Float[Tensor, "rows ..."], *conditions: Tensor | None) -> Float[Tensor, " rows"]:
        """log q(x) + f(x) in nats: log p(x) + log Z; `conditions` is the context or nothing."""
        return self.base.log_prob(x) + self.net(x, *conditions).reshape(len(x))

    def score(self, x: Float[Tensor, "rows ..."], context: Context = None) -> Float[Tensor, "rows ..."]:
        """∇ log p(x), like `x`; in the autograd graph where gradients are enabled."""
        return log_density_and_score(conditioned(self.log_density, context), x)[1]

    def forward(self, x: Float[Tensor, "rows ..."], context: Context = None) -> Float[Tensor, "rows ..."]:
        """The score: the model is its own score network."""
        return self.score(x, context)

    def normalizing_constant(
        self, *, particles: int = 1000, temperatures: int = 100, context: Context = None, generator: Rng = None
    ) -> NormalizingConstant:
        """log Z in nats with its standard error, by annealed importance sampling from the base.

        Args:
            particles: independent chains.
            temperatures: steps from the base to the model.
            context: one context `(features,)`: each has a Z of its own.
            generator: source of the randomness.

        Raises:
            ValueError: more than one context.
        """
        if context is not None and context.ndim != 1:
            raise ValueError(
                "each context has a constant of its own: give one, (features,), not one of shape "
                f"{tuple(context.shape)}."
            )
        folded = fold_context(context, torch.Size((particles,)))
        return annealed_importance_sampling(
            conditioned(self.log_density, folded),
            self.base,
            particles=particles,
            temperatures=temperatures,
            step_size=self.step_size,
            generator=generator,
        )

    def sample(self, shape: Sequence[int] = (), *, context: Context = None, generator: Rng = None) -> Values:
        """Draws `(*shape, *event)` by `mala` from the base; as near the model as the chains have mixed."""
        folded = fold_context(context, torch.Size(shape))
        x = self.base.sample((math.prod(shape),), generator=generator)
        log_density = conditioned(self.log_density, folded)
        x, _ = mala(log_density, x, step_size=self.step_size, steps=self.steps, generator=generator)
        return x.reshape(*shape, *self.event_shape)


class _Flat(nn.Module):
    """A network of vectors on flattened events."""

    def __init__(self, net: MLP) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.net(x.flatten(1), context)
