"""The contracts of causal transformers, their flows and their masses bite: each rejects what is wrong in one place."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from contracts import bijections, causal, masses
from helpers import Tooth, normal, perturb, rng, seeded
from torch import Tensor
from torch.nn import functional as F
from wrong import Tampered

from core.nets import CausalTransformer, transformer
from discrete import AutoregressiveTransformer, Compose, PatchAutoregressive, TransformerFlow
from discrete.bijections.patch_autoregressive import PatchConditioner

SIZES = {"hidden": 8, "heads": 2}
T = 4
TOKENS = normal(3, (T, 2), rng(0))
X, Z = normal(3, (2 * T,), rng(1)), normal(3, (2 * T,), rng(2))
RASTER = torch.arange(T).repeat_interleave(2)


class Unshifted(CausalTransformer):
    """Output i reads token i itself."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        attend = partial(F.scaled_dot_product_attention, is_causal=True)
        return self._run(x, self.positions, context, [attend] * len(self.blocks))


class ShiftedBack(CausalTransformer):
    """Output i reads the token after it."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        attend = partial(F.scaled_dot_product_attention, is_causal=True)
        return self._run(F.pad(x, (0, 0, -1, 1)), self.positions, context, [attend] * len(self.blocks))


class Uncausal(CausalTransformer):
    """Attention to every token."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        attends = [F.scaled_dot_product_attention] * len(self.blocks)
        return self._run(F.pad(x, (0, 0, 1, -1)), self.positions, context, attends)


class LatePositions(CausalTransformer):
    """The sweep adds the position of the token before."""

    def _run(self, previous: Tensor, positions: Tensor, context: Tensor | None, attends: Any) -> Tensor:
        if positions.ndim == 1:
            positions = self.positions.roll(1, 0)[(self.positions == positions).all(1)]
        return super()._run(previous, positions, context, attends)


class Recached(CausalTransformer):
    """Sweeps with another cache."""

    cache: Any = transformer._Cache

    def sweep(self, choose: Any, rows: int, context: Tensor | None = None) -> Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transformer, "_Cache", self.cache)
            return super().sweep(choose, rows, context)


class ForgetsTheNewest(transformer._Cache):
    """The slice ends one short, at a token's own key."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attended = super().attend(q, k, v)
        last = max(self.length - 1, 1)
        return F.scaled_dot_product_attention(q, self.k[:, :, :last], self.v[:, :, :last]) + 0 * attended


class SeesAnEmptyPlace(transformer._Cache):
    """The slice ends one late, at a key that is not there yet."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.k, self.v = torch.zeros_like(self.k), torch.zeros_like(self.v)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        super().attend(q, k, v)
        last = self.length + 1
        return F.scaled_dot_product_attention(q, self.k[:, :, :last], self.v[:, :, :last])


class WritesOverTheLast(transformer._Cache):
    """The second token is stored where the first was."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.length -= self.length == 1
        return super().attend(q, k, v)


def recached(cache: type) -> type:
    return type("Recached", (Recached,), {"cache": cache})


def network(kind: type = CausalTransformer) -> CausalTransformer:
    return perturb(seeded(lambda: kind(2, 3, tokens=T, layers=2, **SIZES)), rng(3))


def layer(kind: type = CausalTransformer, **keywords: Any) -> PatchAutoregressive:
    """A layer over four pairs of values whose network is of this kind."""
    made = seeded(lambda: PatchAutoregressive(2 * T, patch=2, depth=1, **SIZES, **keywords))
    made.conditioner.network = seeded(lambda: kind(2, 4, tokens=T, layers=1, **SIZES))
    return perturb(made, rng(4))


def model(kind: type = CausalTransformer) -> AutoregressiveTransformer:
    made = seeded(lambda: AutoregressiveTransformer(T, bins=3, layers=1, likelihood="categorical", **SIZES))
    made.network = seeded(lambda: kind(1, 3, tokens=T, layers=1, **SIZES))
    return perturb(made, rng(5))


CAUSAL = partial(causal.outputs_see_the_tokens_before_alone, x=TOKENS)
SWEEP = partial(causal.sweep_equals_the_pass, x=TOKENS)
FORWARD = partial(bijections.forward_log_det_is_that_of_the_jacobian, x=X)
INVERSE = partial(bijections.inverse_log_det_is_that_of_the_jacobian, z=Z)
ROUND_TRIP = partial(bijections.round_trips, x=X, z=Z)
TRIANGULAR = partial(causal.jacobian_is_block_triangular, x=X, token=RASTER)
MASS = partial(masses.sums_to_one, bins=3)
DRAWS = lambda m: masses.draws_equal_full_passes(m, generator=rng(6))  # noqa: E731

CACHES = {
    "the newest forgotten": ForgetsTheNewest,
    "an empty place seen": SeesAnEmptyPlace,
    "the first written over": WritesOverTheLast,
}
KINDS: dict[str, tuple[Callable[[Any], None], Callable[..., Any], type]] = {
    "output not shifted": (CAUSAL, network, Unshifted),
    "output not shifted, log-det": (FORWARD, layer, Unshifted),
    "output not shifted, Jacobian": (TRIANGULAR, layer, Unshifted),
    "output not shifted, mass": (MASS, model, Unshifted),
    "shifted the other way": (CAUSAL, network, ShiftedBack),
    "no causal mask": (CAUSAL, network, Uncausal),
    "no causal mask, log-det": (FORWARD, layer, Uncausal),
    "no causal mask, mass": (MASS, model, Uncausal),
    "position off by one": (SWEEP, network, LatePositions),
    "position off by one, inverse": (ROUND_TRIP, layer, LatePositions),
    "position off by one, draws": (DRAWS, model, LatePositions),
    **{f"{name}, sweep": (SWEEP, network, recached(cache)) for name, cache in CACHES.items()},
    **{f"{name}, inverse": (ROUND_TRIP, layer, recached(cache)) for name, cache in CACHES.items()},
    **{f"{name}, draws": (DRAWS, model, recached(cache)) for name, cache in CACHES.items()},
}


@pytest.mark.parametrize("name", KINDS)
def test_network(name: str) -> None:
    contract, build, kind = KINDS[name]
    Tooth(contract, build, partial(build, kind)).bites()


def test_another_cache_that_is_right_passes() -> None:
    """What rejects the wrong ones is the cache, not the patch around it."""
    SWEEP(network(Recached))


@pytest.mark.parametrize("contract", [FORWARD, INVERSE])
def test_log_det_that_is_a_mean(contract: Callable[[Any], None]) -> None:
    mean = lambda x, y, log_det: (y, log_det / x[0].numel())  # noqa: E731
    Tooth(contract, layer, lambda: Tampered(layer(), forward=mean, inverse=mean)).bites()


class Transposed(PatchConditioner):
    """θ of the sweep in the order (k values) where the pass has (values k)."""

    def sweep(self, choose: Any, rows: int, context: Tensor | None = None) -> Tensor:
        return super().sweep(lambda at, theta: choose(at, theta.mT.reshape(theta.shape)), rows, context)


def test_parameters_of_the_sweep_in_another_order() -> None:
    def wrong() -> PatchAutoregressive:
        made = layer()
        made.conditioner.__class__ = Transposed
        return made

    Tooth(ROUND_TRIP, layer, wrong).bites()


def test_order_that_is_not_reversed() -> None:
    contract = partial(causal.jacobian_is_block_triangular, x=X, token=RASTER.flip(0))
    Tooth(contract, partial(layer, order="reversed"), layer).bites()


def flow() -> Compose:
    """Three blocks: with two the values of the last token would not see one another."""
    return perturb(seeded(lambda: TransformerFlow(2 * T, patch=2, layers=3, depth=1, **SIZES)), rng(7)).bijection


def test_order_that_does_not_take_turns() -> None:
    def wrong() -> Compose:
        made = flow()
        made.bijections[1].places.copy_(made.bijections[0].places)
        made.bijections[1].inverse_places.copy_(made.bijections[0].inverse_places)
        return made

    Tooth(partial(causal.every_value_sees_every_value, x=X), flow, wrong).bites()


class Flatters(PatchAutoregressive):
    """Reports no residual, whatever is left."""

    def invert(self, z: Tensor, *arguments: Any, **keywords: Any) -> Any:
        found = super().invert(z, *arguments, **keywords)
        return found._replace(residual=torch.zeros_like(found.residual))


class Hurries(PatchAutoregressive):
    """Rests at ten times the tolerance."""

    def invert(self, z: Tensor, *arguments: Any, tolerance: float, **keywords: Any) -> Any:
        return super().invert(z, *arguments, tolerance=10 * tolerance, **keywords)


@pytest.mark.parametrize("kind", [Flatters, Hurries])
def test_jacobi_that_lies(kind: type) -> None:
    def weak(kind: type) -> PatchAutoregressive:
        made = layer()
        with torch.no_grad():
            made.conditioner.network.head[-1].weight.mul_(0.1)
        made.__class__ = kind
        return made

    contract = partial(causal.jacobi_tells_the_truth, z=Z, tolerance=3e-3)
    Tooth(contract, partial(weak, PatchAutoregressive), partial(weak, kind)).bites()
