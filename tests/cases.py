"""Named constructors of everything public: the contracts run over these, test_completeness.py finds what is missing."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import scipy.stats as st
import torch
from helpers import Draw, TanhConditioner, normal, perturb, rng, seeded, unit
from torch import Tensor, nn

from cflows.affine_sde import AffineSDE
from cflows.cosine_sde import CosineVPSDE
from cflows.models.boltzmann_machine import BoltzmannMachine
from cflows.models.energy import EnergyModel
from cflows.models.ffjord import FFJORD
from cflows.models.flow_matching import FlowMatching
from cflows.models.ncsn import NCSN
from cflows.models.score_sde import ScoreSDE
from cflows.objectives.cnf import RegularizedLikelihood
from cflows.objectives.denoising import DenoisingScoreMatching
from cflows.objectives.explicit import ExplicitScoreMatching
from cflows.objectives.finite_difference import FiniteDifferenceScoreMatching
from cflows.objectives.flow_matching import ConditionalFlowMatching
from cflows.objectives.implicit import ImplicitScoreMatching
from cflows.objectives.noise_levels import FixedNoiseDenoising, LadderDenoising
from cflows.objectives.sliced import SlicedScoreMatching
from cflows.objectives.weightings import (
    CosineWeighting,
    EDMWeighting,
    LearnedWeighting,
    LikelihoodWeighting,
    VarianceWeighting,
    Weighting,
)
from cflows.ode.solver import ODESolver
from cflows.samplers.adaptive import AdaptiveSDE
from cflows.samplers.ancestral import AncestralSampling
from cflows.samplers.annealed_langevin import annealed_langevin
from cflows.samplers.dpm_solver import DPMSolver
from cflows.samplers.edm_heun import EDMHeun
from cflows.samplers.euler_maruyama import EulerMaruyama
from cflows.samplers.inpainting import Inpainting
from cflows.samplers.langevin import langevin
from cflows.samplers.mala import mala
from cflows.samplers.predictor_corrector import PredictorCorrector
from cflows.samplers.probability_flow_ode import ProbabilityFlow
from cflows.samplers.reverse_diffusion import ReverseDiffusion
from cflows.samplers.sampler import Sampler
from cflows.samplers.stochastic_heun import StochasticHeun
from cflows.samplers.stochastic_runge_kutta import StochasticRungeKutta
from cflows.sde import SDE, VESDE, VPSDE, SubVPSDE
from core import (
    AtContext,
    DensityModel,
    DiagonalNormal,
    ExactDivergence,
    GaussianMixture,
    GenerativeModel,
    Hutchinson,
    HutchPlusPlus,
    KernelDensity,
    MixtureOfDensities,
    StandardLogistic,
    StandardNormal,
    StandardUniform,
)
from core.divergence import Divergence
from discrete import (
    IAF,
    MADE,
    MAF,
    NICE,
    NSF,
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    AutoregressiveMLP,
    AutoregressiveTransformer,
    BatchNorm,
    Bijection,
    Compose,
    Dequantization,
    Diagonal,
    EmpiricalGaussianization,
    Flow,
    GaussianizationFlow,
    Glow,
    Inverse,
    Invertible1x1Conv,
    InvertibleResidual,
    LinearFlow,
    Logit,
    LULinear,
    MaskedAutoregressive,
    MaskedConvolution,
    MintNet,
    MixtureGaussianization,
    MultiScale,
    PatchAutoregressive,
    Permutation,
    PixelCNN,
    Planar,
    PlanarFlow,
    QRLinear,
    Radial,
    RadialFlow,
    RealNVP,
    ResidualFlow,
    Reversible,
    Rotation,
    SplineCoupling,
    Split,
    Squeeze,
    Sylvester,
    SylvesterFlow,
    TransformerFlow,
    Triangular,
    VariationalDequantization,
    WaveNet,
)
from discrete.bijections.preprocessing import Scaling
from discrete.inference import VAE
from discrete.inference.posteriors import ConditionalDiagonal
from discrete.mass import MassModel


@dataclass(frozen=True)
class BijectionCase:
    """A bijection, where its data and latents live, and what its Jacobian must look like."""

    build: Callable[[], Bijection]
    context_features: int = 0
    data: Draw = normal
    latents: Draw = normal
    tail: float = 10.0
    passes: tuple[int, ...] | None = None  # coordinates that a coupling must leave alone
    order: tuple[int, ...] | None = None  # coordinates in the order in which an autoregressive map reads them

    def make(self, seed: int = 1) -> Bijection:
        return perturb(seeded(self.build), rng(seed))

    def context(self, rows: int, generator: torch.Generator) -> Tensor | None:
        return normal(rows, (self.context_features,), generator) if self.context_features else None


SMALL = {"hidden": (16,)}
THIRD = torch.tensor([False, True, False, False, True, True, False])


def _mixed() -> Bijection:
    return Compose(
        ActNorm(3),
        AffineCoupling(3, context_features=2, **SMALL),
        Permutation(3, order="random"),
        Inverse(AdditiveCoupling(3, mask="half", context_features=2, **SMALL)),
        Diagonal(3),
    )


def _preprocessing() -> Bijection:
    return Compose(Logit((1, 2, 2), alpha=0.05), Scaling((1, 2, 2), loc=0.3, scale=2.0), ActNorm((1, 2, 2)))


def _multi_scale() -> Bijection:
    """Three levels of an image that no squeeze fits; four channels become two, then one."""
    first = AffineCoupling((4, 3, 1), mask="half", context_features=2, **SMALL)
    second = AdditiveCoupling((2, 3, 1), mask="half_flipped", context_features=2, **SMALL)
    splits = [Split((4, 3, 1), context_features=2), Split((2, 3, 1), context_features=2)]
    return MultiScale([first, second, ActNorm((1, 3, 1))], splits)


def batch_norm(event_shape: int | tuple[int, ...], **keywords: float) -> BatchNorm:
    """With statistics away from 0 and 1."""
    norm = BatchNorm(event_shape, **keywords)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 3.0)
    return norm


def fitted(layer: MixtureGaussianization | EmpiricalGaussianization) -> Bijection:
    """To rows that are skewed, and no two features alike."""
    x = torch.randn(200, *layer.event_shape)
    layer.fit(x.exp() - 1 + x * torch.arange(layer.event_shape.numel()).reshape(layer.event_shape))
    return layer


SMOOTH = {"hidden": (16,), "activation": "silu"}  # no unit is ever dead
TOKENS = {"hidden": 8, "heads": 2}  # of a transformer
SHUFFLED = torch.tensor([3, 0, 4, 1, 2])


def _reversible() -> Bijection:
    step = ActNorm((4, 1, 2)), Invertible1x1Conv((4, 1, 2)), AffineCoupling((4, 1, 2), mask="half", **SMALL)
    return Reversible(Squeeze((1, 2, 4)), *step)


BIJECTIONS: dict[str, BijectionCase] = {
    "additive-2": BijectionCase(partial(AdditiveCoupling, 2, **SMALL), passes=(0,)),
    "additive-3-flipped": BijectionCase(partial(AdditiveCoupling, 3, mask="alternating_flipped", **SMALL), passes=(1,)),
    "additive-7-half-context": BijectionCase(
        partial(AdditiveCoupling, 7, mask="half", context_features=2, **SMALL), 2, passes=(0, 1, 2, 3)
    ),
    "additive-3-custom": BijectionCase(partial(AdditiveCoupling, 3, conditioner=TanhConditioner), passes=(0, 2)),
    "affine-2": BijectionCase(partial(AffineCoupling, 2, **SMALL), passes=(0,)),
    "affine-3-context": BijectionCase(partial(AffineCoupling, 3, context_features=2, **SMALL), 2, passes=(0, 2)),
    "affine-3-half-flipped": BijectionCase(partial(AffineCoupling, 3, mask="half_flipped", **SMALL), passes=(2,)),
    "affine-4-half": BijectionCase(partial(AffineCoupling, 4, mask="half", **SMALL), passes=(0, 1)),
    "affine-7-half": BijectionCase(
        partial(AffineCoupling, 7, mask="half", activation="silu", **SMALL), passes=(0, 1, 2, 3)
    ),
    "affine-7-tensor-context": BijectionCase(
        partial(AffineCoupling, 7, mask=THIRD, context_features=3, **SMALL), 3, passes=(1, 4, 5)
    ),
    "affine-7-custom": BijectionCase(
        partial(AffineCoupling, 7, mask="alternating_flipped", conditioner=TanhConditioner), passes=(1, 3, 5)
    ),
    "affine-3-bound": BijectionCase(partial(AffineCoupling, 3, log_scale_bound=0.5, **SMALL), passes=(0, 2)),
    "affine-3-sigmoid": BijectionCase(partial(AffineCoupling, 3, scale="sigmoid", **SMALL), passes=(0, 2)),
    "affine-5-resnet-context": BijectionCase(
        partial(AffineCoupling, 5, conditioner="resnet", context_features=2, hidden=(8, 16)), 2, passes=(0, 2, 4)
    ),
    "spline-2": BijectionCase(partial(SplineCoupling, 2, bins=4, **SMALL), passes=(0,)),
    "spline-7-resnet-context": BijectionCase(
        partial(SplineCoupling, 7, mask="half_flipped", bins=3, conditioner="resnet", context_features=2, **SMALL),
        2,
        passes=(4, 5, 6),
    ),
    "additive-image-half": BijectionCase(
        partial(AdditiveCoupling, (3, 2, 1), mask="half", **SMALL), passes=(0, 1, 2, 3)
    ),
    "additive-image-checkerboard-resnet": BijectionCase(
        partial(AdditiveCoupling, (1, 2, 3), mask="checkerboard", conditioner="resnet", **SMALL), passes=(0, 2, 4)
    ),
    "affine-image-half-flipped-context": BijectionCase(
        partial(AffineCoupling, (2, 2, 2), mask="half_flipped", context_features=3, **SMALL), 3, passes=(4, 5, 6, 7)
    ),
    "affine-image-alternating": BijectionCase(partial(AffineCoupling, (3, 1, 2), **SMALL), passes=(0, 1, 4, 5)),
    "affine-image-checkerboard-flipped-context": BijectionCase(
        partial(AffineCoupling, (1, 3, 3), mask="checkerboard_flipped", context_features=2, **SMALL),
        2,
        passes=(1, 3, 5, 7),
    ),
    "affine-image-tensor": BijectionCase(
        partial(AffineCoupling, (1, 1, 7), mask=THIRD.reshape(1, 1, 7), **SMALL), passes=(1, 4, 5)
    ),
    "affine-image-resnet-context": BijectionCase(
        partial(AffineCoupling, (2, 2, 2), conditioner="resnet", hidden=(8, 4), context_features=1),
        1,
        passes=(0, 1, 2, 3),
    ),
    "spline-image-half": BijectionCase(partial(SplineCoupling, (2, 2, 1), mask="half", bins=3, **SMALL), passes=(0, 1)),
    "spline-image-checkerboard": BijectionCase(
        partial(SplineCoupling, (1, 2, 2), mask="checkerboard", bins=3, **SMALL), passes=(0, 3)
    ),
    "autoregressive-1-context": BijectionCase(
        partial(MaskedAutoregressive, 1, context_features=2, **SMOOTH), 2, order=(0,)
    ),
    "autoregressive-2": BijectionCase(partial(MaskedAutoregressive, 2, **SMALL)),
    "autoregressive-3-reversed": BijectionCase(
        partial(MaskedAutoregressive, 3, order="reversed", **SMOOTH), order=(2, 1, 0)
    ),
    "autoregressive-5-resnet-context": BijectionCase(
        partial(
            MaskedAutoregressive,
            5,
            order=SHUFFLED,
            conditioner="resnet",
            hidden=(12, 12),
            activation="tanh",
            context_features=2,
        ),
        2,
        order=(3, 0, 4, 1, 2),
    ),
    "autoregressive-7-deep-direct": BijectionCase(
        partial(MaskedAutoregressive, 7, hidden=(12, 8, 9), activation="elu", direct=True, log_scale_bound=1.0),
        order=(0, 1, 2, 3, 4, 5, 6),
    ),
    "autoregressive-5-random": BijectionCase(
        lambda: MaskedAutoregressive(5, order="random", hidden_degrees="random", generator=rng(), **SMALL)
    ),
    "autoregressive-3-linear": BijectionCase(partial(MaskedAutoregressive, 3, hidden=()), order=(0, 1, 2)),
    "autoregressive-3-gated": BijectionCase(
        # Behind tanh its scale is bounded from below; others take a point far out to infinity on the way back.
        partial(MaskedAutoregressive, 3, scale="gated", inverse_mode="sequential", hidden=(16,), activation="tanh"),
        order=(0, 1, 2),
    ),
    "autoregressive-3-spline": BijectionCase(partial(MaskedAutoregressive, 3, transformer="spline", bins=4, **SMALL)),
    "autoregressive-3-mixture-context": BijectionCase(
        partial(MaskedAutoregressive, 3, transformer="mixture", components=2, context_features=1, **SMOOTH),
        1,
        order=(0, 1, 2),
    ),
    "autoregressive-image-jacobi": BijectionCase(
        partial(MaskedAutoregressive, (1, 2, 3), inverse_mode="jacobi", **SMOOTH), order=(0, 1, 2, 3, 4, 5)
    ),
    "inverse-autoregressive-3-context": BijectionCase(
        lambda: Inverse(MaskedAutoregressive(3, context_features=2, order="reversed", **SMOOTH)), 2, order=(2, 1, 0)
    ),
    "masked-convolution-1": BijectionCase(partial(MaskedConvolution, 1, filters=4), order=(0,)),
    "masked-convolution-4-tanh-context": BijectionCase(
        partial(MaskedConvolution, 4, filters=3, order="reversed", activation="tanh", context_features=2),
        2,
        order=(3, 2, 1, 0),
    ),
    "masked-convolution-image": BijectionCase(
        partial(MaskedConvolution, (2, 2, 2), filters=3), order=(0, 4, 1, 5, 2, 6, 3, 7)
    ),
    "masked-convolution-image-channels-context": BijectionCase(
        partial(
            MaskedConvolution, (2, 2, 2), filters=3, scan="channels", order="reversed", iterations=2, context_features=2
        ),
        2,
        order=(7, 6, 5, 4, 3, 2, 1, 0),
    ),
    "patch-3-context": BijectionCase(
        partial(PatchAutoregressive, 3, patch=1, context_features=2, **TOKENS), 2, order=(0, 1, 2)
    ),
    "patch-4-reversed": BijectionCase(
        partial(PatchAutoregressive, 4, patch=1, order="reversed", depth=1, log_scale_bound=1.0, **TOKENS),
        order=(3, 2, 1, 0),
    ),
    "patch-6-pairs-jacobi-context": BijectionCase(
        partial(PatchAutoregressive, 6, patch=2, inverse_mode="jacobi", context_features=2, depth=1, **TOKENS), 2
    ),
    "patch-image": BijectionCase(partial(PatchAutoregressive, (2, 2, 4), patch=2, depth=1, **TOKENS)),
    "patch-image-reversed-context": BijectionCase(
        partial(PatchAutoregressive, (1, 2, 6), patch=2, order="reversed", context_features=1, depth=1, **TOKENS), 1
    ),
    "inverse-patch-3": BijectionCase(
        lambda: Inverse(PatchAutoregressive(3, patch=1, order="reversed", **TOKENS)), order=(2, 1, 0)
    ),
    "planar-1": BijectionCase(partial(Planar, 1)),
    "planar-3": BijectionCase(partial(Planar, 3)),
    "planar-3-leaky-relu": BijectionCase(partial(Planar, 3, activation="leaky_relu")),
    "planar-image-context": BijectionCase(partial(Planar, (2, 1, 2), context_features=2), 2),
    "radial-1": BijectionCase(partial(Radial, 1)),
    "radial-3": BijectionCase(partial(Radial, 3)),
    "radial-image-context": BijectionCase(partial(Radial, (2, 1, 2), context_features=2), 2),
    "sylvester-1": BijectionCase(partial(Sylvester, 1)),
    "sylvester-3": BijectionCase(partial(Sylvester, 3)),
    "sylvester-5-two": BijectionCase(partial(Sylvester, 5, rank=2)),
    "sylvester-5-householder-three": BijectionCase(partial(Sylvester, 5, parametrization="householder", rank=3)),
    "sylvester-3-context": BijectionCase(partial(Sylvester, 3, rank=2, context_features=2), 2),
    "sylvester-image-householder-context": BijectionCase(
        partial(Sylvester, (2, 1, 2), parametrization="householder", context_features=2), 2
    ),
    "inverse-planar-3": BijectionCase(lambda: Inverse(Planar(3))),
    "squeeze-1": BijectionCase(partial(Squeeze, (1, 2, 4))),
    "squeeze-3": BijectionCase(partial(Squeeze, (3, 2, 2))),
    "split-2": BijectionCase(partial(Split, (2, 2, 2)), passes=(0, 1, 2, 3)),
    "split-3-context": BijectionCase(partial(Split, (3, 2, 1), context_features=2, **SMALL), 2, passes=(0, 1, 2, 3)),
    "multi-scale-context": BijectionCase(_multi_scale, 2),
    "multi-scale-one": BijectionCase(lambda: MultiScale([Squeeze((1, 2, 2))], [])),
    "permutation-1": BijectionCase(partial(Permutation, 1)),
    "permutation-3-reverse": BijectionCase(partial(Permutation, 3)),
    "permutation-7-random": BijectionCase(lambda: Permutation(7, order="random", generator=rng())),
    "permutation-3-tensor": BijectionCase(partial(Permutation, 3, order=torch.tensor([1, 2, 0]))),
    "diagonal-1": BijectionCase(partial(Diagonal, 1, scale=2.0)),
    "diagonal-7": BijectionCase(partial(Diagonal, 7)),
    "diagonal-image": BijectionCase(partial(Diagonal, (2, 1, 3), scale=torch.tensor([0.5, 1.0, 4.0]))),
    "conditional-diagonal-3": BijectionCase(partial(ConditionalDiagonal, 3, context_features=2), 2),
    "conditional-diagonal-image": BijectionCase(partial(ConditionalDiagonal, (1, 2, 2), context_features=1), 1),
    "actnorm-1": BijectionCase(partial(ActNorm, 1)),
    "actnorm-7": BijectionCase(partial(ActNorm, 7)),
    "actnorm-image": BijectionCase(partial(ActNorm, (3, 2, 2))),
    "batchnorm-1": BijectionCase(partial(batch_norm, 1)),
    "batchnorm-7": BijectionCase(partial(batch_norm, 7, eps=0.1)),
    "batchnorm-image": BijectionCase(partial(batch_norm, (3, 2, 2))),
    "scaling-1": BijectionCase(partial(Scaling, 1, loc=0.5, scale=0.5)),
    "scaling-3": BijectionCase(
        partial(Scaling, 3, loc=torch.tensor([0.0, 1.0, -2.0]), scale=torch.tensor([0.1, 1.0, 3.0]))
    ),
    "scaling-image": BijectionCase(partial(Scaling, (1, 2, 2), scale=4.0)),
    "scaling-integer": BijectionCase(partial(Scaling, 2, scale=torch.tensor([255, 4]))),
    "logit-1": BijectionCase(partial(Logit, 1, alpha=0.05), data=unit),
    "logit-3-narrow": BijectionCase(partial(Logit, 3, alpha=1e-6), data=unit),
    "logit-image": BijectionCase(partial(Logit, (1, 2, 2), alpha=0.05), data=unit),
    "permutation-image": BijectionCase(partial(Permutation, (3, 1, 2))),
    "triangular-1": BijectionCase(partial(Triangular, 1)),
    "triangular-2": BijectionCase(partial(Triangular, 2)),
    "triangular-7-upper": BijectionCase(partial(Triangular, 7, triangle="upper")),
    "lu-linear-1": BijectionCase(partial(LULinear, 1)),
    "lu-linear-2-identity": BijectionCase(partial(LULinear, 2, permutation="identity")),
    "lu-linear-3-tensor": BijectionCase(partial(LULinear, 3, permutation=torch.tensor([1, 2, 0]))),
    "lu-linear-3-signs": BijectionCase(partial(LULinear, 3, signs=torch.tensor([1, -1, -1]))),
    "lu-linear-7": BijectionCase(lambda: LULinear(7, generator=rng())),
    "qr-linear-1": BijectionCase(partial(QRLinear, 1)),
    "qr-linear-1-mirror": BijectionCase(partial(QRLinear, 1, reflections=1)),
    "qr-linear-2": BijectionCase(partial(QRLinear, 2)),
    "qr-linear-7": BijectionCase(lambda: QRLinear(7, generator=rng())),
    "qr-linear-7-three": BijectionCase(partial(QRLinear, 7, reflections=3)),
    "rotation-1": BijectionCase(partial(Rotation, 1)),
    "rotation-2": BijectionCase(partial(Rotation, 2)),
    "rotation-7": BijectionCase(lambda: Rotation(7, generator=rng())),
    "rotation-7-four": BijectionCase(partial(Rotation, 7, reflections=4)),
    "gaussianization-1": BijectionCase(partial(MixtureGaussianization, 1, components=1)),
    "gaussianization-3": BijectionCase(partial(MixtureGaussianization, 3, components=2)),
    "gaussianization-image": BijectionCase(partial(MixtureGaussianization, (2, 1, 2), components=5)),
    "gaussianization-fitted": BijectionCase(lambda: fitted(MixtureGaussianization(3, components=4))),
    "inverse-gaussianization": BijectionCase(lambda: Inverse(MixtureGaussianization(2))),
    "empirical-1": BijectionCase(partial(EmpiricalGaussianization, 1, knots=2)),
    "empirical-3": BijectionCase(lambda: fitted(EmpiricalGaussianization(3, knots=9))),
    "empirical-image": BijectionCase(lambda: fitted(EmpiricalGaussianization((2, 1, 2), knots=4))),
    "conv1x1-lu-1": BijectionCase(partial(Invertible1x1Conv, (1, 2, 2))),
    "conv1x1-lu-4": BijectionCase(partial(Invertible1x1Conv, (4, 1, 2))),
    "conv1x1-lu-7": BijectionCase(lambda: Invertible1x1Conv((7, 1, 1), generator=rng())),
    "conv1x1-dense-1": BijectionCase(partial(Invertible1x1Conv, (1, 2, 2), parametrization="dense")),
    "conv1x1-dense-3": BijectionCase(partial(Invertible1x1Conv, (3, 2, 1), parametrization="dense")),
    "conv1x1-qr-1": BijectionCase(partial(Invertible1x1Conv, (1, 2, 2), parametrization="qr")),
    "conv1x1-qr-3": BijectionCase(partial(Invertible1x1Conv, (3, 2, 1), parametrization="qr")),
    "conv1x1-qr-4": BijectionCase(partial(Invertible1x1Conv, (4, 1, 2), parametrization="qr")),
    "compose-mixed-context": BijectionCase(_mixed, 2),
    "compose-preprocessing": BijectionCase(_preprocessing, data=unit),
    "compose-one": BijectionCase(lambda: Compose(AffineCoupling(2, **SMALL))),
    "inverse-affine": BijectionCase(lambda: Inverse(AffineCoupling(3, **SMALL)), passes=(0, 2)),
    "inverse-compose-context": BijectionCase(lambda: Inverse(_mixed()), 2),
    "inverse-logit": BijectionCase(lambda: Inverse(Logit(2, alpha=0.05)), latents=unit),
    "inverse-inverse": BijectionCase(lambda: Inverse(Inverse(Diagonal(3)))),
    "reversible-image": BijectionCase(_reversible),
    "reversible-mixed-context": BijectionCase(lambda: Reversible(*_mixed().bijections), 2),
    "inverse-reversible-context": BijectionCase(lambda: Inverse(Reversible(*_mixed().bijections)), 2),
    "residual-1": BijectionCase(partial(InvertibleResidual, 1, **SMALL)),
    "residual-3-linear": BijectionCase(partial(InvertibleResidual, 3, hidden=(), lipschitz=0.99)),
    "residual-3-context": BijectionCase(
        partial(InvertibleResidual, 3, hidden=(16, 8), activation="clipswish", context_features=2), 2
    ),
    "residual-9-exact": BijectionCase(partial(InvertibleResidual, 9, log_det="exact", activation="tanh", **SMALL)),
    "residual-image-context": BijectionCase(
        partial(InvertibleResidual, (2, 2, 1), hidden=(5, 4), activation="elu", context_features=2), 2
    ),
    "residual-image-concatenated": BijectionCase(
        partial(InvertibleResidual, (1, 2, 3), hidden=(6, 3), activation="clipswish")
    ),
    "inverse-residual-3-context": BijectionCase(lambda: Inverse(InvertibleResidual(3, context_features=2, **SMALL)), 2),
}

SURJECTIONS: dict[str, Callable[[], Bijection]] = {
    "dequantization-256": partial(Dequantization, 3, bins=256),
    "dequantization-5": partial(Dequantization, (1, 2, 2), bins=5),
    "variational-1": partial(VariationalDequantization, 1, bins=5, **SMALL),
    "variational-3": partial(VariationalDequantization, 3, bins=256, **SMALL),
    "variational-image": partial(VariationalDequantization, (1, 2, 2), bins=5, layers=2, **SMALL),
}


@dataclass(frozen=True)
class DensityCase:
    """A density, where its data lives, and its closed form from another library where there is one."""

    build: Callable[..., DensityModel]
    context_features: int = 0
    data: Draw = normal
    reference: Callable[[DensityModel, np.ndarray], np.ndarray] | None = None
    box: tuple[float, float] | None = None  # holds all the mass in each coordinate; None: the whole line
    tolerance: float = 1e-5  # of the integral over the event space; the solver's share for a continuous model
    noise: float = 0.3

    def make(self, seed: int = 1) -> DensityModel:
        return perturb(seeded(self.build), rng(seed), std=self.noise)

    def context(self, rows: int, generator: torch.Generator) -> Tensor | None:
        return normal(rows, (self.context_features,), generator) if self.context_features else None


MEANS = torch.tensor([[-1.0, 0.5], [1.5, 0.0]], dtype=torch.float64)
COVARIANCES = torch.tensor([[[0.5, 0.2], [0.2, 0.3]], [[1.0, -0.6], [-0.6, 0.8]]], dtype=torch.float64)
WEIGHTS = torch.tensor([1.0, 3.0], dtype=torch.float64)


def _mixture_reference(_: DensityModel, x: np.ndarray) -> np.ndarray:
    parts = [w * st.multivariate_normal(m, c).pdf(x) for w, m, c in zip([0.25, 0.75], MEANS, COVARIANCES, strict=True)]
    return np.log(sum(parts))


def _kernel_reference(model: DensityModel, x: np.ndarray) -> np.ndarray:
    L = model.scale_tril.numpy()
    return np.log(np.mean([st.multivariate_normal(m, L @ L.T).pdf(x) for m in MEANS], 0))


def _diagonal_reference(model: DensityModel, x: np.ndarray) -> np.ndarray:
    scale = model.log_scale.detach().exp().numpy()
    return st.norm(model.loc.detach().numpy(), scale).logpdf(x).reshape(len(x), -1).sum(1)


def _elementwise(law: st.rv_continuous) -> Callable[[DensityModel, np.ndarray], np.ndarray]:
    return lambda _, x: law.logpdf(x).reshape(len(x), -1).sum(1)


def score_sde(features: int, **keywords: object) -> ScoreSDE:
    """Small and on a fixed grid, so that rows do not touch one another."""
    solver = ODESolver(method="rk4", steps=6)
    sampler = EulerMaruyama(steps=20, t_min=1e-2)
    return ScoreSDE(features, hidden=(16,), frequencies=2, t_min=1e-2, solver=solver, sampler=sampler, **keywords)


# On a fixed grid rows do not touch one another, and copies are equal to the bit.
FLOWING = {"solver": ODESolver(method="rk4", steps=6)}
SMALL_FLOW = {"hidden": (16,), "frequencies": 2, **FLOWING}


LOGIT_RANGE = (-1 / 18, 19 / 18)  # where α = 0.05 maps the line

DENSITIES: dict[str, DensityCase] = {
    "normal-1": DensityCase(partial(StandardNormal, 1), reference=_elementwise(st.norm)),
    "normal-image": DensityCase(partial(StandardNormal, (2, 1, 3)), reference=_elementwise(st.norm)),
    "diagonal-normal-2": DensityCase(partial(DiagonalNormal, 2, scale=0.5), reference=_diagonal_reference),
    "diagonal-normal-fixed": DensityCase(
        partial(DiagonalNormal, 1, loc=1.0, scale=3.0, learnable=False), reference=_diagonal_reference
    ),
    "logistic-2": DensityCase(partial(StandardLogistic, 2), reference=_elementwise(st.logistic)),
    "uniform-2": DensityCase(partial(StandardUniform, 2), data=unit, box=(0, 1), reference=_elementwise(st.uniform)),
    "mixture-2": DensityCase(partial(GaussianMixture, MEANS, COVARIANCES, WEIGHTS), reference=_mixture_reference),
    "kernel-density-2": DensityCase(
        partial(KernelDensity, MEANS, torch.linalg.cholesky(COVARIANCES[1])), reference=_kernel_reference
    ),
    "mixture-of-densities-2": DensityCase(
        lambda: MixtureOfDensities(
            [DiagonalNormal(2, loc=1.0), RealNVP(2, layers=2, **SMALL), StandardLogistic(2)], torch.tensor([1.0, 2, 3])
        ),
        tolerance=1e-3,
    ),
    "mixture-of-densities-3-context": DensityCase(
        lambda: MixtureOfDensities([MAF(3, layers=1, context_features=2, **SMALL) for _ in range(2)]), 2
    ),
    "mixture-of-densities-1-score-sde": DensityCase(
        lambda: MixtureOfDensities([score_sde(1), DiagonalNormal(1, scale=2.0)], torch.tensor([0.7, 0.3])),
        box=(-15, 15),
        tolerance=1e-3,
    ),
    "at-context-2": DensityCase(
        lambda: AtContext(Flow(AffineCoupling(2, context_features=1, **SMALL), StandardNormal(2)), torch.ones(1)),
        tolerance=1e-3,
    ),
    "nice-2": DensityCase(partial(NICE, 2, **SMALL), tolerance=1e-3),
    "nice-4-partitions": DensityCase(
        partial(NICE, 4, masks=("half", torch.tensor([True, False, False, True]), "alternating"), **SMALL)
    ),
    "nice-3-context": DensityCase(partial(NICE, 3, context_features=2, **SMALL), 2),
    "real-nvp-2": DensityCase(partial(RealNVP, 2, layers=4, activation="silu", **SMALL), tolerance=1e-3),
    "real-nvp-3-context": DensityCase(partial(RealNVP, 3, layers=3, context_features=2, **SMALL), 2),
    "real-nvp-4-strides": DensityCase(partial(RealNVP, 4, layers=4, strides=(1, 2), **SMALL)),
    "real-nvp-bare": DensityCase(partial(RealNVP, 2, layers=2, normalization="none", **SMALL), tolerance=1e-3),
    "real-nvp-batch-norm": DensityCase(partial(RealNVP, 2, layers=2, normalization="batch", **SMALL), tolerance=1e-3),
    "nsf-2": DensityCase(partial(NSF, 2, layers=2, bins=4, **SMALL), tolerance=1e-3, noise=0.1),
    "nsf-3-context": DensityCase(partial(NSF, 3, layers=2, bins=4, context_features=2, **SMALL), 2),
    "nsf-image": DensityCase(partial(NSF, (1, 4, 4), layers=1, levels=2, bins=3, **SMALL)),
    "glow-image": DensityCase(partial(Glow, (1, 4, 4), levels=2, depth=2, **SMALL)),
    "glow-image-context": DensityCase(
        partial(Glow, (4, 1, 3), levels=2, depth=1, coupling="additive", context_features=2, **SMALL), 2
    ),
    "glow-image-sigmoid-qr": DensityCase(
        partial(Glow, (3, 2, 2), levels=1, depth=2, scale="sigmoid", parametrization="qr", **SMALL)
    ),
    "glow-image-reversible": DensityCase(partial(Glow, (1, 4, 2), levels=2, depth=2, reversible=True, **SMALL)),
    "real-nvp-image": DensityCase(partial(RealNVP, (1, 4, 4), layers=2, hidden=(4,)), noise=0.1),
    "real-nvp-image-odd-context": DensityCase(
        partial(RealNVP, (2, 3, 3), layers=1, levels=2, context_features=2, hidden=(4,)), 2
    ),
    "gaussianization-flow-1": DensityCase(partial(GaussianizationFlow, 1, layers=2, components=3)),
    "gaussianization-flow-2": DensityCase(partial(GaussianizationFlow, 2, layers=3, components=3), tolerance=1e-3),
    "gaussianization-flow-2-logistic": DensityCase(
        partial(GaussianizationFlow, 2, layers=1, components=2, base=StandardLogistic(2)), tolerance=1e-3
    ),
    "gaussianization-flow-7": DensityCase(partial(GaussianizationFlow, 7, layers=3, components=2, reflections=2)),
    "linear-flow-1": DensityCase(partial(LinearFlow, 1)),
    "linear-flow-2-lu": DensityCase(partial(LinearFlow, 2)),
    "linear-flow-2-qr": DensityCase(partial(LinearFlow, 2, parametrization="qr")),
    "linear-flow-2-triangular": DensityCase(partial(LinearFlow, 2, parametrization="triangular")),
    "linear-flow-2-logistic": DensityCase(partial(LinearFlow, 2, base=StandardLogistic(2)), tolerance=1e-3),
    "linear-flow-7": DensityCase(partial(LinearFlow, 7)),
    "maf-1-context": DensityCase(partial(MAF, 1, layers=2, context_features=2, **SMALL), 2),
    "maf-2": DensityCase(partial(MAF, 2, layers=3, activation="silu", **SMALL), tolerance=1e-3),
    "maf-2-spline": DensityCase(
        partial(MAF, 2, layers=2, transformer="spline", bins=4, normalization="none", **SMALL),
        tolerance=1e-3,
        noise=0.1,
    ),
    "maf-2-mixture": DensityCase(
        partial(MAF, 2, layers=1, transformer="mixture", components=2, order="natural", **SMALL), tolerance=1e-3
    ),
    "maf-3-context": DensityCase(
        partial(MAF, 3, layers=3, order="random", context_features=2, conditioner="resnet", **SMALL), 2
    ),
    "maf-batch-norm": DensityCase(partial(MAF, 2, layers=2, normalization="batch", **SMALL), tolerance=1e-3),
    "iaf-2": DensityCase(partial(IAF, 2, layers=2, activation="silu", **SMALL), tolerance=1e-3, noise=0.1),
    "iaf-3-gated-context": DensityCase(partial(IAF, 3, layers=2, scale="gated", context_features=2, **SMALL), 2),
    "nsf-2-autoregressive": DensityCase(
        partial(NSF, 2, structure="autoregressive", layers=2, bins=4, **SMALL), tolerance=1e-3, noise=0.1
    ),
    "mintnet-2": DensityCase(partial(MintNet, 2, layers=2, filters=4), tolerance=1e-3, noise=0.1),
    "mintnet-image-context": DensityCase(
        partial(MintNet, (1, 2, 4), layers=1, levels=2, filters=4, context_features=2), 2, noise=0.1
    ),
    "transformer-flow-2": DensityCase(
        partial(TransformerFlow, 2, layers=2, depth=1, **TOKENS), tolerance=1e-3, noise=0.1
    ),
    "transformer-flow-image-context": DensityCase(
        partial(TransformerFlow, (1, 2, 4), patch=2, layers=3, depth=1, context_features=2, **TOKENS), 2
    ),
    "made-1-context": DensityCase(
        partial(MADE, 1, conditional="mixture", components=3, context_features=2, **SMALL), 2
    ),
    "made-2-gaussian": DensityCase(partial(MADE, 2, activation="silu", order="reversed", **SMALL), tolerance=1e-3),
    "made-2-mixture": DensityCase(partial(MADE, 2, conditional="mixture", components=3, **SMALL), tolerance=1e-3),
    "made-2-masks": DensityCase(partial(MADE, 2, order="random", masks=4, activation="tanh", **SMALL), tolerance=1e-3),
    "made-3-resnet-context": DensityCase(
        partial(MADE, 3, conditioner="resnet", direct=True, context_features=2, hidden=(8, 8)), 2
    ),
    "made-4-masks-context": DensityCase(
        partial(
            MADE,
            4,
            conditional="mixture",
            components=2,
            order="random",
            hidden_degrees="random",
            masks=3,
            context_features=2,
            **SMALL,
        ),
        2,
    ),
    "made-image": DensityCase(partial(MADE, (2, 1, 3), conditional="mixture", components=2, **SMALL)),
    "maf-made-2": DensityCase(
        lambda: MAF(2, layers=1, base=MADE(2, conditional="mixture", components=2, **SMALL), **SMALL), tolerance=1e-3
    ),
    "residual-flow-1-context": DensityCase(partial(ResidualFlow, 1, layers=2, context_features=2, **SMALL), 2),
    "residual-flow-2": DensityCase(partial(ResidualFlow, 2, layers=3, **SMALL), tolerance=1e-3),
    "residual-flow-image": DensityCase(
        partial(ResidualFlow, (1, 2, 4), layers=1, levels=2, log_det="exact", hidden=(4, 4))
    ),
    "planar-flow-1": DensityCase(partial(PlanarFlow, 1, layers=3)),
    "planar-flow-2": DensityCase(partial(PlanarFlow, 2, layers=3), tolerance=1e-3),
    "planar-flow-2-leaky-relu-logistic": DensityCase(
        partial(PlanarFlow, 2, layers=3, activation="leaky_relu", fast="log_prob", base=StandardLogistic(2)),
        tolerance=2e-3,  # the density jumps at each kink
    ),
    "planar-flow-3-context": DensityCase(partial(PlanarFlow, 3, layers=2, context_features=2), 2),
    "radial-flow-2": DensityCase(partial(RadialFlow, 2, layers=3), tolerance=1e-3),
    "radial-flow-2-log-prob-context": DensityCase(
        partial(RadialFlow, 2, layers=2, fast="log_prob", context_features=2), 2, tolerance=1e-3
    ),
    "sylvester-flow-2": DensityCase(partial(SylvesterFlow, 2, layers=2), tolerance=1e-3),
    "sylvester-flow-image-householder-context": DensityCase(
        partial(
            SylvesterFlow,
            (1, 2, 2),
            layers=2,
            parametrization="householder",
            rank=2,
            fast="log_prob",
            context_features=2,
        ),
        2,
    ),
    "flow-diagonal-1": DensityCase(lambda: Flow(Diagonal(1, scale=3.0), StandardLogistic(1))),
    "flow-logit-1": DensityCase(lambda: Flow(Logit(1), StandardLogistic(1)), data=unit, box=LOGIT_RANGE),
    "flow-logit-real-nvp-2": DensityCase(
        lambda: Flow(Compose(Logit(2), Scaling(2, scale=0.5)), RealNVP(2, layers=2, **SMALL)),
        data=unit,
        box=LOGIT_RANGE,
        tolerance=1e-3,
    ),
    "flow-context-2": DensityCase(
        lambda: Flow(AffineCoupling(2, context_features=1, **SMALL), StandardNormal(2)), 1, tolerance=1e-3
    ),
    "score-sde-1": DensityCase(partial(score_sde, 1), box=(-8, 8), tolerance=1e-3),
    "score-sde-2-sub-vp-context": DensityCase(
        partial(score_sde, 2, sde=SubVPSDE(), context_features=2), 2, box=(-7, 7), tolerance=1e-3, noise=0.1
    ),
    "score-sde-2-ve": DensityCase(
        partial(score_sde, 2, sde=VESDE(sigma_min=0.01, sigma_max=10.0), data_std=0.5),
        box=(-7, 7),
        tolerance=1e-3,
        noise=0.1,
    ),
    "flow-score-sde-1": DensityCase(
        lambda: Flow(Scaling(1, loc=1.0, scale=2.0), score_sde(1)), box=(-16, 16), tolerance=1e-3
    ),
    "flow-logit-score-sde-2": DensityCase(
        lambda: Flow(Logit(2), score_sde(2, divergence=Hutchinson(probes=2))), data=unit, noise=0.1
    ),
    "ffjord-1": DensityCase(partial(FFJORD, 1, hidden=(16,), **FLOWING), box=(-9, 9), tolerance=1e-3, noise=0.1),
    "ffjord-2-context": DensityCase(
        lambda: FFJORD(2, base=DiagonalNormal(2, scale=1.5), context_features=2, hidden=(8, 8), **FLOWING),
        2,
        box=(-9, 9),
        tolerance=1e-3,
    ),
    "ffjord-2-mlp": DensityCase(
        partial(FFJORD, 2, network="mlp", **SMALL_FLOW), box=(-9, 9), tolerance=1e-3, noise=0.1
    ),
    "ffjord-image-unet": DensityCase(
        partial(FFJORD, (1, 2, 2), network="unet", hidden=(4,), depth=1, frequencies=2, **FLOWING), noise=0.1
    ),
    "flow-matching-1": DensityCase(partial(FlowMatching, 1, **SMALL_FLOW), box=(-8, 8), tolerance=1e-3, noise=0.1),
    "flow-matching-2-context": DensityCase(
        partial(FlowMatching, 2, context_features=2, data_std=0.5, sigma_min=0.1, **SMALL_FLOW),
        2,
        box=(-7, 7),
        tolerance=1e-3,
        noise=0.1,
    ),
    "flow-flow-matching-1": DensityCase(
        lambda: Flow(Scaling(1, loc=1.0, scale=2.0), FlowMatching(1, **SMALL_FLOW)),
        box=(-16, 16),
        tolerance=1e-3,
        noise=0.1,
    ),
}


@dataclass(frozen=True)
class MassCase:
    """A model of whole numbers over an event small enough to sum over."""

    build: Callable[[], MassModel | MADE]
    bins: int = 3
    context_features: int = 0

    def make(self, seed: int = 1) -> MassModel | MADE:
        return perturb(seeded(self.build), rng(seed))

    def data(self, rows: int, event_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randint(self.bins, (rows, *event_shape), generator=generator).double()

    def context(self, rows: int, generator: torch.Generator) -> Tensor | None:
        return normal(rows, (self.context_features,), generator) if self.context_features else None


PIXELS = {"layers": 2, "kernel": 3, "bins": 3, "components": 2}
STEPS = {"layers": 2, "bins": 3, "components": 2}

MASSES: dict[str, MassCase] = {
    "pixel-cnn-image": MassCase(partial(PixelCNN, (1, 2, 2), hidden=(4, 6), **PIXELS)),
    "pixel-cnn-image-categorical": MassCase(
        partial(PixelCNN, (1, 2, 2), likelihood="categorical", hidden=(4,), **PIXELS)
    ),
    "pixel-cnn-colour": MassCase(partial(PixelCNN, (3, 2, 1), hidden=(12, 15), **PIXELS)),
    "pixel-cnn-two-channels-context": MassCase(
        partial(PixelCNN, (2, 2, 1), hidden=(3, 7, 5), context_features=2, **PIXELS), context_features=2
    ),
    "wave-net-4": MassCase(partial(WaveNet, 4, hidden=(4, 6), cycles=1, **STEPS)),
    "wave-net-4-categorical": MassCase(partial(WaveNet, 4, likelihood="categorical", hidden=(4, 6, 5), **STEPS)),
    "wave-net-5-context": MassCase(partial(WaveNet, 5, hidden=(4, 6), context_features=2, **STEPS), context_features=2),
    "made-bernoulli-4": MassCase(partial(MADE, 4, conditional="bernoulli", **SMALL), bins=2),
    "made-bernoulli-image-context": MassCase(
        partial(MADE, (1, 2, 3), conditional="bernoulli", conditioner="resnet", context_features=2, hidden=(16, 16)),
        bins=2,
        context_features=2,
    ),
    "autoregressive-mlp-4": MassCase(partial(AutoregressiveMLP, 4, bins=3, **SMALL)),
    "autoregressive-mlp-image-mixture": MassCase(
        partial(AutoregressiveMLP, (1, 2, 2), bins=3, likelihood="mixture", components=2, hidden=(16, 16))
    ),
    "autoregressive-mlp-colour-context": MassCase(
        partial(
            AutoregressiveMLP, (3, 1, 2), bins=3, conditioner="resnet", direct=True, context_features=2, hidden=(12, 12)
        ),
        context_features=2,
    ),
    "autoregressive-transformer-4": MassCase(
        partial(AutoregressiveTransformer, 4, bins=3, likelihood="categorical", layers=2, **TOKENS)
    ),
    "autoregressive-transformer-image": MassCase(
        partial(AutoregressiveTransformer, (1, 2, 2), bins=3, likelihood="mixture", components=2, layers=1, **TOKENS)
    ),
    "autoregressive-transformer-colour-context": MassCase(
        partial(AutoregressiveTransformer, (3, 1, 2), bins=3, layers=1, context_features=2, **TOKENS),
        context_features=2,
    ),
}


@dataclass(frozen=True)
class VAECase:
    """A variational autoencoder over an event small enough to sum over, or of real values where `bins` is None."""

    build: Callable[[], VAE]
    bins: int | None = 2
    context_features: int = 0

    def make(self, seed: int = 1) -> VAE:
        return perturb(seeded(self.build), rng(seed), std=0.15)

    def data(self, rows: int, event_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        if self.bins is None:
            return normal(rows, event_shape, generator)
        return torch.randint(self.bins, (rows, *event_shape), generator=generator).double()

    def context(self, rows: int, generator: torch.Generator) -> Tensor | None:
        return normal(rows, (self.context_features,), generator) if self.context_features else None


TINY = {"hidden": (8,), "features": 4, "activation": "silu"}
STEPPED = {"layers": 2, "posterior_hidden": (8,), **TINY}

VAES: dict[str, VAECase] = {
    "vae-diagonal": VAECase(partial(VAE, 4, latent=2, **TINY)),
    "vae-iaf": VAECase(partial(VAE, 4, latent=2, posterior="iaf", **STEPPED)),
    "vae-iaf-context": VAECase(
        partial(VAE, 3, latent=3, posterior="iaf", context_features=2, **STEPPED), context_features=2
    ),
    "vae-planar": VAECase(partial(VAE, 3, latent=2, posterior="planar", **STEPPED)),
    "vae-sylvester": VAECase(partial(VAE, 3, latent=2, posterior="sylvester", **STEPPED)),
    "vae-image": VAECase(partial(VAE, (1, 2, 2), latent=1, hidden=(3, 4), features=4)),
    "vae-image-iaf-bounds": VAECase(
        lambda: VAE(
            (1, 1, 3),
            latent=2,
            posterior="iaf",
            prior=Flow(Diagonal(2), StandardNormal(2)),
            importance_samples=3,
            draws=2,
            **STEPPED,
        )
    ),
    "vae-image-context": VAECase(
        partial(VAE, (1, 3, 3), latent=2, hidden=(3,), features=4, context_features=2), context_features=2
    ),
    "vae-gaussian": VAECase(partial(VAE, 3, latent=2, likelihood="gaussian", posterior="iaf", **STEPPED), bins=None),
}


@dataclass(frozen=True)
class SpinCase:
    """A Boltzmann machine of few enough spins to sum over."""

    build: Callable[[], BoltzmannMachine]

    def make(self, seed: int = 1) -> BoltzmannMachine:
        return perturb(seeded(self.build), rng(seed))

    def data(self, rows: int, event_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return 2 * torch.randint(2, (rows, *event_shape), generator=generator).double() - 1


SPINS: dict[str, SpinCase] = {
    "boltzmann-2": SpinCase(partial(BoltzmannMachine, 2)),
    "boltzmann-3-couplings": SpinCase(partial(BoltzmannMachine, 3, W=torch.ones(3, 3) - torch.eye(3))),
    "boltzmann-5-bias": SpinCase(partial(BoltzmannMachine, 5, bias=True)),
    "boltzmann-image-bias": SpinCase(partial(BoltzmannMachine, (1, 2, 2), bias=True)),
}

SDES: dict[str, tuple[SDE, float]] = {  # with the standard deviation at t = 0
    "vp": (VPSDE(), 0.0),
    "vp-steep": (VPSDE(beta_min=0.5, beta_max=25.0), 0.0),
    "sub-vp": (SubVPSDE(), 0.0),
    "sub-vp-steep": (SubVPSDE(beta_min=0.5, beta_max=25.0), 0.0),
    "ve": (VESDE(), 0.0),
    "ve-narrow": (VESDE(sigma_min=0.05, sigma_max=20.0), 0.0),
    "ve-convention": (VESDE(transition="convention"), 0.01),
    "cosine-vp": (CosineVPSDE(), 0.0),
    "cosine-vp-short": (CosineVPSDE(offset=0.05, scale_min=0.03), 0.0),
    "affine-edm": (AffineSDE(scale=torch.ones_like, std=lambda t: 80 * t), 0.0),
    "affine-angle": (AffineSDE(scale=lambda t: torch.cos(1.53 * t), std=lambda t: torch.sin(1.53 * t)), 0.0),
}

SAMPLERS: dict[str, Sampler] = {
    "euler-maruyama": EulerMaruyama(steps=100, denoise=False),
    "euler-maruyama-denoised": EulerMaruyama(steps=100, t_min=1e-4),
    "reverse-diffusion": ReverseDiffusion(steps=100, denoise=False),
    "reverse-diffusion-log-snr": ReverseDiffusion(steps=100, spacing="log_snr"),
    "ancestral": AncestralSampling(steps=100),
    "ancestral-transition": AncestralSampling(steps=100, variance="transition", spacing="quadratic", denoise=False),
    "stochastic-heun": StochasticHeun(steps=50, spacing="karras"),
    "stochastic-runge-kutta": StochasticRungeKutta(steps=50, spacing="log_snr", denoise=False),
    "dpm-solver": DPMSolver(steps=25),
    "dpm-solver-3": DPMSolver(steps=25, order=3, spacing="karras", denoise=True),
    "dpm-solver-sde": DPMSolver(steps=60, variant="sde"),
    "edm-heun": EDMHeun(steps=25),
    "edm-heun-churn": EDMHeun(steps=50, churn=5.0, denoise=False),
    "probability-flow": ProbabilityFlow(method="rk4", steps=25, spacing="karras"),
    "predictor-corrector": PredictorCorrector(predictor=ReverseDiffusion(steps=100, denoise=False)),
    "predictor-corrector-batch": PredictorCorrector(
        predictor=AncestralSampling(steps=100, spacing="log_snr"), norms="batch", corrector_steps=2
    ),
    "adaptive": AdaptiveSDE(),
    "adaptive-loose": AdaptiveSDE(rtol=0.1, atol=0.02, denoise=False),
    "inpainting-nothing": Inpainting(StochasticHeun(steps=50, spacing="karras"), torch.zeros(()), torch.tensor(False)),
}
# Samplers that are an ODE from x_T on.
DRAW_NOTHING: set[str] = {"dpm-solver", "dpm-solver-3", "edm-heun", "probability-flow"}
COUPLE_ROWS: set[str] = {"predictor-corrector-batch"}  # samplers that refuse a generator for each row


def shortened(sampler: Sampler) -> Sampler:
    """In few steps, for what does not depend on how close it comes."""
    few = {"steps": 5, "rtol": 0.5, "atol": 0.5}
    changes = {name: value for name, value in few.items() if hasattr(sampler, name)}
    if hasattr(sampler, "predictor"):
        changes["predictor"] = shortened(sampler.predictor)
    return replace(sampler, **changes)


def callbacks(sampler: Sampler) -> int | None:
    """How often a sampler, or the one that it wraps, calls back; None where that depends on the run."""
    return getattr(getattr(sampler, "predictor", sampler), "steps", None)


def _half_square(x: Tensor) -> Tensor:
    return -0.5 * x.flatten(1).square().sum(1)


def _gibbs(x: Tensor, **keywords: object) -> Tensor:
    model = BoltzmannMachine(x.shape[1:], bias=True).requires_grad_(False)
    return perturb(model, rng(1)).to(x).gibbs(x, sweeps=20, **keywords)


# Towards N(0, I) or a law of spins from x, and how often the callback is called.
CHAINS: dict[str, tuple[Callable[..., Tensor], int]] = {
    "langevin": (partial(langevin, lambda x: -x, step_size=0.1, steps=20), 20),
    "mala": (lambda x, **keywords: mala(_half_square, x, step_size=0.5, steps=20, **keywords)[0], 20),
    "annealed": (partial(annealed_langevin, lambda x, _: -x, [2.0, 1.0], step_size=0.1, steps=10), 20),
    "annealed-denoised": (
        partial(annealed_langevin, lambda x, _: -x, [0.2, 0.1], step_size=0.1, steps=10, denoise=True),
        21,
    ),
    "gibbs": (_gibbs, 20),
}

DIVERGENCES: dict[str, Divergence] = {
    "exact": ExactDivergence(),
    "exact-chunked": ExactDivergence(chunk=2),
    "hutchinson": Hutchinson(),
    "hutchinson-4": Hutchinson(probes=4),
    "hutchinson-gaussian": Hutchinson(distribution="gaussian"),
    "hutchinson-gaussian-3": Hutchinson(probes=3, distribution="gaussian"),
    "hutchinson-sphere": Hutchinson(probes=2, distribution="sphere"),
    "hutch-plus-plus-3": HutchPlusPlus(probes=3),
    "hutch-plus-plus-6": HutchPlusPlus(probes=6),
}


def learned_weighting() -> LearnedWeighting:
    """That has seen losses which differ from bin to bin."""
    weighting = LearnedWeighting(bins=7)
    weighting.second_moments.copy_(torch.tensor([2.0, 1.0, 1.0, 0.3, 0.05, 1e-3, 1e-6]))
    return weighting


WEIGHTINGS: dict[str, Weighting] = {
    "variance": VarianceWeighting(),
    "likelihood": LikelihoodWeighting(),
    "likelihood-uniform": LikelihoodWeighting(sampling="uniform"),
    "edm": EDMWeighting(),
    "cosine": CosineWeighting(),
    "learned": learned_weighting(),
}

OBJECTIVES: dict[str, Callable[..., nn.Module]] = {
    "denoising": DenoisingScoreMatching,
    "denoising-likelihood": partial(DenoisingScoreMatching, weighting=LikelihoodWeighting()),
}


FLOW_OBJECTIVES: dict[str, Callable[..., nn.Module]] = {  # of a continuous flow
    "flow-matching": ConditionalFlowMatching,
    "flow-matching-optimal": partial(ConditionalFlowMatching, coupling="optimal"),
    "flow-matching-uniform-sigma": partial(ConditionalFlowMatching, times="uniform", sigma_min=0.1),
    "likelihood": RegularizedLikelihood,
    "likelihood-penalties-probe": partial(
        RegularizedLikelihood, kinetic=0.1, jacobian=0.2, divergence=Hutchinson(), solver=ODESolver(method="midpoint")
    ),
    "likelihood-penalties-adjoint": partial(
        RegularizedLikelihood, kinetic=0.1, jacobian=0.2, gradient="adjoint", solver=ODESolver(method="rk4", steps=4)
    ),
}


def towards_the_origin(x: Tensor, *_: Tensor) -> Tensor:
    """The score of N(0, I), with or without a context."""
    return -x


SCORE_OBJECTIVES: dict[str, Callable[..., nn.Module]] = {  # of a score(x) or score(x, context)
    "explicit": partial(ExplicitScoreMatching, target=towards_the_origin),
    "implicit": ImplicitScoreMatching,
    "implicit-hutchinson-3": partial(ImplicitScoreMatching, divergence=Hutchinson(probes=3)),
    "sliced": SlicedScoreMatching,
    "sliced-gaussian-3": partial(SlicedScoreMatching, projections=3, distribution="gaussian", variance_reduced=False),
    "sliced-sphere-2": partial(SlicedScoreMatching, projections=2, distribution="sphere", variance_reduced=False),
    "finite-difference": FiniteDifferenceScoreMatching,
    "finite-difference-sphere-2": partial(
        FiniteDifferenceScoreMatching, delta=0.02, projections=2, distribution="sphere"
    ),
    "fixed-noise": partial(FixedNoiseDenoising, sigma=0.3),
}

LADDER = (1.2, 0.6, 0.3)

LADDER_OBJECTIVES: dict[str, Callable[..., nn.Module]] = {  # of a score(x, σ) or score(x, σ, context)
    "ladder": partial(LadderDenoising, sigmas=LADDER),
    "ladder-uniform": partial(LadderDenoising, sigmas=LADDER, weighting="uniform"),
    "ladder-root": partial(LadderDenoising, sigmas=LADDER, weighting=torch.sqrt),
}


@dataclass(frozen=True)
class ScoreModelCase:
    """A model of scores and draws without a likelihood, and the noise levels that it is asked at."""

    build: Callable[[], GenerativeModel]
    context_features: int = 0
    sigmas: tuple[float, ...] = LADDER  # empty for a model of one density

    def make(self, seed: int = 1) -> GenerativeModel:
        return perturb(seeded(self.build), rng(seed), std=0.1)

    def levels(self, rows: int) -> tuple[Tensor, ...]:
        """σ of each row, in turn, or nothing."""
        repeated = torch.tensor(self.sigmas, dtype=torch.float64).repeat(rows)[:rows]
        return (repeated,) if self.sigmas else ()

    def context(self, rows: int, generator: torch.Generator) -> Tensor | None:
        return normal(rows, (self.context_features,), generator) if self.context_features else None


FEW = {"sigmas": LADDER, "steps": 2}

SCORE_MODELS: dict[str, ScoreModelCase] = {
    "ncsn-mlp-embedding": ScoreModelCase(partial(NCSN, 3, hidden=(16,), frequencies=2, **FEW)),
    "ncsn-mlp-embedding-context": ScoreModelCase(
        partial(NCSN, 2, hidden=(16,), frequencies=2, context_features=2, data_std=0.5, **FEW), 2
    ),
    "ncsn-mlp-scaling": ScoreModelCase(partial(NCSN, 2, hidden=(16,), conditioning="scaling", start="uniform", **FEW)),
    "ncsn-mlp-image": ScoreModelCase(partial(NCSN, (1, 2, 3), network="mlp", hidden=(16,), frequencies=2, **FEW)),
    "ncsn-unet-embedding-context": ScoreModelCase(
        partial(NCSN, (1, 3, 4), hidden=(4, 4), depth=1, frequencies=2, context_features=1, **FEW), 1
    ),
    "ncsn-unet-scaling": ScoreModelCase(
        partial(NCSN, (2, 4, 2), hidden=(4, 4), depth=1, conditioning="scaling", **FEW)
    ),
    "ncsn-refinenet-scaling": ScoreModelCase(
        partial(NCSN, (1, 4, 4), network="refinenet", hidden=(4,), conditioning="scaling", **FEW)
    ),
    "ncsn-refinenet-instance-norm": ScoreModelCase(
        partial(NCSN, (1, 4, 4), network="refinenet", hidden=(4,), conditioning="instance_norm", denoise=False, **FEW)
    ),
    "energy-2": ScoreModelCase(partial(EnergyModel, 2, hidden=(16,), steps=3), sigmas=()),
    "energy-image-context": ScoreModelCase(
        partial(
            EnergyModel,
            (1, 2, 2),
            base=DiagonalNormal((1, 2, 2), scale=2.0),
            hidden=(16, 16),
            context_features=2,
            steps=3,
        ),
        2,
        sigmas=(),
    ),
}
