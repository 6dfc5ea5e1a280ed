"""What masked networks and the models of one network keep, in float64."""

import torch
from torch import Tensor

from core.nets.masked import MaskedMLP
from discrete import MADE, Flow


def jacobian(network: MaskedMLP, x: Tensor, context: Tensor | None = None, *, mask: int = 0) -> Tensor:
    """∂θ/∂x of one row, `(features, parameters, features)`."""
    return torch.autograd.functional.jacobian(lambda v: network(v[None], context, mask=mask)[0], x)


def reads_in_order(network: MaskedMLP, x: Tensor, context: Tensor | None = None, *, order: list[int]) -> None:
    """Each output of feature order[i] has exactly zero gradient in order[i], order[i+1], ..., and in none before it."""
    sees = (jacobian(network, x[0], context) != 0)[order][..., order]
    expected = torch.ones(len(order), len(order), dtype=torch.bool).tril(-1)
    wrong = (sees != expected[:, None]).nonzero().tolist()
    assert not wrong, f"(i, parameter, j) of the order where i sees j or does not, against what is due: {wrong[:8]}"


def is_the_flow_onto_a_normal(model: MADE, flow: Flow, x: Tensor, context: Tensor | None = None) -> None:
    """log p is that of the flow of one autoregressive layer with the same weights, and so is its gradient in x."""
    values = []
    for log_prob in (model.log_prob, flow.log_prob):
        leaf = x.clone().requires_grad_()
        value = log_prob(leaf, context)
        values += [value, *torch.autograd.grad(value.sum(), leaf)]
    torch.testing.assert_close(values[:2], values[2:], rtol=1e-10, atol=1e-10)


def by_mask(model: MADE, x: Tensor, context: Tensor | None = None) -> list[Tensor]:
    """log p of each mask alone, `(rows,)`."""
    with torch.no_grad():
        return [model.conditional_log_prob(x, context, mask=m).flatten(1).sum(1) for m in range(model.network.masks)]


def is_the_mean_of_its_masks(model: MADE, x: Tensor, context: Tensor | None = None) -> None:
    """p(x) = 1/M Σ_m p_m(x), by hand in double logarithms, far from the data as well."""
    for scale in (1.0, 30.0):
        each = torch.stack(
            [
                model.conditional_log_prob(scale * x, context, mask=m).flatten(1).sum(1)
                for m in range(model.network.masks)
            ]
        ).detach()
        assert each.std(0).min() > 1e-3, "the masks agree, so that nothing is shown"
        top = each.amax(0)
        expected = top + torch.log(torch.exp(each - top).sum(0) / len(each))
        torch.testing.assert_close(model.log_prob(scale * x, context).detach(), expected, rtol=1e-12, atol=1e-12)


def takes_its_masks_in_turn(model: MADE, x: Tensor) -> None:
    """In training call i is mask i mod M; in evaluation none is passed over, and every call gives the same."""
    M, each, ensemble = model.network.masks, by_mask(model, x), model.log_prob(x).detach()
    for i in range(2 * M + 1):
        model.train()
        found = model.log_prob(x).detach()
        assert torch.equal(found, each[i % M]), f"call {i} is not that of mask {i % M}"
        model.eval()
        assert torch.equal(model.log_prob(x).detach(), ensemble), "a call in evaluation depends on the turn"


def every_order_learns(model: MADE, states: Tensor, masses: Tensor, *, steps: int, tolerance: float) -> None:
    """Trained on Σ P(x) log p(x), the divergence KL(P ‖ p_m) of each mask alone is small, and of all together."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    model.train()
    for _ in range(steps):
        loss = -(masses * model.log_prob(states)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    values = [*by_mask(model, states), model.log_prob(states).detach()]
    divergences = [(masses * (masses.log() - value)).sum().item() for value in values]
    assert all(d < tolerance for d in divergences), f"KL of each mask and of all: {divergences}"
