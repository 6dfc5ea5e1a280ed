"""Other libraries beside ours: lent for the length of a test, run as black boxes in float64, compared both ways."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers import normal, rng
from torch import Tensor, distributions, nn

from core.nets.masked import MaskedMLP
from discrete import Bijection, Compose, Flow, Inverse, MaskedAutoregressive
from discrete.bijections.transformers import AffineTransformer, Transformer

ROWS = 50
BOUND = 10.0  # of our log-scales, beyond those of every peer
Mapping = Callable[..., tuple[Tensor, Tensor]]
Linear = tuple[Tensor, Tensor]  # weight and bias
Masked = tuple[Tensor, Tensor, Tensor]  # and mask

CLASSES = (
    distributions.Distribution,
    distributions.TransformedDistribution,
    distributions.HalfCauchy,
    distributions.Transform,
    distributions.transforms._InverseTransform,
)
_changes: dict[str, dict[tuple[type, str], Any]] = {}


@contextmanager
def quiet() -> Iterator[None]:
    """Peers warn of what torch has deprecated since."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def lent(name: str) -> Iterator[Any]:
    """The peer of this name, with what it changes in torch.distributions when it is imported undone at the end."""
    before = attributes()
    with quiet():
        peer = pytest.importorskip(name)
    after = attributes()
    changes = _changes.setdefault(name, {key: after[key] for key in after if after[key] is not before.get(key)})
    for (kind, attribute), value in changes.items():
        setattr(kind, attribute, value)
    try:
        yield peer
    finally:
        for kind, attribute in changes:
            if (kind, attribute) in before:
                setattr(kind, attribute, before[kind, attribute])
            else:
                delattr(kind, attribute)


@contextmanager
def float64_by_default() -> Iterator[None]:
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)


def attributes() -> dict[tuple[type, str], Any]:
    """Everything that stands in torch's classes, and their names."""
    return {
        (kind, name): value for kind in CLASSES for name, value in (*vars(kind).items(), ("__name__", kind.__name__))
    }


def made(build: Callable[[], nn.Module]) -> nn.Module:
    with quiet():
        return build().double().eval()


def agree(ours: Bijection, forward: Mapping, inverse: Mapping, *context: Tensor) -> None:
    """Both directions of the peer, from data to noise first, each on its own."""
    x = 1.5 * normal(ROWS, tuple(ours.event_shape), rng(10))
    for mapping, theirs in ((ours.forward, forward), (ours.inverse, inverse)):
        z, log_det = mapping(x, *context)
        with quiet():
            expected, expected_log_det = theirs(x, *context)
        torch.testing.assert_close(z, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(log_det, expected_log_det, rtol=1e-10, atol=1e-10)


def agree_as_flows(ours: Flow, forward: Mapping, inverse: Mapping, *context: Tensor) -> None:
    """log p, both directions of the bijection, and draws from the same noise with their density."""
    agree(ours.bijection, forward, inverse, *context)
    draws, log_prob = ours.rsample_and_log_prob((ROWS,), context=next(iter(context), None), generator=rng(5))
    z = ours.base.sample((ROWS,), generator=rng(5))
    x, log_det = inverse(z, *context)
    torch.testing.assert_close(draws, x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_prob, ours.base.log_prob(z) - log_det, rtol=1e-10, atol=1e-10)


def agree_with_law(ours: Flow, law: distributions.Distribution, *context: Tensor) -> None:
    """log p and its gradient in x."""
    x = normal(ROWS, tuple(ours.event_shape), rng(4)).requires_grad_()
    log_probs = ours.log_prob(x, *context), law.log_prob(x)
    gradients = [torch.autograd.grad(log_prob.sum(), x)[0] for log_prob in log_probs]
    for pair in (log_probs, gradients):
        torch.testing.assert_close(*pair, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def take(network: MaskedMLP, places: Tensor, hidden: Sequence[Tensor], linears: Sequence[Linear]) -> None:
    """Degrees of the features, the first being 1, and of the units of every hidden value; weights, masked or not.

    Those of the outputs have the parameters of a feature next to one another.
    """
    context = places.new_zeros(network.context_features)
    outputs = places.repeat(network.parameters_per_feature)
    network.set_extra_state(torch.cat([places, context, *hidden, outputs])[None].long())
    for node, ours, (weight, bias) in zip(network.nodes, network.linears, linears, strict=True):
        ours.weight.copy_(by_parameter(network, weight) if node.is_output else weight)
        ours.bias.copy_(by_parameter(network, bias) if node.is_output else bias)


def by_parameter(network: MaskedMLP, rows: Tensor) -> Tensor:
    """One parameter of all features after the other, from one feature with all parameters after the other."""
    return rows.unflatten(0, (network.features, network.parameters_per_feature)).transpose(0, 1).flatten(0, 1)


def take_masked(network: MaskedMLP, places: Tensor, layers: Sequence[Masked]) -> None:
    """From plain masked layers, which must have the masks of ours; a unit of degree m sees m features."""
    seen, degrees = torch.eye(len(places)), []
    for _, _, mask in layers[:-1]:
        seen = (mask[:, : len(seen)].to(seen) @ seen > 0).to(seen)
        degrees.append(seen.sum(1))
    take(network, places, degrees, [(weight, bias) for weight, bias, _ in layers])
    for node, linear, (_, _, mask) in zip(network.nodes, network.linears, layers, strict=True):
        expected = by_parameter(network, mask) if node.is_output else mask
        assert torch.equal(linear.mask[0].bool(), expected.bool())


def masked(layer: nn.Module) -> Masked:
    return layer.weight, layer.bias, layer.mask


class Reparametrised(Transformer):
    """One of our transformers at parameters that a function makes of θ."""

    def __init__(self, transformer: Transformer, change: Callable[[Tensor], Tensor]) -> None:
        self.transformer, self.change = transformer, change
        self.parameters_per_feature = transformer.parameters_per_feature

    def forward(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return self.transformer.forward(x, self.change(theta))

    def inverse(self, z: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return self.transformer.inverse(z, self.change(theta))


def affine(log_scale_and_shift: Callable[..., tuple[Tensor, Tensor]]) -> Transformer:
    """a of s = B tanh(a/B) beside t."""

    def change(theta: Tensor) -> Tensor:
        s, t = log_scale_and_shift(*theta.unbind(-1))
        return torch.stack([BOUND * torch.atanh(s / BOUND), t], -1)

    return Reparametrised(AffineTransformer(log_scale_bound=BOUND), change)


def layers_of(flow: Flow) -> list[MaskedAutoregressive]:
    bijection = flow.bijection.bijection if isinstance(flow.bijection, Inverse) else flow.bijection
    assert isinstance(bijection, Compose)
    return list(bijection.bijections)
