"""Composition whose backward pass recomputes its activations by inversion instead of keeping them."""

from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from core.rng import Rng
from discrete.bijection import Bijection, Compose, Context, Events, Inverse, Mapped, chain
from discrete.bijections.normalization import BatchNorm

UNREPEATABLE = (BatchNorm, _BatchNorm, _DropoutNd, nn.RReLU)


class Reversible(Bijection):
    """f = f_n ∘ ... ∘ f_1 as `Compose`, trained in memory that does not grow with n.

    With x_n = z the output, the backward pass goes k = n ... 1 by

        x_{k-1} = f_k⁻¹(x_k),   (x̄_{k-1}, θ̄_k) = (x̄_k, l̄) ∂(f_k, log|det ∂f_k|)/∂(x_{k-1}, θ_k),

    so that only z outlives the forward pass, and one layer's activations exist at a time. A training step costs one
    inverse pass and one more forward pass. In evaluation mode it is `Compose`. Parameters have the names that they
    have in a `Compose`: either loads the other's state.

    References:
        Gomez, Ren, Urtasun, Grosse, "The reversible residual network: backpropagation without storing activations",
        2017, algorithm 1; for flows, Kingma and Dhariwal, "Glow", 2018, section 1.

    Checked by tests/contracts/bijections.py and tests/discrete/test_reversible.py.

    Args:
        bijections: one or more, the latent shape of each the event shape of the next. Run again, each must give the
            same: exact log-determinants, no dropout, no batch normalization, nothing random in a network of one's own.
            Gradients reach their parameters, the input and the context, and no other tensor.

    Raises:
        ValueError: no bijection, two neighbours whose shapes do not fit, or a layer that does not repeat itself.
        RuntimeError: in training mode, a gradient is to be differentiated again.

    Note:
        Rounding errors of the inverses add up. At 64 steps of a trained Glow the gradient moves by 1e-6 in float32 and
        1e-14 in float64, less than float32 itself rounds it. Where ReLUs make it jump, rounding of either kind moves it
        by up to 1e-4, single tensors by 1e-2. A flow whose inverse explodes loses its gradient: look at a round trip.

    Example:
        >>> from discrete import AffineCoupling, Permutation
        >>> deep = Reversible(*(layer for _ in range(64) for layer in (AffineCoupling(2), Permutation(2))))
        >>> z, log_det = deep(torch.ones(3, 2))
        >>> (z.square().sum() - log_det.sum()).backward()  # with the activations of one layer at a time
    """

    def __init__(self, *bijections: Bijection) -> None:
        composition = Compose(*bijections)
        for i, bijection in enumerate(bijections):
            _refuse_unrepeatable(bijection, i)
        super().__init__(composition.event_shape, latent_shape=composition.latent_shape)
        self.bijections = composition.bijections
        self.forward_direction = composition.forward_direction
        self.inverse_direction = composition.inverse_direction

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """Applies f_1 first."""
        if self._recomputes():
            return _recomputed(list(self.bijections), x, context)
        return chain(self.bijections, x, context, generator=generator)

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """Applies f_n⁻¹ first."""
        if self._recomputes():
            backwards = [Inverse(b) for b in reversed(self.bijections)]  # type: ignore[arg-type]
            return _recomputed(backwards, z, context)
        return chain(self.bijections, z, context, generator=generator, inverse=True)

    def _recomputes(self) -> bool:
        return self.training and torch.is_grad_enabled()


def _refuse_unrepeatable(bijection: Bijection, i: int) -> None:
    kinds = {bijection.forward_direction.kind, bijection.inverse_direction.kind} - {"exact"}
    culprits = [f"whose log-determinant is {kind}" for kind in kinds]
    for module in bijection.modules():
        if isinstance(module, UNREPEATABLE) and getattr(module, "p", 1.0) > 0:
            culprits.append(f"which holds a {type(module).__name__}")
    if culprits:
        raise ValueError(
            f"Reversible runs every layer again and needs the same values, but bijection {i} is a "
            f"{type(bijection).__name__} {culprits[0]}; use Compose."
        )


def _recomputed(layers: list[Any], x: Tensor, context: Tensor | None) -> Mapped:
    parameters = {p: None for layer in layers for p in layer.parameters() if p.requires_grad}
    return _Recompute.apply(layers, x, context, *parameters)


class _Recompute(torch.autograd.Function):
    """(z, log_det) of layers in a row, of which nothing but z is kept for the gradient."""

    @staticmethod
    def forward(
        ctx: Any, layers: list[Bijection], x: Tensor, context: Tensor | None, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        z, log_det = chain(layers, x, context)
        ctx.layers, ctx.parameters = layers, parameters
        # The parameters are saved for autograd's check that nobody has changed them in between.
        ctx.save_for_backward(z, context, *parameters)
        return z, log_det

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "Reversible keeps no activations to differentiate a gradient again, but create_graph=True asks for it; "
                "use evaluation mode or Compose."
            )
        z, context, *_ = ctx.saved_tensors
        context = None if context is None else context.detach().requires_grad_(context.requires_grad)
        gradient, log_det_gradient = cotangents
        totals: dict[Tensor | None, Tensor] = {}
        for layer in reversed(ctx.layers):
            z, gradient, others = _pull_back(layer, z, context, (gradient, log_det_gradient))
            for tensor, part in others.items():
                totals[tensor] = totals[tensor] + part if tensor in totals else part
        return None, gradient, *(totals.get(tensor) for tensor in (context, *ctx.parameters))


def _pull_back(
    layer: Bijection, z: Tensor, context: Tensor | None, cotangents: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, dict[Tensor, Tensor]]:
    """The input x of a layer from its output z, the gradient in x, and those in the context and the parameters."""
    x = layer.inverse(z, context)[0].detach().requires_grad_()
    with torch.enable_grad():
        outputs = layer(x, context)
    others = [t for t in (context, *layer.parameters()) if t is not None and t.requires_grad]
    attached = [output.requires_grad for output in outputs]  # a constant log_det is not
    gradient, *rest = torch.autograd.grad(
        tuple(compress(outputs, attached)), [x, *others], tuple(compress(cotangents, attached)), allow_unused=True
    )
    return x.detach(), gradient, {t: g for t, g in zip(others, rest, strict=True) if g is not None}
