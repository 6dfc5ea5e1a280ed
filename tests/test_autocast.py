"""Under autocast every density and log-determinant is that of full precision, whoever calls it."""

from collections.abc import Callable

import pytest
import torch
from cases import BIJECTIONS, DENSITIES, FLOW_OBJECTIVES, MASSES, SPINS, SURJECTIONS, VAES
from helpers import normal, rng, seeded, unit
from torch import Tensor, nn

from cflows import (
    FFJORD,
    VPSDE,
    DenoisingScoreMatching,
    ScoreSDE,
    ode_log_prob,
    probability_flow_log_prob,
    score_flow_bound,
)
from cflows.objectives.cnf import RegularizedLikelihood
from core import RowGenerators, StandardNormal
from core.precision import outside_autocast
from discrete import Bijection, Dequantization, Flow, Logit, MaskedAutoregressive, RealNVP, invert_autoregressive

HALF = torch.bfloat16
MODELS = {**DENSITIES, **MASSES, **VAES, **SPINS}
CALLS = ("log_prob", "estimate_log_prob", "encode")
DRAWS = ("sample", "rsample_and_log_prob")


def tensors(result: object) -> list[Tensor]:
    """Those of a tensor, a tuple or an estimate."""
    if isinstance(result, Tensor):
        return [result]
    values = result if isinstance(result, tuple) else vars(result).values()
    return [value for value in values if isinstance(value, Tensor)]


def has(model: nn.Module, call: str) -> bool:
    """A flow has differentiable draws where its base has."""
    parts = [model, *([model.base] if call == "rsample_and_log_prob" and isinstance(model, Flow) else [])]
    return all(hasattr(part, call) for part in parts)


def is_that_of_full_precision(call: Callable[[], object]) -> None:
    """The same bits with and without autocast, and none in half precision."""
    expected = tensors(call())
    with torch.autocast("cpu", HALF):
        found = tensors(call())
    assert found, "nothing is returned"
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype, f"{b.dtype} became {a.dtype}"
        assert not a.is_floating_point() or a.dtype == torch.float32, f"float32 in, {a.dtype} out"
        assert torch.equal(a.nan_to_num(), b.nan_to_num()), f"autocast moved it by {(a - b).abs().max().item():g}"


@pytest.mark.parametrize("name", BIJECTIONS)
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_bijections(name: str, direction: str) -> None:
    case = BIJECTIONS[name]
    bijection = case.make().float()
    draw, shape = (
        (case.data, bijection.event_shape) if direction == "forward" else (case.latents, bijection.latent_shape)
    )
    x, context = draw(5, shape, rng(2)).float(), case.context(5, rng(3))
    context = None if context is None else context.float()
    is_that_of_full_precision(lambda: getattr(bijection, direction)(x, context))


@pytest.mark.parametrize("name", SURJECTIONS)
def test_surjections(name: str) -> None:
    layer = seeded(SURJECTIONS[name])
    k = torch.randint(layer.bins, (4, *layer.event_shape), generator=rng(2))
    is_that_of_full_precision(lambda: layer(k, generator=rng(3)))


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    case = MODELS[name]
    model = case.make().float()
    context = case.context(2, rng(3)) if getattr(case, "context_features", 0) else None
    context = None if context is None else context.float()
    x = case.data(2, model.event_shape, rng(2)).float()
    z = x.reshape(2, *getattr(model, "latent_shape", model.event_shape))
    for start, calls in ((x, CALLS), (z, ["decode"]), ((2,), DRAWS)):
        for call in (call for call in calls if has(model, call)):
            method = getattr(model, call)
            is_that_of_full_precision(lambda m=method, s=start: m(s, context=context, generator=rng(4)))


def test_half_precision_of_a_network_before_comes_in_as_float32() -> None:
    """An encoder under autocast gives its context in bfloat16."""
    flow = RealNVP(2, layers=2, hidden=(8,), context_features=3)
    encoder = nn.Linear(4, 3)
    x, y = normal(5, (2,), rng(0)).float(), normal(5, (4,), rng(1)).float()
    with torch.autocast("cpu", HALF):
        context = encoder(y)
        assert context.dtype == HALF
        log_prob = flow.log_prob(x, context)
    assert torch.equal(log_prob, flow.log_prob(x, context.float()))


@pytest.mark.parametrize("solve", [ode_log_prob, probability_flow_log_prob, score_flow_bound])
def test_likelihoods_by_a_field(solve: Callable[..., object]) -> None:
    """A network of one's own as the velocity or the score."""
    net, x = seeded(lambda: nn.Linear(3, 3)), normal(4, (3,), rng(0)).float()
    field = lambda x, t: net(x) - x  # noqa: E731
    end = StandardNormal(3) if solve is ode_log_prob else VPSDE()
    more = {"t_min": 1e-2} if solve is not ode_log_prob else {}
    is_that_of_full_precision(lambda: solve(field, end, x, generator=rng(1), **more))


def test_inverse_of_an_autoregressive_network() -> None:
    layer = seeded(lambda: MaskedAutoregressive(4, hidden=(8,)))
    nn.init.normal_(list(layer.parameters())[-2], generator=rng(0))
    z = normal(5, (4,), rng(1)).float()
    for mode in ("incremental", "jacobi", "sequential"):
        call = lambda mode=mode: invert_autoregressive(layer.conditioner, layer.transformer, z, mode=mode)  # noqa: E731
        is_that_of_full_precision(call)


@pytest.mark.parametrize("name", [n for n, build in FLOW_OBJECTIVES.items() if "likelihood" in n])
def test_likelihood_as_a_loss(name: str) -> None:
    """The gradient by the adjoint too, taken outside of the block as torch advises."""
    objective = FLOW_OBJECTIVES[name](seeded(lambda: FFJORD(2, hidden=(8,))))
    assert isinstance(objective, RegularizedLikelihood)
    x = normal(4, (2,), rng(0)).float()
    is_that_of_full_precision(lambda: objective(x, generator=rng(1)).detach())


def test_a_flow_trains_alike() -> None:
    """The backward pass outside of the block, as torch advises."""
    flow, x = RealNVP(3, layers=2, hidden=(8,)), normal(9, (3,), rng(0)).float()
    parameters = list(flow.parameters())
    expected = torch.autograd.grad(-flow.log_prob(x).mean(), parameters)
    with torch.autocast("cpu", HALF):
        loss = -flow.log_prob(x).mean()
    for a, b in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        assert torch.equal(a, b)


def test_score_matching_may_use_half_precision() -> None:
    """No log-determinant is in it: the network runs in bfloat16, and the loss is close to that of float32."""
    seen: list[torch.dtype] = []
    model = seeded(lambda: ScoreSDE(2, hidden=(8,)))
    model.net.register_forward_hook(lambda module, args, y: seen.append(y.dtype))
    objective, x = DenoisingScoreMatching(model, model.sde), normal(64, (2,), rng(0)).float()
    expected = objective(x, generator=rng(1))
    with torch.autocast("cpu", HALF):
        found = objective(x, generator=rng(1))
    assert seen == [torch.float32, HALF]
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)


def test_whole_numbers_and_generators_pass() -> None:
    flow = Flow(Logit(2), StandardNormal(2))
    whole = Flow(Dequantization(2, bins=4), flow)
    k = torch.tensor([[0, 3], [1, 2]])
    is_that_of_full_precision(lambda: whole.log_prob(k, generator=RowGenerators([1, 2])))


class Coarse(Bijection):
    """Wrong: autocast reaches into the network that gives its scale."""

    def __init__(self) -> None:
        super().__init__(3)
        self.net = nn.Linear(3, 3)

    def forward(self, x: Tensor, context: Tensor | None = None, *, generator: object = None) -> tuple[Tensor, Tensor]:
        log_scale = self.net(torch.ones_like(x))
        return x * log_scale.exp(), log_scale.sum(1)

    def inverse(self, z: Tensor, context: Tensor | None = None, *, generator: object = None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


def test_tooth() -> None:
    """A mapping without the guard is rejected, the guarded one is not."""
    layer, x = seeded(Coarse), unit(4, (3,), rng(0)).float()
    is_that_of_full_precision(lambda: layer(x))
    bare = type(layer).forward.__wrapped__.__wrapped__
    with pytest.raises(AssertionError, match="autocast moved it"):
        is_that_of_full_precision(lambda: bare(layer, x))
    is_that_of_full_precision(lambda: outside_autocast(bare)(layer, x))
