"""Models of probability mass: they take whole numbers as they are, without dequantization."""

from typing import Literal

from pydantic import StrictBool

from experiment.sections.base import Activation, Count, Network, Section, Widths

Likelihood = Literal["categorical", "mixture"]


class AutoregressiveMLPModel(Section):
    """See `discrete.AutoregressiveMLP`."""

    kind: Literal["autoregressive_mlp"]
    likelihood: Likelihood = "categorical"
    components: Count = 10
    hidden: Widths = (128, 128)
    conditioner: Network = "plain"
    direct: StrictBool = False
    activation: Activation = "relu"


class PixelCNNModel(Section):
    """See `discrete.PixelCNN`."""

    kind: Literal["pixel_cnn"]
    likelihood: Likelihood = "mixture"
    components: Count = 10
    layers: Count = 8
    hidden: Widths = (64, 128)
    kernel: Count = 5


class WaveNetModel(Section):
    """See `discrete.WaveNet`."""

    kind: Literal["wave_net"]
    likelihood: Likelihood = "mixture"
    components: Count = 10
    layers: Count = 8
    cycles: Count = 2
    hidden: Widths = (64, 128, 128)


class AutoregressiveTransformerModel(Section):
    """See `discrete.AutoregressiveTransformer`."""

    kind: Literal["autoregressive_transformer"]
    likelihood: Likelihood = "categorical"
    components: Count = 10
    layers: Count = 4
    hidden: Count = 128
    heads: Count = 4
