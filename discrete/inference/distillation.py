"""Probability density distillation: a student that samples in one pass learns the density of a teacher."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from core.density import Context, DensityModel, Nats
from core.modes import evaluating, frozen
from core.rng import Rng, for_all_rows
from discrete.flow import Flow

Gradient = Literal["total", "path"]
Schedule = Literal["cosine", "constant"]
CHECK_INTERVAL = 100  # steps between two looks at the losses: each makes the host wait


class DensityDistillation(nn.Module):
    """L = KL(q ‖ p) = E_z[log q(x) - log p(x)], x = student(z), z from the student's base; q student, p teacher.

    Draws of the student are scored by both. log q(x) = log p_base(z) - log|det dx/dz| comes with the draw, so that
    nothing is inverted; the gradient reaches the student through x as well, past a teacher whose parameters are frozen.

    References:
        van den Oord et al., "Parallel WaveNet: fast high-fidelity speech synthesis", 2017, section 4.
        Roeder, Wu, Duvenaud, "Sticking the landing", 2017; Vaitl et al., "Gradients should stay on path", 2022.

    Checked by tests/discrete/inference/test_distillation.py (closed-form divergence of Gaussians and its gradient).

    Args:
        student: a flow that samples in one pass, in no more steps than its density takes: an IAF, couplings.
        teacher: a density that can be differentiated in x. It is evaluated in evaluation mode and held, not owned:
            parameters, `state_dict`, `train` and `to` of the objective are those of the student.
        gradient: `total` differentiates the estimate as it stands. `path` leaves out the student's score
            ∂ log q(x)/∂θ at fixed x, whose mean is zero, so that the gradient has the same mean and vanishes draw by
            draw where q = p; it evaluates the student's `log_prob` at each draw, in as many passes as that takes, and
            has the student in evaluation mode.

    Raises:
        ValueError: event shapes that differ, a student slower to sample than to evaluate, or an unknown gradient.

    Note:
        KL(q ‖ p) sees only where the student draws: one that covers a single mode of a mixture of weight w pays no more
        than -log w, and nothing pulls it to the others. Compare draws of both, and log q at draws of the teacher. Draws
        where p = 0 cost infinity.

    Example:
        >>> from core import DiagonalNormal
        >>> from discrete import LinearFlow
        >>> objective = DensityDistillation(LinearFlow(2), DiagonalNormal(2, loc=1.0))
        >>> loss = objective(10_000, generator=torch.Generator().manual_seed(0))
        >>> round(loss.item(), 1)  # ½ ‖μ_q - μ_p‖²
        1.0
    """

    def __init__(self, student: Flow, teacher: DensityModel, *, gradient: Gradient = "total") -> None:
        super().__init__()
        _check_pair(student, teacher)
        if gradient not in ("total", "path"):
            raise ValueError(f"gradient must be total or path, but is {gradient!r}.")
        self.student = student
        self._teacher = (teacher,)  # in a tuple it is no submodule
        self.gradient = gradient

    @property
    def teacher(self) -> DensityModel:
        """The density that is learned."""
        return self._teacher[0]

    def forward(self, samples: int, context: Context = None, *, generator: Rng = None) -> Float[Tensor, ""]:
        """The loss over `samples` draws, of each row of the context where there is one.

        Args:
            samples: number of draws.
            context: `(*b, features)`, handed to both.
            generator: draws the noise.

        Returns:
            The mean over draws and rows of log q - log p, nats.
        """
        return self.log_ratio(samples, context, generator=generator).mean()

    def log_ratio(self, samples: int, context: Context = None, *, generator: Rng = None) -> Nats:
        """log q(x) - log p(x) at each draw, `(samples, *b)`, nats."""
        shape = (samples,) if context is None else (samples, *context.shape[:-1])
        if self.gradient == "path":
            with evaluating(self.student):
                x, _ = self.student.rsample_and_log_prob(shape, context=context, generator=generator)
            with frozen(self.student):
                log_q = self.student.log_prob(x, context, generator=generator)
        else:
            x, log_q = self.student.rsample_and_log_prob(shape, context=context, generator=generator)
        with frozen(self.teacher):
            return log_q - self.teacher.log_prob(x, context, generator=generator)


class Distillation(NamedTuple):
    """How a distillation went.

    Attributes:
        losses_nats: log q - log p over the draws of each step, before its update, `(steps,)`.
    """

    losses_nats: Tensor


def distill(
    student: Flow,
    teacher: DensityModel,
    *,
    steps: int,
    samples: int = 1024,
    learning_rate: float = 1e-3,
    schedule: Schedule = "cosine",
    gradient: Gradient = "total",
    gradient_clip: float | None = None,
    context: Float[Tensor, "rows features"] | None = None,
    generator: Rng = None,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Distillation:
    """Trains the student in place by Adam on KL(student ‖ teacher), see `DensityDistillation`.

    Checked by tests/discrete/inference/test_distillation.py.

    Args:
        student: a flow that samples in one pass; stays in the mode, training or evaluation, that it is in.
        teacher: the density to learn; stays as it is.
        steps: number of updates.
        samples: draws a step.
        learning_rate: of the first step.
        schedule: `cosine`, to zero after the last step, or `constant`.
        gradient: estimator, as of `DensityDistillation`.
        gradient_clip: largest norm of the gradient; None for no limit.
        context: contexts to learn the density at, `(rows, features)`; each step takes `samples` of them at random.
        generator: draws noise and contexts, on the student's device.
        callback: called with step and loss, a tensor on the student's device, after each update.

    Returns:
        The losses.

    Raises:
        ValueError: as of `DensityDistillation`, no step or no sample, or an unknown schedule.
        RuntimeError: a loss is not finite; the student is then of no use.

    Example:
        >>> from core import DiagonalNormal
        >>> from discrete import LinearFlow
        >>> student, teacher = LinearFlow(2), DiagonalNormal(2, loc=1.0, scale=0.5)
        >>> rng = torch.Generator().manual_seed(0)
        >>> _ = distill(student, teacher, steps=300, samples=64, learning_rate=0.1, gradient="path", generator=rng)
        >>> kl_divergence(student, teacher, samples=1000, generator=rng).estimate_nats.item() < 1e-3
        True
    """
    if steps < 1 or samples < 1:
        raise ValueError(f"distill needs 1 step and 1 sample or more, but has {steps=} and {samples=}.")
    if schedule not in ("cosine", "constant"):
        raise ValueError(f"schedule must be cosine or constant, but is {schedule!r}.")
    objective = DensityDistillation(student, teacher, gradient=gradient)
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], lr=learning_rate)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if schedule == "cosine" else None
    losses: list[Tensor] = []
    for step in range(steps):
        loss = _loss(objective, samples, context, generator)
        losses.append(loss.detach())
        _update(optimizer, loss, gradient_clip)
        if cosine is not None:
            cosine.step()
        if len(losses) % CHECK_INTERVAL == 0 or len(losses) == steps:
            _check_finite(losses, since=(len(losses) - 1) // CHECK_INTERVAL * CHECK_INTERVAL)
        if callback is not None:
            callback(step, losses[-1])
    optimizer.zero_grad(set_to_none=True)
    return Distillation(torch.stack(losses))


class KLDivergence(NamedTuple):
    """A Kullback-Leibler divergence by Monte Carlo.

    Attributes:
        estimate_nats: mean of log q - log p over the draws, `(*b,)`; unbiased, so it can be negative.
        std_error_nats: its standard error, `(*b,)`.
    """

    estimate_nats: Tensor
    std_error_nats: Tensor


@torch.no_grad()
def kl_divergence(
    student: Flow, teacher: DensityModel, *, samples: int, context: Context = None, generator: Rng = None
) -> KLDivergence:
    """KL(q ‖ p) = E_q[log q(x) - log p(x)] by draws of the student q, with its standard error.

    Checked by tests/discrete/inference/test_distillation.py.

    Args:
        student: q, a flow that samples in one pass.
        teacher: p.
        samples: number of draws, 2 or more, for each context.
        context: `(*b, features)`: a divergence for each of them.
        generator: draws the noise.

    Returns:
        Estimate and standard error, each `(*b,)`, nats.

    Raises:
        ValueError: as of `DensityDistillation`, or fewer than 2 samples.
    """
    if samples < 2:
        raise ValueError(f"kl_divergence needs 2 samples or more for its standard error, but has {samples}.")
    with evaluating(student):
        log_ratio = DensityDistillation(student, teacher).log_ratio(samples, context, generator=generator)
    std, mean = torch.std_mean(log_ratio, 0)
    return KLDivergence(mean, std / samples**0.5)


def _loss(objective: DensityDistillation, samples: int, context: Tensor | None, generator: Rng) -> Tensor:
    if context is None:
        return objective(samples, generator=generator)
    one = for_all_rows(generator, owner="distill")
    chosen = torch.randint(len(context), (samples,), generator=one, device=context.device)
    return objective(1, context[chosen], generator=generator)


def _update(optimizer: torch.optim.Optimizer, loss: Tensor, gradient_clip: float | None) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if gradient_clip is not None:
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], gradient_clip)
    optimizer.step()


def _check_pair(student: Flow, teacher: DensityModel) -> None:
    if student.event_shape != teacher.event_shape:
        raise ValueError(
            f"a student over events of shape {tuple(student.event_shape)} cannot learn a teacher over "
            f"{tuple(teacher.event_shape)}; both need the same."
        )
    sampling, evaluation = (d.steps or 0 for d in (student.sample_direction, student.log_prob_direction))
    if sampling > evaluation:
        raise ValueError(
            f"distillation draws from its student all the time, but this one takes {sampling} network evaluations one "
            f"after another to sample and {evaluation} for a density; take one that samples in one pass, as an IAF."
        )


def _check_finite(losses: list[Tensor], *, since: int) -> None:
    finite = torch.stack(losses[since:]).isfinite()
    if not finite.all():
        step = since + int(finite.logical_not().nonzero()[0])
        raise RuntimeError(
            f"the loss of distillation step {step} is {losses[step].item():g}: the student diverged, or drew where the "
            "teacher has no density; lower learning_rate, set gradient_clip, or start from a narrower student."
        )
