"""Gaussianization flows."""

from typing import Literal

from pydantic import Field

from experiment.sections.base import Count, Section


class GaussianizationModel(Section):
    """See `discrete.GaussianizationFlow`; it starts from the training rows by `initialize_gaussianization`."""

    kind: Literal["gaussianization"]
    layers: Count = 5
    components: Count = 16
    reflections: int | None = Field(None, strict=True, ge=0)
