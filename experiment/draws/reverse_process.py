from dataclasses import dataclass

import torch
from torch import Tensor

from cflows import ScoreSDE
from cflows.guidance import ConditionalScore, classifier_free
from cflows.samplers.sampler import Callback, Sampler
from cflows.sde import Score
from core import GenerativeModel
from core.rng import Rng
from discrete import Bijection, Flow


@dataclass(frozen=True)
class ReverseProcess:
    """A trained score model taken apart: the score and its process, and the preprocessing in front of them.

    Attributes:
        inner: the score model, over preprocessed data.
        preprocessing: from raw data to those; None where there is none.
    """

    inner: ScoreSDE
    preprocessing: Bijection | None

    @classmethod
    def of(cls, model: GenerativeModel) -> "ReverseProcess | None":
        """The parts of a model over raw data, None where it is no score model under an SDE."""
        preprocessing, inner = (model.bijection, model.base) if isinstance(model, Flow) else (None, model)
        return cls(inner, preprocessing) if isinstance(inner, ScoreSDE) else None

    def score(self, context: Tensor | None, guidance: float | None = None) -> Score:
        """s(x, t) of rows with these contexts, guided where a weight is given."""
        if context is None:
            return self.inner.score
        if guidance is None:
            return ConditionalScore(self.inner.score, context)
        return classifier_free(self.inner.score, context, guidance=guidance)

    @torch.no_grad()
    def sample(
        self,
        rows: int,
        *,
        context: Tensor | None = None,
        guidance: float | None = None,
        sampler: Sampler | None = None,
        generator: Rng = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Draws `(rows, *event)` of raw data; the callback also hears of the start, as step -1."""
        x = self.inner.prior.sample((rows,), generator=generator)
        if callback is not None:
            callback(-1, x)
        sampler = sampler or self.inner.sampler
        x = sampler(self.score(context, guidance), self.inner.sde, x, generator=generator, callback=callback)
        return self.decode(x)

    @torch.no_grad()
    def encode(self, x: Tensor, *, generator: Rng = None) -> Tensor:
        """Preprocessed rows; the generator serves a dequantization."""
        return x if self.preprocessing is None else self.preprocessing(x, generator=generator)[0]

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Raw rows of preprocessed ones."""
        return z if self.preprocessing is None else self.preprocessing.inverse(z)[0]
