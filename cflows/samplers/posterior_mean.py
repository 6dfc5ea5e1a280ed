from torch import Tensor

from cflows.sde import SDE, Rows, Score
from core.shapes import align


def posterior_mean(score: Score, sde: SDE, x: Rows, t: Tensor) -> Rows:
    """x̂_0 = E[x_0 | x_t = x] = (x + σ(t)² s(x, t))/α(t), the data prediction, for one score evaluation.

    References:
        Efron, "Tweedie's formula and selection bias", 2011, eq. 2.8.

    Checked by tests/cflows/test_dpm_solver.py.

    Args:
        score: s(x, t) = ∇ log p_t(x).
        sde: the noising process.
        x: `(rows, *event)`.
        t: 0-dimensional or `(rows,)`, within (0, 1].

    Returns:
        x̂_0, like `x`.
    """
    alpha, sigma = (align(part, x) for part in sde.marginal(t))
    return (x + sigma.square() * score(x, t)) / alpha
