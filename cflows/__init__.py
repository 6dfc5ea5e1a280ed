"""Continuous models: score matching, noising processes, reverse-time samplers and ODE likelihoods."""

from cflows.models.score_sde import ScoreSDE
from cflows.objectives.denoising import DenoisingScoreMatching, LikelihoodWeighting
from cflows.probability_flow import ode_log_prob, probability_flow_log_prob
from cflows.samplers.euler_maruyama import EulerMaruyama
from cflows.sde import SDE, VESDE, VPSDE, SubVPSDE

__all__ = [
    "SDE",
    "VESDE",
    "VPSDE",
    "DenoisingScoreMatching",
    "EulerMaruyama",
    "LikelihoodWeighting",
    "ScoreSDE",
    "SubVPSDE",
    "ode_log_prob",
    "probability_flow_log_prob",
]
