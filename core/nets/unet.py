from collections.abc import Sequence
from itertools import pairwise

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from core.nets.mlp import activation_layer

CUT, JOIN = "b c (h p) (w q) -> b (c p q) h w", "b (c p q) h w -> b c (h p) (w q)"


class UNet(nn.Module):
    """Residual blocks at each resolution on the way down and up again, joined across by concatenation; y = W h at last.

    Block: h ← skip(h) + W₂ dropout a((1 + γ(e)) norm(W₁ a(norm(h))) + β(e)), W₁ and W₂ convolutions of 3×3, norm over
    the pixels and the channels of a group, skip the identity where widths agree. The embedding e passes one layer that
    all blocks share. Between resolutions a convolution of stride 2 halves the sides; a convolution and nearest
    neighbours double them. A side n becomes ⌈n/2⌉ and comes back as n, so that every side works. Each block starts as
    its skip and the last layer at zero, so that a fresh network returns zero. Rows never mix.

    References:
        Ronneberger et al., "U-Net", 2015; blocks as in Ho et al., "Denoising diffusion probabilistic models", 2020,
        appendix B; scale and shift, Perez et al., "FiLM: visual reasoning with a general conditioning layer", 2018.

    Checked by tests/core/test_unet.py.

    Args:
        in_features: channels of `x`.
        out_features: channels of the output.
        hidden: width at each resolution, the finest first.
        blocks: residual blocks a resolution, and as many again on the way up.
        embedding_features: width of the embedding of time and context, 0 for none.
        heads: heads of the attention among the pixels of a resolution, after each of its blocks; 0 for none.
        attention: the resolutions that have it, as indices from 0, the finest; the coarsest alone where omitted.
        patch: p, the network sees each patch of p×p pixels as one with p² times the channels, and gives it back so: the
            finest resolution costs 1/p² then.
        activation: name of the activation.
        dropout: probability of zeroing a hidden channel in training.

    Raises:
        ValueError: no width, block or patch, attention without heads or at a resolution that is none, or a width with
            attention that the heads do not divide.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        hidden: Sequence[int] = (64, 128),
        blocks: int = 2,
        embedding_features: int = 0,
        heads: int = 0,
        attention: Sequence[int] | None = None,
        patch: int = 1,
        activation: str = "silu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not hidden or blocks < 1 or patch < 1 or heads < 0:
            raise ValueError(
                "UNet needs a width, blocks and patch of 1 or more and heads of 0 or more, but has "
                f"{hidden=}, {blocks=}, {patch=} and {heads=}."
            )
        heads_at = _heads_at(hidden, heads, attention)
        features = 4 * hidden[0] if embedding_features else 0
        self.embedding_features, self.patch = embedding_features, patch
        self.embed = _embedder(embedding_features, features, activation)

        def stage(width: int, out: int, heads: int) -> _Stage:
            layers = [_Block(a, out, features, activation, dropout) for a in [width, *[out] * (blocks - 1)]]
            return _Stage(layers, [_Attention(out, heads) for _ in layers if heads])

        self.stem = nn.Conv2d(in_features * patch**2, hidden[0], 3, padding=1)
        self.encoders = nn.ModuleList(stage(a, a, n) for a, n in zip(hidden[:-1], heads_at[:-1], strict=True))
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(hidden))
        self.middle = stage(hidden[-1], hidden[-1], heads_at[-1])
        self.ups = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1) for a, b in pairwise(hidden))
        self.decoders = nn.ModuleList(stage(2 * a, a, n) for a, n in zip(hidden[:-1], heads_at[:-1], strict=True))
        last = _zero(nn.Conv2d(hidden[0], out_features * patch**2, 3, padding=1))
        self.head = nn.Sequential(_norm(hidden[0]), activation_layer(activation), last)

    def forward(
        self,
        x: Float[Tensor, "rows in_features height width"],
        embedding: Float[Tensor, "rows embedding_features"] | None = None,
    ) -> Float[Tensor, "rows out_features height width"]:
        """Output `(rows, out_features, height, width)`.

        Raises:
            ValueError: embedding given or missing against `embedding_features`, or sides the patch does not divide.
        """
        if any(side % self.patch for side in x.shape[2:]):
            raise ValueError(
                f"UNet's patch={self.patch} must divide the sides of its images, but x is {tuple(x.shape)}."
            )
        e = self._embed(embedding)
        h, across = self.stem(rearrange(x, CUT, p=self.patch, q=self.patch)), []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            across.append(encoder(h, e))
            h = down(across[-1])
        h = self.middle(h, e)
        for decoder, up, fine in zip(self.decoders[::-1], self.ups[::-1], across[::-1], strict=True):
            h = decoder(torch.cat([F.interpolate(up(h), fine.shape[2:]), fine], 1), e)
        return rearrange(self.head(h), JOIN, p=self.patch, q=self.patch)

    def _embed(self, embedding: Tensor | None) -> Tensor | None:
        found = 0 if embedding is None else embedding.shape[-1]
        if found != self.embedding_features:
            raise ValueError(
                f"UNet was built for embedding_features={self.embedding_features}, but embedding has {found}."
            )
        return self.embed(embedding)


class _Stage(nn.Module):
    """Blocks of one resolution, each with attention behind it where there is any."""

    def __init__(self, blocks: list["_Block"], attentions: list["_Attention"]) -> None:
        super().__init__()
        self.blocks, self.attentions = nn.ModuleList(blocks), nn.ModuleList(attentions)

    def forward(self, h: Tensor, e: Tensor | None) -> Tensor:
        for i, block in enumerate(self.blocks):
            h = block(h, e)
            if len(self.attentions):
                h = self.attentions[i](h)
        return h


class _Block(nn.Module):
    def __init__(self, width: int, out: int, features: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.skip = nn.Identity() if width == out else nn.Conv2d(width, out, 1, bias=False)
        first = nn.Conv2d(width, out, 3, padding=1)
        self.first = nn.Sequential(_norm(width), activation_layer(activation), first, _norm(out))
        self.film = nn.Linear(features, 2 * out) if features else None
        last = _zero(nn.Conv2d(out, out, 3, padding=1))
        self.last = nn.Sequential(activation_layer(activation), nn.Dropout2d(dropout), last)

    def forward(self, h: Tensor, e: Tensor | None) -> Tensor:
        u = self.first(h)
        if self.film is not None:
            gamma, beta = self.film(e)[:, :, None, None].chunk(2, 1)
            u = torch.addcmul(beta, 1 + gamma, u)
        return self.skip(h) + self.last(u)


class _Attention(nn.Module):
    """h ← h + W attention(norm(h)) among the pixels, W zero at the start."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _norm(width)
        # No bias: that of the keys cancels in the softmax, and would never be trained.
        self.queries_keys_values = nn.Conv2d(width, 3 * width, 1, bias=False)
        self.projection = _zero(nn.Conv2d(width, width, 1))

    def forward(self, h: Tensor) -> Tensor:
        pattern = "rows (part heads width) i j -> part rows heads (i j) width"
        q, k, v = rearrange(self.queries_keys_values(self.norm(h)), pattern, part=3, heads=self.heads)
        mixed = F.scaled_dot_product_attention(q, k, v)
        pattern = "rows heads (i j) width -> rows (heads width) i j"
        return h + self.projection(rearrange(mixed, pattern, i=h.shape[2], j=h.shape[3]))


def _heads_at(hidden: Sequence[int], heads: int, attention: Sequence[int] | None) -> list[int]:
    """Heads at each resolution."""
    coarsest = len(hidden) - 1
    places = ([coarsest] if heads else []) if attention is None else attention
    if (attention is not None and not (heads and attention)) or not all(0 <= i <= coarsest for i in places):
        raise ValueError(
            f"UNet's attention needs heads and resolutions from 0 to {coarsest}, but has {heads=} and {attention=}."
        )
    if any(hidden[i] % heads for i in places):
        raise ValueError(f"UNet needs widths with attention that the heads divide, but has {hidden=} and {heads=}.")
    return [heads if i in places else 0 for i in range(len(hidden))]


def _embedder(embedding_features: int, features: int, activation: str) -> nn.Module:
    if not embedding_features:
        return nn.Identity()
    return nn.Sequential(nn.Linear(embedding_features, features), activation_layer(activation))


def _norm(width: int) -> nn.GroupNorm:
    """Statistics of a row's own channels alone, in as many groups, 8 at most, as leave 4 channels or more to each."""
    return nn.GroupNorm(max(g for g in range(1, 9) if width % g == 0 and (g == 1 or width >= 4 * g)), width)


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer
