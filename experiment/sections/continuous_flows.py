"""Continuous flows: network, training objective, trace estimator and solver."""

from typing import Annotated, Literal

from pydantic import Field

from cflows.objectives.flow_matching import Coupling, Times
from experiment.sections.base import Count, Positive, Section, Share, Widths
from experiment.sections.continuous import ExactTrace, HutchinsonTrace, HutchPlusPlusTrace, Solver

NotNegative = Annotated[float, Field(ge=0)]
Attention = tuple[Annotated[int, Field(strict=True, ge=0)], ...]
Trace = Annotated[ExactTrace | HutchinsonTrace | HutchPlusPlusTrace, Field(discriminator="kind")]
TrainingTrace = Annotated[ExactTrace | HutchinsonTrace, Field(discriminator="kind")]


class LikelihoodTraining(Section):
    """See `cflows.RegularizedLikelihood`: the solver and trace of training, beside those that measure."""

    kinetic: NotNegative = 0.0
    jacobian: NotNegative = 0.0
    gradient: Literal["direct", "adjoint"] = "direct"
    divergence: TrainingTrace | None = None
    solver: Solver = Solver(method="rk4", steps=8)


class FFJORDModel(Section):
    """See `cflows.FFJORD`; the loss is in nats of rows as the model sees them, penalties included."""

    kind: Literal["ffjord"]
    network: Literal["concat_squash", "mlp", "unet"] = "concat_squash"
    hidden: Widths = (64, 64, 64)
    depth: Count = 2
    heads: int = Field(0, strict=True, ge=0)
    attention: Attention | None = None
    patch: Count = 1
    frequencies: Count = 8
    objective: LikelihoodTraining = LikelihoodTraining()
    divergence: Trace | None = None
    solver: Solver = Solver()
    error_factor: float = Field(10.0, gt=1)


class FlowMatchingModel(Section):
    """See `cflows.FlowMatching` and `cflows.ConditionalFlowMatching`."""

    kind: Literal["flow_matching"]
    network: Literal["mlp", "unet"] = "mlp"
    hidden: Widths = (256, 256, 256)
    depth: Count = 2
    heads: int = Field(0, strict=True, ge=0)
    attention: Attention | None = None
    patch: Count = 1
    dropout: Share = 0.0
    frequencies: Count = 8
    data_std: Positive = 1.0
    sigma_min: Share = 0.0
    coupling: Coupling = "independent"
    times: Times = "even"
    divergence: Trace | None = None
    solver: Solver = Solver()
    error_factor: float = Field(10.0, gt=1)
