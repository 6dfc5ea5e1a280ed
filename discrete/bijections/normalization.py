"""Layers that keep activations near zero mean and unit scale."""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from core.density import DensityModel
from core.rng import Rng, for_all_rows
from discrete.bijection import Bijection, Context, Direction, Events, Mapped


class ActNorm(Bijection):
    """z = exp(s) ⊙ (x + b), per feature of a vector or per channel of an image: log|det| = H W Σ s_c.

    The first training batch sets b and s so that z has zero mean and unit variance; from then on both are ordinary
    parameters. Evaluation, the inverse and a loaded model never initialise.

    References:
        Kingma and Dhariwal, "Glow", 2018, section 3.1.

    Checked by tests/contracts/bijections.py and tests/discrete/test_normalization.py.

    Args:
        event_shape: features of a vector, or (channels, height, width).

    Example:
        >>> norm = ActNorm(1).train()
        >>> z, _ = norm(torch.tensor([[1.0], [3.0]]))
        >>> [round(v, 4) for v in z.flatten().tolist()]
        [-1.0, 1.0]
    """

    forward_direction = inverse_direction = Direction(0)
    initialised: Tensor

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__(event_shape)
        channels, *spatial = self.event_shape
        self.positions = math.prod(spatial)
        self.bias = nn.Parameter(torch.zeros(channels, *(1 for _ in spatial)))
        self.log_scale = nn.Parameter(torch.zeros_like(self.bias))
        self.register_buffer("initialised", torch.tensor(False))
        self._started = False

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """z and its log-determinant; the first call in training mode initialises.

        Raises:
            ValueError: the initialising batch has one row, which has no variance.
        """
        if self.training and not x.is_meta and not self._has_started():
            self._initialise(x)
        return self.log_scale.exp() * (x + self.bias), self._log_det(x)

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """x and its log-determinant."""
        return torch.exp(-self.log_scale) * z - self.bias, -self._log_det(z)

    def _log_det(self, x: Tensor) -> Tensor:
        return (self.positions * self.log_scale.sum()).expand(x.shape[0])

    def _has_started(self) -> bool:
        # The host waits for a device that it asks, so it asks no more than until the answer is yes.
        self._started = self._started or bool(self.initialised)
        return self._started

    def _load_from_state_dict(self, *args: Any, **keywords: Any) -> None:
        self._started = False
        super()._load_from_state_dict(*args, **keywords)

    @torch.no_grad()
    def _initialise(self, x: Tensor) -> None:
        if x.shape[0] < 2:
            raise ValueError(f"ActNorm needs 2 rows or more in its first training batch, but got {x.shape[0]}.")
        dims = [d for d in range(x.ndim) if d != 1]
        std, mean = torch.std_mean(x, dims, correction=0, keepdim=True)
        self.bias.copy_(-mean[0])
        self.log_scale.copy_(-torch.log(std[0] + 1e-6))
        self.initialised.fill_(True)
        self._started = True


class BatchNorm(Bijection):
    """z = exp(γ) ⊙ (x - m)/√(v + ε) + β, per feature or per channel: log|det| = H W Σ [γ_c - ½ log(v_c + ε)].

    In training mode m and v are mean and biased variance of the batch, over rows and positions, and the gradient flows
    through them: **rows are coupled**, and the log-determinant is that of one row's map with m and v held constant. The
    buffers follow them as m̄ ← m̄ + momentum (m - m̄), the first batch copied. Evaluation takes m and v from the buffers,
    whose exact values over a training set `set_batch_statistics` puts there.

    References:
        Dinh, Sohl-Dickstein, Bengio, "Real NVP", 2017, section 3.7, eq. 17-18, for the layer.
        Papamakarios, Pavlakou, Murray, "Masked autoregressive flow", 2017, appendix B, for the statistics.

    Checked by tests/contracts/bijections.py and tests/discrete/test_batch_norm.py.

    Args:
        event_shape: features of a vector, or (channels, height, width).
        momentum: weight of the newest batch in the buffers, within (0, 1].
        eps: ε > 0, added to every variance.

    Raises:
        ValueError: a momentum outside (0, 1], or an ε that is not positive.

    Note:
        The inverse takes m and v from the buffers in either mode, so it undoes `forward` in evaluation mode only.
        Before the first batch they are 0 and 1.

    Example:
        >>> norm = BatchNorm(1).train()
        >>> z, _ = norm(torch.tensor([[1.0], [3.0]]))
        >>> [round(v, 4) for v in z.flatten().tolist()]
        [-1.0, 1.0]
        >>> norm.running_mean.item(), norm.running_var.item()
        (2.0, 1.0)
    """

    forward_direction = inverse_direction = Direction(0)
    running_mean: Tensor
    running_var: Tensor
    initialised: Tensor

    def __init__(self, event_shape: int | Sequence[int], *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__(event_shape)
        if not 0 < momentum <= 1 or not eps > 0:
            raise ValueError(f"BatchNorm needs momentum within (0, 1] and eps > 0, but has {momentum=} and {eps=}.")
        self.momentum, self.eps = momentum, eps
        channels, *spatial = self.event_shape
        self.positions = math.prod(spatial)
        self.beta = nn.Parameter(torch.zeros(channels, *(1 for _ in spatial)))
        self.gamma = nn.Parameter(torch.zeros_like(self.beta))
        self.register_buffer("running_mean", torch.zeros_like(self.beta))
        self.register_buffer("running_var", torch.ones_like(self.beta))
        self.register_buffer("initialised", torch.tensor(False))

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """z and its log-determinant; in training mode by the statistics of this batch, which the buffers follow.

        Raises:
            ValueError: a training batch of one row, which has no variance, or of none.
        """
        m, v = self._of_batch(x) if self.training else (self.running_mean, self.running_var)
        log_scale = self._log_scale(v)
        return log_scale.exp() * (x - m) + self.beta, self._log_det(x, log_scale)

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """x and its log-determinant, by the buffers."""
        log_scale = self._log_scale(self.running_var)
        return torch.exp(-log_scale) * (z - self.beta) + self.running_mean, -self._log_det(z, log_scale)

    def _log_scale(self, v: Tensor) -> Tensor:
        return self.gamma - 0.5 * torch.log(v + self.eps)

    def _log_det(self, x: Tensor, log_scale: Tensor) -> Tensor:
        return (self.positions * log_scale.sum()).expand(x.shape[0])

    def _of_batch(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape[0] < 2:
            raise ValueError(f"BatchNorm needs 2 rows or more in every training batch, but got {x.shape[0]}.")
        m, v = _mean_and_variance(x)
        self._follow(m, v)
        return m, v

    @torch.no_grad()
    def _follow(self, m: Tensor, v: Tensor) -> None:
        for average, value in ((self.running_mean, m), (self.running_var, v)):
            average.copy_(torch.where(self.initialised, average + self.momentum * (value - average), value))
        self.initialised.fill_(True)


@torch.no_grad()
def set_batch_statistics(
    module: Bijection | DensityModel, batches: Iterable[Tensor | Sequence[Tensor]], *, generator: Rng = None
) -> None:
    """Puts m = Σᵢ xᵢ/n and v = Σᵢ (xᵢ - m)²/n over a whole training set into every `BatchNorm` of a module.

    Layer by layer, in the order in which data meet them and in evaluation mode: what reaches a layer is normalised by
    the earlier ones already. Batches are merged in float64, so that their sizes make no difference.

    References:
        Papamakarios, Pavlakou, Murray, "Masked autoregressive flow", 2017, appendix B, for the protocol.
        Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979, for
        the merging.

    Checked by tests/discrete/test_batch_norm.py.

    Args:
        module: a bijection, called on each batch, or a density, whose `log_prob` is.
        batches: rows `(rows, *event)`, or pairs of rows and context, gone through once a layer, such as
            `x.split(1000)` or a `DataLoader`; each time the same rows.
        generator: for random layers such as `Dequantization`; rewound for each layer, so that all see the same noise.

    Raises:
        ValueError: batches that can be gone through only once or hold fewer than 2 rows, statistics that are not
            finite, or a layer that no data meet, as one inside `Inverse`.

    Note:
        Each layer costs the part of a pass over the data that leads to it. Training modes are left as they were.

    Example:
        >>> norm = BatchNorm(1)
        >>> set_batch_statistics(norm, torch.tensor([[1.0], [2.0], [6.0]]).split(2))
        >>> norm.running_mean.item(), round(norm.running_var.item(), 4)
        (3.0, 4.6667)
    """
    if isinstance(batches, Tensor | Iterator):
        raise ValueError(
            "batches must be a collection that can be gone through once a layer, such as x.split(1000), but is a "
            f"{type(batches).__name__}."
        )
    names = {layer: name for name, layer in module.named_modules() if isinstance(layer, BatchNorm)}
    modes = {part: part.training for part in module.modules()}
    waiting = {layer: layer.register_forward_pre_hook(_stop) for layer in names}
    generator = for_all_rows(generator, owner="set_batch_statistics")
    start = None if generator is None else generator.get_state()
    try:
        module.eval()
        while waiting:
            if generator is not None and start is not None:
                generator.set_state(start)
            layer, moments = _next_layer(module, batches, generator)
            _fill(layer, moments, name=names[layer])
            waiting.pop(layer).remove()
    finally:
        for hook in waiting.values():
            hook.remove()
        for part, mode in modes.items():
            part.training = mode


class _Moments(NamedTuple):
    """Mean and biased variance of n rows, per feature or per channel, in float64."""

    n: int
    m: Tensor
    v: Tensor

    def merge(self, other: "_Moments") -> "_Moments":
        """With δ = m_b - m_a and w = n_b/n: m = m_a + w δ and v = v_a + w (v_b - v_a) + w (1 - w) δ²."""
        n = self.n + other.n
        w, delta = other.n / n, other.m - self.m
        v = self.v + w * (other.v - self.v) + w * (1 - w) * delta.square()
        return _Moments(n, self.m + w * delta, v)


class _Stop(Exception):  # noqa: N818 (no error: it ends a pass early)
    """Rows have come to a layer that waits for its statistics."""

    def __init__(self, layer: BatchNorm, moments: _Moments) -> None:
        super().__init__()
        self.layer, self.moments = layer, moments


def _stop(layer: BatchNorm, inputs: tuple[Any, ...]) -> None:
    x = inputs[0].double()
    raise _Stop(layer, _Moments(x.shape[0], *_mean_and_variance(x)))


def _next_layer(
    module: Bijection | DensityModel, batches: Iterable[Tensor | Sequence[Tensor]], generator: Rng
) -> tuple[BatchNorm, _Moments]:
    """The waiting layer that data meet first, and the moments of all rows there."""
    parts = ((batch,) if isinstance(batch, Tensor) else tuple(batch) for batch in batches)
    stops = [_reach(module, part, generator) for part in parts if len(part[0])]
    rows = sum(moments.n for _, moments in stops)
    if rows < 2:
        raise ValueError(f"set_batch_statistics needs 2 rows or more, but the batches hold {rows}.")
    return stops[0][0], reduce(_Moments.merge, (moments for _, moments in stops))


def _reach(module: Bijection | DensityModel, inputs: tuple[Tensor, ...], generator: Rng) -> tuple[BatchNorm, _Moments]:
    try:
        (module.log_prob if isinstance(module, DensityModel) else module)(*inputs, generator=generator)
    except _Stop as stop:
        return stop.layer, stop.moments
    raise ValueError(
        f"set_batch_statistics found a BatchNorm in {type(module).__name__} that its forward direction does not pass, "
        "as one inside Inverse; such a layer has no statistics of data."
    )


def _fill(layer: BatchNorm, moments: _Moments, *, name: str) -> None:
    if not bool((moments.m + moments.v).isfinite().all()):
        raise ValueError(f"the rows that reach the BatchNorm {name!r} have a mean or variance that is not finite.")
    layer.running_mean.copy_(moments.m)
    layer.running_var.copy_(moments.v)
    layer.initialised.fill_(True)


def _mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Over rows and positions, biased; both broadcast against an event."""
    v, m = torch.var_mean(x, [d for d in range(x.ndim) if d != 1], correction=0, keepdim=True)
    return m[0], v[0]
