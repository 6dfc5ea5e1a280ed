"""Couplings in a row over the same two parts: taken apart once, joined once, the same map as one by one."""

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from contracts import bijections
from helpers import Tooth, normal, perturb, rng, seeded
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.modules.module import register_module_forward_hook

from discrete import (
    AdditiveCoupling,
    AffineCoupling,
    Bijection,
    Compose,
    Dequantization,
    Inverse,
    Permutation,
    SplineCoupling,
)
from discrete.bijection import Fusible
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


class Twice(Fusible):
    """A coupling that doubles what comes out, by methods of its own."""

    def __init__(self, inner: Coupling) -> None:
        super().__init__(inner.event_shape)
        self.inner = inner

    @property
    def fusion_key(self) -> Any:
        return self.inner.fusion_key

    def fused(self, others: Any, x: Tensor, context: Any, *, inverse: bool) -> Any:
        return self.inner.fused([other.inner for other in others], x, context, inverse=inverse)

    def forward(self, x: Tensor, context: Any = None, **_: Any) -> Any:
        z, log_det = self.inner(x, context)
        return 2 * z, log_det + 6 * math.log(2)

    def inverse(self, z: Tensor, context: Any = None, **_: Any) -> Any:
        x, log_det = self.inner.inverse(z / 2, context)
        return x, log_det - 6 * math.log(2)


def test_methods_of_a_class_of_ones_own_are_called() -> None:
    layers = [Twice(layer) for layer in row(*TURNS)]

    def fused(x: Tensor, context: None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        return (Compose(*layers).inverse if inverse else Compose(*layers))(x)

    bijections.fused_is_one_by_one(fused, layers, normal(5, (6,), rng(1)))


def hooked(layer: Coupling, see: Callable[[Tensor], None]) -> None:
    layer.register_forward_hook(lambda _, given, __: see(given[0]))


def hooked_everywhere(layer: Coupling, see: Callable[[Tensor], None]) -> None:
    register_module_forward_hook(lambda module, given, _: see(given[0]) if module is layer else None)


def replaced(layer: Coupling, see: Callable[[Tensor], None]) -> None:
    forward = layer.forward
    layer.forward = lambda x, *args, **keywords: see(x) or forward(x, *args, **keywords)


def compiled(layer: Coupling, see: Callable[[Tensor], None]) -> None:
    layer._compiled_call_impl = lambda x, *args, **keywords: see(x) or layer.forward(x, *args, **keywords)


@pytest.mark.parametrize("watch", [hooked, hooked_everywhere, replaced, compiled])
def test_what_waits_for_the_call_of_a_layer_gets_it(watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.modules.module, "_global_forward_hooks", OrderedDict())
    layers = row(*TURNS)
    seen: list[Tensor] = []
    watch(layers[1], seen.append)
    x = normal(5, (6,), rng(1))
    z, _ = Compose(*layers)(x)
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], row(*TURNS)[0](x)[0])
    torch.testing.assert_close(z, Compose(*row(*TURNS))(x)[0])


@pytest.mark.parametrize("masks", [("half", "half_flipped"), (SCATTERED, OTHERS), (SCATTERED, ~SCATTERED)])
def test_masks_that_a_call_brings_along_count(masks: Any) -> None:
    """One flow by the state of another, and both at once as an ensemble."""
    flows = [Compose(*row(*m)) for m in (("half_flipped", "half"), masks, ("half", "half"))]
    x = normal(5, (6,), rng(1))
    expected = [flow(x)[0] for flow in flows]
    skeleton = Compose(*row("half_flipped", "half"))
    for flow, z in zip(flows, expected, strict=True):
        torch.testing.assert_close(functional_call(skeleton, flow.state_dict(), (x,))[0], z)
    stacked = stack_module_state(flows)
    found = vmap(lambda state: functional_call(skeleton, state, (x,))[0])(stacked)
    torch.testing.assert_close(found, torch.stack(expected))


def test_a_row_is_exported_for_any_number_of_rows() -> None:
    flow, x = Compose(*row(*TURNS)), normal(5, (6,), rng(1))
    exported = torch.export.export(flow, (x,), dynamic_shapes={"x": {0: torch.export.Dim("rows")}}).module()
    x = normal(9, (6,), rng(2))
    torch.testing.assert_close(exported(x), flow(x))


def test_who_does_not_fit_is_named() -> None:
    single = [*row("half"), row("half_flipped")[0].float()]
    with pytest.raises(ValueError, match=r"AffineCoupling is in float32, but z is float64\."):
        Compose(*single).inverse(normal(5, (6,), rng(1)))
    with pytest.raises(ValueError, match="AffineCoupling takes float32 or float64, but x is int64"):
        Compose(*row("half", "half_flipped"), Dequantization(6, bins=4))(torch.zeros(5, 6).long())


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
    assert all(layer.fusion_key is not None for layer in bare.bijections)
    bare.load_state_dict(bare.state_dict())
    bare.load_state_dict(source.state_dict(), assign=True)
    x = normal(5, (6,), rng(1))
    torch.testing.assert_close(bare(x), source(x))
