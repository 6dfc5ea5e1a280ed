import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cflows.models.noise_conditioning import Embedded, Indexed, Scaled
from cflows.noise_ladder import as_ladder, geometric_ladder, matched_step_size
from cflows.samplers.annealed_langevin import annealed_langevin
from core.density import Context, GenerativeModel, Values
from core.rng import Rng, rand, randn
from core.shapes import fold_context

Conditioning = Literal["embedding", "scaling", "instance_norm"]
Network = Literal["mlp", "unet", "refinenet"]


class NCSN(GenerativeModel):
    """Noise-conditional score network s(x, σ) ≈ ∇ log (p ∗ N(0, σ² I))(x) on a ladder, drawn from by annealed Langevin.

    How the network f is told of σ:
    `scaling`: s = f(x)/σ, one f for all levels (v2); `instance_norm`: s = f(x, i), the level's index chooses the affine
    part of each normalization (v1); `embedding`: s = -x/V + √v/(σ√V) f(x/√V, e(log σ)) with V = v + σ², Fourier
    features e; f = 0 then is the score of Gaussian data of variance v.

    Scores and draws, no likelihood: the chain's density is not known.

    References:
        Song and Ermon, "Generative modeling by estimating gradients of the data distribution", 2019 (v1).
        Song and Ermon, "Improved techniques for training score-based generative models", 2020 (v2).

    Checked by tests/cflows/test_ncsn.py.

    Args:
        event_shape: shape of one event; images are (channels, height, width).
        sigmas: the ladder σ₁ > ... > σ_L in the unit of the data; `geometric_ladder(1, 0.01, levels=10)`, v1's, where
            omitted. v2 takes σ₁ from `largest_distance`, L from `ladder_levels`.
        network: `mlp`, `unet` or `refinenet`; the first for vectors and the second for images where omitted.
        conditioning: as above; `embedding` goes with `mlp` and `unet`, `scaling` with all, `instance_norm` with
            `refinenet`.
        hidden: widths of the network's blocks, or of its resolutions; one for `refinenet`.
        depth: residual blocks a resolution, of `unet`.
        heads: heads of its attention among the pixels of the coarsest resolution, 0 for none.
        dropout: dropout probability in training, of `mlp` and `unet`.
        context_features: width of the context, 0 for none; with `embedding` alone.
        frequencies: Fourier features of log σ.
        data_std: √v.
        step_size: ε of `annealed_langevin`; `matched_step_size` of the ladder, as in v2, where omitted; v1 has 2e-5.
        steps: T, steps a level.
        denoise: end with x + σ_L² s(x, σ_L).
        start: chains start from `normal`, N(0, σ₁² I), or `uniform` on [0, 1), as the papers do for images.

    Raises:
        ValueError: a network and a conditioning that do not go together, a ladder that does not fall, a single level
            without a step size, or a step size that is not positive.

    Example:
        >>> model = NCSN(2, sigmas=[1.0, 0.1], data_std=2.0)
        >>> model.score(torch.ones(1, 2), torch.tensor([1.0])).tolist()  # untrained: -x/(v + σ²)
        [[-0.2..., -0.2...]]
    """

    sigmas: Tensor

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        sigmas: Sequence[float] | Tensor | None = None,
        network: Network | None = None,
        conditioning: Conditioning = "embedding",
        hidden: Sequence[int] = (128, 128, 128),
        depth: int = 2,
        heads: int = 0,
        dropout: float = 0.0,
        context_features: int = 0,
        frequencies: int = 8,
        data_std: float = 1.0,
        step_size: float | None = None,
        steps: int = 100,
        denoise: bool = True,
        start: Literal["normal", "uniform"] = "normal",
    ) -> None:
        super().__init__(event_shape)
        if start not in ("normal", "uniform"):
            raise ValueError(f"NCSN starts from normal or uniform, not {start!r}.")
        ladder = geometric_ladder(1.0, 0.01, levels=10) if sigmas is None else as_ladder(sigmas)
        if step_size is None and len(ladder) < 2:
            raise ValueError("NCSN matches its step size to two levels or more, but there is one: give step_size.")
        if step_size is not None and not step_size > 0:
            raise ValueError(f"NCSN needs step_size > 0, but it is {step_size}.")
        self.register_buffer("sigmas", ladder.clone())
        self.step_size, self.steps, self.denoise, self.start = step_size, steps, denoise, start
        network = network or ("mlp" if len(self.event_shape) == 1 else "unet")
        kinds: dict[str, Callable[[], nn.Module]] = {
            "embedding": lambda: Embedded(
                self.event_shape,
                network=network,
                hidden=hidden,
                depth=depth,
                heads=heads,
                dropout=dropout,
                context_features=context_features,
                frequencies=frequencies,
                data_std=data_std,
            ),
            "scaling": lambda: Scaled(
                self.event_shape, network=network, hidden=hidden, depth=depth, heads=heads, dropout=dropout
            ),
            "instance_norm": lambda: Indexed(self.event_shape, network=network, hidden=hidden, levels=len(self.sigmas)),
        }
        if conditioning not in kinds:
            raise ValueError(f"conditioning must be one of {', '.join(kinds)}, but is {conditioning!r}.")
        if context_features and conditioning != "embedding":
            raise ValueError(f"only conditioning='embedding' takes a context, but conditioning is {conditioning!r}.")
        self.conditional = kinds[conditioning]()

    def score(
        self, x: Float[Tensor, "rows ..."], sigma: Float[Tensor, " rows"], context: Context = None
    ) -> Float[Tensor, "rows ..."]:
        """s(x, σ), like `x`; `sigma` `(rows,)` within the ladder; between levels `instance_norm` takes the nearest."""
        return self.conditional(x, sigma, self.sigmas, context)

    def forward(
        self, x: Float[Tensor, "rows ..."], sigma: Float[Tensor, " rows"], context: Context = None
    ) -> Float[Tensor, "rows ..."]:
        """The score: the model is its own score network."""
        return self.score(x, sigma, context)

    def sample(self, shape: Sequence[int] = (), *, context: Context = None, generator: Rng = None) -> Values:
        """Draws `(*shape, *event)` by annealed Langevin."""
        folded = fold_context(context, torch.Size(shape))
        draw = rand if self.start == "uniform" else randn
        size = (math.prod(shape), *self.event_shape)
        x = draw(size, generator, like=self.anchor)
        x = annealed_langevin(
            lambda x, sigma: self.score(x, sigma, folded),
            self.sigmas,
            x if self.start == "uniform" else x * self.sigmas[0].to(x.dtype),
            step_size=matched_step_size(self.sigmas, steps=self.steps) if self.step_size is None else self.step_size,
            steps=self.steps,
            denoise=self.denoise,
            generator=generator,
        )
        return x.reshape(*shape, *self.event_shape)
