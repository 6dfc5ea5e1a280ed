"""Gaussian students and teachers, whose divergence is known in closed form."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from contracts import distillation
from helpers import normal, perturb, rng, seeded
from torch import Tensor, nn

from core import GaussianMixture, StandardNormal, StandardUniform
from discrete import (
    IAF,
    MAF,
    NICE,
    BatchNorm,
    Bijection,
    Compose,
    Diagonal,
    Flow,
    Inverse,
    LinearFlow,
    LULinear,
    RealNVP,
    Triangular,
)
from discrete.bijections.preprocessing import Scaling
from discrete.inference import DensityDistillation, distill, kl_divergence

GRADIENTS = ["total", "path"]
BUILDS = {gradient: partial(DensityDistillation, gradient=gradient) for gradient in GRADIENTS}
PAIRS: dict[str, tuple[Callable[[], Bijection], Callable[[], Bijection]]] = {
    "triangular": (lambda: Triangular(3), lambda: Triangular(3, triangle="upper")),
    "LU": (lambda: Compose(LULinear(3), Diagonal(3)), lambda: LULinear(3)),
    "triangular, inverted": (lambda: Inverse(Triangular(3)), lambda: Compose(Diagonal(3), Triangular(3))),
}


def flow(build: Callable[[], Bijection], seed: int) -> Flow:
    return perturb(Flow(seeded(build), StandardNormal(3)), rng(seed))


def pair(name: str) -> tuple[Flow, Flow]:
    student, teacher = PAIRS[name]
    return flow(student, 1), flow(teacher, 2)


def conditional(seed: int) -> Flow:
    """x | c Gaussian, its mean linear in c."""
    build = partial(NICE, 2, layers=2, hidden=(), context_features=3, base=StandardNormal(2))
    return perturb(seeded(build), rng(seed))


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("name", PAIRS)
class TestGaussians:
    def test_value(self, name: str, gradient: str) -> None:
        distillation.value_is_the_divergence(BUILDS[gradient], *pair(name), rng(3))

    def test_gradient(self, name: str, gradient: str) -> None:
        distillation.gradient_is_that_of_the_divergence(BUILDS[gradient], *pair(name), rng(4))

    def test_zero_at_the_optimum(self, name: str, gradient: str) -> None:
        distillation.vanishes_draw_by_draw_at_the_optimum(BUILDS[gradient], pair(name)[0], rng(5))

    def test_teacher_is_left_alone(self, name: str, gradient: str) -> None:
        distillation.teacher_is_left_alone(BUILDS[gradient], *pair(name), rng(6))


def test_closed_form_is_that_of_the_flow() -> None:
    """The normal that the contracts compare with has the flow's density."""
    x, c = normal(5, (2,), rng(7)), normal(1, (3,), rng(8))[0]
    expected = distillation.gaussian(conditional(1), c).log_prob(x)
    torch.testing.assert_close(conditional(1).log_prob(x, c), expected)


def test_divergence_and_its_error() -> None:
    student, teacher = pair("LU")
    exact = distillation.exact_divergence(student, teacher)
    estimate, std_error = kl_divergence(student, teacher, samples=20_000, generator=rng(9))
    assert estimate.shape == std_error.shape == ()
    assert not estimate.requires_grad
    assert (estimate - exact).abs() < 4 * std_error
    assert std_error < 0.05 * exact


def test_standard_error_is_the_spread_of_estimates() -> None:
    student, teacher = pair("triangular")
    generator = rng(10)
    found = [kl_divergence(student, teacher, samples=100, generator=generator) for _ in range(300)]
    spread = torch.stack([estimate for estimate, _ in found]).std()
    claimed = torch.stack([std_error for _, std_error in found]).square().mean().sqrt()
    assert spread.item() == pytest.approx(claimed.item(), rel=0.15)


def test_divergence_at_each_context() -> None:
    student, teacher, context = conditional(1), conditional(2), normal(2, (2, 3), rng(11))
    estimate, std_error = kl_divergence(student, teacher, samples=20_000, context=context, generator=rng(12))
    rows = [distillation.exact_divergence(student, teacher, c) for c in context.flatten(0, 1)]
    exact = torch.stack(rows).reshape(2, 2)
    assert exact.std() > 10 * std_error.max()
    assert ((estimate - exact).abs() < 4 * std_error).all()


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_conditional_gradient(gradient: str) -> None:
    """Over a batch of contexts the loss is the mean divergence, and so is its gradient."""
    student, teacher, context = conditional(1), conditional(2), normal(3, (3,), rng(13))
    exact = torch.stack([distillation.exact_divergence(student, teacher, c) for c in context]).mean()
    objective = partial(DensityDistillation(student, teacher, gradient=gradient), context=context)
    found = distillation.gradients(objective, student, rng(14), draws=500)
    distillation.within_four_errors(found, distillation.gradient(exact, student))


def test_path_gradient_has_no_variance_at_the_optimum() -> None:
    student = pair("LU")[0]
    distillation.gradient_vanishes_draw_by_draw_at_the_optimum(BUILDS["path"], student, rng(15))
    total = distillation.gradients(DensityDistillation(student, copy.deepcopy(student)), student, rng(15), draws=1)
    assert total.std(0).min() > 0.1


def test_any_density_teaches() -> None:
    """A mixture of one component is a Gaussian that is no flow."""
    student, teacher = pair("triangular")
    law = distillation.gaussian(teacher)
    mixture = GaussianMixture(law.loc[None].detach(), law.covariance_matrix[None].detach(), torch.ones(1).double())
    estimate, std_error = kl_divergence(student, mixture, samples=20_000, generator=rng(16))
    assert (estimate - distillation.exact_divergence(student, teacher)).abs() < 4 * std_error


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_training_reaches_the_teacher(gradient: str) -> None:
    student, teacher = pair("LU")
    seen: list[int] = []
    record = distill(
        student,
        teacher,
        steps=400,
        samples=128,
        learning_rate=0.1,
        gradient=gradient,
        gradient_clip=10.0,
        generator=rng(17),
        callback=lambda step, loss: seen.append(step),
    )
    assert distillation.exact_divergence(student, teacher) < 1e-3
    assert record.losses_nats.shape == (400,)
    assert not record.losses_nats.requires_grad
    assert record.losses_nats[-20:].mean() < 0.01 * record.losses_nats[0]
    assert seen == list(range(400))


def test_training_with_context() -> None:
    student, teacher, context = conditional(1), conditional(2), normal(200, (3,), rng(18))
    distill(
        student,
        teacher,
        steps=150,
        samples=64,
        learning_rate=0.2,
        gradient="path",
        context=context,
        generator=rng(19),
    )
    assert all(distillation.exact_divergence(student, teacher, c) < 1e-3 for c in context[:5])


def test_same_seed_trains_the_same_student() -> None:
    states = []
    for _ in range(2):
        student, teacher = pair("LU")
        distill(student, teacher, steps=5, samples=8, generator=rng(20))
        states.append(student.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


def test_schedule_and_clipping() -> None:
    """Adam's first step has the size of the learning rate, and its last one under the cosine hardly any."""

    def moved(steps: int, **keywords: Any) -> float:
        student, teacher = pair("triangular")
        at: list[Tensor] = []
        distill(
            student,
            teacher,
            steps=steps,
            samples=8,
            learning_rate=0.01,
            generator=rng(21),
            callback=lambda step, loss: at.append(nn.utils.parameters_to_vector(student.parameters()).detach()),
            **keywords,
        )
        return (at[-1] - at[-2]).abs().max().item()

    assert moved(20, schedule="constant") > 0.003
    assert moved(20, schedule="cosine") < 0.0003
    # Steps that Adam's epsilon does not let grow: a gradient of next to nothing moves nothing.
    assert moved(20, schedule="constant", gradient_clip=1e-12) < 1e-5


def test_objective_owns_the_student_alone() -> None:
    student, teacher = pair("LU")
    objective = DensityDistillation(student, teacher)
    assert {id(p) for p in objective.parameters()} == {id(p) for p in student.parameters()}
    teacher.eval()
    objective.train()
    assert student.training
    assert not teacher.training
    assert objective.teacher is teacher


def test_objective_can_be_copied() -> None:
    objective = DensityDistillation(*pair("LU"))
    loss = objective(5, generator=rng(22))
    for copied in (copy.deepcopy(objective), pickle.loads(pickle.dumps(objective))):
        assert torch.equal(copied(5, generator=rng(22)), loss)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_loss_on_meta(gradient: str) -> None:
    student, teacher = (f.to("meta") for f in pair("LU"))
    loss = DensityDistillation(student, teacher, gradient=gradient)(4)
    assert loss.shape == ()
    assert loss.is_meta


def test_statistics_of_a_teacher_in_training_mode_stay() -> None:
    teacher = Flow(BatchNorm(3), StandardNormal(3)).double().train()
    before = copy.deepcopy(teacher.state_dict())
    DensityDistillation(pair("LU")[0], teacher)(10, generator=rng(23)).backward()
    assert teacher.training
    assert all(torch.equal(a, b) for a, b in zip(before.values(), teacher.state_dict().values(), strict=True))


def test_flags_come_back_after_an_error() -> None:
    class Broken(StandardNormal):
        def log_prob(self, *_: Any, **__: Any) -> Tensor:
            raise ArithmeticError

    teacher = Flow(LULinear(3), StandardNormal(3)).double()
    teacher.base = Broken(3)
    with pytest.raises(ArithmeticError):
        DensityDistillation(pair("LU")[0], teacher)(10)
    assert all(p.requires_grad for p in teacher.parameters())
    assert teacher.training


def test_a_student_that_samples_slowly_is_refused() -> None:
    teacher = MAF(3, layers=2, hidden=(4,))
    with pytest.raises(ValueError, match="takes 6 network evaluations one after another to sample and 2 for"):
        DensityDistillation(MAF(3, layers=2, hidden=(4,)), teacher)
    for student in (IAF(3, layers=2, hidden=(4,)), RealNVP(3, hidden=(4,)), LinearFlow(3)):
        DensityDistillation(student, teacher)


def test_mistakes_are_named() -> None:
    student, teacher = pair("LU")
    with pytest.raises(ValueError, match=r"student over events of shape \(3,\) cannot learn a teacher over \(2,\)"):
        kl_divergence(student, StandardNormal(2), samples=10)
    with pytest.raises(Exception, match="'score'"):  # the type checks of the tests come first
        DensityDistillation(student, teacher, gradient="score")
    with pytest.raises(ValueError, match="2 samples or more"):
        kl_divergence(student, teacher, samples=1)
    with pytest.raises(ValueError, match="steps=0"):
        distill(student, teacher, steps=0)
    with pytest.raises(ValueError, match="samples=0"):
        distill(student, teacher, steps=1, samples=0)
    with pytest.raises(Exception, match="'linear'"):
        distill(student, teacher, steps=1, schedule="linear")


def test_a_loss_that_is_infinite_is_named_by_its_step() -> None:
    """The teacher lives on the unit cube; the student leaves it when its draws spread."""
    student = Flow(Scaling(3, loc=0.5, scale=1e-3), StandardNormal(3)).double()
    student.bijection = Compose(student.bijection, Diagonal(3))
    teacher = StandardUniform(3).double()
    with pytest.raises(RuntimeError, match=r"the loss of distillation step \d+ is inf"):
        distill(student, teacher, steps=250, samples=16, learning_rate=0.1, generator=rng(24))


def test_not_a_number_is_named_by_its_step() -> None:
    student, teacher = pair("LU")

    def spoil(step: int, loss: Tensor) -> None:
        if step == 109:
            with torch.no_grad():
                next(student.parameters()).fill_(torch.nan)

    with pytest.raises(RuntimeError, match="step 110 is nan"):
        distill(student, teacher, steps=120, samples=4, generator=rng(25), callback=spoil)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_float32_follows_the_divergence(gradient: str) -> None:
    student, teacher = pair("LU")
    exact = distillation.exact_divergence(student, teacher).detach()
    objective = DensityDistillation(student.float(), teacher.float(), gradient=gradient)
    losses = torch.stack([objective(1000, generator=rng(seed)) for seed in range(20)]).detach()
    assert losses.dtype == torch.float32
    distillation.within_four_errors(losses, exact.float())


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("build", [IAF, RealNVP])
def test_every_parameter_learns(build: Callable[..., Flow], gradient: str) -> None:
    student, teacher = (perturb(seeded(lambda b=b: b(3, layers=2, hidden=(8,))), rng(27)) for b in (build, MAF))
    DensityDistillation(student, teacher, gradient=gradient)(64, generator=rng(28)).backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert parameter.grad.count_nonzero() > 0, f"the gradient of {name} is zero"


def test_a_maf_teaches_an_iaf() -> None:
    student, teacher = (perturb(seeded(lambda b=b: b(3, layers=1, hidden=(16,))), rng(29)) for b in (IAF, MAF))
    before, _ = kl_divergence(student, teacher, samples=2000, generator=rng(30))
    distill(student, teacher, steps=200, samples=128, learning_rate=0.02, generator=rng(31))
    after, std_error = kl_divergence(student, teacher, samples=2000, generator=rng(30))
    assert after < 0.1 * before
    assert after > -4 * std_error
