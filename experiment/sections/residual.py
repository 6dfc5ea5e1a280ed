"""Residual flows: the keywords of their constructor."""

from typing import Annotated, Literal

from pydantic import Field

from experiment.sections.base import Count, Positive, Section, Widths

Open = Annotated[float, Field(gt=0, lt=1)]


class ResidualModel(Section):
    """See `discrete.ResidualFlow`."""

    kind: Literal["residual"]
    layers: Count = 16
    levels: Count | None = None
    hidden: Widths = (128, 128)
    lipschitz: Open = 0.9
    activation: Literal["lipswish", "clipswish", "tanh", "elu"] = "lipswish"
    log_det: Literal["exact", "power_series", "unbiased"] | None = None
    terms: Count | None = None
    stop: Open = 0.5
    probes: Count = 1
    truncation: Positive = 1e-3
    draws: Count = 4
