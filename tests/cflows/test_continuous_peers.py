"""The same velocity field through other people's code: the same log-likelihood to 1e-3 nats."""

import pytest
import torch
from helpers import perturb, rng, seeded
from torch import Tensor

from cflows import FlowMatching
from cflows.ode.solver import ODESolver

TIGHT = ODESolver(method="dopri5_per_sample", rtol=1e-8, atol=1e-8)


def model(size: int) -> FlowMatching:
    build = lambda: FlowMatching(size, hidden=(32, 32), data_std=0.5, solver=TIGHT)  # noqa: E731
    return perturb(seeded(build), rng(0), std=0.1).double().eval()


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 5])
def test_flow_matching(size: int) -> None:
    """Facebook's library runs from noise at 0 to data at 1."""
    solvers = pytest.importorskip("flow_matching.solver")
    flow = model(size)
    x = flow.sample((3,), generator=rng(1))
    peer = solvers.ODESolver(velocity_model=lambda x, t: -flow.velocity(x, 1 - t))
    options = {"method": "dopri5", "step_size": None, "rtol": 1e-8, "atol": 1e-8, "exact_divergence": True}
    _, found = peer.compute_likelihood(x_1=x, log_p0=flow.base.log_prob, **options)
    torch.testing.assert_close(flow.log_prob(x).detach(), found.detach(), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 5])
def test_zuko(size: int) -> None:
    transforms = pytest.importorskip("zuko.transforms")
    flow = model(size)
    x = flow.sample((3,), generator=rng(2))

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        return flow.velocity(x, t)

    peer = transforms.FreeFormJacobianTransform(velocity, t0=0.0, t1=1.0, atol=1e-8, rtol=1e-8, exact=True)
    z, log_det = peer.call_and_ladj(x)
    torch.testing.assert_close(flow.encode(x).detach(), z.detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(flow.log_prob(x).detach(), (flow.base.log_prob(z) + log_det).detach(), rtol=0, atol=1e-4)
