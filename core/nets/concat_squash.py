from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from core.nets.mlp import activation_layer


class ConcatSquashMLP(nn.Module):
    """MLP of layers (W h + b) σ(W_g e + b_g) + W_b e, each gated and shifted by an embedding e of time and context.

    A smooth activation stands between the layers, none behind the last. Weight, bias and shift of the last layer start
    at zero, so that a fresh network returns zero.

    References:
        Grathwohl et al., "FFJORD", 2019, appendix B, with e = t (`ConcatSquashLinear` of their code).

    Checked by tests/cflows/test_ffjord.py (the formula, rows, gradients).

    Args:
        in_features: width of the input.
        out_features: width of the output.
        embedding_features: width of the embedding.
        hidden: widths of the hidden layers.
        activation: `tanh`, `silu`, `elu` or `gelu`; a divergence needs its derivative to be continuous.

    Raises:
        ValueError: no hidden width, an activation that is not known, or `relu`.

    Example:
        >>> import torch
        >>> net = ConcatSquashMLP(2, 3, embedding_features=1)
        >>> net(torch.ones(1, 2), torch.ones(1, 1)).tolist()
        [[0.0, 0.0, 0.0]]
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        embedding_features: int,
        hidden: Sequence[int] = (64, 64, 64),
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        if not hidden:
            raise ValueError("ConcatSquashMLP needs at least one hidden width, but hidden is empty.")
        if activation == "relu":
            raise ValueError("ConcatSquashMLP needs an activation with a continuous derivative, but it is 'relu'.")
        layers = [_ConcatSquash(a, b, embedding_features) for a, b in pairwise([in_features, *hidden, out_features])]
        for start in (layers[-1].linear.weight, layers[-1].linear.bias, layers[-1].shift.weight):
            nn.init.zeros_(start)
        self.layers = nn.ModuleList(layers)
        self.activation = activation_layer(activation)

    def forward(
        self, x: Float[Tensor, "rows in_features"], embedding: Float[Tensor, "rows embedding_features"]
    ) -> Float[Tensor, "rows out_features"]:
        """Output `(rows, out_features)`."""
        *layers, last = self.layers
        for layer in layers:
            x = self.activation(layer(x, embedding))
        return last(x, embedding)


class _ConcatSquash(nn.Module):
    def __init__(self, in_features: int, out_features: int, embedding_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.gate = nn.Linear(embedding_features, out_features)
        self.shift = nn.Linear(embedding_features, out_features, bias=False)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.linear(x) * self.gate(embedding).sigmoid() + self.shift(embedding)
