"""MintNet: masked convolutions with a triangular Jacobian."""

from typing import Literal

from pydantic import Field

from experiment.sections.base import Count, Positive, Section


class MintNetModel(Section):
    """See `discrete.MintNet`."""

    kind: Literal["mintnet"]
    layers: Count | None = None
    levels: Count | None = None
    filters: Count = 32
    kernel: Count = 3
    scan: Literal["pixels", "channels"] = "channels"
    activation: Literal["elu", "tanh"] = "elu"
    log_scale_bound: Positive = 3.0
    normalization: Literal["actnorm", "none"] = "actnorm"
    step: float = Field(1.0, gt=0, lt=2)
    tolerance: Positive | None = None
    iterations: Count = 100
