"""The arithmetic of tensor cores, as `benchmarks/arithmetic.py` says it."""

from functools import partial

import pytest
import torch
from helpers import rng

from benchmarks.arithmetic import ARITHMETIC, CONVOLUTIONS, Rounded, rounded


@pytest.mark.parametrize("name", ["TF32", "bfloat16"])
def test_factors_are_rounded_to_the_nearest_and_to_the_even_of_two(name: str) -> None:
    bits, _ = ARITHMETIC[name]
    ulp = 2.0**-bits
    x = torch.tensor([1, 1 + ulp, 1 + ulp / 2, 1 + 3 * ulp / 2, 1 + 0.51 * ulp, -1 - 0.49 * ulp, 3e-20, 0.0, -7e30])
    found = rounded(x, bits)
    assert found[:6].tolist() == [1, 1 + ulp, 1, 1 + 2 * ulp, 1 + ulp, -1]
    torch.testing.assert_close(found, x, rtol=ulp / 2, atol=0)
    if name == "bfloat16":
        x = torch.randn(1000, generator=rng(1))
        assert torch.equal(rounded(x, bits), x.bfloat16().float())


def test_products_have_rounded_factors_and_sums_do_not() -> None:
    x, W, b = (torch.randn(*shape, generator=rng(i)) for i, shape in enumerate([(5, 4), (3, 4), (3,)]))
    image, kernel = torch.randn(2, 4, 5, 5, generator=rng(3)), torch.randn(3, 4, 3, 3, generator=rng(4))
    with Rounded(10):
        linear, product = torch.nn.functional.linear(x, W, b), x[None] @ W.T
        convolved, total = torch.nn.functional.conv2d(image, kernel, b), x + x
    r = [rounded(t, 10) for t in (x, W, image, kernel)]
    close = partial(torch.allclose, rtol=1e-6, atol=1e-6)
    assert close(linear, torch.nn.functional.linear(*r[:2], b))
    assert close(product, r[0][None] @ r[1].T)
    assert close(convolved, torch.nn.functional.conv2d(*r[2:], b))
    assert torch.equal(total, 2 * x)
    assert not close(linear, torch.nn.functional.linear(x, W, b))
    assert not close(convolved, torch.nn.functional.conv2d(image, kernel, b))


def test_float32_stays_as_it_is() -> None:
    x = torch.randn(7, 7, generator=rng(1))
    with Rounded(*ARITHMETIC["float32"]):
        assert torch.equal(x @ x, torch.mm(x, x))


def test_convolutions_may_be_rounded_alone() -> None:
    x, image = torch.randn(5, 4, generator=rng(0)), torch.randn(2, 4, 5, 5, generator=rng(1))
    kernel = torch.randn(3, 4, 3, 3, generator=rng(2))
    with Rounded(10, CONVOLUTIONS):
        product, convolved = x @ x.T, torch.nn.functional.conv2d(image, kernel)
    assert torch.equal(product, x @ x.T)
    assert not torch.allclose(convolved, torch.nn.functional.conv2d(image, kernel), rtol=1e-6, atol=1e-6)
