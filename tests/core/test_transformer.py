import copy
import math
import pickle
from typing import Any

import pytest
import torch
from contracts import causal
from helpers import normal, perturb, rng, seeded
from torch import Tensor
from torch.nn import functional as F

from core.nets import CausalTransformer

T = 5


def network(tokens: int = T, **keywords: Any) -> CausalTransformer:
    sizes = {"layers": 2, "hidden": 8, "heads": 2, **keywords}
    return perturb(seeded(lambda: CausalTransformer(3, 4, tokens=tokens, **sizes)), rng(1))


def echo(x: Tensor) -> Any:
    return lambda i, y: x[:, i]


@pytest.mark.parametrize("tokens", [1, 2, 7])
@pytest.mark.parametrize("context_features", [0, 2])
@pytest.mark.parametrize("heads", [1, 8])
def test_sweep_equals_the_pass(tokens: int, context_features: int, heads: int) -> None:
    net = network(tokens, context_features=context_features, heads=heads)
    context = normal(4, (context_features,), rng(2)) if context_features else None
    causal.sweep_equals_the_pass(net, normal(4, (tokens, 3), rng(3)), context)


@pytest.mark.parametrize("context_features", [0, 2])
def test_outputs_see_the_tokens_before_alone(context_features: int) -> None:
    context = normal(1, (2,), rng(2)) if context_features else None
    causal.outputs_see_the_tokens_before_alone(
        network(context_features=context_features), normal(1, (T, 3), rng(3)), context
    )


def test_the_pass_is_the_formula() -> None:
    """One block of two heads, written out a token, a head and a key at a time."""
    net = network(layers=1, context_features=2)
    x, c = normal(1, (T, 3), rng(3)), normal(1, (2,), rng(4))
    block, width = net.blocks[0], 4
    norm, widen, _, narrow = block.mlp
    with torch.no_grad():
        previous = torch.cat([torch.zeros(1, 3, dtype=torch.float64), x[0, :-1]])
        h = list(net.positions + previous @ net.embedding.weight.T + net.context_embedding.weight @ c[0])
        q, k, v = zip(*(torch.chunk(block.queries_keys_values.weight @ block.norm(u), 3) for u in h), strict=True)
        for i in range(T):
            heads = []
            for part in (slice(0, width), slice(width, 2 * width)):
                scores = [q[i][part] @ k[j][part] / math.sqrt(width) for j in range(i + 1)]
                weights = torch.stack(scores).softmax(0)
                heads.append(sum(w * v[j][part] for j, w in enumerate(weights)))
            u = h[i] + block.projection(torch.cat(heads))
            u = u + narrow(F.gelu(widen(norm(u))))
            torch.testing.assert_close(net(x, c)[0, i], net.head(u), rtol=1e-12, atol=1e-12)


def test_each_block_sees_each_token_once() -> None:
    """The T steps of a sweep together take the multiply-adds of one pass."""
    net, x = network(), normal(2, (T, 3), rng(3))
    lengths: list[int] = []
    for block in net.blocks:
        block.register_forward_hook(lambda _, args, __: lengths.append(args[0].shape[1]))
    net.sweep(echo(x), 2)
    assert lengths == [1] * T * len(net.blocks)


def test_a_sweep_leaves_nothing_behind() -> None:
    """No cache on the module: it copies after use, and a sweep within a sweep disturbs neither."""
    net, x, other = network(), normal(2, (T, 3), rng(3)), normal(3, (T, 3), rng(4))
    before = {name: id(value) for name, value in vars(net).items()}
    expected = net(x)
    inner: list[Tensor] = []

    def choose(i: int, y: Tensor) -> Tensor:
        torch.testing.assert_close(y, expected[:, i].detach(), rtol=1e-12, atol=1e-12)
        inner.append(net.sweep(echo(other), 3))
        return x[:, i]

    net.sweep(choose, 2)
    assert all(torch.equal(t, other) for t in inner)
    assert {name: id(value) for name, value in vars(net).items()} == before
    assert torch.equal(copy.deepcopy(net)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(net))(x), expected)


def test_a_sweep_has_no_gradient_and_takes_no_rows() -> None:
    net = network()
    x = net.sweep(lambda i, y: y[:, :3], 2)
    assert not x.requires_grad
    assert not x.is_inference()
    assert net.sweep(lambda i, y: y[:, :3], 0).shape == (0, T, 3)
    assert net(torch.zeros(0, T, 3, dtype=torch.float64)).shape == (0, T, 4)
    assert net.to("meta").sweep(lambda i, y: y[:, :3], 2).shape == (2, T, 3)


def test_blocks_start_as_their_skips_and_a_zero_output_at_zero() -> None:
    net = seeded(lambda: CausalTransformer(3, 4, tokens=T, layers=3, hidden=8, heads=2))
    h = torch.randn(2, T, 8, generator=rng(1))
    assert all(torch.equal(block(h, F.scaled_dot_product_attention), h) for block in net.blocks)
    zero = CausalTransformer(3, 4, tokens=T, hidden=8, heads=2, zero_output=True)
    assert zero(torch.randn(2, T, 3)).count_nonzero() == 0


def test_context_reaches_every_token_the_first_included() -> None:
    net, x, c = network(context_features=2), normal(2, (T, 3), rng(3)), normal(2, (2,), rng(4))
    assert ((net(x, c) - net(x, c + 1)).abs().amax(-1) > 1e-6).all()
    with pytest.raises(ValueError, match="context_features=2, but context has 0"):
        net(x)
    with pytest.raises(ValueError, match="context_features=2, but context has 0"):
        net.sweep(echo(x), 2)


@pytest.mark.parametrize("wrong", [{"hidden": 6, "heads": 4}, {"tokens": 0}, {"layers": 0}, {"heads": 0}])
def test_counts_that_do_not_fit_are_named(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"width that the heads divide.*{}={}".format(*list(wrong.items())[-1])):
        CausalTransformer(3, 4, **{"tokens": T, **wrong})
