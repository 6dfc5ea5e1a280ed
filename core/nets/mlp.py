from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh, "elu": nn.ELU, "gelu": nn.GELU}


def activation_layer(name: str, *, overwrite: bool = False) -> nn.Module:
    """Activation by name.

    Args:
        name: one of `ACTIVATIONS`.
        overwrite: let it write over its input where its derivative allows, which only a layer behind another may.

    Raises:
        ValueError: a name that is not known.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, but is {name!r}.")
    return nn.ReLU(inplace=True) if overwrite and name == "relu" else ACTIVATIONS[name]()


class MLP(nn.Module):
    """y = W_n a(... a(W_1 [x, context] + b_1) ...) + b_n.

    Args:
        in_features: width of `x`.
        out_features: width of the output.
        hidden: widths of the hidden layers.
        context_features: width of `context`, 0 for none.
        activation: `relu`, `silu`, `tanh`, `elu` or `gelu`.
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
        widths = [in_features + context_features, *hidden]
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), activation_layer(activation, overwrite=True)]
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
        last = nn.Linear(widths[-1], out_features)
        if zero_output:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)
        self.context_features = context_features

    def forward(
        self, x: Float[Tensor, "rows in_features"], context: Float[Tensor, "rows context_features"] | None = None
    ) -> Float[Tensor, "rows out_features"]:
        """Output `(rows, out_features)`.

        Raises:
            ValueError: context given or missing against `context_features`.
        """
        return self.layers(join_context(x, context, self.context_features))


def join_context(x: Tensor, context: Tensor | None, context_features: int) -> Tensor:
    """Appends the context's features to those of `x`.

    Raises:
        ValueError: context given, missing or of another width than `context_features`.
    """
    check_context(context, context_features)
    return x if context is None else torch.cat([x, context], -1)


def check_context(context: Tensor | None, context_features: int) -> None:
    """Refuses a context that is given, missing or of another width against `context_features`."""
    found = 0 if context is None else context.shape[-1]
    if found != context_features:
        raise ValueError(f"the network was built for context_features={context_features}, but context has {found}.")
