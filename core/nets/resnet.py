from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from core.nets.mlp import activation_layer, join_context


class ResidualMLP(nn.Module):
    """Linear layer, pre-activation residual blocks h ← skip(h) + W₂ a(W₁ a(h)), activation, linear layer.

    Each block starts as its skip, so that depth does not hurt at the start.

    References:
        He et al., "Identity mappings in deep residual networks", 2016; as a conditioner, Durkan et al., "Neural spline
        flows", 2019, appendix B.

    Args:
        in_features: width of `x`.
        out_features: width of the output.
        hidden: width of each block, one or more.
        context_features: width of `context`, 0 for none.
        activation: name of the activation.
        dropout: probability of zeroing a hidden unit in training.
        zero_output: start with the last layer zero, so that the output is zero.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        hidden: Sequence[int] = (128, 128),
        context_features: int = 0,
        activation: str = "relu",
        dropout: float = 0.0,
        zero_output: bool = False,
    ) -> None:
        super().__init__()
        if not hidden:
            raise ValueError("ResidualMLP needs at least one hidden width, but hidden is empty.")
        stem = nn.Linear(in_features + context_features, hidden[0])
        blocks = [_LinearBlock(a, b, activation=activation, dropout=dropout) for a, b in pairwise([hidden[0], *hidden])]
        last = nn.Linear(hidden[-1], out_features)
        if zero_output:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(stem, *blocks, activation_layer(activation), last)
        self.context_features = context_features

    def forward(
        self, x: Float[Tensor, "rows in_features"], context: Float[Tensor, "rows context_features"] | None = None
    ) -> Float[Tensor, "rows out_features"]:
        """Output `(rows, out_features)`.

        Raises:
            ValueError: context given or missing against `context_features`.
        """
        return self.layers(join_context(x, context, self.context_features))


class _LinearBlock(nn.Module):
    def __init__(self, width: int, out: int, *, activation: str, dropout: float) -> None:
        super().__init__()
        self.skip = nn.Identity() if width == out else nn.Linear(width, out, bias=False)
        last = nn.Linear(out, out)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.branch = nn.Sequential(
            activation_layer(activation),
            nn.Linear(width, out),
            activation_layer(activation),
            nn.Dropout(dropout),
            last,
        )

    def forward(self, h: Tensor) -> Tensor:
        return self.skip(h) + self.branch(h)


class ModulatedMLP(nn.Module):
    """Residual MLP whose every block is scaled and shifted by an embedding of time and context (FiLM).

    Block: h ← skip(h) + W (dropout a((1 + γ(e)) LayerNorm(h) + β(e))), skip the identity where widths agree. The last
    layer starts at zero, so that a fresh network returns zero.

    References:
        Perez et al., "FiLM: visual reasoning with a general conditioning layer", 2018.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        embedding_features: width of the embedding `e`.
        hidden: widths of the blocks.
        activation: name of the activation.
        dropout: probability of zeroing a hidden unit in training.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        embedding_features: int,
        hidden: Sequence[int] = (256, 256, 256),
        activation: str = "silu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not hidden:
            raise ValueError("ModulatedMLP needs at least one hidden width, but hidden is empty.")
        self.stem = nn.Linear(in_features, hidden[0])
        widths = [hidden[0], *hidden]
        self.blocks = nn.ModuleList(
            _Block(a, b, embedding_features, activation=activation, dropout=dropout) for a, b in pairwise(widths)
        )
        self.head = nn.Linear(hidden[-1], out_features)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, x: Float[Tensor, "rows in_features"], embedding: Float[Tensor, "rows embedding_features"]
    ) -> Float[Tensor, "rows out_features"]:
        """Output `(rows, out_features)`."""
        h = self.stem(x)
        for block in self.blocks:
            h = block(h, embedding)
        return self.head(h)


class _Block(nn.Module):
    def __init__(self, width: int, out: int, embedding_features: int, *, activation: str, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.film = nn.Linear(embedding_features, 2 * width)
        self.activation = activation_layer(activation)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, out)
        self.skip = nn.Identity() if width == out else nn.Linear(width, out, bias=False)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        gamma, beta = self.film(embedding).chunk(2, -1)
        return self.skip(h) + self.linear(self.dropout(self.activation((1 + gamma) * self.norm(h) + beta)))
