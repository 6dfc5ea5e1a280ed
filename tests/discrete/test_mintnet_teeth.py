"""Masks, diagonals and inverses of Mint layers that are wrong in one place: the contracts reject each."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from contracts import bijections
from contracts.mint import gradients_are_those_of_the_inverse_function, inverts, jacobian_is_triangular
from helpers import Tooth, normal, perturb, rng, seeded
from torch import Tensor
from wrong import Tampered

from core.shapes import sum_event
from discrete import Bijection, MaskedConvolution
from discrete.bijections import mintnet_inverse
from discrete.bijections.inversion import Inversion
from discrete.bijections.mintnet import places

SHAPE, KERNEL = (2, 2, 3), 3
X = normal(3, SHAPE, rng(0))
STEEP = torch.tensor([[0.01], [-0.002], [1.0], [-0.3], [0.05], [0.1]], dtype=torch.float64)


def layer(**keywords: str) -> MaskedConvolution:
    return perturb(seeded(partial(MaskedConvolution, SHAPE, filters=3, **keywords)), rng(1))


def reading(later: Callable[[Tensor, Tensor], Tensor], *kernels: int) -> MaskedConvolution:
    """A layer some of whose kernels read more: `later` of offsets among pixels and among channels."""
    made = layer()
    place = places(1, KERNEL, order="raster", scan="pixels")
    channel = torch.arange(2) - torch.arange(2)[:, None]
    more = later(place, channel[:, :, None, None]).expand(2, 2, KERNEL, KERNEL)
    for kernel in (made.kernels[i] for i in kernels):
        out, into = (size // 2 for size in kernel.weight.shape[:2])
        extra = more.repeat_interleave(out, 0).repeat_interleave(into, 1)
        kernel.factor = torch.where(extra, 1.0, kernel.factor)
    return made


def unsigned(*kernels: int, free: bool = False) -> MaskedConvolution:
    """Weights on the diagonal of any sign, or all positive, in some kernels; t nearly zero."""
    made = layer()
    with torch.no_grad():
        made.log_t.fill_(-12.0)
        for kernel in made.kernels:
            kernel.weight.mul_(2.0)
    for kernel in (made.kernels[i] for i in kernels):
        if free:
            kernel.diagonal = torch.zeros_like(kernel.diagonal)
        else:
            kernel.factor = kernel.factor.abs()
    return made


def nearly_flat() -> MaskedConvolution:
    return unsigned()


def slopes(made: MaskedConvolution, x: Tensor, *, first: bool = True, second: bool = True, skip: bool = True) -> Tensor:
    """∂z_p/∂x_p with an h', or t, left out where told."""
    mint = made.mint()
    h1, s1 = mint.hidden(0, x)
    _, s2 = mint.hidden(1, h1)
    s1, s2 = (s if kept else torch.ones_like(s) for s, kept in ((s1, first), (s2, second)))
    d1, d2, d3 = mint.diagonals()
    s1, s2 = (s.unflatten(1, (SHAPE[0], -1)) for s in (s1, s2))
    slope = torch.einsum("cai,rcihw,cij,rcjhw,cjb->rchw", d3, s2, d2, s1, d1)
    return slope + mint.t if skip else slope


def with_log_det(**kept: bool) -> Bijection:
    made = layer()
    return Tampered(made, forward=lambda x, z, _: (z, sum_event(slopes(made, x, **kept).log())))


def log_det(made: Bijection) -> None:
    bijections.forward_log_det_is_that_of_the_jacobian(made, X)


def steep() -> MaskedConvolution:
    """z = 0.07 x + 3 tanh(3 tanh(3 x))."""
    made = MaskedConvolution(1, filters=1, activation="tanh").double().eval()
    with torch.no_grad():
        for kernel in made.kernels:
            kernel.weight.fill_(3.0)
        made.log_t.fill_(-4.0)
    return made


@torch.no_grad()
def undamped(made: MaskedConvolution, z: Tensor, *, alpha: float = 1.0, claim: bool = False) -> Inversion:
    """A fixed number of equal steps whatever they lead to, and the residual, or the claim that none is left."""
    mint, z = made.mint(), z.reshape(len(z), *made.image_shape)
    x = z / mint.t
    for _ in range(100):
        image, slope = mint.evaluate(x)
        x = x + alpha * (z - image) / slope
    image, slope = mint.evaluate(x)
    residual = (image - z).flatten(1).abs().amax(1)
    x = x.reshape(len(z), *made.event_shape)
    count = torch.full((len(z),), 100)
    return Inversion(x, -sum_event(slope.log()), count, torch.zeros_like(residual) if claim else residual)


def comes_back(invert: Callable[[MaskedConvolution, Tensor], Inversion]) -> None:
    inverts(steep(), STEEP, invert=invert, tolerance=1e-12)


def by_degrees(change: Callable[[MaskedConvolution], None] = lambda made: None) -> MaskedConvolution:
    made = perturb(seeded(partial(MaskedConvolution, SHAPE, filters=3, iterations=1)), rng(1))
    change(made)
    return made


def reverse_degrees(made: MaskedConvolution) -> None:
    order = made.degrees().flip(0)
    made.degrees = lambda: order


def solved_by_degrees(made: MaskedConvolution) -> None:
    inverts(made, X, invert=MaskedConvolution.invert, tolerance=1e-11)


def gradients(made: MaskedConvolution) -> None:
    gradients_are_those_of_the_inverse_function(made, X)


TEETH = {
    "mask ≥ for > between the channels of a pixel": Tooth(
        partial(jacobian_is_triangular, x=X), layer, partial(reading, lambda p, c: (p == 0) & (c > 0), 0)
    ),
    "mask ≥ for > between the channels of a pixel, inside": Tooth(
        partial(jacobian_is_triangular, x=X), layer, partial(reading, lambda p, c: (p == 0) & (c > 0), 1)
    ),
    "the pixel behind is read": Tooth(
        partial(jacobian_is_triangular, x=X), layer, partial(reading, lambda p, c: (p == 1) & (c <= 0), 2)
    ),
    "d² of any sign": Tooth(partial(jacobian_is_triangular, x=X), nearly_flat, partial(unsigned, 1, free=True)),
    "d² of the one sign beside d¹ and d³ of both": Tooth(
        partial(jacobian_is_triangular, x=X), nearly_flat, partial(unsigned, 1)
    ),
    "d³ of any sign": Tooth(partial(jacobian_is_triangular, x=X), nearly_flat, partial(unsigned, 2, free=True)),
    "the first h' missing": Tooth(log_det, with_log_det, partial(with_log_det, first=False)),
    "the second h' missing": Tooth(log_det, with_log_det, partial(with_log_det, second=False)),
    "t missing": Tooth(log_det, with_log_det, partial(with_log_det, skip=False)),
    "log-det summed over the channels twice": Tooth(
        log_det, layer, lambda: Tampered(layer(), forward=lambda x, z, log_det: (z, SHAPE[0] * log_det))
    ),
    "log-det of one channel": Tooth(
        log_det,
        layer,
        lambda: Tampered(layer(), forward=lambda x, z, log_det: (z, slopes(layer(), x)[:, 0].log().flatten(1).sum(1))),
    ),
    "undamped steps": Tooth(comes_back, lambda: MaskedConvolution.invert, lambda: undamped),
    "undamped steps taken for converged": Tooth(
        comes_back, lambda: MaskedConvolution.invert, lambda: partial(undamped, claim=True)
    ),
    "the steps of the paper's code": Tooth(
        comes_back, lambda: MaskedConvolution.invert, lambda: partial(undamped, alpha=1 / 3.5)
    ),
    "degrees in the other order": Tooth(solved_by_degrees, by_degrees, partial(by_degrees, reverse_degrees)),
    "degrees in the other order for the gradient": Tooth(gradients, by_degrees, partial(by_degrees, reverse_degrees)),
}


@pytest.mark.parametrize("name", TEETH)
def test_mintnet(name: str) -> None:
    TEETH[name].bites()


def forward_solve(_: MaskedConvolution, image: Tensor, x: Tensor, context: Tensor | None, g: Tensor) -> Tensor:
    """v = J⁻¹ g."""
    rows = [torch.autograd.grad(image.flatten(1)[:, i].sum(), x, retain_graph=True)[0] for i in range(x[0].numel())]
    J = torch.stack([row.flatten(1) for row in rows], 1)
    return torch.linalg.solve(J, g.flatten(1)).reshape(x.shape)


FAULTS = {
    "transpose forgotten": forward_solve,
    "sign": lambda *arguments: -SOLVE(*arguments),
    "one iteration taken for the solution": lambda made, image, x, _, g: g / made.mint().evaluate(x)[1],
}
SOLVE = mintnet_inverse._solve_transposed


@pytest.mark.parametrize("name", FAULTS)
def test_implicit_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients(layer())
    monkeypatch.setattr(mintnet_inverse, "_solve_transposed", FAULTS[name])
    with pytest.raises(AssertionError):
        gradients(layer())
