from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cflows.samplers.sampler import Callback, OneStepSampler, Orders, Sampler, intervals, normal_like
from cflows.sde import SDE, Rows, Score
from core.rng import Rng


@dataclass(frozen=True, eq=False)
class Inpainting(Sampler):
    """Draws what is hidden of x_0 given what is known: at each time s, x_s ← where(mask, a draw of x_s | x_0, x_s).

    The predictor's x_s gives the hidden part, α(s) known + σ(s) z the known part, from s = 1 on; the result carries the
    known values themselves. With `resample` = U above 1 each step is taken U times, x_s going back to t through the
    transition x_t | x_s in between, so that the hidden part can settle on the known.

    Where the hidden part depends on the known it is an approximation, and no number of steps ends its bias: the hidden
    x_s hears of noised known values only, drawn anew each time. Resampling lessens it, at U times the cost. On unit
    normals of correlation 0.8 with 1 known, 100 steps draw the other from N(0.49, 0.52) with U = 1 and N(0.76, 0.38)
    with U = 10, where N(0.8, 0.36) is right. Where the two are independent, U = 1 is exact.

    References:
        Song et al., 2021, app. I.2 (U = 1).
        Lugmayr et al., "RePaint: inpainting using denoising diffusion probabilistic models", 2022, algorithm 1.

    Checked by tests/cflows/test_inpainting.py (Gaussian data, whose conditional law is known).

    Args:
        predictor: any one-step sampler.
        known: the data, broadcast to `(rows, *event)`; what it holds where the mask is false does not matter.
        mask: true where `known` is known, broadcast to `(rows, *event)`.
        resample: U, how often each step is taken.

    Raises:
        ValueError: resample below 1, a mask that is not boolean, or, when called, shapes that do not broadcast to
            those of x_T.

    Example:
        >>> from cflows import VPSDE, EulerMaruyama
        >>> known, mask = torch.tensor([5.0, 0.0]), torch.tensor([True, False])
        >>> sampler = Inpainting(EulerMaruyama(steps=10), known, mask)
        >>> sampler(lambda x, t: -x, VPSDE(), torch.randn(3, 2))[:, 0].tolist()
        [5.0, 5.0, 5.0]
    """

    predictor: OneStepSampler
    known: Float[Tensor, "..."]
    mask: Bool[Tensor, "..."]
    resample: int = 1

    def __post_init__(self) -> None:
        if self.mask.dtype != torch.bool:
            raise ValueError(f"Inpainting's mask is true or false, of dtype torch.bool, but is {self.mask.dtype}.")
        if self.resample < 1:
            raise ValueError(f"Inpainting takes each step once or more, but resample is {self.resample}.")

    @property
    def t_min(self) -> float:
        """That of the predictor."""
        return self.predictor.t_min

    @property
    def orders(self) -> Orders:
        """None claimed: the error that is left does not fall with the steps."""
        return Orders(None, None)

    @torch.no_grad()
    def __call__(
        self, score: Score, sde: SDE, x_T: Rows, *, generator: Rng = None, callback: Callback | None = None
    ) -> Rows:
        """x_0 like `x_T`; the callback is called after each step, once however often it is taken."""
        known, mask, draw = self._to(x_T, self.known), self._to(x_T, self.mask), normal_like(generator)

        def insert(x: Tensor, s: Tensor) -> Tensor:
            scale, std = sde.marginal(s)
            return torch.where(mask, scale * known + std * draw(x), x)

        start = torch.ones((), dtype=x_T.dtype, device=x_T.device)
        x = insert(x_T, start)
        for step, (t, s) in enumerate(intervals(self.predictor, sde, x_T)):
            last = step == self.predictor.steps - 1
            for _ in range(self.resample - 1):
                below = insert(self.predictor.step(score, sde, x, t, s, draw), s)
                scale, std = sde.transition_kernel(s, t)
                x = scale * below + std * draw(x)
            x = self.predictor.step(score, sde, x, t, s, self.predictor.noise_at(step, draw))
            x = torch.where(mask, known, x) if last else insert(x, s)
            if callback is not None:
                callback(step, x)
        return x

    def _to(self, x: Tensor, part: Tensor) -> Tensor:
        """`part` as many values as `x`, on its device; in its dtype unless it is the mask."""
        try:
            return part.to(x.device if part.dtype == torch.bool else x).broadcast_to(x.shape)
        except RuntimeError as error:
            raise ValueError(
                f"Inpainting's known and mask must broadcast to x_T's {tuple(x.shape)}, but one is {tuple(part.shape)}."
            ) from error
