"""Continuous models: score matching, noising processes, reverse-time samplers and ODE likelihoods."""

from cflows.models.boltzmann_machine import (
    BoltzmannMachine,
    ContrastiveDivergence,
    PseudoLikelihood,
    RatioMatching,
)
from cflows.models.energy import EnergyModel
from cflows.models.ncsn import NCSN
from cflows.models.score_sde import ScoreSDE
from cflows.noise_ladder import geometric_ladder, ladder_levels, largest_distance, matched_step_size
from cflows.objectives.denoising import DenoisingScoreMatching, LikelihoodWeighting
from cflows.objectives.explicit import ExplicitScoreMatching
from cflows.objectives.finite_difference import FiniteDifferenceScoreMatching
from cflows.objectives.implicit import ImplicitScoreMatching
from cflows.objectives.noise_levels import FixedNoiseDenoising, LadderDenoising
from cflows.objectives.sliced import SlicedScoreMatching
from cflows.probability_flow import ode_log_prob, probability_flow_log_prob
from cflows.samplers.annealed_importance import annealed_importance_sampling
from cflows.samplers.annealed_langevin import annealed_langevin
from cflows.samplers.diagnostics import Trajectory, effective_sample_size, r_hat
from cflows.samplers.euler_maruyama import EulerMaruyama
from cflows.samplers.langevin import langevin
from cflows.samplers.mala import mala
from cflows.score import GradientScore
from cflows.sde import SDE, VESDE, VPSDE, SubVPSDE

__all__ = [
    "NCSN",
    "SDE",
    "VESDE",
    "VPSDE",
    "BoltzmannMachine",
    "ContrastiveDivergence",
    "DenoisingScoreMatching",
    "EnergyModel",
    "EulerMaruyama",
    "ExplicitScoreMatching",
    "FiniteDifferenceScoreMatching",
    "FixedNoiseDenoising",
    "GradientScore",
    "ImplicitScoreMatching",
    "LadderDenoising",
    "LikelihoodWeighting",
    "PseudoLikelihood",
    "RatioMatching",
    "ScoreSDE",
    "SlicedScoreMatching",
    "SubVPSDE",
    "Trajectory",
    "annealed_importance_sampling",
    "annealed_langevin",
    "effective_sample_size",
    "geometric_ladder",
    "ladder_levels",
    "langevin",
    "largest_distance",
    "mala",
    "matched_step_size",
    "ode_log_prob",
    "probability_flow_log_prob",
    "r_hat",
]
