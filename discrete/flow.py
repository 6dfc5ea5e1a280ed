"""A bijection onto a base density: the normalizing flow, its likelihood and its draws."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from core.density import Context, DensityModel, LikelihoodEstimate, Nats, Values
from core.latents import LatentModel, sample_base
from core.precision import whole_numbers
from core.rng import Rng, RowGenerators
from core.shapes import fold_batch, fold_context
from discrete.bijection import Bijection, Direction


class Flow(LatentModel):
    """log p(x) = log p_base(f(x)) + log|det df/dx|, with f data to noise.

    The base is any density model: a closed form, another flow, or a continuous model whose estimate carries errors;
    they pass through. Preprocessing wraps either side in the same way. A log-determinant that is itself an estimate, as
    of a residual flow, is drawn several times in evaluation mode: their mean counts, and gives its standard error.

    References:
        Rezende and Mohamed, "Variational inference with normalizing flows", 2015, eq. 7.
        Papamakarios et al., "Normalizing flows for probabilistic modeling and inference", 2021, eq. 3.

    Checked by tests/contracts/densities.py and tests/discrete/test_flow.py.

    Args:
        bijection: f.
        base: density of z, over the latent shape of f.
        draws: in evaluation mode, of a log-determinant that is an estimate; in training there is one.

    Raises:
        ValueError: the base's event shape is not the bijection's latent shape, or no draw.

    Example:
        X = 4 Z with Z uniform on [0, 2]: p_X(4) = p_Z(1) · 1/4 = 1/8, never p_Z(1) = 1/2.

        >>> from core import StandardUniform
        >>> from discrete import Diagonal
        >>> flow = Flow(Diagonal(1, scale=1 / 8), StandardUniform(1))  # x / 8 is uniform on [0, 1)
        >>> flow.log_prob(torch.tensor([4.0])).exp().item()
        0.125

        X = A Z with Z uniform on the unit square fills the parallelogram spanned by the columns of A, of area |det A|,
        with density 1/|det A|. Here A = [[2, 1], [0, 3]], undone by a shear and a rescaling: 1/6 inside, 0 outside.

        >>> from discrete import AdditiveCoupling, Compose
        >>> shear = AdditiveCoupling(2, mask="half_flipped", hidden=())  # x_2 passes, x_1 - x_2/3 moves
        >>> _ = torch.nn.init.constant_(shear.conditioner.layers[0].weight, -1 / 3)
        >>> rescale = Diagonal(2, scale=torch.tensor([1 / 2, 1 / 3]))
        >>> parallelogram = Flow(Compose(shear, rescale), StandardUniform(2))
        >>> density = parallelogram.log_prob(torch.tensor([[1.5, 1.5], [2.5, 2.7], [2.5, 0.3]])).exp()
        >>> [round(p, 4) for p in density.tolist()]
        [0.1667, 0.1667, 0.0]
    """

    def __init__(self, bijection: Bijection, base: DensityModel, *, draws: int = 4) -> None:
        if base.event_shape != bijection.latent_shape:
            raise ValueError(
                f"Flow's bijection gives events of shape {tuple(bijection.latent_shape)}, but its base is a density "
                f"over {tuple(base.event_shape)}."
            )
        if draws < 1:
            raise ValueError(f"Flow needs 1 draw or more of a log-determinant, but draws is {draws}.")
        super().__init__(bijection.event_shape)
        self.draws = draws
        self.bijection = bijection
        self.base = base

    @property
    def log_prob_direction(self) -> Direction:
        """What `log_prob` costs in network passes, bijection only, and whether its log-determinant is exact."""
        return self.bijection.forward_direction

    @property
    def sample_direction(self) -> Direction:
        """What `sample` costs in network passes, bijection only."""
        return self.bijection.inverse_direction

    def log_prob(self, x: Values, context: Context = None, *, generator: Rng = None) -> Nats:
        """Log-density in nats, `(*batch,)`.

        Raises:
            ValueError: `x` does not end in the event shape, or `context` does not broadcast to its batch.
        """
        rows, batch_shape, context = self._fold(x, context)
        z, log_det, _ = self._map(rows, context, generator)
        return (self.base.log_prob(z, context, generator=generator) + log_det).reshape(batch_shape)

    def estimate_log_prob(self, x: Values, context: Context = None, *, generator: Rng = None) -> LikelihoodEstimate:
        """Log-density with the errors of the base, of which a closed form has none, and of a random log-determinant.

        The latter is NaN of one draw, and beside a surjection in the same bijection, whose noise is not to be told from
        it: put that one into a flow around this one.
        """
        rows, batch_shape, context = self._fold(x, context)
        z, log_det, std_error = self._map(rows, context, generator)
        if std_error is None and _is_estimated(self.bijection):
            std_error = torch.full_like(log_det, math.nan)
        estimate = self.base.estimate_log_prob(z, context, generator=generator)
        kind = self.bijection.forward_direction.kind
        return estimate.shifted(log_det, kind=kind, std_error=std_error).reshape(batch_shape)

    @property
    def latent_shape(self) -> torch.Size:
        """Shape of the innermost latent: of the base's own where it has them, as behind preprocessing."""
        return self.base.latent_shape if isinstance(self.base, LatentModel) else self.bijection.latent_shape

    def encode(self, x: Values, context: Context = None, *, generator: Rng = None) -> Values:
        """z = f(x), `(*batch, *latent)`, through the base as well where it has latents of its own."""
        rows, batch_shape, folded = self._fold(x, context)
        z, _ = self.bijection(rows, folded, generator=generator)
        z = z.reshape(*batch_shape, *self.bijection.latent_shape)
        return self.base.encode(z, context, generator=generator) if isinstance(self.base, LatentModel) else z

    def decode(self, z: Values, context: Context = None, *, generator: Rng = None) -> Values:
        """x = f⁻¹(z), `(*batch, *event)`, from a latent of shape `(*batch, *latent)`.

        Raises:
            ValueError: `z` does not end in the latent shape, or `context` does not broadcast to its batch.
        """
        if isinstance(self.base, LatentModel):
            z = self.base.decode(z, context, generator=generator)
        rows, batch_shape = fold_batch(z, self.bijection.latent_shape, owner="the flow's decode")
        x, _ = self.bijection.inverse(rows, fold_context(context, batch_shape), generator=generator)
        return x.reshape(*batch_shape, *self.event_shape)

    def sample_latent(
        self, shape: Sequence[int] = (), *, context: Context = None, generator: Rng = None, temperature: float = 1.0
    ) -> Values:
        """Draws of the innermost base, `(*shape, *latent)`, times the temperature."""
        return sample_base(self.base, shape, context=context, generator=generator, temperature=temperature)

    def rsample_and_log_prob(
        self, shape: Sequence[int] = (), *, context: Context = None, generator: Rng = None
    ) -> tuple[Values, Nats]:
        """Differentiable draws x = f⁻¹(z) and log p(x) = log p_base(z) - log|det dx/dz| in one pass, nats.

        Raises:
            TypeError: the base has no differentiable draws with their density, as a model solved by an ODE.
        """
        draw = getattr(self.base, "rsample_and_log_prob", None)
        if draw is None:
            raise TypeError(
                f"rsample_and_log_prob needs a base that has it, such as StandardNormal, but the base is a "
                f"{type(self.base).__name__}."
            )
        z, log_prob = draw(shape, context=context, generator=generator)
        rows = z.reshape(math.prod(shape), *self.base.event_shape)
        x, log_det = self.bijection.inverse(rows, fold_context(context, torch.Size(shape)), generator=generator)
        return x.reshape(*shape, *self.event_shape), log_prob - log_det.reshape(log_prob.shape)

    def distribution(self, context: Context = None) -> Distribution:
        """The flow as a `torch.distributions.Distribution` with batch shape `b`; torch itself stays unpatched."""
        return FlowDistribution(self, context)

    def _map(self, rows: Tensor, context: Tensor | None, generator: Rng) -> tuple[Tensor, Tensor, Tensor | None]:
        """z, its log-determinant, and the standard error of that where it is the mean of several draws."""
        draws = 1 if self.training or self.bijection.forward_direction.kind != "estimate" else self.draws
        if draws == 1:
            return *self.bijection(rows, context, generator=generator), None
        # Side by side, so that every layer draws for each of them.
        copies = rows.repeat(draws, *(1 for _ in rows.shape[1:]))
        if isinstance(generator, RowGenerators):
            generator = generator.rows([*range(len(rows))] * draws)
        contexts = None if context is None else context.repeat(draws, 1)
        z, log_det = self.bijection(copies, contexts, generator=generator)
        log_dets = log_det.reshape(draws, len(rows))
        return z[: len(rows)], log_dets.mean(0), log_dets.std(0) / math.sqrt(draws)

    def _fold(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, torch.Size, Tensor | None]:
        if self.bijection.forward_direction.kind == "bound":  # a surjection takes whole numbers
            x = whole_numbers(x, like=self.anchor, owner="the flow")
        rows, batch_shape = fold_batch(x, self.event_shape, owner="the flow")
        return rows, batch_shape, fold_context(context, batch_shape)


def _is_estimated(bijection: Bijection) -> bool:
    """Whether the log-determinant of any part is an estimate, also beside a surjection, whose bound hides its kind."""
    parts = (part for part in bijection.modules() if isinstance(part, Bijection))
    return any(part.forward_direction.kind == "estimate" for part in parts)


class FlowDistribution(Distribution):
    """A flow at a fixed context; values outside the base's support have log-density -inf.

    Args:
        flow: the flow.
        context: `(*b, features)`, whose leading dimensions are the batch shape, or None.
        batch_shape: batch shape of a flow without context: independent copies of it.
    """

    arg_constraints = {}  # noqa: RUF012 (the shape that torch asks for)
    has_rsample = True

    def __init__(self, flow: Flow, context: Tensor | None = None, *, batch_shape: Sequence[int] = ()) -> None:
        self.flow = flow
        self.context = context
        shape = torch.Size(batch_shape) if context is None else context.shape[:-1]
        super().__init__(shape, flow.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Real vectors or arrays."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(
        self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: Distribution | None = None
    ) -> "FlowDistribution":
        """The same flow over `batch_shape`, to which its context broadcasts."""
        if self.context is None:
            return FlowDistribution(self.flow, batch_shape=batch_shape)
        return FlowDistribution(self.flow, self.context.expand(*batch_shape, self.context.shape[-1]))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats; `value` broadcasts against the batch shape."""
        lead = value.ndim - len(self.event_shape)
        batch = torch.broadcast_shapes(value.shape[:lead], self.batch_shape)
        return self.flow.log_prob(value.expand(*batch, *self.event_shape), self.context)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:  # type: ignore[override]
        """Draws without gradient, from torch's global generator as every torch distribution."""
        return self.flow.sample((*sample_shape, *self.batch_shape), context=self.context)

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:  # type: ignore[override]
        """Draws with gradient."""
        x, _ = self.flow.rsample_and_log_prob((*sample_shape, *self.batch_shape), context=self.context)
        return x
