"""What a caller hands over arrives: context and generator at every layer, options at every network."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers import perturb, rng, seeded
from torch import Tensor, nn

from core import DensityModel, LikelihoodEstimate, StandardNormal
from discrete import (
    IAF,
    MAF,
    NICE,
    NSF,
    AffineCoupling,
    BatchNorm,
    Bijection,
    Compose,
    Flow,
    Glow,
    LULinear,
    MaskedAutoregressive,
    RealNVP,
    SplineCoupling,
    Split,
    Squeeze,
    VariationalDequantization,
    interpolate,
)
from discrete.bijections.dequantization import _beside_integers
from discrete.bijections.multiscale import multi_scale
from discrete.bijections.transformers import AffineTransformer


class Listener(Bijection):
    """The identity, which writes down with what it was called."""

    def __init__(self, shape: int | tuple[int, ...] = 2) -> None:
        super().__init__(shape)
        self.heard: list[tuple[str, Any, Any]] = []

    def forward(self, x: Tensor, context: Tensor | None = None, *, generator: Any = None) -> tuple[Tensor, Tensor]:
        self.heard.append(("forward", context, generator))
        return x, x.new_zeros(len(x))

    def inverse(self, z: Tensor, context: Tensor | None = None, *, generator: Any = None) -> tuple[Tensor, Tensor]:
        self.heard.append(("inverse", context, generator))
        return z, z.new_zeros(len(z))


class ListeningBase(DensityModel):
    """A standard normal that writes down with what it was called."""

    def __init__(self) -> None:
        super().__init__(2)
        self.inner, self.heard = StandardNormal(2), []

    def log_prob(self, x: Tensor, context: Tensor | None = None, *, generator: Any = None) -> Tensor:
        self.heard.append(("log_prob", context, generator))
        return self.inner.log_prob(x)

    def estimate_log_prob(self, x: Tensor, context: Any = None, *, generator: Any = None) -> LikelihoodEstimate:
        self.heard.append(("estimate_log_prob", context, generator))
        return self.inner.estimate_log_prob(x)

    def sample(self, shape: Any = (), *, context: Tensor | None = None, generator: Any = None) -> Tensor:
        self.heard.append(("sample", context, generator))
        return self.inner.sample(shape, generator=generator)

    def rsample_and_log_prob(self, shape: Any = (), *, context: Any = None, generator: Any = None) -> Any:
        self.heard.append(("rsample_and_log_prob", context, generator))
        return self.inner.rsample_and_log_prob(shape, generator=generator)


X, CONTEXT = torch.zeros(3, 2), torch.arange(6.0).reshape(3, 2)
CALLS: dict[str, Callable[[Flow, Any], Any]] = {
    "log_prob": lambda flow, g: flow.log_prob(X, CONTEXT, generator=g),
    "estimate_log_prob": lambda flow, g: flow.estimate_log_prob(X, CONTEXT, generator=g),
    "sample": lambda flow, g: flow.sample((3,), context=CONTEXT, generator=g),
    "rsample_and_log_prob": lambda flow, g: flow.rsample_and_log_prob((3,), context=CONTEXT, generator=g),
    "encode": lambda flow, g: flow.encode(X, CONTEXT, generator=g),
    "decode": lambda flow, g: flow.decode(X, CONTEXT, generator=g),
    "interpolate": lambda flow, g: interpolate(flow, X, X + 1, steps=2, context=CONTEXT, generator=g),
}


@pytest.mark.parametrize("name", CALLS)
def test_context_and_generator_reach_every_layer_and_the_base(name: str) -> None:
    layers = [Listener() for _ in range(3)]
    base = ListeningBase()
    flow = Flow(layers[0], Flow(Compose(layers[1], layers[2]), base))
    generator = rng(1)
    CALLS[name](flow, generator)
    listeners = layers if name in ("encode", "decode", "interpolate") else [*layers, base]
    for listener in listeners:
        assert listener.heard
        for call, context, heard in listener.heard:
            assert heard is generator, f"{call} got another generator"
            assert context is not None, f"{call} got no context"
            assert torch.equal(context.reshape(-1, 3, 2)[0], CONTEXT), f"{call} got another context"


def test_multi_scale_hands_on_context_and_generator() -> None:
    made: list[Listener] = []

    def level(shape: torch.Size, _: int) -> Bijection:
        made.append(Listener(tuple(shape)))
        return made[-1]

    flow = multi_scale((4, 2, 2), levels=2, level=level, context_features=2)
    generator = rng(2)
    z, _ = flow(torch.zeros(3, 4, 2, 2), CONTEXT, generator=generator)
    flow.inverse(z, CONTEXT, generator=generator)
    for listener in made:
        assert [call for call, _, _ in listener.heard] == ["forward", "inverse"]
        assert all(c is CONTEXT and g is generator for _, c, g in listener.heard)


IMAGE = (4, 4, 4)
MODELS: dict[str, Callable[..., Flow]] = {
    "nice": partial(NICE, 4, layers=2),
    "real-nvp": partial(RealNVP, 4, layers=2),
    "real-nvp-image": partial(RealNVP, IMAGE, layers=1, levels=2),
    "glow": partial(Glow, IMAGE, levels=2, depth=1),
    "glow-additive": partial(Glow, IMAGE, levels=2, depth=1, coupling="additive"),
    "nsf": partial(NSF, 4, layers=2),
    "nsf-image": partial(NSF, IMAGE, layers=1, levels=2),
    "nsf-autoregressive": partial(NSF, 4, layers=2, structure="autoregressive", conditioner="plain"),
    "maf": partial(MAF, 4, layers=2),
    "iaf": partial(IAF, 4, layers=2),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_pass_on_dropout_hidden_and_context(name: str) -> None:
    flow = MODELS[name](hidden=(5, 7), dropout=0.25, context_features=3)
    networks = [m.conditioner for m in flow.modules() if hasattr(m, "conditioner")]
    assert networks
    for network in networks:
        assert network.context_features == 3
        assert {m.p for m in network.modules() if isinstance(m, nn.Dropout | nn.Dropout2d)} == {0.25}
        widths = {p.shape[0] for p in network.parameters()}
        assert {5, 7} <= widths
    assert all(m.network.context_features == 3 for m in flow.modules() if isinstance(m, Split))


@pytest.mark.parametrize("name", [name for name in MODELS if name != "nice"])
def test_models_pass_on_the_activation(name: str) -> None:
    flow = MODELS[name](hidden=(5, 7), activation="silu")
    kinds = {type(m) for m in flow.modules()}
    assert nn.SiLU in kinds
    assert nn.ReLU not in kinds


@pytest.mark.parametrize("name", ["real-nvp", "real-nvp-image", "glow", "maf", "iaf"])
def test_models_pass_on_the_bound_of_every_log_scale(name: str) -> None:
    flow = MODELS[name](hidden=(5,), log_scale_bound=0.7)
    couplings = [m for m in flow.modules() if isinstance(m, AffineCoupling | MaskedAutoregressive)]
    bounds = [m.transformer.log_scale_bound for m in couplings if isinstance(m.transformer, AffineTransformer)]
    bounds += [m.log_scale_bound for m in flow.modules() if isinstance(m, Split)]
    assert len(bounds) > 1
    assert set(bounds) == {0.7}


@pytest.mark.parametrize("bound", [0.5, 2.0])
def test_the_log_scale_of_a_split_stays_within_its_bound(bound: float) -> None:
    """Two values a row leave as noise: |log det| < 2 B for any network, and close to it for a loud one."""
    split = perturb(seeded(lambda: Split((2, 1, 2), log_scale_bound=bound)), rng(3), std=50.0)
    _, log_det = split(torch.randn(200, 2, 1, 2, generator=rng(4), dtype=torch.float64))
    assert log_det.abs().max() <= 2 * bound
    assert log_det.abs().max() > 1.9 * bound


@pytest.mark.parametrize("build", [MAF, IAF])
def test_autoregressive_flows_pass_on_what_layers_are_made_of(build: Any) -> None:
    flow = build(4, layers=2, transformer="spline", bins=5, bound=2.5, direct=True, conditioner="resnet", hidden=(6,))
    layers = [m for m in flow.modules() if isinstance(m, MaskedAutoregressive)]
    assert len(layers) == 2
    for layer in layers:
        assert (layer.transformer.bins, layer.transformer.bound) == (5, 2.5)
        assert [node.is_output for node in layer.conditioner.nodes] == [False, False, False, True, True]
    mixture = build(4, layers=1, transformer="mixture", components=3, log_scale_bound=0.7, inverse_mode="jacobi")
    (layer,) = (m for m in mixture.modules() if isinstance(m, MaskedAutoregressive))
    assert (layer.transformer.components, layer.transformer.log_scale_bound) == (3, 0.7)
    assert layer.inverse_mode == "jacobi"
    kinds = {type(m) for m in build(4, layers=1, normalization="batch").modules()}
    assert BatchNorm in kinds


def test_iaf_passes_on_its_scale() -> None:
    flow = IAF(4, layers=2, scale="gated")
    scales = {m.transformer.scale for m in flow.modules() if isinstance(m, MaskedAutoregressive)}
    assert scales == {"gated"}


def test_nsf_has_the_ten_steps_of_the_paper() -> None:
    """Durkan et al., 2019, appendix B.1."""
    assert sum(isinstance(m, SplineCoupling) for m in NSF(3, hidden=(4,)).modules()) == 10


def test_nsf_mixes_features_between_couplings_that_take_turns() -> None:
    flow = NSF(5, layers=3, hidden=(4,))
    kinds = [type(b) for b in flow.bijection.bijections]
    assert kinds == [LULinear, SplineCoupling] * 3 + [LULinear]
    passing = [b.partition.passing.tolist() for b in flow.bijection.bijections if isinstance(b, SplineCoupling)]
    assert passing == [[0, 2, 4], [1, 3], [0, 2, 4]]


@pytest.mark.parametrize("shape", [(4,), (1, 2, 2)])
def test_every_value_of_variational_noise_moves_in_one_of_two_couplings(shape: tuple[int, ...]) -> None:
    first, second = (_beside_integers(torch.Size(shape), layer) for layer in (0, 1))
    size = shape[0]
    assert first[:size].all()
    assert second[:size].all()
    assert torch.equal(first[size:], ~second[size:])
    assert torch.equal(_beside_integers(torch.Size(shape), 2), first)
    layer = VariationalDequantization(shape, bins=4, layers=2, hidden=(4,))
    masks = [c.partition for c in layer.couplings.bijections]
    assert len(masks) == 2


def test_squeeze_is_a_level_of_its_own() -> None:
    flow = multi_scale((1, 4, 4), levels=2, level=lambda shape, i: Squeeze(shape), context_features=0)
    assert [tuple(s) for s in flow.latent_shapes] == [(2, 2, 2), (8, 1, 1)]
