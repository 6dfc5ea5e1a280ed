"""Normalizing flows: the keywords of their constructors."""

from typing import Literal

from pydantic import Field, StrictBool

from experiment.sections.base import Activation, Count, Network, Positive, Section, Share, Widths


class NICEModel(Section):
    """See `discrete.NICE`."""

    kind: Literal["nice"]
    layers: Count = 4
    hidden: Widths = (512, 512)
    dropout: Share = 0.0
    base: Literal["logistic", "normal"] = "logistic"


class RealNVPModel(Section):
    """See `discrete.RealNVP`."""

    kind: Literal["real_nvp"]
    layers: Count | None = None
    levels: Count | None = None
    strides: Widths = (1,)
    hidden: Widths = (128, 128)
    conditioner: Network | None = None
    dropout: Share = 0.0
    activation: Activation = "relu"
    log_scale_bound: Positive = 3.0
    normalization: Literal["actnorm", "batch", "none"] = "actnorm"


class GlowModel(Section):
    """See `discrete.Glow`."""

    kind: Literal["glow"]
    levels: Count = 3
    depth: Count = 16
    hidden: Widths = (128, 128)
    coupling: Literal["affine", "additive"] = "affine"
    conditioner: Network = "plain"
    parametrization: Literal["dense", "lu", "qr"] = "lu"
    scale: Literal["tanh", "sigmoid"] = "tanh"
    activation: Activation = "relu"
    dropout: Share = 0.0
    log_scale_bound: Positive = 3.0
    reversible: StrictBool = False


class NSFModel(Section):
    """See `discrete.NSF`."""

    kind: Literal["nsf"]
    structure: Literal["coupling", "autoregressive"] = "coupling"
    layers: Count | None = None
    levels: Count | None = None
    hidden: Widths = (128, 128)
    bins: int = Field(8, strict=True, ge=2)
    bound: Positive = 3.0
    conditioner: Network = "resnet"
    activation: Activation = "relu"
    dropout: Share = 0.0


class LinearModel(Section):
    """See `discrete.LinearFlow`."""

    kind: Literal["linear"]
    parametrization: Literal["lu", "qr", "triangular"] = "lu"


class MADEModel(Section):
    """See `discrete.MADE`."""

    kind: Literal["made"]
    conditional: Literal["gaussian", "mixture"] = "gaussian"
    components: Count = 10
    hidden: Widths = (128, 128)
    order: Literal["natural", "reversed", "random"] = "natural"
    hidden_degrees: Literal["sequential", "random"] = "sequential"
    conditioner: Network = "plain"
    direct: StrictBool = False
    activation: Activation = "relu"
    dropout: Share = 0.0
    masks: Count = 1
    log_scale_bound: Positive = 7.0


class AutoregressiveFlowModel(Section):
    """What `discrete.MAF` and `discrete.IAF` share."""

    layers: Count = 5
    hidden: Widths = (128, 128)
    transformer: Literal["affine", "spline", "mixture"] = "affine"
    order: Literal["alternating", "natural", "random"] = "alternating"
    conditioner: Network = "plain"
    direct: StrictBool = False
    activation: Activation = "relu"
    dropout: Share = 0.0
    log_scale_bound: Positive = 3.0
    bins: int = Field(8, strict=True, ge=2)
    bound: Positive = 3.0
    components: Count = 8


class MixtureBase(Section):
    """A `discrete.MADE` of mixtures as base, which makes a flow the paper's MAF MoG."""

    components: Count = 10
    hidden: Widths = (128, 128)
    activation: Activation = "relu"


class MAFModel(AutoregressiveFlowModel):
    """See `discrete.MAF`."""

    kind: Literal["maf"]
    normalization: Literal["actnorm", "batch", "none"] = "actnorm"
    base: MixtureBase | None = None


class IAFModel(AutoregressiveFlowModel):
    """See `discrete.IAF`."""

    kind: Literal["iaf"]
    normalization: Literal["actnorm", "batch", "none"] = "none"
    scale: Literal["tanh", "sigmoid", "gated"] = "tanh"


class TransformerFlowModel(Section):
    """See `discrete.TransformerFlow`."""

    kind: Literal["transformer_flow"]
    patch: Count | None = None
    layers: Count = 8
    depth: Count = 2
    hidden: Count = 128
    heads: Count = 4
    log_scale_bound: Positive = 3.0
