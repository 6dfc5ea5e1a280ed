"""The field's standard routine, as public code has it: scipy's RK45 on the host, and the network called twice."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor

from cflows import SDE

Score = Callable[[Tensor, Tensor], Tensor]


def yardstick(
    score: Score, sde: SDE, x: Tensor, probe: Tensor, *, t_min: float, tolerance: float
) -> tuple[Tensor, int]:
    """log p(x) in nats by one probe, without the prior's mismatch, and the evaluations of the right-hand side.

    References:
        Song et al., "Score-based generative modeling through stochastic differential equations", 2021, app. D.2: one
        step size and one error norm for the whole batch, state in float64 on the host, rtol = atol = 1e-5.
    """
    size, rows = x.numel(), len(x)

    def drift(y: Tensor, t: Tensor) -> Tensor:
        g = sde.diffusion(t).reshape(-1, *[1] * (y.ndim - 1))
        return sde.drift(y, t) - 0.5 * g**2 * score(y, t)

    def right_hand_side(t: float, state: NDArray[np.float64]) -> NDArray[np.float64]:
        y = torch.from_numpy(state[:size].reshape(x.shape)).to(x)
        clock = torch.full((rows,), t, dtype=x.dtype, device=x.device)
        with torch.no_grad():
            slope = drift(y, clock).cpu().numpy().reshape(-1)
        with torch.enable_grad():
            y.requires_grad_()
            (gradient,) = torch.autograd.grad((drift(y, clock) * probe).sum(), y)
        divergence = (gradient * probe).flatten(1).sum(1).cpu().numpy()
        return np.concatenate([slope, divergence], dtype=np.float64)

    start = np.concatenate([x.cpu().numpy().reshape(-1), np.zeros(rows)], dtype=np.float64)
    found = solve_ivp(right_hand_side, (t_min, 1.0), start, rtol=tolerance, atol=tolerance, method="RK45")
    end = torch.from_numpy(found.y[:size, -1].reshape(x.shape))
    base = sde.prior(x.shape[1:]).double()
    return base.log_prob(end) + torch.from_numpy(found.y[size:, -1]), found.nfev
