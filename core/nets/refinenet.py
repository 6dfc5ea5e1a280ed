from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from core.nets.mlp import activation_layer

Image = Float[Tensor, "rows channels height width"]
Index = Int64[Tensor, " rows"]


class RefineNet(nn.Module):
    """Four stages of residual blocks, refined from the last to the first; the network of NCSN.

    The first stage is at full resolution, the second halves the sides, the third and fourth dilate their convolutions
    by 2 and 4 instead. A RefineNet block passes each input through residual units, fuses them at the finer resolution,
    adds a chain of average poolings, and ends in residual units: stage 4 alone, then each stage with what came of the
    stage behind it. `InstanceNormPlus` goes before every convolution of a block and every pooling; with `levels` its
    parameters depend on the noise level. A side n becomes ⌈n/2⌉ and comes back as n, so that every side works. Rows
    never mix.

    References:
        Lin et al., "RefineNet", 2017, section 3; Song and Ermon, "Generative modeling by estimating gradients of the
        data distribution", 2019, appendix A.1; without levels, Song and Ermon, "Improved techniques for training
        score-based generative models", 2020, appendix A.1.

    Checked by tests/core/test_refinenet.py.

    Args:
        in_features: channels of `x`.
        out_features: channels of the output.
        hidden: width of the first stage; the others have twice as many.
        levels: number of noise levels, 0 for a network that is not told of one.
        activation: name of the activation.
        zero_output: start with the last layer zero, so that the output is zero, which the papers do not.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        hidden: int = 64,
        levels: int = 0,
        activation: str = "elu",
        zero_output: bool = True,
    ) -> None:
        super().__init__()
        self.levels = levels
        c, how = hidden, (levels, activation)
        self.stem = nn.Conv2d(in_features, c, 3, padding=1)
        self.stages = nn.ModuleList(
            [
                _Chain([_Block(c, c, *how), _Block(c, c, *how)]),
                _Chain([_Block(c, 2 * c, *how, stride=2), _Block(2 * c, 2 * c, *how)]),
                _Chain([_Block(2 * c, 2 * c, *how, dilation=2) for _ in range(2)]),
                _Chain([_Block(2 * c, 2 * c, *how, dilation=4) for _ in range(2)]),
            ]
        )
        self.refinements = nn.ModuleList(
            [
                _Refinement([c, c], c, *how, units=3),
                _Refinement([2 * c, 2 * c], c, *how),
                _Refinement([2 * c, 2 * c], 2 * c, *how),
                _Refinement([2 * c], 2 * c, *how),
            ]
        )
        self.head = _Layer(c, out_features, levels, activation_layer(activation))
        if zero_output:
            nn.init.zeros_(self.head.conv.weight)
            nn.init.zeros_(self.head.conv.bias)  # type: ignore[arg-type]

    def forward(
        self, x: Float[Tensor, "rows in_features height width"], index: Index | None = None
    ) -> Float[Tensor, "rows out_features height width"]:
        """Output `(rows, out_features, height, width)`.

        Args:
            x: `(rows, in_features, height, width)`.
            index: `(rows,)`, the noise level of each row, 0..levels-1; None without levels.

        Raises:
            ValueError: index given or missing against `levels`.
        """
        _check_index(index, self.levels)
        h, stages = self.stem(x), []
        for stage in self.stages:
            h = stage(h, index)
            stages.append(h)
        coarser: list[Tensor] = []
        for stage_output, refinement in zip(stages[::-1], self.refinements[::-1], strict=True):
            coarser = [refinement([stage_output, *coarser], index)]
        return self.head(coarser[0], index)


class InstanceNormPlus(nn.Module):
    """z_k = γ_k (x_k - μ_k)/s_k + β_k + α_k (μ_k - m)/v, of each channel k.

    μ_k and s_k are mean and standard deviation over the pixels, m and v those of the μ_k over the channels. The last
    term keeps what the first forgets, how bright the channels are against one another. Each variance has ε = 1e-5 added
    to it, so that constant images and single channels are finite.

    References:
        Song and Ermon, "Generative modeling by estimating gradients of the data distribution", 2019, appendix A.1.

    Checked by tests/core/test_refinenet.py.

    Args:
        channels: number of channels.
        levels: number of noise levels, each with its own γ, β and α; 0 for one of each that all share.

    Note:
        Variances are those of the values at hand, divided by their number.
    """

    def __init__(self, channels: int, *, levels: int = 0, epsilon: float = 1e-5) -> None:
        super().__init__()
        shape = (levels, channels) if levels else (1, channels)
        self.levels, self.epsilon = levels, epsilon
        self.gamma = nn.Parameter(torch.ones(shape))
        self.beta = nn.Parameter(torch.zeros(shape))
        self.alpha = nn.Parameter(torch.ones(shape))

    def forward(self, x: Image, index: Index | None = None) -> Image:
        """Normalizes `x` `(rows, channels, height, width)`, the noise level of each row being `index` `(rows,)`.

        Raises:
            ValueError: index given or missing against `levels`.
        """
        _check_index(index, self.levels)
        gamma, beta, alpha = (p if index is None else p[index] for p in (self.gamma, self.beta, self.alpha))
        mu = x.mean((2, 3))
        apart = mu - mu.mean(1, keepdim=True)
        v = (apart.square().mean(1, keepdim=True) + self.epsilon).sqrt()
        # A group for each channel: (x - μ)/s in one kernel. The function of nn.functional would refuse a single pixel.
        normalized = torch.group_norm(x, x.shape[1], eps=self.epsilon)
        return torch.addcmul(_spread(beta + alpha * apart / v), normalized, _spread(gamma))


class _Layer(nn.Module):
    """Normalization, an activation, a pooling or neither, and a convolution of 3×3."""

    def __init__(
        self, width: int, out: int, levels: int, between: nn.Module, *, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        self.norm, self.between = InstanceNormPlus(width, levels=levels), between
        self.conv = nn.Conv2d(width, out, 3, stride=stride, padding=dilation, dilation=dilation)

    def forward(self, h: Tensor, index: Tensor | None) -> Tensor:
        return self.conv(self.between(self.norm(h, index)))


class _Block(nn.Module):
    """Residual block h ← skip(h) + two layers, which is the residual unit of a RefineNet block as well."""

    def __init__(
        self, width: int, out: int, levels: int, activation: str, *, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        pool = nn.AvgPool2d(2, ceil_mode=True) if stride == 2 else nn.Identity()
        widen = nn.Identity() if width == out else nn.Conv2d(width, out, 1)
        self.skip = nn.Sequential(pool, widen)
        self.first = _Layer(width, out, levels, activation_layer(activation), stride=stride, dilation=dilation)
        self.last = _Layer(out, out, levels, activation_layer(activation), dilation=dilation)

    def forward(self, h: Tensor, index: Tensor | None) -> Tensor:
        return self.skip(h) + self.last(self.first(h, index), index)


class _Chain(nn.Module):
    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, h: Tensor, index: Tensor | None) -> Tensor:
        for block in self.blocks:
            h = block(h, index)
        return h


class _Refinement(nn.Module):
    """RefineNet block: residual units for each input, fusion at the finest of them, chained pooling, residual units."""

    def __init__(self, widths: Sequence[int], out: int, levels: int, activation: str, *, units: int = 1) -> None:
        super().__init__()

        def chain(width: int, length: int) -> _Chain:
            return _Chain([_Block(width, width, levels, activation) for _ in range(length)])

        self.adapt = nn.ModuleList(chain(width, 2) for width in widths)
        # A single input has nothing to be fused with.
        fused = [_Layer(width, out, levels, nn.Identity()) for width in widths] if len(widths) > 1 else []
        self.fuse = nn.ModuleList(fused)
        self.activation = activation_layer(activation)
        self.pools = nn.ModuleList(
            _Layer(out, out, levels, nn.AvgPool2d(5, stride=1, padding=2, count_include_pad=False)) for _ in range(2)
        )
        self.output = chain(out, units)

    def forward(self, inputs: Sequence[Tensor], index: Tensor | None) -> Tensor:
        paths = [adapt(h, index) for adapt, h in zip(self.adapt, inputs, strict=True)]
        if len(self.fuse):
            paths = [fuse(h, index) for fuse, h in zip(self.fuse, paths, strict=True)]
        h = pooled = self.activation(sum(_resize(path, paths[0]) for path in paths))
        for pool in self.pools:
            pooled = pool(pooled, index)
            h = h + pooled
        return self.output(h, index)


def _resize(h: Tensor, like: Tensor) -> Tensor:
    size = like.shape[2:]
    return h if h.shape[2:] == size else F.interpolate(h, size, mode="bilinear")


def _spread(values: Tensor) -> Tensor:
    return values[:, :, None, None]


def _check_index(index: Tensor | None, levels: int) -> None:
    if (index is None) != (levels == 0):
        found = "missing" if index is None else "given"
        raise ValueError(f"the network was built for levels={levels}, but index is {found}.")
