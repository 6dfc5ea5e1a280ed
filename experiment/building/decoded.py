from collections.abc import Sequence

import torch

from core import GenerativeModel
from core.density import Context, Values
from core.rng import Rng
from discrete import Bijection


class Decoded(GenerativeModel):
    """x = f⁻¹(z) with z drawn from a model of preprocessed data: what `Flow` is to a density.

    Args:
        preprocessing: f.
        base: what z is drawn from.
    """

    def __init__(self, preprocessing: Bijection, base: GenerativeModel) -> None:
        super().__init__(preprocessing.event_shape)
        self.preprocessing = preprocessing
        self.base = base

    @torch.no_grad()
    def sample(self, shape: Sequence[int] = (), *, context: Context = None, generator: Rng = None) -> Values:
        """Draws `(*shape, *event)`."""
        z = self.base.sample(shape, context=context, generator=generator)
        x, _ = self.preprocessing.inverse(z.reshape(-1, *self.base.event_shape), generator=generator)
        return x.reshape(*shape, *self.event_shape)
