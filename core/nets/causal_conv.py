from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from core.nets.mlp import check_context

Context = Float[Tensor, "rows context_features"] | None


def gate(a: Tensor, *, dim: int) -> Tensor:
    """tanh(f) σ(g), f and g the two halves of `a` along `dim`."""
    f, g = a.chunk(2, dim)
    return torch.tanh(f) * torch.sigmoid(g)


class CausalConvNet(nn.Module):
    """Dilated causal convolutions of width 2, gated, with residuals and skips: y_t of x_≤t alone.

    Layer of dilation d: z_t = tanh(f) σ(g) with (f, g) = W₁ h_{t-d} + W₂ h_t + V c, then h ← h + R z; the output is
    W a(... a(Σ S z)), a the ReLU, the sum over layers. It sees x_t and the Σ d values before it; nothing before the
    first step counts as zero.

    References:
        van den Oord et al., "WaveNet", 2016, eq. 2 and sections 2.1, 2.4, 2.5 (global conditioning).

    Args:
        in_features: width of each step of `x`.
        out_features: width of each step of the output.
        dilations: dilation of each layer.
        hidden: width of the layers, then of the skips and of each 1×1 layer behind them; two or more.
        context_features: width of `context`, 0 for none.

    Raises:
        ValueError: no dilation or one below 1, or fewer than two widths.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        dilations: Sequence[int],
        hidden: Sequence[int] = (64, 128, 128),
        context_features: int = 0,
    ) -> None:
        super().__init__()
        if not dilations or min(dilations) < 1:
            raise ValueError(f"CausalConvNet needs dilations of 1 or more, but they are {tuple(dilations)}.")
        if len(hidden) < 2:
            raise ValueError(f"CausalConvNet needs a width of layers and one of skips, but hidden is {tuple(hidden)}.")
        width, *head = hidden
        self.dilations, self.width, self.context_features = tuple(dilations), width, context_features
        self.stem = nn.Linear(in_features, width)
        self.layers = nn.ModuleList(_GatedLayer(width, head[0], context_features) for _ in dilations)
        behind: list[nn.Module] = []
        for fan_in, fan_out in pairwise([*head, out_features]):
            behind += [nn.ReLU(), nn.Linear(fan_in, fan_out)]
        self.head = nn.Sequential(*behind)

    def forward(
        self, x: Float[Tensor, "rows steps in_features"], context: Context = None
    ) -> Float[Tensor, "rows steps out_features"]:
        """Output at every step, `(rows, steps, out_features)`.

        Raises:
            ValueError: context given or missing against `context_features`.
        """
        check_context(context, self.context_features)
        return self._run(x, None if context is None else context[:, None], self._delay)

    def memory(self, rows: int, context: Context = None) -> "RingBuffers":
        """What `step` remembers, before the first step.

        Raises:
            ValueError: context given or missing against `context_features`.
        """
        check_context(context, self.context_features)
        return RingBuffers(self.dilations, self.stem.weight.new_zeros(rows, self.width), context)

    def step(self, x: Float[Tensor, "rows in_features"], memory: "RingBuffers") -> Float[Tensor, "rows out_features"]:
        """Output at the next step alone, in work that grows with the number of layers, not of steps."""
        return self._run(x, memory.context, memory.exchange)

    def _run(self, x: Tensor, context: Tensor | None, recall: Callable[[int, Tensor], Tensor]) -> Tensor:
        """`recall(i, h)` is the input h of layer i, d steps before."""
        h, skips = self.stem(x), []
        for i, layer in enumerate(self.layers):
            h, skip = layer(h, recall(i, h), context)
            skips.append(skip)
        return self.head(torch.stack(skips).sum(0))

    def _delay(self, i: int, h: Tensor) -> Tensor:
        return F.pad(h, (0, 0, self.dilations[i], 0))[:, : h.shape[1]]


class RingBuffers:
    """The last d inputs of each layer of dilation d, zeros before the first step; made for one run of steps.

    Args:
        dilations: d of each layer.
        zeros: `(rows, width)`.
        context: `(rows, context_features)`, or None.
    """

    def __init__(self, dilations: Sequence[int], zeros: Tensor, context: Context) -> None:
        self.context = context
        self.rings = [deque([zeros] * d, maxlen=d) for d in dilations]

    def exchange(self, i: int, h: Tensor) -> Tensor:
        """Takes the input of layer i at this step and gives that of d steps before."""
        oldest = self.rings[i][0]
        self.rings[i].append(h)  # a full ring drops its oldest
        return oldest


class _GatedLayer(nn.Module):
    def __init__(self, width: int, skip: int, context_features: int) -> None:
        super().__init__()
        self.conv = nn.Linear(2 * width, 2 * width)
        self.condition = nn.Linear(context_features, 2 * width, bias=False) if context_features else None
        self.out = nn.Linear(width, width + skip)  # R and S in one product

    def forward(self, h: Tensor, past: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        a = self.conv(torch.cat([past, h], -1))
        if self.condition is not None:
            a = a + self.condition(context)
        out = self.out(gate(a, dim=-1))
        return h + out[..., : h.shape[-1]], out[..., h.shape[-1] :]
