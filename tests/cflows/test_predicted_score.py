"""Networks of one's own as scores: every prediction, both shapes of time, and what they get wrong."""

import pytest
import torch
from helpers import normal, rng
from torch import Tensor

from cflows import SDE, VESDE, VPSDE, PredictedScore, SubVPSDE, probability_flow_log_prob
from core.shapes import align

VARIANCE = 4.0


def predicted(sde: SDE, kind: str) -> PredictedScore:
    """What a perfect network of each kind gives for data N(0, 4), by conditional means of its own."""

    def net(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (align(v, x) for v in sde.marginal(t))
        total = alpha**2 * VARIANCE + sigma**2
        means = {"data": alpha * VARIANCE * x / total, "noise": sigma * x / total, "score": -x / total}
        return alpha * means["noise"] - sigma * means["data"] if kind == "velocity" else means[kind]

    return PredictedScore(net=net, sde=sde, prediction=kind)


@pytest.mark.parametrize("kind", ["score", "noise", "data", "velocity"])
@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE()], ids=["vp", "sub-vp", "ve"])
def test_every_prediction_is_the_score(sde: SDE, kind: str) -> None:
    x, score = normal(3, (2, 2), rng(0)), predicted(sde, kind)
    for t in (torch.tensor(0.3, dtype=torch.float64), torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)):
        scale, std = (align(v, x) for v in sde.marginal(t))
        torch.testing.assert_close(score(x, t), -x / (VARIANCE * scale**2 + std**2), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("time", "shape"), [("rows", (5,)), ("scalar", ())])
def test_the_network_is_told_the_time_as_it_takes_it(time: str, shape: tuple[int, ...]) -> None:
    seen = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t.shape)
        return -x

    score = PredictedScore(net=net, sde=VPSDE(), time=time)
    probability_flow_log_prob(score, VPSDE(), torch.zeros(5, 2), method="rk4", steps=2)
    assert set(seen) == {shape}


def test_rows_that_leave_take_what_is_theirs_along() -> None:
    class Shifted:
        def __init__(self, mean: Tensor) -> None:
            self.mean = mean

        def __call__(self, x: Tensor, t: Tensor) -> Tensor:
            return self.mean - x

        def rows(self, index: Tensor) -> "Shifted":
            return Shifted(self.mean[index])

    score = PredictedScore(net=Shifted(torch.tensor([[1.0], [2.0], [3.0]])), sde=VPSDE())
    assert score.rows(torch.tensor([2, 0]))(torch.zeros(2, 1), torch.tensor(0.5)).tolist() == [[3.0], [1.0]]
    one = PredictedScore(net=lambda x, t, context: context - x, sde=VPSDE())
    assert one(torch.zeros(1, 1), torch.tensor(0.5), torch.tensor([[7.0]])).item() == 7.0


def test_what_does_not_fit_is_named() -> None:
    x, t = torch.zeros(3, 2), torch.tensor(0.5)
    with pytest.raises(ValueError, match=r"the network's noise must have the shape \(3, 2\) of x, but has \(3, 1\)"):
        PredictedScore(net=lambda x, t: x[:, :1], sde=VPSDE(), prediction="noise")(x, t)
    with pytest.raises(ValueError, match="takes a 0-dimensional time, but each row has its own"):
        PredictedScore(net=lambda x, t: x, sde=VPSDE(), time="scalar")(x, t.expand(3))
