"""Masks, sweeps and implicit gradients that are wrong in one place: the contracts reject each."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from contracts import bijections
from contracts.inversions import gradients_are_those_of_the_loop, inverts, second_derivatives_are_those_of_the_loop
from helpers import Tooth, normal, perturb, rng, seeded
from torch import Tensor

from discrete import MaskedAutoregressive
from discrete.bijections import autoregressive_inverse

X = normal(3, (4,), rng(0))


def layer() -> MaskedAutoregressive:
    build = partial(MaskedAutoregressive, 4, hidden=(12, 12), order="reversed", activation="silu")
    return perturb(seeded(build), rng(1))


def masked(change: Callable[[Tensor, Tensor], Tensor], linear: int) -> Callable[[], MaskedAutoregressive]:
    """A layer in which one mask compares degrees in another way."""

    def build() -> MaskedAutoregressive:
        made = layer()
        degrees = made.conditioner.value_degrees(0)
        made.conditioner.linears[linear].mask[0] = change(degrees[linear + 1][:, None], degrees[linear]).double()
        return made

    return build


def replaced(name: str, change: Callable[..., Any]) -> Callable[[], MaskedAutoregressive]:
    """A layer whose network has another method of this name."""

    def build() -> MaskedAutoregressive:
        made = layer()
        original = getattr(made.conditioner, name)
        setattr(made.conditioner, name, lambda *arguments, **keywords: change(original, *arguments, **keywords))
        return made

    return build


def structure(made: MaskedAutoregressive) -> None:
    bijections.autoregressive_has_its_structure(made, X, order=(3, 2, 1, 0))


def log_det(made: MaskedAutoregressive) -> None:
    bijections.forward_log_det_is_that_of_the_jacobian(made, X)


def inversion(made: MaskedAutoregressive) -> None:
    inverts(made, X, None, mode="incremental")


def gradients(made: MaskedAutoregressive) -> None:
    gradients_are_those_of_the_loop(made, X, None, mode="incremental")


def only_once(original: Any, choose: Any, rows: int, context: Any) -> Tensor:
    """Every feature from the θ of zeros, as one Jacobi pass would have it."""
    network = original.__self__
    theta = network(torch.zeros(rows, 4, dtype=torch.float64), context)
    return torch.cat([choose(slice(d, d + 1), theta[:, d : d + 1]) for d in range(4)], 1)


TEETH = {
    "output reads its own feature": Tooth(log_det, layer, masked(lambda out, into: out >= into, 2)),
    "output cannot be inverted": Tooth(inversion, layer, masked(lambda out, into: out >= into, 2)),
    "hidden units look ahead": Tooth(structure, layer, masked(lambda out, into: out <= into, 1)),
    "hidden units lose their own degree": Tooth(structure, layer, masked(lambda out, into: out > into, 0)),
    "one pass instead of a sweep": Tooth(inversion, layer, replaced("sweep", only_once)),
    "gradient of the diagonal alone": Tooth(
        gradients, layer, replaced("solve_transposed", lambda _, x, context, s, t, g: g / s)
    ),
    "gradient of the other sign": Tooth(
        gradients, layer, replaced("solve_transposed", lambda original, *arguments: -original(*arguments))
    ),
    "gradient by J instead of its transpose": Tooth(
        gradients,
        layer,
        replaced("solve_transposed", lambda original, x, c, s, t, g: original(x, c, s, t, g.flip(1)).flip(1)),
    ),
}


@pytest.mark.parametrize("name", TEETH)
def test_autoregressive(name: str) -> None:
    TEETH[name].bites()


def test_second_derivatives_of_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole Jacobian solved as if the features came in their natural order."""

    def second(made: MaskedAutoregressive) -> None:
        second_derivatives_are_those_of_the_loop(made, X, None, mode="incremental")

    second(layer())
    right = autoregressive_inverse.solve_densely
    monkeypatch.setattr(
        autoregressive_inverse, "solve_densely", lambda image, x, g, order: right(image, x, g, torch.arange(4))
    )
    with pytest.raises(AssertionError):
        second(layer())
