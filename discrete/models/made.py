import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from core.density import Context, ExactDensity, Nats, Values
from core.nets.masked import FeatureOrder, HiddenDegrees, MaskedMLP, MaskNumber
from core.precision import check_inputs, whole_numbers
from core.rng import Rng, for_all_rows
from core.shapes import fold_batch, fold_context
from discrete.conditionals import Conditional, GaussianConditional, MixtureConditional, draw_in_turn
from discrete.likelihoods import Bernoulli

ConditionalName = Literal["gaussian", "mixture", "bernoulli"]


class MADE(ExactDensity):
    """log p(x) = Σ_d log p(x_d | x_<d, context), every conditional from one pass of a masked network.

    A fresh model is the standard normal, nearly so for mixtures, or fair coins. With several masks, each with its own
    random order or connectivity over the same weights, `log_prob` is in training that of one mask, the next in turn
    with each call, and in evaluation that of the ensemble, log 1/M Σ_m p_m(x).

    References:
        Germain, Gregor, Murray, Larochelle, "MADE: masked autoencoder for distribution estimation", 2015, eq. 3 and
        8-13, several masks: section 4. Gaussians: Papamakarios, Pavlakou, Murray, "Masked autoregressive flow for
        density estimation", 2017, section 3.1. Mixtures: Uria, Murray, Larochelle, "RNADE: the real-valued neural
        autoregressive density-estimator", 2013.

    Checked by tests/contracts/densities.py, tests/contracts/masses.py and tests/discrete/test_made.py.

    Args:
        event_shape: shape of one event; events of several dimensions are read in raster order.
        conditional: `gaussian`, `mixture` of normals, or `bernoulli` over values 0 and 1.
        components: normals of a mixture.
        hidden: widths of the hidden layers, or of the residual blocks.
        order: order of the features: `natural`, `reversed`, `random`, or their indices as a tensor.
        hidden_degrees: `sequential` or `random`.
        conditioner: `plain` or `resnet`.
        direct: whether parameters depend on the features before them linearly as well.
        activation: activation of the network.
        dropout: dropout probability in training.
        context_features: width of the context, 0 for none.
        masks: number M of masks that share the weights.
        log_scale_bound: soft bound on the log-scales of normals.
        generator: draws random orders and degrees.

    Raises:
        ValueError: several masks of which nothing is random, a hidden width too small for the number of features, an
            unknown order or conditional, or an option out of range.

    Note:
        Draws take D steps for each mask, at the multiply-adds of M passes; each takes a mask of its own at random.

    Example:
        >>> model = MADE(2, conditional="bernoulli", hidden=(4,))
        >>> states = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> round(model.log_prob(states).exp().sum().item(), 5)
        1.0
    """

    turn: Tensor

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        conditional: ConditionalName = "gaussian",
        components: int = 10,
        hidden: Sequence[int] = (128, 128),
        order: FeatureOrder = "natural",
        hidden_degrees: HiddenDegrees = "sequential",
        conditioner: Literal["plain", "resnet"] = "plain",
        direct: bool = False,
        activation: str = "relu",
        dropout: float = 0.0,
        context_features: int = 0,
        masks: int = 1,
        log_scale_bound: float = 7.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(event_shape)
        if masks > 1 and hidden_degrees != "random" and (isinstance(order, Tensor) or order != "random"):
            raise ValueError(f"MADE's masks={masks} are all the same unless order or hidden_degrees is random.")
        self.likelihood = _conditional(conditional, components=components, log_scale_bound=log_scale_bound)
        self.network = MaskedMLP(
            self.event_shape.numel(),
            self.likelihood.parameters_per_value,
            hidden=hidden,
            order=order,
            hidden_degrees=hidden_degrees,
            conditioner=conditioner,
            direct=direct,
            context_features=context_features,
            activation=activation,
            dropout=dropout,
            zero_output=True,
            masks=masks,
            generator=generator,
        )
        # A buffer, so that a run that is resumed goes on with the mask whose turn it was.
        self.register_buffer("turn", torch.zeros(1, dtype=torch.long))

    def conditional_log_prob(self, x: Values, context: Context = None, *, mask: MaskNumber = 0) -> Values:
        """log p(x_d | x_<d, context) of each feature under one mask in nats, `(*batch, *event)`.

        Raises:
            ValueError: `x` does not end in the event shape, or `context` does not broadcast to its batch.
        """
        values = x if x.is_floating_point() else whole_numbers(x, like=self.anchor, owner="MADE")
        check_inputs(self, owner="MADE", x=values, context=context)
        rows, batch_shape = fold_batch(values, self.event_shape, owner="MADE")
        theta = self._theta(self.likelihood.rescale(rows), fold_context(context, batch_shape), mask=mask)
        return self.likelihood.log_prob(rows, theta).reshape(x.shape)

    def log_prob(self, x: Values, context: Context = None, *, generator: Rng = None) -> Nats:
        """Log-density in nats, `(*batch,)`, or log-mass of `bernoulli`, -inf where a value is neither 0 nor 1.

        Raises:
            ValueError: `x` does not end in the event shape, or `context` does not broadcast to its batch.
        """
        each = [self.conditional_log_prob(x, context, mask=mask) for mask in self._masks()]
        return _log_mean_exp([parts.flatten(-len(self.event_shape)).sum(-1) for parts in each])

    def sample(self, shape: Sequence[int] = (), *, context: Context = None, generator: Rng = None) -> Values:
        """Draws `(*shape, *event)` without gradient, feature after feature, of the ensemble."""
        rows, folded = math.prod(shape), fold_context(context, torch.Size(shape))
        with torch.no_grad():
            x, *others = (
                draw_in_turn(self.network, self.likelihood, rows, folded, generator, mask=mask)
                for mask in range(self.network.masks)
            )
            if others:
                one = for_all_rows(generator, owner="MADE with several masks")
                chosen = torch.randint(self.network.masks, (rows, 1), generator=one, device=x.device)
                for mask, other in enumerate(others, 1):
                    x = torch.where(chosen == mask, other, x)
        return x.reshape(*shape, *self.event_shape)

    def _theta(self, u: Tensor, context: Tensor | None, *, mask: MaskNumber = 0) -> Tensor:
        """θ of every value, `(rows, *event, parameters)`, from what the network is fed, `(rows, *event)`."""
        return self.network(u.flatten(1), context, mask=mask).unflatten(1, self.event_shape)

    def _masks(self) -> Sequence[MaskNumber]:
        """The masks of this call: all of them, or in training the one whose turn it is."""
        if not self.training or self.network.masks == 1:
            return range(self.network.masks)
        mask = self.turn % self.network.masks
        self.turn += 1
        return [mask]


def _conditional(name: str, *, components: int, log_scale_bound: float) -> Conditional:
    if name == "gaussian":
        return GaussianConditional(log_scale_bound=log_scale_bound)
    if name == "mixture":
        return MixtureConditional(components=components, log_scale_bound=log_scale_bound)
    if name == "bernoulli":
        return Bernoulli()
    raise ValueError(f"conditional must be gaussian, mixture or bernoulli, but is {name!r}.")


def _log_mean_exp(values: Sequence[Tensor]) -> Tensor:
    if len(values) == 1:
        return values[0]
    return torch.logsumexp(torch.stack(list(values)), 0) - math.log(len(values))
