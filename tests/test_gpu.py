"""On a GPU as on the CPU: the same numbers, and a host that never waits for the device where it need not.

Every comparison is a function of the device, so that it runs on the CPU too, where waiting shows as an operation whose
result the host must read. What draws is given a generator for each row, whose numbers are the same on every device.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytest
import torch
from cases import BIJECTIONS, COUPLE_ROWS, DENSITIES, DIVERGENCES, MASSES, SAMPLERS, SPINS, VAES, shortened
from helpers import normal, rng
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cflows import VPSDE, DenoisingScoreMatching, ScoreSDE, ode_log_prob, probability_flow_log_prob
from cflows.models.continuous_flow import ContinuousFlow
from core import DensityModel, RowGenerators, StandardNormal
from discrete.bijections import logistic_mixture, quantiles

CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and there is none")],
)
EACH_DEVICE = pytest.mark.parametrize("device", ["cpu", CUDA])
MODELS = {**DENSITIES, **MASSES, **VAES, **SPINS}
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)
EVERY_MAP = pytest.mark.parametrize("name", BIJECTIONS)
SOLVED = ScoreSDE | ContinuousFlow
PROBED = ("flow-logit-score-sde-2",)  # one generator serves all probes, whose numbers a GPU draws otherwise
ROWS = 5
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
PRECISIONS = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)

# The host plans the steps of an incremental inverse from its masks, ends iterations when every row rests, and shares
# rows out among the parts of a mixture.
WAITING_LOG_PROB = ("iaf",)
WAITING_SAMPLE = (
    "maf", "nsf-2-autoregressive", "made", "autoregressive-mlp",
    "mintnet", "residual", "gaussianization", "mixture-of-densities",
)  # fmt: skip
SHARED = ("mixture-2", "made-2-masks", "made-4-masks-context", *SPINS)  # all rows draw from one generator
READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim"}


class Unread(TorchDispatchMode):
    """Fails where the host reads a value of a tensor: on a GPU it would wait there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # States of generators, which are bytes, are on the host in any case.
        if func.overloadpacket.__name__ in READS and args[0].dtype != torch.uint8:
            raise RuntimeError(f"called a synchronizing operation: {func}")
        return func(*args, **(kwargs or {}))


@contextmanager
def never_waiting(device: str) -> Iterator[None]:
    if device == "cpu":
        with Unread():
            yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def pairs(module: nn.Module, device: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """The module in float64 on the CPU, and a copy on the device, whose parameters are the same numbers."""
    there = deepcopy(module).to(device=device, dtype=dtype)
    return deepcopy(there).to(device="cpu", dtype=torch.float64), there


def moved(x: Tensor | None, device: str, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(device=device, dtype=dtype)


def gradients(outputs: Tensor, module: nn.Module) -> list[Tensor]:
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters or not outputs.requires_grad:
        return []
    return list(torch.autograd.grad(outputs, parameters, allow_unused=True, materialize_grads=True))


def agree(found: Any, expected: Any, *, dtype: torch.dtype) -> None:
    for a, b in zip(found, expected, strict=True):
        size = b.detach().abs().amax().item() if b.numel() else 0.0
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(a.detach().cpu().double(), b.detach(), rtol=tolerance, atol=tolerance * max(1, size))


@EACH_DEVICE
@PRECISIONS
@EVERY_MAP
def test_bijections(name: str, dtype: torch.dtype, device: str) -> None:
    """Image, log-determinant and gradients, both directions."""
    case = BIJECTIONS[name]
    here, there = pairs(case.make(), device, dtype)
    context = case.context(ROWS, rng(3))
    for draw, shape, call in (
        (case.data, here.event_shape, "forward"), (case.latents, here.latent_shape, "inverse"),
    ):  # fmt: skip
        x = draw(ROWS, shape, rng(2)).to(dtype)
        expected = getattr(here, call)(x.double(), moved(moved(context, "cpu", dtype), "cpu", torch.float64))
        found = getattr(there, call)(x.to(device), moved(context, device, dtype))
        assert all(part.device.type == device for part in found)
        agree(found, expected, dtype=dtype)
        agree(*(gradients(sum(p.sum() for p in r), m) for r, m in ((found, there), (expected, here))), dtype=dtype)


def call_log_prob(model: DensityModel, name: str, x: Tensor, context: Tensor | None) -> Tensor:
    return model.log_prob(x, context, generator=RowGenerators(range(len(x))))


@EACH_DEVICE
@PRECISIONS
@pytest.mark.parametrize("name", [name for name in MODELS if name not in PROBED])
def test_densities(name: str, dtype: torch.dtype, device: str) -> None:
    """Log-densities, by ODE as well, and their gradients."""
    case = MODELS[name]
    here, there = pairs(case.make(), device, dtype)
    context = None if name in SPINS else case.context(ROWS, rng(3))
    x = case.data(ROWS, here.event_shape, rng(2)).to(dtype)
    single = moved(context, "cpu", dtype)
    expected = call_log_prob(here, name, x.double(), moved(single, "cpu", torch.float64))
    found = call_log_prob(there, name, x.to(device), moved(single, device, dtype))
    assert found.device.type == device
    agree([found], [expected], dtype=dtype)
    agree(gradients(found.sum(), there), gradients(expected.sum(), here), dtype=dtype)


@EACH_DEVICE
@EVERY_MODEL
def test_draws(name: str, device: str) -> None:
    """The same ones, where each row has a generator; on a grid of numbers a rounding may move one to the next."""
    case = MODELS[name]
    here, there = pairs(case.make(), device, torch.float64)
    context = None if name in SPINS else case.context(ROWS, rng(3))
    seeds = lambda: RowGenerators(range(ROWS))  # noqa: E731
    one, refused = moved(context, device, torch.float64), name in SHARED
    generators = (rng(5), torch.Generator(device).manual_seed(5)) if refused else (seeds(), seeds())
    expected = here.sample((ROWS,), context=context, generator=generators[0])
    found = there.sample((ROWS,), context=one, generator=generators[1])
    assert found.device.type == device
    if refused and device != "cpu":  # a generator of the GPU draws other numbers
        assert found.isfinite().all()
    else:
        agree([found], [expected], dtype=torch.float32)


def score(x: Tensor, t: Tensor) -> Tensor:
    """Of N(0, 0.5²) data under the VP process."""
    scale, std = VPSDE().marginal(t.to(x))
    variance = (0.25 * scale.square() + std.square()).reshape(-1, *(1 for _ in x.shape[1:]))
    return -x / variance


@EACH_DEVICE
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in COUPLE_ROWS])
def test_samplers(name: str, device: str) -> None:
    sampler, x_T = shortened(SAMPLERS[name]), normal(ROWS, (2,), rng(0))
    runs = [sampler(score, VPSDE(), x_T.to(place), generator=RowGenerators(range(ROWS))) for place in ("cpu", device)]
    agree(runs[1:], runs[:1], dtype=torch.float64)


@EACH_DEVICE
@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences(name: str, device: str) -> None:
    divergence, x, W = DIVERGENCES[name], normal(ROWS, (6,), rng(0)), normal(6, (6,), rng(1))

    def at(place: str) -> tuple[Tensor, Tensor]:
        y = x.to(place)
        return divergence(lambda v: torch.tanh(v @ W.to(place)), y, divergence.draw(x, rng(2)).to(place))

    agree(at(device), at("cpu"), dtype=torch.float64)


@EACH_DEVICE
@pytest.mark.parametrize("method", ["dopri5", "dopri5_per_sample", "rk4", "adams"])
def test_ode_likelihoods(method: str, device: str) -> None:
    x, options = normal(ROWS, (2,), rng(0)), {"method": method, "steps": 20}

    def at(place: str) -> list[Tensor]:
        y = x.to(place)
        flow = ode_log_prob(lambda v, t: torch.tanh(v), StandardNormal(2).double().to(place), y, **options)
        sde = probability_flow_log_prob(score, VPSDE(), y, **options)
        return [flow.log_prob, flow.solver_error, sde.log_prob, sde.solver_error, sde.truncation]

    agree(at(device), at("cpu"), dtype=torch.float64)


CLOSED = [n for n, c in DENSITIES.items() if not any(isinstance(part, SOLVED) for part in c.make().modules())]


def waits(call: Callable[[], object], device: str) -> str:
    """Where the host waits for the device, empty where it does not; what a first call sets up is not counted."""
    call()
    try:
        with never_waiting(device):
            call()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return str(error)
    return ""


@EACH_DEVICE
@pytest.mark.parametrize("name", [*CLOSED, *MASSES])
def test_the_host_does_not_wait(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a density, a draw and a step of training, but where it is said above; `ActNorm` asks in its first step."""
    for place in (quantiles, logistic_mixture):  # it asks on a CPU alone, where that spares work
        monkeypatch.setattr(place, "may_have", lambda mask: True)
    case = MODELS[name]
    model = case.make().float().to(device)
    x = case.data(ROWS, model.event_shape, rng(2)).float().to(device)
    context = moved(case.context(ROWS, rng(3)), device, torch.float32)
    generator = torch.Generator(device)
    found = waits(lambda: model.log_prob(x, context, generator=generator), device)
    assert bool(found) == name.startswith(WAITING_LOG_PROB), found
    found = waits(lambda: model.sample((ROWS,), context=context, generator=generator), device)
    assert bool(found) == name.startswith(WAITING_SAMPLE), found
    if not list(model.parameters()) or name.startswith(WAITING_LOG_PROB):
        return
    optimizer = torch.optim.SGD(model.train().parameters(), 1e-3)
    found = waits(lambda: step(lambda: -model.log_prob(x, context, generator=generator).mean(), optimizer), device)
    assert not found, found


def step(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()


@EACH_DEVICE
def test_the_host_does_not_wait_for_score_matching(device: str) -> None:
    model = ScoreSDE(2, hidden=(8,)).to(device)
    objective, x = DenoisingScoreMatching(model, model.sde), torch.ones(ROWS, 2, device=device)
    optimizer, generator = torch.optim.SGD(model.parameters(), 1e-3), torch.Generator(device)
    assert not waits(lambda: step(lambda: objective(x, generator=generator), optimizer), device)


@EACH_DEVICE
def test_waiting_is_seen(device: str) -> None:
    x = torch.ones(3, device=device)
    assert waits(lambda: x.sum().item(), device)
    assert waits(lambda: x.nonzero(), device)
    assert waits(lambda: x.sum() > 0 and x, device)
    assert not waits(lambda: (x * 2).sum(), device)
