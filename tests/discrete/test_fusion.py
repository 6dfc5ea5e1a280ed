"""Couplings in a row over the same two parts: taken apart once, joined once, the same map as one by one."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from contracts import bijections
from helpers import Tooth, normal, perturb, rng, seeded
from torch import Tensor

from discrete import AdditiveCoupling, AffineCoupling, Bijection, Compose, Inverse, Permutation, SplineCoupling
from discrete.bijections.coupling import Coupling
from discrete.bijections.partition import ChannelPartition

SCATTERED = torch.tensor([1, 0, 0, 1, 1, 0]).bool()
OTHERS = torch.tensor([1, 1, 0, 1, 0, 0]).bool()
TURNS = ("half", "half_flipped", "half_flipped", "half")


def row(*masks: object, shape: int | tuple[int, ...] = 6, **options: object) -> list[Coupling]:
    """An additive, an affine and a spline coupling in turn, perturbed."""
    kinds = (AffineCoupling, AdditiveCoupling, SplineCoupling)
    layers = [
        seeded(partial(build, shape, mask=mask, hidden=(8,), **options))
        for build, mask in zip(kinds * 2, masks, strict=False)
    ]
    return [perturb(layer, rng(i), std=0.1) for i, layer in enumerate(layers)]


# layers, the number of times that they are taken apart
CASES: dict[str, tuple[Callable[[], list[Coupling]], int]] = {
    "halves": (lambda: row(*TURNS), 1),
    "neighbours": (lambda: row("alternating", "alternating_flipped", "alternating", "alternating"), 1),
    "scattered": (lambda: row(SCATTERED, ~SCATTERED, SCATTERED), 1),
    "unequal parts": (lambda: row("half", "half_flipped", "half", shape=5), 1),
    "two kinds of parts": (lambda: row("half", "half_flipped", SCATTERED, ~SCATTERED), 2),
    "no neighbours alike": (lambda: row(SCATTERED, OTHERS, SCATTERED), 3),
    "context": (lambda: row(*TURNS, context_features=2), 1),
    "channels": (lambda: row(*TURNS, shape=(4, 2, 3)), 1),
    "pixels": (lambda: row("checkerboard", "checkerboard_flipped", shape=(1, 4, 4)), 0),
}


@pytest.mark.parametrize("name", CASES)
def test_the_row_is_its_layers_one_by_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layers, times = CASES[name][0](), CASES[name][1]
    x, context = normal(5, layers[0].event_shape, rng(1)), normal(5, (2,), rng(2)) if name == "context" else None
    composition = Compose(*layers)

    def fused(x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        return (composition.inverse if inverse else composition)(x, context)

    bijections.fused_is_one_by_one(fused, layers, x, context)
    calls: list[object] = []
    split = ChannelPartition.split
    monkeypatch.setattr(ChannelPartition, "split", lambda self, x: calls.append(self) or split(self, x))
    composition(x, context)
    assert len(calls) == times
    composition.inverse(x, context)
    assert len(calls) == 2 * times


@pytest.mark.parametrize("fault", ["order", "one left out", "parts never turned", "joined as the first"])
def test_teeth(fault: str) -> None:
    layers = row("half", "half_flipped", "half", "half_flipped")

    def wrong() -> Callable[..., tuple[Tensor, Tensor]]:
        def fused(x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
            first, *others = layers[::-1] if inverse else layers
            if fault == "order":
                others = others[::-1]
            if fault == "one left out":
                others = others[1:]
            with pytest.MonkeyPatch.context() as patch:
                if fault == "parts never turned":
                    for layer in layers:
                        patch.setattr(layer.partition, "flipped", False)
                if fault == "joined as the first":
                    patch.setattr(others[-1].partition, "join", first.partition.join)
                return first.fused(others, x, context, inverse=inverse)

        return fused

    def right() -> Callable[..., tuple[Tensor, Tensor]]:
        def fused(x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
            first, *others = layers[::-1] if inverse else layers
            return first.fused(others, x, context, inverse=inverse)

        return fused

    x = normal(5, (6,), rng(1))
    Tooth(lambda fused: bijections.fused_is_one_by_one(fused, layers, x), right, wrong).bites()


def test_what_stands_between_is_met_in_its_place() -> None:
    a, b, c = row("half", "half_flipped", "half")
    layers: list[Bijection] = [a, Permutation(6, order=torch.tensor([3, 1, 0, 5, 4, 2])), b, Inverse(c), c]

    def fused(x: Tensor, context: None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        return (Compose(*layers).inverse if inverse else Compose(*layers))(x)

    bijections.fused_is_one_by_one(fused, layers, normal(5, (6,), rng(1)))


def test_a_hook_sees_its_layer() -> None:
    layers = row(*TURNS)
    seen: list[Tensor] = []
    layers[1].register_forward_hook(lambda _, given, __: seen.append(given[0]))
    x = normal(5, (6,), rng(1))
    z, _ = Compose(*layers)(x)
    assert len(seen) == 1
    assert torch.equal(seen[0], layers[0](x)[0])
    torch.testing.assert_close(z, Compose(*row(*TURNS))(x)[0])


@pytest.mark.parametrize("mask", ["half", "half_flipped", "alternating", SCATTERED, OTHERS])
@pytest.mark.parametrize("loaded", ["half", "half_flipped", "alternating", SCATTERED, OTHERS])
def test_a_loaded_state_brings_its_parts(mask: object, loaded: object) -> None:
    source, target = (Compose(*row(m, loaded, "half")) for m in (loaded, mask))
    target.load_state_dict(source.state_dict())
    x = normal(5, (6,), rng(1))
    torch.testing.assert_close(target(x), source(x))
    torch.testing.assert_close(target.inverse(x), source.inverse(x))


def test_a_state_is_given_to_a_layer_without_storage() -> None:
    source, bare = Compose(*row(SCATTERED, ~SCATTERED)), Compose(*row("half", "half_flipped")).to("meta")
    bare.load_state_dict(bare.state_dict())
    bare.load_state_dict(source.state_dict(), assign=True)
    x = normal(5, (6,), rng(1))
    torch.testing.assert_close(bare(x), source(x))
