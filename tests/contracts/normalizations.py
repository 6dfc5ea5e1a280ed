"""What normalization by statistics keeps: those of the batch in training, of the buffers in evaluation, or of all rows.

Closed forms from numpy, whose variance is the biased one. `x` is `(rows, channels, *spatial)`.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from contracts import bijections
from torch import Tensor, nn

from discrete import Bijection


class Normalization(Protocol):
    """A layer z = exp(γ) (x - m)/√(v + ε) + β."""

    gamma: nn.Parameter
    beta: nn.Parameter
    momentum: float
    eps: float


Setter = Callable[[nn.Module, Sequence[Tensor]], None]


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel, each `(channels, 1, ...)`."""
    axes = tuple(d for d in range(x.ndim) if d != 1)
    values = x.detach().numpy()
    return torch.from_numpy(np.mean(values, axes, keepdims=True)[0]), torch.from_numpy(
        np.var(values, axes, keepdims=True)[0]
    )


def by_hand(norm: Normalization, x: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """z and log|det dz/dx| of each row by the statistics given."""
    root = torch.sqrt(v + norm.eps)
    scale = norm.gamma.exp() / root
    positions = x[0, 0].numel()
    return scale * (x - m) + norm.beta, positions * scale.log().sum().expand(len(x))


def _close(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 1e-12) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def training_takes_the_batch(norm: Bijection, x: Tensor) -> None:
    """In training mode z and log_det are those of the biased statistics of x."""
    norm = copy.deepcopy(norm).train()
    _close(norm(x), by_hand(norm, x, *moments(x)))


def training_log_det_is_that_of_one_row(norm: Bijection, x: Tensor, *, tolerance: float = 1e-9) -> None:
    """In training mode log_det is log|det| of the autograd Jacobian of one row's map with m and v held constant."""
    norm = copy.deepcopy(norm).train()
    _, log_det = norm(x)
    m, v = moments(x)
    for row, found in zip(x, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda y: by_hand(norm, y[None], m, v)[0].flatten(), row)
        expected = torch.linalg.slogdet(jacobian.reshape(row.numel(), -1)).logabsdet
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def evaluation_follows_training(norm: Bijection, batches: Sequence[Tensor]) -> None:
    """A new layer has the statistics of its first batch, then m̄ ← m̄ + momentum (m - m̄) and v̄ alike."""
    norm = copy.deepcopy(norm)
    m, v = moments(batches[0])
    for i, x in enumerate(batches):
        norm.train()(x)
        new_m, new_v = moments(x)
        share = norm.momentum if i else 1.0
        m, v = m + share * (new_m - m), v + share * (new_v - v)
        _close(norm.eval()(x), by_hand(norm, x, m, v))
    bijections.forward_log_det_is_that_of_the_jacobian(norm, batches[-1][:3])


def statistics_are_those_of_all_rows(
    setter: Setter, build: Callable[[], Bijection], x: Tensor, *, tolerance: float = 1e-10
) -> None:
    """Set batch by batch, evaluation equals training with all rows as one batch, whatever the sizes of batches."""
    expected = build().train()(x)
    results = []
    for rows in (len(x), 7):
        module = build().train()
        setter(module, x.split(rows))
        results.append(module.eval()(x))
    _close(results[0], expected, tolerance)
    _close(results[1], results[0], 1e-12)
