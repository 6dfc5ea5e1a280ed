"""Continuous models: score matching, noising processes, reverse-time samplers and ODE likelihoods."""

from cflows.affine_sde import AffineSDE
from cflows.cosine_sde import CosineVPSDE
from cflows.guidance import ConditionalScore, classifier_free
from cflows.interpolation import interpolate
from cflows.models.boltzmann_machine import (
    BoltzmannMachine,
    ContrastiveDivergence,
    PseudoLikelihood,
    RatioMatching,
)
from cflows.models.energy import EnergyModel
from cflows.models.ffjord import FFJORD
from cflows.models.flow_matching import FlowMatching
from cflows.models.ncsn import NCSN
from cflows.models.score_sde import ScoreSDE
from cflows.noise_ladder import geometric_ladder, ladder_levels, largest_distance, matched_step_size
from cflows.objectives.cnf import RegularizedLikelihood
from cflows.objectives.denoising import DenoisingScoreMatching
from cflows.objectives.explicit import ExplicitScoreMatching
from cflows.objectives.finite_difference import FiniteDifferenceScoreMatching
from cflows.objectives.flow_matching import ConditionalFlowMatching, optimal_pairing, rectified_pairs
from cflows.objectives.implicit import ImplicitScoreMatching
from cflows.objectives.noise_levels import FixedNoiseDenoising, LadderDenoising
from cflows.objectives.sliced import SlicedScoreMatching
from cflows.objectives.weightings import (
    CosineWeighting,
    EDMWeighting,
    LearnedWeighting,
    LikelihoodWeighting,
    VarianceWeighting,
)
from cflows.ode.budget import choose_solver
from cflows.ode.log_prob import ode_log_prob
from cflows.ode.solver import ODESolver
from cflows.parametrization import convert
from cflows.predicted_score import PredictedScore
from cflows.probability_flow import probability_flow_log_prob
from cflows.samplers.adaptive import AdaptiveSDE
from cflows.samplers.ancestral import AncestralSampling
from cflows.samplers.annealed_importance import annealed_importance_sampling
from cflows.samplers.annealed_langevin import annealed_langevin
from cflows.samplers.diagnostics import Trajectory, effective_sample_size, r_hat
from cflows.samplers.dpm_solver import DPMSolver
from cflows.samplers.edm_heun import EDMHeun
from cflows.samplers.euler_maruyama import EulerMaruyama
from cflows.samplers.inpainting import Inpainting
from cflows.samplers.langevin import langevin
from cflows.samplers.mala import mala
from cflows.samplers.predictor_corrector import PredictorCorrector
from cflows.samplers.probability_flow_ode import ProbabilityFlow
from cflows.samplers.reverse_diffusion import ReverseDiffusion
from cflows.samplers.stochastic_heun import StochasticHeun
from cflows.samplers.stochastic_runge_kutta import StochasticRungeKutta
from cflows.score import GradientScore
from cflows.sde import SDE, VESDE, VPSDE, SubVPSDE, prior_kl, prior_mismatch
from cflows.time_grid import time_grid
from cflows.truncation import noise_share
from cflows.variational_bound import score_flow_bound

__all__ = [
    "FFJORD",
    "NCSN",
    "SDE",
    "VESDE",
    "VPSDE",
    "AdaptiveSDE",
    "AffineSDE",
    "AncestralSampling",
    "BoltzmannMachine",
    "ConditionalFlowMatching",
    "ConditionalScore",
    "ContrastiveDivergence",
    "CosineVPSDE",
    "CosineWeighting",
    "DPMSolver",
    "DenoisingScoreMatching",
    "EDMHeun",
    "EDMWeighting",
    "EnergyModel",
    "EulerMaruyama",
    "ExplicitScoreMatching",
    "FiniteDifferenceScoreMatching",
    "FixedNoiseDenoising",
    "FlowMatching",
    "GradientScore",
    "ImplicitScoreMatching",
    "Inpainting",
    "LadderDenoising",
    "LearnedWeighting",
    "LikelihoodWeighting",
    "ODESolver",
    "PredictedScore",
    "PredictorCorrector",
    "ProbabilityFlow",
    "PseudoLikelihood",
    "RatioMatching",
    "RegularizedLikelihood",
    "ReverseDiffusion",
    "ScoreSDE",
    "SlicedScoreMatching",
    "StochasticHeun",
    "StochasticRungeKutta",
    "SubVPSDE",
    "Trajectory",
    "VarianceWeighting",
    "annealed_importance_sampling",
    "annealed_langevin",
    "choose_solver",
    "classifier_free",
    "convert",
    "effective_sample_size",
    "geometric_ladder",
    "interpolate",
    "ladder_levels",
    "langevin",
    "largest_distance",
    "mala",
    "matched_step_size",
    "noise_share",
    "ode_log_prob",
    "optimal_pairing",
    "prior_kl",
    "prior_mismatch",
    "probability_flow_log_prob",
    "r_hat",
    "rectified_pairs",
    "score_flow_bound",
    "time_grid",
]
