from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import multiply_adds, normal, perturb, rng, seeded
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from core.nets.masked import MaskedLinear, MaskedMLP
from core.staircase import LARGE, Stair, staircase_linear, stairs_of
from discrete.bijections.matrices import LUMatrix, TriangularMatrix

n = 370  # n² > LARGE, and no multiple of the steps
NETWORKS: dict[str, dict[str, Any]] = {
    "natural": {},
    "reversed": {"order": "reversed"},
    "context": {"context_features": 3},
    "resnet": {"conditioner": "resnet", "order": "reversed"},
    "direct": {"direct": True},
}


def triangle(kind: str) -> Tensor:
    ones = torch.ones(n, n, dtype=torch.bool)
    return {"lower": ones.tril(), "strict": ones.tril(-1), "upper": ones.triu(), "flipped": ones.tril().flip(0)}[kind]


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("kind", ["lower", "strict", "upper", "flipped"])
def test_the_product_and_its_gradients_are_those_of_the_whole_matrix(kind: str, repeats: int) -> None:
    reads = triangle(kind)
    x, b = normal(5, (n,), rng(1)).requires_grad_(), normal(repeats * n, (), rng(2)).requires_grad_()
    W = (normal(repeats * n, (n,), rng(3)) * reads.repeat(repeats, 1)).requires_grad_()
    g = normal(5, (repeats * n,), rng(4))
    with FlopCounterMode(display=False) as counter:
        y = staircase_linear(x, W, b, stairs_of(reads), repeats=repeats)
    assert counter.get_total_flops() == pytest.approx(5 / 8 * 2 * 5 * repeats * n * n, rel=0.01)
    expected = torch.nn.functional.linear(x, W, b)
    torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11)
    found, right = (torch.autograd.grad((value * g).sum(), (x, W, b)) for value in (y, expected))
    torch.testing.assert_close(found[::2], right[::2], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(found[1] * reads.repeat(repeats, 1), right[1] * reads.repeat(repeats, 1))


def test_what_has_no_stairs_is_left_whole() -> None:
    scattered = triangle("lower")[:, torch.randperm(n, generator=rng(1))]
    assert stairs_of(scattered) == [] == stairs_of(triangle("lower").to("meta"))
    nothing = torch.zeros(512, 512, dtype=torch.bool)
    assert stairs_of(nothing) == [Stair(128, slice(0, 1))] * 4


def test_small_matrices_have_no_stairs() -> None:
    """All parts of a matrix count."""
    small = torch.ones(256, 256, dtype=torch.bool).tril()
    assert small.numel() == LARGE // 2
    assert stairs_of(small) == []
    assert len(stairs_of(small, repeats=2)) == 4
    outputs = MaskedLinear(256, 512, repeats=2)
    outputs.set_mask(0, small.repeat(2, 1))
    assert outputs.stairs == stairs_of(small, repeats=2)


def test_triangular_layers_take_the_stairs() -> None:
    x = normal(3, (n,), rng(1))
    lower, upper = (perturb(TriangularMatrix(n, triangle=side).double(), rng(2)) for side in ("lower", "upper"))
    lu = perturb(LUMatrix(torch.eye(n)[torch.randperm(n, generator=rng(3))]).double(), rng(4))
    for matrix, products in ((lower, 1), (upper, 1), (lu, 2)):
        torch.testing.assert_close(matrix.multiply(x), x @ matrix.matrix().T, rtol=1e-10, atol=1e-10)
        assert multiply_adds(lambda m=matrix: m.multiply(x)) == pytest.approx(products * 5 / 8 * 6 * n * n, rel=0.01)


def large(name: str) -> tuple[MaskedMLP, Tensor, Tensor | None]:
    keywords = {"hidden": (n, n), "activation": "tanh", **NETWORKS[name]}
    network = perturb(seeded(lambda: MaskedMLP(200, 3, **keywords)).double(), rng(1))
    context = normal(2, (network.context_features,), rng(3)) if network.context_features else None
    return network, normal(2, (200,), rng(2)), context


def without_stairs(network: MaskedMLP, call: Callable[[], Any]) -> Any:
    """What the call gives where no layer leaves anything out."""
    kept = [linear.stairs for linear in network.masked_linears()]
    try:
        for linear in network.masked_linears():
            linear.stairs = []
        return call()
    finally:
        for linear, stairs in zip(network.masked_linears(), kept, strict=True):
            linear.stairs = stairs


def gradients_agree(network: MaskedMLP, x: Tensor, context: Tensor | None) -> None:
    """θ, its gradients in weights and x, and those of these."""

    def derivatives() -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        theta = network(leaf, context)
        first = torch.autograd.grad(theta.square().sum(), [leaf, *network.parameters()], create_graph=True)
        second = torch.autograd.grad(sum(d.square().sum() for d in first), [leaf, *network.parameters()])
        return [theta.detach(), *(d.detach() for d in first), *second]

    torch.testing.assert_close(derivatives(), without_stairs(network, derivatives), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_masked_network_is_the_one_without_stairs(name: str) -> None:
    network, x, context = large(name)
    with_stairs = [linear.weight.numel() for linear in network.masked_linears() if linear.weight.numel() >= LARGE]
    assert len(with_stairs) >= 2
    gradients_agree(network, x, context)
    dense = without_stairs(network, lambda: multiply_adds(lambda: network(x, context)))
    assert dense - multiply_adds(lambda: network(x, context)) > 0.35 * 2 * len(x) * sum(with_stairs)


def test_stairs_follow_the_degrees_of_a_state_that_is_loaded() -> None:
    network, x, _ = large("natural")
    other, _, _ = large("reversed")
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other(x), network(x))
    assert [linear.stairs for linear in other.masked_linears()] == [
        linear.stairs for linear in network.masked_linears()
    ]


def test_many_masks_have_no_stairs() -> None:
    linear = MaskedLinear(n, n, masks=2)
    linear.set_mask(0, triangle("lower"))
    linear.set_mask(1, triangle("upper"))
    assert linear.stairs == []


@pytest.mark.parametrize("shift", [-1, 1])
def test_stairs_a_column_off_are_noticed(shift: int) -> None:
    """Teeth: from one column too late, or up to one too few."""

    def shifted(stair: Stair) -> Stair:
        start, stop = stair.columns.start, stair.columns.stop
        return stair._replace(columns=slice(start, stop - 1) if shift < 0 else slice(start + 1, stop))

    network, x, _ = large("natural")
    linear = network.masked_linears()[1]
    linear.stairs = [*map(shifted, linear.stairs)]
    with pytest.raises(AssertionError, match="not close"):
        gradients_agree(network, x, None)


def test_under_autocast_it_is_in_half_precision_as_any_product() -> None:
    x, W, b = torch.ones(2, n), triangle("lower").float(), torch.ones(n)
    with torch.autocast("cpu", torch.bfloat16):
        assert staircase_linear(x, W, b, stairs_of(W > 0)).dtype == torch.bfloat16
