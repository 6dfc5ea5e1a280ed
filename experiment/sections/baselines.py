"""Densities of classical statistics, fitted without a gradient: what every model should beat."""

from typing import Literal

from pydantic import Field

from experiment.sections.base import Count, Positive, Section


class GaussianModel(Section):
    """The Gaussian of the mean and the full covariance of the training rows."""

    kind: Literal["gaussian"]


class GaussianMixtureModel(Section):
    """A mixture of Gaussians with full covariances, by expectation maximization from k-means.

    Components are doubled from one on as long as that makes a tenth of the rows, held out, likelier.
    """

    kind: Literal["gaussian_mixture"]
    components: Count = Field(32, description="the most")
    iterations: Count = 200
    most_rows: Count = Field(50_000, description="training rows that it is fitted to, drawn at random")


class KernelDensityModel(Section):
    """A Gaussian kernel on each row, shaped as the data; its bandwidth, unless given, by leave-one-out likelihood."""

    kind: Literal["kernel_density"]
    bandwidth: Positive | None = None
    most_rows: Count = Field(10_000, description="training rows that get a kernel, drawn at random")


class MixtureModel(Section):
    """A mixture of trained runs of the same data, each with its own preprocessing, weighted by the validation rows."""

    kind: Literal["mixture"]
    runs: tuple[str, ...] = Field(min_length=2, description="run folders")


BaselineModel = GaussianModel | GaussianMixtureModel | KernelDensityModel
