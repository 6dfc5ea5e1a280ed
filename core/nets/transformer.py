"""A causal transformer, evaluated in one pass or token by token with a cache of keys and values."""

from collections.abc import Callable
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from core.modes import inferring
from core.nets.mlp import check_context

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # queries, keys and values `(rows, heads, tokens, width)`
Choose = Callable[[int, Tensor], Tensor]  # (i, y_i `(rows, out_features)`) -> x_i `(rows, in_features)`


class CausalTransformer(nn.Module):
    """y_i = f_i(x_1, ..., x_{i-1}, c): a pre-norm transformer whose output at a token sees the tokens before it alone.

    h_i = p_i + W x_{i-1} + V c with x_0 = 0, so that the position p_1 is the learned start token; then blocks
    h ← h + attention(norm(h)), h ← h + MLP(norm(h)), and y = U norm(h) + b. The context c is added to every token. Each
    block starts as its skip, so that depth does not hurt at the start.

    References:
        Vaswani et al., "Attention is all you need", 2017, section 3; norms before the layers as in Radford et al.,
        "Language models are unsupervised multitask learners", 2019, section 2.3.

    Checked by tests/core/test_transformer.py.

    Args:
        in_features: width of a token x_i.
        out_features: width of an output y_i.
        tokens: number T of tokens.
        layers: number of blocks.
        hidden: width of h, a multiple of `heads`.
        heads: attention heads a block.
        context_features: width of the context, 0 for none.
        zero_output: start with the last layer zero, so that the output is zero.

    Raises:
        ValueError: a count below 1, or a width that the heads do not divide.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        tokens: int,
        layers: int = 4,
        hidden: int = 128,
        heads: int = 4,
        context_features: int = 0,
        zero_output: bool = False,
    ) -> None:
        super().__init__()
        if min(tokens, layers, heads) < 1 or hidden < 1 or hidden % heads:
            raise ValueError(
                f"CausalTransformer needs tokens, layers and heads of 1 or more and a width that the heads divide, but "
                f"has {tokens=}, {layers=}, {heads=} and {hidden=}."
            )
        self.in_features, self.heads, self.context_features = in_features, heads, context_features
        self.positions = nn.Parameter(0.02 * torch.randn(tokens, hidden))
        self.embedding = nn.Linear(in_features, hidden, bias=False)
        self.context_embedding = nn.Linear(context_features, hidden, bias=False) if context_features else None
        self.blocks = nn.ModuleList(_Block(hidden, heads) for _ in range(layers))
        output = nn.Linear(hidden, out_features)
        if zero_output:
            _zero(output)
        self.head = nn.Sequential(nn.LayerNorm(hidden), output)

    def forward(
        self, x: Float[Tensor, "rows tokens in_features"], context: Float[Tensor, "rows context_features"] | None = None
    ) -> Float[Tensor, "rows tokens out_features"]:
        """All outputs `(rows, T, out_features)` in one pass; the last token is not read.

        Raises:
            ValueError: context given or missing against `context_features`.
        """
        previous = F.pad(x, (0, 0, 1, -1))
        attend = partial(F.scaled_dot_product_attention, is_causal=True)
        return self._run(previous, self.positions, context, [attend] * len(self.blocks))

    @inferring
    def sweep(
        self, choose: Choose, rows: int, context: Float[Tensor, "rows context_features"] | None = None
    ) -> Float[Tensor, "rows tokens in_features"]:
        """Tokens one after the other, each chosen once its output is known, without gradient.

        Keys and values are kept for as long as the call lasts, so that the T steps take the multiply-adds of one pass.

        Args:
            choose: called with (i, y_i `(rows, out_features)`) for i = 0..T-1, returns x_i `(rows, in_features)`.
            rows: number of rows.
            context: `(rows, context_features)`, or None.

        Returns:
            The tokens `(rows, T, in_features)`; `forward` of them gives the outputs that `choose` saw.

        Raises:
            ValueError: context given or missing against `context_features`.
        """
        T = self.positions.shape[0]
        caches = [_Cache(rows, self.heads, *self.positions.shape, like=self.positions) for _ in self.blocks]
        x = self.positions.new_zeros(rows, T + 1, self.in_features)  # x_0 first
        for i in range(T):
            y = self._run(x[:, i : i + 1], self.positions[i], context, [cache.attend for cache in caches])
            x[:, i + 1] = choose(i, y[:, 0])
        return x[:, 1:]

    def _run(self, previous: Tensor, positions: Tensor, context: Tensor | None, attends: list[Attend]) -> Tensor:
        check_context(context, self.context_features)
        h = positions + self.embedding(previous)
        if self.context_embedding is not None:
            h = h + self.context_embedding(context).unsqueeze(1)
        for block, attend in zip(self.blocks, attends, strict=True):
            h = block(h, attend)
        return self.head(h)


class _Block(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(hidden)
        # No bias: that of the keys cancels in the softmax, and would never be trained.
        self.queries_keys_values = nn.Linear(hidden, 3 * hidden, bias=False)
        self.projection = _zero(nn.Linear(hidden, hidden))
        widen, narrow = nn.Linear(hidden, 4 * hidden), _zero(nn.Linear(4 * hidden, hidden))
        self.mlp = nn.Sequential(nn.LayerNorm(hidden), widen, nn.GELU(), narrow)

    def forward(self, h: Tensor, attend: Attend) -> Tensor:
        pattern = "rows tokens (part heads width) -> part rows heads tokens width"
        q, k, v = rearrange(self.queries_keys_values(self.norm(h)), pattern, part=3, heads=self.heads)
        h = h + self.projection(rearrange(attend(q, k, v), "rows heads tokens width -> rows tokens (heads width)"))
        return h + self.mlp(h)


class _Cache:
    """Keys and values of the tokens so far, of one block in one sweep."""

    def __init__(self, rows: int, heads: int, tokens: int, hidden: int, *, like: Tensor) -> None:
        self.k, self.v = like.new_empty(2, rows, heads, tokens, hidden // heads)
        self.length = 0

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the next token, which is stored, to itself and those before it."""
        self.k[:, :, self.length], self.v[:, :, self.length] = k[:, :, 0], v[:, :, 0]
        self.length += 1
        return F.scaled_dot_product_attention(q, self.k[:, :, : self.length], self.v[:, :, : self.length])


def _zero(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
