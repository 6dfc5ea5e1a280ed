"""The contracts of distillation bite: each passes what is right and rejects an objective that is wrong in one place."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from contracts import distillation
from helpers import Tooth, perturb, rng, seeded
from torch import Tensor, nn

from core import StandardNormal
from discrete import Compose, Diagonal, Flow, LULinear
from discrete.inference import DensityDistillation

Formula = Callable[[Flow, Flow, int, torch.Generator], Tensor]


class Objective(nn.Module):
    """A loss of its own formula."""

    def __init__(self, student: Flow, teacher: Flow, formula: Formula) -> None:
        super().__init__()
        self.pair, self.formula = (student, teacher), formula

    def forward(self, samples: int, *, generator: torch.Generator) -> Tensor:
        return self.formula(*self.pair, samples, generator).mean()


def pair() -> tuple[Flow, Flow]:
    student = Flow(Compose(seeded(lambda: LULinear(3)), Diagonal(3)), StandardNormal(3))
    return perturb(student, rng(0)), perturb(Flow(seeded(lambda: LULinear(3)), StandardNormal(3)), rng(1))


def plain(student: Flow, teacher: Flow, samples: int, generator: torch.Generator) -> Tensor:
    """The right value and gradient, but the teacher gets gradients too."""
    x, log_q = student.rsample_and_log_prob((samples,), generator=generator)
    return log_q - teacher.log_prob(x)


def samples_of_the_teacher(student: Flow, teacher: Flow, samples: int, generator: torch.Generator) -> Tensor:
    x = teacher.sample((samples,), generator=generator)
    return teacher.log_prob(x).detach() - student.log_prob(x)


def ratio_at_samples_of_the_teacher(student: Flow, teacher: Flow, samples: int, generator: torch.Generator) -> Tensor:
    x = teacher.sample((samples,), generator=generator)
    return student.log_prob(x) - teacher.log_prob(x).detach()


def sign_flipped(student: Flow, teacher: Flow, samples: int, generator: torch.Generator) -> Tensor:
    return -plain(student, teacher, samples, generator)


def no_entropy(student: Flow, teacher: Flow, samples: int, generator: torch.Generator) -> Tensor:
    x, _ = student.rsample_and_log_prob((samples,), generator=generator)
    return -teacher.log_prob(x)


def entropy_without_gradient(student: Flow, teacher: Flow, samples: int, generator: torch.Generator) -> Tensor:
    x, log_q = student.rsample_and_log_prob((samples,), generator=generator)
    return log_q.detach() - teacher.log_prob(x)


def detached_draws(student: Flow, teacher: Flow, samples: int, generator: torch.Generator) -> Tensor:
    x, log_q = student.rsample_and_log_prob((samples,), generator=generator)
    return log_q - teacher.log_prob(x.detach())


def score_alone(student: Flow, teacher: Flow, samples: int, generator: torch.Generator) -> Tensor:
    """The path dropped and the student's score kept, whose mean is zero."""
    x = student.sample((samples,), generator=generator)
    return student.log_prob(x) - teacher.log_prob(x)


def log_det_added(student: Flow, teacher: Flow, samples: int, generator: torch.Generator) -> Tensor:
    z, log_base = student.base.rsample_and_log_prob((samples,), generator=generator)
    x, log_det = student.bijection.inverse(z)
    return log_base + log_det - teacher.log_prob(x)


def log_det_left_out(student: Flow, teacher: Flow, samples: int, generator: torch.Generator) -> Tensor:
    z, log_base = student.base.rsample_and_log_prob((samples,), generator=generator)
    return log_base - teacher.log_prob(student.bijection.inverse(z)[0])


def draws_of_the_base(student: Flow, teacher: Flow, samples: int, generator: torch.Generator) -> Tensor:
    """The teacher scores the noise."""
    z, log_base = student.base.rsample_and_log_prob((samples,), generator=generator)
    _, log_det = student.bijection.inverse(z)
    return log_base - log_det - teacher.log_prob(z)


def value(build: distillation.Build) -> None:
    distillation.value_is_the_divergence(build, *pair(), rng(2))


def gradient(build: distillation.Build) -> None:
    distillation.gradient_is_that_of_the_divergence(build, *pair(), rng(3))


def optimum(build: distillation.Build) -> None:
    distillation.vanishes_draw_by_draw_at_the_optimum(build, pair()[0], rng(4))


def still(build: distillation.Build) -> None:
    distillation.gradient_vanishes_draw_by_draw_at_the_optimum(build, pair()[0], rng(5))


def alone(build: distillation.Build) -> None:
    distillation.teacher_is_left_alone(build, *pair(), rng(6))


path = partial(DensityDistillation, gradient="path")
TEETH = {
    "divergence the other way, value": (value, DensityDistillation, samples_of_the_teacher),
    "divergence the other way, gradient": (gradient, DensityDistillation, samples_of_the_teacher),
    "log-ratio at draws of the teacher": (value, DensityDistillation, ratio_at_samples_of_the_teacher),
    "sign flipped, value": (value, DensityDistillation, sign_flipped),
    "sign flipped, gradient": (gradient, path, sign_flipped),
    "no entropy, value": (value, DensityDistillation, no_entropy),
    "no entropy, gradient": (gradient, DensityDistillation, no_entropy),
    "no entropy, optimum": (optimum, DensityDistillation, no_entropy),
    "entropy without gradient": (gradient, DensityDistillation, entropy_without_gradient),
    "detached draws": (gradient, DensityDistillation, detached_draws),
    "score alone": (gradient, path, score_alone),
    "log-det added, value": (value, DensityDistillation, log_det_added),
    "log-det added, optimum": (optimum, DensityDistillation, log_det_added),
    "log-det left out": (gradient, DensityDistillation, log_det_left_out),
    "draws of the base": (value, DensityDistillation, draws_of_the_base),
    "path with the student's score": (still, path, plain),
    "teacher learns too": (alone, DensityDistillation, plain),
}


@pytest.mark.parametrize("name", TEETH)
def test_objective(name: str) -> None:
    contract, right, wrong = TEETH[name]
    Tooth(contract, lambda: right, lambda: partial(Objective, formula=wrong)).bites()


@pytest.mark.parametrize("contract", [value, gradient, optimum])
def test_plain_formula_passes(contract: Callable[[distillation.Build], None]) -> None:
    """What the wrong ones differ from is right."""
    contract(partial(Objective, formula=plain))
