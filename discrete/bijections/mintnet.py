"""Masked convolutions whose Jacobian is triangular: the layer of MintNet."""

from collections.abc import Sequence
from typing import Literal, cast, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.nets.mlp import check_context
from core.rng import Rng
from core.shapes import largest, sum_event
from discrete.bijection import Bijection, Context, Direction, Events, Mapped
from discrete.bijections.inversion import Inversion
from discrete.bijections.mint import Activation, Mint
from discrete.bijections.mintnet_inverse import Solver, solve
from discrete.bijections.transformers import soft_bound

RasterOrder = Literal["raster", "reversed"]
Scan = Literal["pixels", "channels"]


class MaskedConvolution(Bijection):
    """z = t ⊙ x + Σᵢ W³ᵢ h(Σⱼ W²ᵢⱼ h(W¹ⱼ x + b¹ⱼ) + b²ᵢ) + b³, i, j = 1..K: the Mint layer.

    All W are convolutions that let a value read itself and the values before it, so that the Jacobian is triangular.
    With dˡ for the entries of Wˡ on the diagonal its own diagonal is

        ∂z_p/∂x_p = t_p + Σᵢⱼ d³ᵢ h'(u²ᵢ) d²ᵢⱼ h'(u¹ⱼ) d¹ⱼ > 0 and log|det| = Σ_p log ∂z_p/∂x_p,

    where uˡ is what h is applied to: t > 0, h' ≥ 0, and every product d³ᵢ d²ᵢⱼ d¹ⱼ ≥ 0, since d¹ⱼ = σⱼ|v¹ⱼ|,
    d²ᵢⱼ = σᵢσⱼ|v²ᵢⱼ| and d³ᵢ = σᵢ|v³ᵢ| with signs σ fixed in turn: of convex h they make concave parts as well. Entries
    off the diagonal are free. The diagonal costs one product of K × K matrices a value beside the convolutions.

    A value of an image holds K filters at each of both inner layers. A vector is an image of one pixel whose channels
    are its features: three masked linear layers.

    The inverse is a damped fixed-point iteration, see `invert`.

    References:
        Song, Meng, Ermon, "MintNet: building invertible neural networks with masked convolutions", 2019, section 3. The
        paper takes the sign of d² from those of d¹ and d³, where the layer jumps as one of these passes through 0.

    Checked by tests/contracts/bijections.py and tests/discrete/test_mintnet.py.

    Args:
        event_shape: features of a vector, or (channels, height, width).
        filters: K.
        kernel: odd size of the three kernels, without effect on vectors.
        order: `raster` or `reversed`: which of two values comes first.
        scan: `pixels`, all channels of a pixel before the next one, or `channels`, all pixels of a channel before the
            next one, as in the code of the paper.
        activation: h, `elu` or `tanh`.
        context_features: width of the context, which moves b¹ and b²; 0 for none.
        log_scale_bound: B > 0, so that every t = exp(B tanh(·/B)) lies within exp(±B).
        step: largest α of the inverse, within (0, 2), see `invert`.
        tolerance: residual at which a row of the inverse rests; where omitted 100 roundings of its largest value, or of
            1, and then what is left when an iteration no longer lowers it.
        iterations: most iterations of a row of the inverse.

    Raises:
        ValueError: an event that is neither vector nor image, an even kernel, or an option out of range.

    Note:
        A fresh layer is near the identity. In float32 the inverse is as exact as rounding in `forward` lets it be:
        where ∂z/∂x is as small as e⁻ᴮ, an error of z comes back eᴮ times as large.

    Example:
        >>> layer = MaskedConvolution((3, 8, 8), filters=4)
        >>> x = torch.randn(2, 3, 8, 8)
        >>> z, log_det = layer(x)
        >>> inversion = layer.invert(z)
        >>> bool((inversion.x - x).abs().max() < 1e-5), bool(inversion.iterations.max() <= 10)
        (True, True)
    """

    log_t: Tensor

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        filters: int = 32,
        kernel: int = 3,
        order: RasterOrder = "raster",
        scan: Scan = "pixels",
        activation: Activation = "elu",
        context_features: int = 0,
        log_scale_bound: float = 3.0,
        step: float = 1.0,
        tolerance: float | None = None,
        iterations: int = 100,
    ) -> None:
        super().__init__(event_shape)
        _check(self.event_shape, filters, kernel, log_scale_bound, order=order, scan=scan, activation=activation)
        self.image_shape = self.event_shape if len(self.event_shape) == 3 else torch.Size((*self.event_shape, 1, 1))
        self.order: RasterOrder = order
        self.scan: Scan = scan
        self.activation: Activation = activation
        self.solver = Solver(step, tolerance, iterations)
        self.context_features, self.log_scale_bound = context_features, log_scale_bound
        C, H, W = self.image_shape
        place = places(C, kernel if H * W > 1 else 1, order=order, scan=scan)
        K = filters
        signs = 1.0 - 2 * (torch.arange(K) % 2)
        self.kernels = nn.ModuleList(
            _Kernel(place, sign, gain=gain)
            for sign, gain in ((signs[:, None], 1.0), (signs[:, None] * signs, 1.0), (signs[None], 0.01))
        )
        self.log_t = nn.Parameter(torch.zeros(C, H, W))
        self.condition = nn.Linear(context_features, 2 * C * K, bias=False) if context_features else None
        degrees = self.image_shape.numel()
        self.inverse_direction = Direction(iterations + 1, steps=iterations + degrees)

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """z and log|det dz/dx|, one pass."""
        z, slope = self.mint(context).evaluate(x.reshape(len(x), *self.image_shape))
        return z.reshape(x.shape), sum_event(slope.log())

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """x and log|det dx/dz|; differentiable without a graph of its iterations."""
        x, log_det, _ = solve(self, z.reshape(len(z), *self.image_shape), context)
        return x.reshape(z.shape), log_det

    def invert(self, z: Events, context: Context = None) -> Inversion:
        """x with f(x) = z, by x ← x + α (z - f(x))/∂z_p/∂x_p from x = z/t on, and how many iterations each row took.

        A row rests when its residual max|f(x) - z| falls to the tolerance, whatever the other rows do. Near the
        solution the iteration contracts for every α within (0, 2), since I - α diag(J)⁻¹ J is triangular with 1 - α on
        its diagonal; far from it nothing is promised. So each value has an α of its own, which no value behind it can
        spoil: 0.7 times as large where its error changes sign and stays as large, then growing back. A row that does
        not rest within all iterations is solved value after value, each by Newton's method in a bracket, at the
        multiply-adds of one pass but in as many steps as there are values: that ends always, and counts as one
        iteration more than the most.

        The inverse is differentiable in z, context and parameters, to any order, by the implicit function theorem.

        References:
            Song, Meng, Ermon, "MintNet", 2019, algorithm 1. The code of the paper takes α = 1/3.5 on MNIST and 1/1.1 on
            CIFAR-10, always 100 iterations and no test of convergence.

        Checked by tests/discrete/test_mintnet.py.

        Args:
            z: `(rows, *event)`.
            context: `(rows, context_features)` or None.

        Returns:
            x, log|det dx/dz| in nats, and each row's iterations and residual.
        """
        x, log_det, iterations = solve(self, z.reshape(len(z), *self.image_shape), context)
        with torch.no_grad():
            image, _ = self.mint(context).evaluate(x)
            residual = largest(image.reshape(z.shape) - z)
        return Inversion(x.reshape(z.shape), log_det, iterations, residual)

    def mint(self, context: Context = None) -> Mint:
        """The layer as its tensors say at this context: masked once, to be applied many times.

        Raises:
            ValueError: context given or missing against `context_features`.
        """
        check_context(context, self.context_features)
        kernels = cast("list[_Kernel]", list(self.kernels))
        shifts = (0.0, 0.0, 0.0) if self.condition is None else (*self.condition(context).chunk(2, 1), 0.0)
        b = tuple(kernel.bias + shift for kernel, shift in zip(kernels, shifts, strict=True))
        t = soft_bound(self.log_t, self.log_scale_bound).exp()
        return Mint(tuple(kernel() for kernel in kernels), b, t, self.activation)

    def degrees(self) -> Int[Tensor, "values 3"]:
        """Channel, row and column of every value of the image, in the order of the layer."""
        C, H, W = self.image_shape
        values = torch.cartesian_prod(torch.arange(C), torch.arange(H), torch.arange(W))
        if self.scan == "pixels":
            values = values.reshape(C, H * W, 3).transpose(0, 1).reshape(-1, 3)
        return values if self.order == "raster" else values.flip(0)


class _Kernel(nn.Module):
    """W = mask ⊙ V, but σ ⊙ |V| on the diagonal, from C groups of features to C groups."""

    factor: Tensor
    diagonal: Tensor

    def __init__(self, place: Tensor, sign: Tensor, *, gain: float) -> None:
        super().__init__()
        self.groups, (out_features, in_features) = place.shape[0], sign.shape
        place = place.repeat_interleave(out_features, 0).repeat_interleave(in_features, 1)
        diagonal, reads = place == 0, place <= 0
        fan_in = reads.flatten(1).sum(1).reshape(-1, 1, 1, 1)
        self.weight = nn.Parameter(gain * torch.randn(place.shape) / fan_in.sqrt())
        self.bias = nn.Parameter(torch.zeros(len(place)))
        sign = sign.repeat(self.groups, self.groups)[:, :, None, None]
        self.register_buffer("factor", torch.where(diagonal, sign, reads.to(sign.dtype)), persistent=False)
        self.register_buffer("diagonal", diagonal, persistent=False)

    def forward(self) -> Float[Tensor, "out_features in_features height width"]:
        """W."""
        return torch.where(self.diagonal, self.weight.abs(), self.weight) * self.factor


def places(
    channels: int, kernel: int, *, order: RasterOrder, scan: Scan
) -> Int[Tensor, "channels channels kernel kernel"]:
    """Whether the value of channel c' at an offset comes before that of channel c (below 0), is it (0) or after it.

    Example:
        >>> places(1, 3, order="raster", scan="pixels")[0, 0].sign()
        tensor([[-1, -1, -1],
                [-1,  0,  1],
                [ 1,  1,  1]])
    """
    c, n = torch.arange(channels), kernel // 2
    pixel = torch.arange(kernel**2).reshape(kernel, kernel) - n * kernel - n
    channel = (c - c[:, None])[:, :, None, None]
    place = pixel * channels + channel if scan == "pixels" else channel * kernel**2 + pixel
    return place if order == "raster" else -place


def _check(
    event_shape: torch.Size,
    filters: int,
    kernel: int,
    log_scale_bound: float,
    *,
    order: str,
    scan: str,
    activation: str,
) -> None:
    if len(event_shape) not in (1, 3):
        raise ValueError(
            f"MaskedConvolution takes vectors or (channels, height, width), but event_shape is {tuple(event_shape)}."
        )
    if filters < 1 or kernel < 1 or kernel % 2 == 0 or not log_scale_bound > 0:
        raise ValueError(
            f"MaskedConvolution needs 1 filter or more, an odd kernel and a positive log_scale_bound, but has "
            f"{filters=}, {kernel=} and {log_scale_bound=}."
        )
    for name, value, choice in (
        ("order", order, RasterOrder), ("scan", scan, Scan), ("activation", activation, Activation)
    ):  # fmt: skip
        if value not in get_args(choice):
            raise ValueError(f"{name} must be {' or '.join(get_args(choice))}, but is {value!r}.")
