"""Models of probability mass: they take whole numbers as they are, without dequantization."""

from typing import Literal

from pydantic import StrictBool

from experiment.sections.base import Activation, Count, Network, Section, Widths


class MassSection(Section):
    """What all of them share."""

    likelihood: Literal["categorical", "mixture"] = "categorical"
    components: Count = 10


class AutoregressiveMLPModel(MassSection):
    """See `discrete.AutoregressiveMLP`."""

    kind: Literal["autoregressive_mlp"]
    hidden: Widths = (128, 128)
    conditioner: Network = "plain"
    direct: StrictBool = False
    activation: Activation = "relu"


class PixelCNNModel(MassSection):
    """See `discrete.PixelCNN`."""

    kind: Literal["pixel_cnn"]
    layers: Count = 8
    hidden: tuple[Count, Count] = (64, 128)
    kernel: Count = 5


class WaveNetModel(MassSection):
    """See `discrete.WaveNet`."""

    kind: Literal["wave_net"]
    layers: Count = 8
    cycles: Count = 2
    hidden: tuple[Count, Count, Count] = (64, 128, 128)


class AutoregressiveTransformerModel(MassSection):
    """See `discrete.AutoregressiveTransformer`."""

    kind: Literal["autoregressive_transformer"]
    layers: Count = 4
    hidden: Count = 128
    heads: Count = 4
