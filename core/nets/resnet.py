from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from core.nets.mlp import activation_layer


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
