"""The likelihood of a continuous flow as an objective: its terms in closed form, and both gradients."""

from functools import partial

import pytest
import torch
from contracts import continuous_flows as contracts
from helpers import normal, perturb, rng, seeded
from torch import Tensor, nn

from cflows import FFJORD, FlowMatching, ODESolver, RegularizedLikelihood
from cflows.objectives.cnf import PenalisedField
from core import DiagonalNormal, ExactDivergence, Hutchinson, HutchPlusPlus

FINE = ODESolver(method="rk4", steps=50)
TIGHT = {"rtol": 1e-8, "atol": 1e-8}
BOTH = pytest.mark.parametrize("gradient", ["direct", "adjoint"])


def of_field(velocity: contracts.Velocity) -> FFJORD:
    return FFJORD(3, net=lambda x, u, context: velocity(x, (u + 1) / 2)).double()


def test_the_field() -> None:
    contracts.penalised_integrals(PenalisedField)
    contracts.penalised_estimates_are_unbiased(PenalisedField)


@BOTH
def test_terms_in_closed_form(gradient: str) -> None:
    objective = RegularizedLikelihood(
        of_field(contracts.affine_field), kinetic=0.7, jacobian=0.3, gradient=gradient, solver=FINE
    )
    x = normal(5, (3,), rng(0))
    terms = objective.terms(x)
    torch.testing.assert_close(terms.negative_log_prob, -contracts.affine_log_prob(x), rtol=0, atol=1e-7)
    torch.testing.assert_close(terms.kinetic, 0.7 * contracts.affine_kinetic(x), rtol=0, atol=1e-7)
    torch.testing.assert_close(terms.jacobian, (0.3 * contracts.affine_jacobian()).expand(5), rtol=0, atol=1e-7)
    torch.testing.assert_close(objective(x), torch.stack(terms).sum(0).mean())


def test_terms_with_probes_are_unbiased() -> None:
    """Each row has probes of its own: the mean over rows of one place comes as close as its standard error."""
    objective = RegularizedLikelihood(
        of_field(contracts.affine_field), jacobian=1.0, divergence=Hutchinson(), solver=ODESolver(method="rk4", steps=8)
    )
    x = normal(1, (3,), rng(1)).expand(4000, 3)
    terms = objective.terms(x, generator=rng(2))
    expected = {"negative_log_prob": -contracts.affine_log_prob(x[:1]), "jacobian": contracts.affine_jacobian()}
    for name, value in expected.items():
        found = getattr(terms, name)
        assert (found.mean() - value).abs() < 5 * found.std() / 4000**0.5 + 1e-4


def test_the_jacobian_of_a_network_along_its_way() -> None:
    """∫ ‖∂v/∂x‖_F² of a field that is not linear, by the whole Jacobian at every node and Simpson's rule."""
    model = perturb(seeded(lambda: FFJORD(2, hidden=(8,))), rng(3))
    x, solver = normal(1, (2,), rng(4)), ODESolver(method="rk4", steps=40)
    found = RegularizedLikelihood(model, jacobian=1.0, solver=solver).terms(x).jacobian
    states = [x]
    times = torch.linspace(0, 1, 41, dtype=torch.float64)
    field = PenalisedField(model, x[None], 1.0, 0.0, 0.0)
    solver.solve(field, x, times, columns=3, report=lambda _, y: states.append(y))
    norms = [
        torch.autograd.functional.jacobian(lambda y, t=t: model(y[None], t)[0], state[0]).square().sum()
        for state, t in zip(states, times, strict=True)
    ]
    simpson = torch.tensor([1.0, *[4.0, 2.0] * 19, 4.0, 1.0], dtype=torch.float64) / 120
    torch.testing.assert_close(found[0], (torch.stack(norms) * simpson).sum(), rtol=1e-5, atol=1e-6)


def small(context: bool = True) -> FFJORD:
    base = DiagonalNormal(3, scale=1.5)
    return perturb(seeded(lambda: FFJORD(3, base=base, hidden=(6,), context_features=int(context))), rng(5))


def loss_and_gradients(x: Tensor, context: Tensor, **keywords: object) -> tuple[Tensor, list[Tensor]]:
    model = small()
    x, context = x.clone().requires_grad_(), context.clone().requires_grad_()
    loss = RegularizedLikelihood(model, kinetic=0.3, jacobian=0.2, **keywords)(x, context, generator=rng(6))
    return loss.detach(), list(torch.autograd.grad(loss, [*model.parameters(), x, context]))


@pytest.mark.parametrize("divergence", [ExactDivergence(), Hutchinson(probes=2, distribution="gaussian")])
def test_both_gradients_agree(divergence: object) -> None:
    """Of velocity, base, data and context; through an adaptive solver, a fixed grid, and the adjoint of each."""
    x, context = normal(4, (3,), rng(7)), normal(4, (1,), rng(8))
    adaptive = ODESolver(method="dopri5", **TIGHT)
    of = partial(loss_and_gradients, x, context, divergence=divergence)
    loss, expected = of(gradient="adjoint", solver=adaptive)
    for keywords in (
        {"gradient": "direct", "solver": FINE},
        {"gradient": "direct", "solver": ODESolver(method="dopri5_per_sample", **TIGHT)},
        {"gradient": "adjoint", "solver": FINE},
    ):
        other, found = of(**keywords)
        torch.testing.assert_close(other, loss, rtol=0, atol=1e-6)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("gradient", "solver", "tolerance"),
    [
        ("direct", ODESolver(method="rk4", steps=4), 1e-7),  # exact for what is computed, however coarse
        ("direct", ODESolver(method="adams", steps=6), 1e-7),
        ("adjoint", ODESolver(method="dopri5", **TIGHT), 1e-6),
    ],
    ids=lambda value: getattr(value, "method", str(value)),
)
def test_gradients_against_finite_differences(gradient: str, solver: ODESolver, tolerance: float) -> None:
    """Along a direction of all parameters, data and context at once."""
    model, x, context = small(), normal(3, (3,), rng(9)), normal(3, (1,), rng(10)).requires_grad_()
    x.requires_grad_()
    objective = RegularizedLikelihood(model, kinetic=0.3, jacobian=0.2, gradient=gradient, solver=solver)
    inputs = [*model.parameters(), x, context]
    gradients = torch.autograd.grad(objective(x, context), inputs)
    direction = [torch.randn(v.shape, generator=rng(11), dtype=v.dtype) for v in inputs]
    found = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    values, h = [], 1e-5
    with torch.no_grad():
        for step in (h, -2 * h):
            for v, d in zip(inputs, direction, strict=True):
                v += step * d
            values.append(objective(x, context))
    torch.testing.assert_close(found, (values[0] - values[1]) / (2 * h), rtol=tolerance, atol=tolerance)


@BOTH
def test_a_step_down_the_gradient_lowers_the_loss(gradient: str) -> None:
    model = FlowMatching(2, hidden=(8,), frequencies=2).double()
    objective = RegularizedLikelihood(model, gradient=gradient, solver=ODESolver(method="rk4", steps=4))
    x = 0.3 * normal(50, (2,), rng(12))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    before = objective(x)
    before.backward()
    optimizer.step()
    assert objective(x) < before


def test_the_adjoint_keeps_no_graph_of_the_solve() -> None:
    """The graph of `direct` grows with the steps, that of the adjoint does not."""

    def nodes(gradient: str, steps: int) -> int:
        objective = RegularizedLikelihood(small(), gradient=gradient, solver=ODESolver(method="rk4", steps=steps))
        loss = objective(normal(4, (3,), rng(13)), normal(4, (1,), rng(14)))
        found, left = set(), [loss.grad_fn]
        while left:
            node = left.pop()
            if node is not None and node not in found:
                found.add(node)
                left += [parent for parent, _ in node.next_functions]
        return len(found)

    assert nodes("adjoint", 8) == nodes("adjoint", 2)
    assert nodes("direct", 8) > 3 * nodes("direct", 2)


@BOTH
def test_without_gradient_it_is_the_same_loss(gradient: str) -> None:
    """As validation asks for it."""
    objective = RegularizedLikelihood(small(), kinetic=0.1, jacobian=0.1, gradient=gradient)
    x, context = normal(4, (3,), rng(15)), normal(4, (1,), rng(16))
    with torch.no_grad():
        silent = objective(x, context)
    torch.testing.assert_close(silent, objective(x, context).detach())


@BOTH
def test_evaluation_is_solved_by_the_solver_of_the_model(gradient: str) -> None:
    """dx/dt = x in one step of Euler, as of training, is another density; evaluation has the exact one."""
    contracting = FFJORD(3, net=lambda x, u, context: x, solver=ODESolver(method="rk4", steps=20)).double()
    objective = RegularizedLikelihood(contracting, gradient=gradient, solver=ODESolver(method="euler", steps=1))
    x = normal(4, (3,), rng(19))
    exact = -contracting.log_prob(x).mean()
    assert (objective(x) - exact).abs() > 0.1
    torch.testing.assert_close(objective.eval()(x), exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun2", "heun3", "rk4"])
def test_the_adjoint_takes_the_same_steps(method: str) -> None:
    """Torchdiffeq's fixed methods are those of the direct solve."""
    x, context = normal(4, (3,), rng(17)), normal(4, (1,), rng(18))
    solver = ODESolver(method=method, steps=3)
    losses = [loss_and_gradients(x, context, gradient=g, solver=solver)[0] for g in ("direct", "adjoint")]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-12)


def test_default_divergence_of_training() -> None:
    assert RegularizedLikelihood(FFJORD(7)).divergence == ExactDivergence()
    assert RegularizedLikelihood(FFJORD((1, 2, 4))).divergence == Hutchinson(probes=1)


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"kinetic": -1.0}, "penalties of 0 or more, not kinetic=-1.0"),
        ({"jacobian": -1.0}, "and jacobian=-1.0"),
        ({"divergence": HutchPlusPlus()}, "not with HutchPlusPlus"),
        ({"gradient": "adjoint", "solver": ODESolver(method="adams")}, "adjoint is solved by one of .* 'adams'"),
        ({"gradient": "adjoint", "solver": ODESolver(method="dopri5_per_sample")}, "but the method is 'dopri5_per_s"),
    ],
)
def test_settings_that_do_not_fit(keywords: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        RegularizedLikelihood(FFJORD(2), **keywords)


def test_an_adjoint_that_stalls_says_so() -> None:
    class Explosive(nn.Module):
        def forward(self, x: Tensor, u: Tensor, context: Tensor | None) -> Tensor:
            return x**3

    objective = RegularizedLikelihood(FFJORD(2, net=Explosive()), gradient="adjoint", solver=ODESolver())
    with pytest.raises(RuntimeError, match="dopri5 stopped at rtol=1e-05"):
        objective(torch.full((1, 2), 3.0))
