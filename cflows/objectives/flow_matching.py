"""Flow matching: regression of a velocity on straight ways between data and noise."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cflows.models.continuous_flow import ContinuousFlow
from cflows.objectives.rows import require_rows, spread_evenly
from core.density import Context
from core.rng import Rng, for_all_rows, rand, randn
from core.shapes import align

Coupling = Literal["independent", "optimal"]
Times = Literal["even", "uniform"]
Rows = Float[Tensor, "rows ..."]


class ConditionalFlowMatching(nn.Module):
    """L = E_t E_(x_0, x_1) ‖v(x_t, t) - ((1 - σ_min) x_1 - x_0)‖² / D, x_t = (1 - t) x_0 + (σ_min + (1 - σ_min) t) x_1.

    x_0 is data, x_1 ~ N(0, I), t uniform on [0, 1], and the target is dx_t/dt. The minimiser E[dx_t/dt | x_t] carries
    the law of x_0 + σ_min x_1 to N(0, I), whatever the coupling of x_0 and x_1 that has these marginals.

    - `independent`: Lipman et al.; with σ_min = 0 the rectified flow of Liu et al.
    - `optimal`: the pairing of the batch with the smallest Σ ‖x_0 - x_1‖². Ways cross less, so that v is straighter and
      the loss has less variance. It is found on the CPU in O(rows³), some 10 ms for 256 rows and 50 ms for 512, and the
      host waits. What is optimal for a batch is, in expectation, a coupling of the same marginals.

    References:
        Lipman et al., "Flow matching for generative modeling", 2023, eq. 9, 22 and 23, whose t is 1 - t here.
        Tong et al., "Improving and generalizing flow-based generative models with minibatch optimal transport", 2024,
        section 3.2.3. Liu et al., "Flow straight and fast: rectified flow", 2023, eq. 1.

    Checked by tests/cflows/test_flow_matching.py (Gaussian data, value and minimiser in closed form; the pairing).

    Args:
        velocity: v(x, t) or v(x, t, context), a network such as `FlowMatching`.
        sigma_min: standard deviation that is left around a row of data at t = 0.
        coupling: as above.
        times: `even`, spread over the batch with one random offset, which takes most of the noise of t out of the
            loss, or `uniform`, drawn for each row.

    Raises:
        ValueError: an unknown coupling or law of times, or sigma_min outside [0, 1).

    Example:
        >>> loss = ConditionalFlowMatching(lambda x, t: torch.zeros_like(x))
        >>> round(loss(torch.zeros(10_000, 2), generator=torch.Generator().manual_seed(0)).item(), 1)  # E ‖x_1‖²/D
        1.0
    """

    def __init__(
        self,
        velocity: Callable[..., Tensor],
        *,
        sigma_min: float = 0.0,
        coupling: Coupling = "independent",
        times: Times = "even",
    ) -> None:
        super().__init__()
        for name, value, known in (("coupling", coupling, get_args(Coupling)), ("times", times, get_args(Times))):
            if value not in known:
                raise ValueError(f"ConditionalFlowMatching's {name} is one of {', '.join(known)}, not {value!r}.")
        if not 0 <= sigma_min < 1:
            raise ValueError(f"ConditionalFlowMatching needs sigma_min within [0, 1), but it is {sigma_min}.")
        self.velocity = velocity
        self.sigma_min, self.coupling, self.times = sigma_min, coupling, times

    def forward(
        self, batch: Rows, context: Context = None, *, noise: Rows | None = None, generator: Rng = None
    ) -> Float[Tensor, ""]:
        """The loss of a batch `(rows, *event)` of data.

        Args:
            batch: x_0.
            context: of each row, `(rows, features)`.
            noise: x_1 of each row where they are paired already, as by `rectified_pairs`; drawn and coupled where
                omitted.
            generator: draws times and noise.

        Raises:
            ValueError: an empty batch, or `optimal` with contexts: given its context the noise that a row is paired
                with would no longer be N(0, I).
        """
        require_rows(batch, owner=type(self).__name__)
        if self.coupling == "optimal" and noise is None and context is not None:
            raise ValueError(
                "ConditionalFlowMatching's coupling is 'optimal', which has no place for contexts: within one context "
                "the noise would no longer be N(0, I); take 'independent'."
            )
        t = rand((len(batch),), generator, like=batch) if self.times == "uniform" else spread_evenly(batch, generator)
        x_1 = self._noise(batch, generator) if noise is None else noise
        x_t, target = torch.lerp(batch, x_1, align(t, batch)), x_1 - batch
        if self.sigma_min:
            x_t, target = x_t + self.sigma_min * align(1 - t, batch) * x_1, target - self.sigma_min * x_1
        v = self.velocity(x_t, t) if context is None else self.velocity(x_t, t, context)
        return F.mse_loss(v, target)

    def _noise(self, x_0: Tensor, generator: Rng) -> Tensor:
        if self.coupling == "independent":
            return randn(x_0.shape, generator, like=x_0)
        x_1 = randn(x_0.shape, for_all_rows(generator, owner="an optimal coupling"), like=x_0)
        return x_1[optimal_pairing(x_0, x_1)]


@torch.no_grad()
def optimal_pairing(x_0: Rows, x_1: Float[Tensor, "others ..."]) -> Int[Tensor, " rows"]:
    """The permutation π that minimises Σ_i ‖x_0[i] - x_1[π(i)]‖², `(rows,)`.

    Raises:
        ValueError: fewer or more x_1 than x_0, or a row that is not finite.

    Example:
        >>> optimal_pairing(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.1], [0.2]])).tolist()
        [1, 0]
    """
    if x_0.shape != x_1.shape:
        raise ValueError(f"a pairing needs as many rows on both sides, but has {tuple(x_0.shape)}, {tuple(x_1.shape)}.")
    cost = torch.cdist(x_0.flatten(1).double(), x_1.flatten(1).double()).square().cpu()
    if not bool(cost.isfinite().all()):
        raise ValueError("a pairing needs finite rows, but a distance between two of them is not.")
    from scipy.optimize import linear_sum_assignment  # half as long to import as torch

    _, paired = linear_sum_assignment(cost.numpy())
    return torch.as_tensor(paired, device=x_0.device)


@torch.no_grad()
def rectified_pairs(
    model: ContinuousFlow, shape: Sequence[int], *, context: Context = None, generator: Rng = None
) -> tuple[Tensor, Tensor]:
    """(x_0, x_1) with x_1 drawn from the base and x_0 where the model's own ODE takes it, each `(*shape, *event)`.

    Trained on these pairs, as `objective(x_0, noise=x_1)`, another flow has the same law at both ends, by ways that
    are no longer and straighter; in one dimension, or once no two of them cross, exactly straight.

    References:
        Liu et al., "Flow straight and fast: rectified flow", 2023, algorithm 1 and theorem 3.5 (reflow).

    Checked by tests/cflows/test_flow_matching.py (the pairs, and that training on them straightens).

    Args:
        model: the trained flow.
        shape: of the draws.
        context: broadcasts to `(*shape, features)`.
        generator: draws x_1.
    """
    x_1 = model.base.sample((math.prod(shape),), generator=generator).reshape(*shape, *model.event_shape)
    return model.decode(x_1, context), x_1
