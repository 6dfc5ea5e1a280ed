"""What every table of a config file keeps, and the ranges of its values."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(strict=True, ge=1)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Widths = Annotated[tuple[Count, ...], Field(min_length=1)]
Layout = Literal["flat", "image"]
Network = Literal["plain", "resnet"]
Activation = Literal["relu", "silu", "tanh", "elu", "gelu"]


class Section(BaseModel):
    """A table of the config file: unknown keys are refused, values are checked and then fixed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
