from functools import partial

import pytest
import torch
from cases import SDES
from contracts import wrappers
from helpers import rng
from torch import Tensor

from cflows import VPSDE, EulerMaruyama
from cflows.guidance import ConditionalScore, classifier_free
from cflows.samplers.adaptive import AdaptiveSDE


@pytest.mark.parametrize("guidance", [-0.5, 0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("name", ["vp", "sub-vp", "ve"])
def test_is_a_gradient_known_in_closed_form(name: str, guidance: float) -> None:
    wrappers.guides(classifier_free, SDES[name][0], guidance=guidance)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("sampler", [EulerMaruyama(steps=50, denoise=False), AdaptiveSDE()])
def test_through_a_sampler(sampler: EulerMaruyama | AdaptiveSDE, guidance: float) -> None:
    wrappers.reaches_the_guided_class(classifier_free, sampler, VPSDE(), guidance=guidance)


@pytest.mark.parametrize(("guidance", "rows"), [(0.0, 3), (1.0, 3), (2.0, 6), (-1.0, 6)])
@pytest.mark.parametrize("t", [torch.tensor(0.3), torch.tensor([0.1, 0.2, 0.3])])
def test_one_call(t: Tensor, guidance: float, rows: int) -> None:
    """Of 2n rows, first with context and then without, at the same times; of n where one half would not count."""
    calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def score(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        calls.append((x, t, context))
        return context

    x, context = torch.randn(3, 1, generator=rng(0)), torch.tensor([[1.0], [2.0], [3.0]])
    guided = classifier_free(score, context, guidance=guidance, null=torch.tensor([9.0]))(x, t)
    torch.testing.assert_close(guided, 9 + guidance * (context - 9))
    ((asked, times, contexts),) = calls
    assert torch.equal(asked, x.repeat(rows // 3, 1))
    assert torch.equal(times, t.repeat(rows // 3) if t.ndim else t)
    expected = {0.0: [9.0] * 3, 1.0: [1.0, 2.0, 3.0]}.get(guidance, [1.0, 2.0, 3.0, 9.0, 9.0, 9.0])
    assert contexts[:, 0].tolist() == expected


def test_no_class_is_zeros() -> None:
    score = classifier_free(lambda x, t, c: c, torch.ones(2, 3), guidance=0.0)
    assert torch.equal(score(torch.zeros(2, 1), torch.tensor(0.5)), torch.zeros(2, 3))


def test_images_keep_their_shape() -> None:
    score = classifier_free(lambda x, t, c: x * c[:, :, None, None], torch.ones(2, 1), guidance=3.0)
    x = torch.randn(2, 1, 2, 2, generator=rng(0))
    torch.testing.assert_close(score(x, torch.tensor(0.5)), 3 * x)


def test_some_rows_keep_their_contexts() -> None:
    build = partial(classifier_free, lambda x, t, c: c - x, torch.tensor([[1.0], [2.0], [3.0]]), guidance=2.0)
    x = torch.randn(3, 1, generator=rng(0))
    assert torch.equal(build().rows([2, 0])(x[[2, 0]], torch.tensor(0.5)), build()(x, torch.tensor(0.5))[[2, 0]])


def test_rows_that_do_not_fit() -> None:
    score = ConditionalScore(lambda x, t, c: c - x, torch.ones(3, 1))
    with pytest.raises(ValueError, match="conditioned on 3 contexts takes as many rows, but x has 2"):
        score(torch.zeros(2, 1), torch.tensor(0.5))


def test_null_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"as wide as the context, 2 features, but has shape \(3,\)"):
        classifier_free(lambda x, t, c: x, torch.ones(4, 2), guidance=2.0, null=torch.zeros(3))


def test_no_rows_in_none_out() -> None:
    score = classifier_free(lambda x, t, context: -x, torch.zeros(0, 3), guidance=2.0)
    assert score(torch.zeros(0, 2), torch.tensor(0.5)).shape == (0, 2)
