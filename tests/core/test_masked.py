import copy
import inspect
import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from contracts.made import jacobian, reads_in_order
from helpers import multiply_adds, normal, perturb, rng, seeded
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from core.nets import masked, sweep
from core.nets.masked import MaskedMLP

D, K = 5, 3
GIVEN = torch.tensor([2, 0, 4, 1, 3])
VARIANTS: dict[str, dict[str, Any]] = {
    "natural": {},
    "reversed": {"order": "reversed"},
    "random": {"order": "random"},
    "given": {"order": GIVEN},
    "deep": {"hidden": (16, 12, 9), "order": "random"},
    "least width": {"hidden": (4, 4), "order": GIVEN},
    "no hidden layer": {"hidden": (), "order": GIVEN},
    "no hidden layer, direct": {"hidden": (), "direct": True},
    "direct": {"direct": True, "order": "reversed"},
    "resnet": {"conditioner": "resnet", "hidden": (16, 16)},
    "resnet, direct": {"conditioner": "resnet", "hidden": (9,), "direct": True, "order": "random"},
    "random degrees": {"hidden": (40, 40), "hidden_degrees": "random", "order": GIVEN},
    "resnet of random degrees": {"conditioner": "resnet", "hidden": (60, 60), "hidden_degrees": "random"},
    "context": {"context_features": 2, "order": "random"},
    "resnet, direct, context": {
        "conditioner": "resnet", "hidden": (10, 10), "direct": True, "context_features": 2, "order": GIVEN,
    },
    "random degrees, context": {"hidden": (50, 50), "hidden_degrees": "random", "context_features": 2},
}  # fmt: skip
NAMES = pytest.mark.parametrize("name", VARIANTS)


def build(features: int = D, **keywords: Any) -> MaskedMLP:
    """Smooth, so that no unit is dead, and away from where it starts."""
    settings = {"hidden": (16,), "activation": "tanh", "generator": rng(2), **keywords}
    return perturb(seeded(lambda: MaskedMLP(features, K, **settings)), rng(1))


def context(network: MaskedMLP, rows: int) -> Tensor | None:
    return normal(rows, (network.context_features,), rng(4)) if network.context_features else None


def places(network: MaskedMLP, mask: int = 0) -> Tensor:
    return network.value_degrees(mask)[0][: network.features]


def test_a_sweep_gives_an_ordinary_tensor() -> None:
    """It comes out of inference mode, whose own tensors could not be multiplied by what is trained."""
    network = build()
    x = network.sweep(lambda _, theta: theta.sum(-1), 3)
    assert not x.is_inference()
    weight = torch.ones(D, dtype=x.dtype, requires_grad=True)
    (x * weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0))


@NAMES
def test_outputs_depend_on_the_features_before_alone_and_on_all_of_them(name: str) -> None:
    network = build(**VARIANTS[name])
    order = network.degrees.argsort().tolist()
    assert network.degrees[order].tolist() == [1, 2, 3, 4, 5]
    reads_in_order(network, normal(1, (D,), rng(3)), context(network, 1), order=order)


@pytest.mark.parametrize(
    ("order", "expected"),
    [("natural", [1, 2, 3, 4, 5]), ("reversed", [5, 4, 3, 2, 1]), (GIVEN, [2, 4, 1, 5, 3])],
)
def test_degrees_are_the_places_of_the_features(order: Any, expected: list[int]) -> None:
    """GIVEN reads feature 2 first, then 0, 4, 1 and 3."""
    assert build(order=order).degrees.tolist() == expected


def test_orders_are_drawn_by_the_generator() -> None:
    drawn = [build(order="random", generator=rng(seed)).degrees.tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("name", [n for n in VARIANTS if "context" in n])
def test_context_reaches_the_first_feature_and_not_linearly(name: str) -> None:
    network = build(**VARIANTS[name])
    x, c, first = normal(3, (D,), rng(3)), context(network, 3), int(network.degrees.argmin())
    for step in torch.eye(2, dtype=torch.float64):
        ahead, here, behind = (network(x, c + s * step)[:, first] for s in (0.5, 0.0, -0.5))
        assert ((ahead - here).abs() > 1e-6).all(), "the context is ignored"
        assert ((ahead - 2 * here + behind).abs() > 1e-6).all(), "the context enters linearly alone"
    assert network(x, c)[:, first].unique(dim=0).shape[0] == 3
    with pytest.raises(ValueError, match="context_features=2, but context has 0"):
        network(x)


@pytest.mark.parametrize(("context_features", "least"), [(0, 4), (2, 5)])
def test_least_width_is_named_and_suffices(context_features: int, least: int) -> None:
    with pytest.raises(ValueError, match=rf"needs a width of {least} or more.* hidden is \(16, {least - 1}\)"):
        build(hidden=(16, least - 1), context_features=context_features)
    network = build(hidden=(least, least), context_features=context_features)
    reads_in_order(network, normal(1, (D,), rng(3)), context(network, 1), order=[0, 1, 2, 3, 4])


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"order": torch.tensor([0, 1, 2, 3, 3])}, r"order must hold each of 0..4 once, but is \[0, 1, 2, 3, 3\]"),
        ({"order": torch.tensor([1, 2, 3, 4, 5])}, "order must hold each of 0..4 once"),
        ({"order": torch.tensor([0, 1, 2])}, "order must hold each of 0..4 once"),
        ({"conditioner": "resnet", "hidden": (16, 8)}, r"equal widths, one a block, but hidden is \(16, 8\)"),
        ({"conditioner": "resnet", "hidden": ()}, "equal widths"),
        ({"masks": 0}, "masks must be 1 or more, but is 0"),
        ({"features": 0}, "features must be 1 or more, but is 0"),
        ({"activation": "sine"}, "activation must be one of"),
    ],
)
def test_wrong_settings_are_named(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**keywords)


def test_unknown_names_are_refused() -> None:
    """Called past the shape hook of the test suite, as a user calls it."""
    with pytest.raises(ValueError, match="conditioner must be plain or resnet, but is 'convolutional'"):
        inspect.unwrap(MaskedMLP.__init__)(MaskedMLP.__new__(MaskedMLP), D, conditioner="convolutional")
    with pytest.raises(ValueError, match="order must be natural, reversed, random or a tensor"):
        inspect.unwrap(masked._indices)("sideways", D, None)
    with pytest.raises(ValueError, match="hidden_degrees must be sequential or random, but is 'even'"):
        inspect.unwrap(MaskedMLP._draw_degrees)(build(), "natural", "even", 1, generator=None, sort=True)


def test_hidden_degrees() -> None:
    """Sequential ones are equally frequent; random ones do not fall below the lowest of the layer before."""
    degrees = build(hidden=(10, 9)).value_degrees(0)
    assert [torch.bincount(d, minlength=D)[1:].tolist() for d in degrees[1:3]] == [[3, 3, 2, 2], [3, 2, 2, 2]]
    assert torch.bincount(build(hidden=(10,), context_features=2).value_degrees(0)[1]).tolist() == [2] * 5
    first, second = build(hidden=(6, 200), hidden_degrees="random", generator=rng(5)).value_degrees(0)[1:3]
    assert first.min() > 1, "seed 5 should give a layer without degree 1"
    assert second.min() == first.min()
    assert second.max() == D - 1


def test_random_degrees_are_uniform() -> None:
    counts = torch.bincount(build(hidden=(4000,), hidden_degrees="random").value_degrees(0)[1], minlength=D)
    assert counts[0] == 0
    assert ((counts[1:] - 1000).abs() < 5 * 750**0.5).all(), f"degrees 1..4 come {counts[1:].tolist()} times"


def test_each_mask_has_its_own_order() -> None:
    network = build(order="random", hidden=(24, 24), hidden_degrees="random", masks=6)
    orders, x = [places(network, m) for m in range(6)], normal(1, (D,), rng(3))[0]
    assert len({tuple(d.tolist()) for d in orders}) > 3
    for m, d in enumerate(orders):
        sees = (jacobian(network, x, None, mask=m) != 0).any(1)
        assert not (sees & ~(d[:, None] > d)).any(), f"mask {m} lets a feature see one behind it"
        assert sees.sum() >= 7, f"mask {m} cuts nearly everything"
        by_tensor = network(x[None], mask=torch.tensor([m]))
        assert torch.equal(by_tensor, network(x[None], mask=m)), "a tensor picks another mask"
    drawn = [network.value_degrees(m)[1] for m in range(6)]
    assert all(not torch.equal(drawn[0], other) for other in drawn[1:])


@pytest.mark.parametrize("masks", [1, 3])
@NAMES
def test_sweep_is_the_pass_at_its_result(name: str, masks: int) -> None:
    """Each θ that `choose` sees is that of a pass over the x that comes out; features come once, in their order."""
    network = build(**VARIANTS[name], masks=masks)
    c, noise = context(network, 7), normal(7, (D,), rng(3))
    for mask in range(masks):
        seen: dict[int, Tensor] = {}

        def choose(feature: slice, theta: Tensor, seen: dict[int, Tensor] = seen) -> Tensor:
            assert feature.start not in seen, f"feature {feature.start} comes twice"
            assert theta.shape == (7, 1, K)
            seen[feature.start] = theta.clone()
            return noise[:, feature] + theta.tanh().sum(-1)

        x = network.sweep(choose, 7, c, mask=mask)
        order = torch.tensor(list(seen))
        assert torch.equal(places(network, mask)[order], torch.arange(1, D + 1)), f"features came as {order.tolist()}"
        theta = torch.cat([seen[d] for d in range(D)], 1)
        torch.testing.assert_close(theta, network(x, c, mask=mask).detach(), rtol=0, atol=1e-12)
        assert torch.equal(x, noise + theta.tanh().sum(-1)), "the sweep returns other values than were chosen"


@pytest.mark.parametrize("activation", ["relu", "silu", "elu", "gelu"])
@pytest.mark.parametrize("conditioner", ["plain", "resnet"])
def test_sweep_with_every_activation(conditioner: str, activation: str) -> None:
    """Those that write over their input included."""
    network = build(conditioner=conditioner, activation=activation, hidden=(8, 8), context_features=1)
    c, seen = context(network, 7), []

    def choose(_: slice, theta: Tensor) -> Tensor:
        seen.append(theta.clone())
        return theta.tanh().sum(-1)

    x = network.sweep(choose, 7, c)
    torch.testing.assert_close(torch.cat(seen, 1), network(x, c).detach(), rtol=0, atol=1e-12)


@NAMES
def test_blocks_of_a_sweep_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build(**VARIANTS[name])
    c, drawn = context(network, 7), []
    for block, many in itertools.product((1, 2, 3, D), (0, math.inf)):
        monkeypatch.setattr(sweep, "SMALLEST", block)
        monkeypatch.setattr(sweep, "LARGEST", block)
        monkeypatch.setattr(sweep, "MANY", many)
        drawn.append(network.sweep(lambda _, theta: theta.tanh().sum(-1), 7, c))
    for x in drawn[:-1]:
        torch.testing.assert_close(x, drawn[-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("masks", [1, 3])
@NAMES
def test_solve_transposed_against_the_dense_jacobian(name: str, masks: int) -> None:
    network, rows = build(**VARIANTS[name], masks=masks), 4
    x, c, g = normal(rows, (D,), rng(3)), context(network, rows), normal(rows, (D,), rng(5))
    s, t = normal(rows, (D,), rng(6)).exp(), 0.5 * normal(rows, (D, K), rng(7))
    for mask in range(masks):
        v = network.solve_transposed(x, c, s, t, g, mask=mask)
        for i in range(rows):
            J = jacobian(network, x[i], None if c is None else c[i : i + 1], mask=mask)
            J = torch.diag(s[i]) + torch.einsum("dk,dkj->dj", t[i], J)
            torch.testing.assert_close(v[i], torch.linalg.solve(J.T, g[i]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("activation", ["relu", "elu"])
@pytest.mark.parametrize("conditioner", ["plain", "resnet"])
def test_solve_transposed_with_activations_that_write_over_their_input(conditioner: str, activation: str) -> None:
    network = build(conditioner=conditioner, activation=activation, hidden=(8, 8))
    x, g = normal(1, (D,), rng(3)), normal(1, (D,), rng(5))
    s, t = torch.ones(1, D, dtype=torch.float64), normal(1, (D, K), rng(7))
    J = torch.eye(D, dtype=torch.float64) + torch.einsum("dk,dkj->dj", t[0], jacobian(network, x[0], None))
    v = network.solve_transposed(x, None, s, t, g)
    torch.testing.assert_close(v[0], torch.linalg.solve(J.T, g[0]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["natural", "deep", "direct", "resnet", "random degrees", "context"])
def test_a_sweep_takes_no_more_multiply_adds_than_a_dense_pass(name: str) -> None:
    network = build(**VARIANTS[name])
    x, c = normal(8, (D,), rng(3)), context(network, 8)
    swept = multiply_adds(lambda: network.sweep(lambda _, theta: theta[..., 0], 8, c))
    dense = multiply_adds(lambda: network(x, c))
    assert 0.2 * dense < swept <= dense, f"a sweep takes {swept} operations, a dense pass {dense}"


def test_zero_output_starts_at_zero() -> None:
    for direct in (False, True):
        network = seeded(lambda d=direct: MaskedMLP(D, K, hidden=(8,), direct=d, zero_output=True))
        assert network(torch.randn(3, D, generator=rng(1))).count_nonzero() == 0


def test_dropout_is_for_training_and_never_for_a_sweep() -> None:
    network, x = build(dropout=0.5, hidden=(16, 16)), normal(4, (D,), rng(3))
    expected, seen = network(x), []

    def choose(feature: slice, theta: Tensor) -> Tensor:
        seen.append(theta.clone())
        return x[:, feature]

    network.train()
    assert torch.equal(network.sweep(choose, 4), x)
    torch.testing.assert_close(torch.cat(seen, 1), expected.detach(), rtol=0, atol=1e-12)
    assert network.training
    assert not torch.equal(seeded(lambda: network(x)), expected), "no dropout in training"
    first = int(network.degrees.argmin())
    assert torch.equal(network(x)[:, first], expected[:, first]), "the first feature has no hidden unit to drop"
    assert torch.equal(network.eval()(x), expected)


@pytest.mark.parametrize("masks", [1, 4])
def test_the_order_travels_with_the_weights(masks: int) -> None:
    """Into a network of another random order, through files and copies alike."""
    settings = {"order": "random", "hidden": (16, 16), "hidden_degrees": "random", "masks": masks}
    network, other = build(**settings), build(**settings, generator=rng(8))
    x = normal(4, (D,), rng(3))
    assert not torch.equal(network.degrees, other.degrees), "seeds 2 and 8 should give two orders"
    other.load_state_dict(network.state_dict())
    copies = [other, copy.deepcopy(network), pickle.loads(pickle.dumps(network))]
    for mask in range(masks):
        draws = network.sweep(lambda _, theta: theta[..., 0] + 1, 3, mask=mask)
        for again in copies:
            assert torch.equal(again(x, mask=mask), network(x, mask=mask))
            assert torch.equal(again.sweep(lambda _, theta: theta[..., 0] + 1, 3, mask=mask), draws)
    state = network.state_dict()
    assert all(isinstance(value, Tensor) for value in state.values())


@NAMES
def test_another_device_and_no_rows(name: str) -> None:
    network = build(**VARIANTS[name])
    for rows in (3, 0):
        x, c = normal(rows, (D,), rng(3)), context(network, rows)
        assert network(x, c).shape == (rows, D, K)
        assert network.sweep(lambda _, theta: theta[..., 0], rows, c).shape == (rows, D)
        ones = torch.ones(rows, D, dtype=torch.float64)
        v = network.solve_transposed(x, c, ones, ones[..., None].expand(-1, -1, K), ones)
        assert v.shape == (rows, D)
    meta, c = copy.deepcopy(network).to("meta"), context(network, 3)
    x, c = torch.empty(3, D, dtype=torch.float64, device="meta"), None if c is None else c.to("meta")
    assert meta(x, c).device.type == "meta"
    assert meta.sweep(lambda _, theta: theta[..., 0], 3, c).shape == (3, D)
    assert meta.solve_transposed(x, c, x, x[..., None].expand(-1, -1, K), x).device.type == "meta"


def test_one_feature() -> None:
    """Its outputs are constant without a context, and a function of it alone with one."""
    x = normal(3, (1,), rng(3))
    assert build(features=1)(x).unique(dim=0).shape == (1, 1, K)
    network = build(features=1, context_features=2)
    c = context(network, 3)
    assert torch.equal(network(x, c), network(x + 1, c))
    assert network(x, c).unique(dim=0).shape == (3, 1, K)


def test_a_state_of_another_network_is_refused() -> None:
    state = MaskedMLP(5, hidden=(9,)).state_dict()
    with pytest.raises(ValueError, match=r"1 mask\(s\) over 15 units are expected"):
        MaskedMLP(5, hidden=(5,)).set_extra_state(state["_extra_state"])


def test_random_degrees_of_blocks_start_at_the_lowest_of_their_stream() -> None:
    """Not at the lowest of what the block before held inside."""
    network = seeded(
        lambda: MaskedMLP(40, hidden=(40,) * 6, conditioner="resnet", hidden_degrees="random", generator=rng(3))
    )
    degrees = network.value_degrees(0)
    hidden = [(node, d) for node, d in zip(network.nodes, degrees[1:], strict=True) if not node.is_output]
    streams = [d for node, d in hidden if node.source == 0 or node.skip is not None]
    inside = [d for node, d in hidden if node.source and node.skip is None]
    assert all(torch.equal(stream, streams[0]) for stream in streams)
    assert min(int(d.min()) for d in inside) == int(streams[0].min())


class NoTransfer(TorchDispatchMode):
    """Refuses copies from one device to another and what the host would wait for."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        result = function(*arguments, **(keywords or {}))
        tensors = [t for t in (*arguments, result) if isinstance(t, Tensor) and t.ndim]
        if any(t.is_meta for t in tensors):
            assert all(t.is_meta for t in tensors), f"{function} moves values between devices"
            assert "_local_scalar_dense" not in str(function), "the host waits for a value"
        return result


@pytest.mark.parametrize("context_features", [0, 2])
def test_a_sweep_moves_nothing_between_devices(context_features: int) -> None:
    """So that a CUDA graph can capture it."""
    network = MaskedMLP(5, 2, hidden=(9,), order="random", direct=True, context_features=context_features).to("meta")
    context = torch.empty(3, context_features, device="meta") if context_features else None
    x = torch.empty(3, 5, device="meta")
    with NoTransfer():
        network.sweep(lambda feature, theta: theta[..., 0], 3, context)
        network.solve_transposed(x, context, x, torch.empty(3, 5, 2, device="meta"), x)
